"""`gateway write`, `gateway call`, `gateway audit`: commands to machines by the rules of the file, and their record."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.command import (
    BAD_CONFIGURATION,
    DATA_DIR,
    STORAGE_FAILED,
    AnyFile,
    DataDir,
    File,
    complain,
    data_folder,
    load_file,
    on_loop,
)

if TYPE_CHECKING:
    from gateway.settings import GatewayFile
    from pipelines.commands import Commands, Outcome

commands = typer.Typer()
VALUE = "As JSON: 21.5, true, [1, 2]; what is no JSON is text (write '\"42\"' for text that looks like a number)."


@commands.command(context_settings={"ignore_unknown_options": True})
def write(
    file: File,
    target: Annotated[str, typer.Argument(help="device/tag", show_default=False)],
    value: Annotated[str, typer.Argument(help=f"In engineering units. {VALUE}", show_default=False)],
) -> None:
    """Write a value to a machine, where the file allows it (`write:`). Refused, failed: code 1. Recorded either way."""
    settings, tag = _device(file, target)
    _end(_done(settings, target, lambda to: to.write(tag, _value(value), _who())), target)


@commands.command(context_settings={"ignore_unknown_options": True})
def call(
    file: File,
    target: Annotated[str, typer.Argument(help="device/method", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help=f"Its arguments. {VALUE}", show_default=False)] = None,
) -> None:
    """Call a method of a machine that the file names (`methods:`). Refused or failed: code 1. Recorded either way."""
    settings, method = _device(file, target)
    given = [_value(text) for text in arguments or ()]
    _end(_done(settings, target, lambda to: to.call(method, given, _who())), target)


@commands.command()
def audit(
    file: AnyFile = None,
    data_dir: DataDir = DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="The lines as they are kept.")] = False,
) -> None:
    """List what was written and called, by whom, and what became of it."""
    from gateway.audit import listing

    try:
        for line in listing(data_folder(file, data_dir), as_json):
            print(line)
    except OSError as error:
        complain(f"the record cannot be read: {error}")
        raise typer.Exit(STORAGE_FAILED) from error


def _device(file: Path, target: str) -> tuple[GatewayFile, str]:
    """The settings, and what is behind the slash; ends with code 2 where the file has no such device."""
    settings, warnings = load_file(file)
    complain(*warnings)
    device, slash, name = target.partition("/")
    if device not in settings.devices or not slash or not name:
        complain(f"{target}: write device/name; the file's devices are {', '.join(settings.devices)}")
        raise typer.Exit(BAD_CONFIGURATION)
    return settings, name


def _done(file: GatewayFile, target: str, command: Callable[[Commands], Awaitable[Outcome]]) -> Outcome:
    from connectors import WRITERS, load
    from gateway.audit import AuditFile
    from gateway.log import setup
    from gateway.settings import kind_of
    from pipelines.clock import SystemClock
    from pipelines.commands import Commands

    setup("text", "error")
    name = target.partition("/")[0]
    device = file.devices[name]
    kind = kind_of(device)
    if kind not in WRITERS:
        complain(f"{target}: there are no commands to {kind} devices in this version")
        raise typer.Exit(BAD_CONFIGURATION)

    async def run() -> Outcome:
        data_dir = file.gateway.data_dir
        writer = load(WRITERS[kind])(device, data_dir)
        methods = getattr(device, "methods", {})
        try:
            return await command(Commands(name, device.tags, methods, writer, AuditFile(data_dir), SystemClock()))
        finally:
            await writer.close()

    return on_loop(run)


def _end(outcome: Outcome, target: str) -> None:
    """Prints the outcome and ends with its code."""
    import json

    found = json.dumps(outcome.value, ensure_ascii=False)
    if outcome.good:
        before = "" if outcome.before is None else f"{json.dumps(outcome.before, ensure_ascii=False)} -> "
        print(f"ok {target}: {before}{found}")
        if outcome.reason:
            complain(outcome.reason)
        raise typer.Exit(0)
    complain(f"{target}: {outcome.reason} ({outcome.status:#010x})")
    raise typer.Exit(1)


def _value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _who() -> str:
    return f"{getpass.getuser()} at the command line"
