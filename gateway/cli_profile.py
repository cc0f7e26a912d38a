"""`gateway profile`: what profiles there are, what one says, and whether it fits a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.command import complain, on_loop

profiles = typer.Typer(help="Profiles of known devices.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a profile, or a profile's YAML file.", show_default=False)]
Own = Annotated[Path | None, typer.Option("--data-dir", help="Data folder; your own profiles are in its `profiles/`.")]
Firmware = Annotated[str | None, typer.Option(help="Of the device, such as 1.2.0.", show_default=False)]


@profiles.command("ls")
def profile_ls(data_dir: Own = None) -> None:
    """List the profiles: name, grade, tags, vendor and models."""
    from gateway.profiles import listing

    _print(lambda: listing(data_dir))


@profiles.command("show")
def profile_show(
    name: Name,
    firmware: Firmware = None,
    model: Annotated[str | None, typer.Option(help="Of the device.", show_default=False)] = None,
    data_dir: Own = None,
) -> None:
    """Print what a profile makes of a device: how it is asked, its registers, what is uncertain, the sources."""
    from gateway.profiles import shown

    facts = {key: text for key, text in (("firmware", firmware), ("model", model)) if text}
    _print(lambda: shown(name, facts, data_dir))


@profiles.command("test")
def profile_test(
    name: Annotated[
        str, typer.Argument(help="Name of a profile, a profile's YAML file, or `auto`.", show_default=False)
    ],
    url: Annotated[str, typer.Argument(help="tcp://host:502/1, or opc.tcp://host:4840", show_default=False)],
    firmware: Firmware = None,
    insecure: Annotated[bool, typer.Option(help="OPC UA without signature and encryption.")] = False,
    data_dir: Own = None,
) -> None:
    """Ask a device what it is, read every tag once, and print the values. Code 1 where something failed."""
    from gateway.log import setup
    from gateway.profiles import server_trial, trial
    from pipelines.errors import GatewayError

    setup("text", "error")
    try:
        if url.startswith("opc.tcp://"):
            lines, failed = on_loop(lambda: server_trial(name, url, firmware, insecure, data_dir))
        else:
            lines, failed = on_loop(lambda: trial(name, url, firmware, data_dir))
    except (GatewayError, ValueError) as error:
        complain(str(error))
        raise typer.Exit(1) from error
    print("\n".join(lines))
    raise typer.Exit(1 if failed else 0)


@profiles.command("schema")
def profile_schema() -> None:
    """Print the JSON Schema of a profile, for editors."""
    import json

    from gateway.profiles import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _print(make: object) -> None:
    """Lines, or why there are none."""
    try:
        print("\n".join(make()))  # type: ignore[operator]
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(1) from error
