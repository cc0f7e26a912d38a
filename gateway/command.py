"""What every command needs: the file, the loop, words for people, exit codes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from gateway.settings import GatewayFile

Result = TypeVar("Result")
STOPPED, BAD_CONFIGURATION, STORAGE_FAILED = 0, 2, 3
File = Annotated[Path, typer.Argument(help="The configuration file (YAML).", show_default=False)]
AnyFile = Annotated[
    Path | None, typer.Argument(help="The configuration file: its data_dir is looked into.", show_default=False)
]
DataDir = Annotated[Path, typer.Option(help="The gateway's data folder, where no file is named.")]
DATA_DIR: Final = Path("/var/lib/gateway")


def load_file(
    path: Path, interfaces: Literal["wanted", "later", "elsewhere"] = "later"
) -> tuple[GatewayFile, list[str]]:
    """The settings and warnings; for a bad file prints every mistake and ends with code 2. See `config.load`."""
    from gateway.config import ConfigErrors, load

    try:
        return load(path, interfaces=interfaces)
    except ConfigErrors as errors:
        complain(str(errors))
        raise typer.Exit(BAD_CONFIGURATION) from errors


def data_folder(file: Path | None, data_dir: Path) -> Path:
    """The file's, or the one that is named. Where there is none it says so and ends with code 1."""
    folder = load_file(file)[0].gateway.data_dir if file else data_dir
    if not os.access(folder, os.R_OK | os.X_OK):
        if folder.exists():
            complain(f"{folder} cannot be read: do it as the gateway's user")
        elif file:
            complain(f"there is no data folder {folder}: no gateway has run with {file} yet")
        else:
            complain(f"there is no data folder {folder}: name the configuration file, or the folder with --data-dir")
        raise typer.Exit(1)
    return folder


def on_loop(make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Runs it on uvloop where that exists; Ctrl-C ends a command without a traceback."""
    from connectors.network import new_loop

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(make())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def password_of(user: str) -> str:
    """Never as an argument, which every user of the machine can read."""
    known = os.environ.get("GATEWAY_PASSWORD")
    return typer.prompt(f"Password of {user}", hide_input=True) if known is None else known


def complain(*texts: str) -> None:
    """Lines for people, beside what a command prints."""
    for text in texts:
        typer.echo(text, err=True)
