"""`gateway browse`: a server's variables as a tree, as a `tags:` block, as JSON, or live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.command import BAD_CONFIGURATION, DATA_DIR, complain, load_file, on_loop, password_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text
    from rich.tree import Tree

    from connectors.opcua_browse import Seen, Value
    from connectors.opcua_select import OpcUaSelect
    from connectors.opcua_session import PublishSession
    from connectors.opcua_settings import OpcUaDevice

app = typer.Typer()
ENDPOINT = "opc.tcp://"
LIVE_S = 1.0
PROGRESS_FROM = 1000
"""Nodes: a small server is looked through before anybody wonders."""


@app.command()
def browse(
    target: Annotated[str, typer.Argument(help="opc.tcp://host:4840, or a configuration file.", show_default=False)],
    device: Annotated[str | None, typer.Argument(help="With a file: one of its devices.", show_default=False)] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", "-i", help="Browse path with wildcards, or regex:...; as in `select:`."),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", "-x", help="What to leave out; likewise.")] = None,
    types: Annotated[list[str] | None, typer.Option("--type", help="Instances of this type: node id or path.")] = None,
    properties: Annotated[bool, typer.Option(help="Properties too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Most variables to list; default: 1,000.")] = None,
    export: Annotated[bool, typer.Option("--export", help="Print a `tags:` block for the configuration.")] = False,
    by_index: Annotated[bool, typer.Option("--by-index", help="In it, namespaces by index, not by URI.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each variable.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Show the values, anew every second, until Ctrl-C.")] = False,
    insecure: Annotated[bool, typer.Option(help="Connect without signature and encryption.")] = False,
    user: Annotated[
        str | None, typer.Option(help="User name; GATEWAY_PASSWORD or a prompt gives the password.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where the gateway's certificate is.")] = DATA_DIR,
) -> None:
    """Show the variables of an OPC UA server, or what a device's `select:` means there."""
    from pydantic import ValidationError

    from gateway.log import setup
    from pipelines.errors import GatewayError

    setup("text", "error")
    try:
        if target.startswith(ENDPOINT):
            settings, name = _at(target, insecure, user), ""
        else:
            settings, name, data_dir = _in_file(Path(target), device)
        select = _select(settings, include, exclude, types, properties, limit)
        on_loop(lambda: _browse(settings, name, select, data_dir, _Output(export, by_index, as_json, live)))
    except ValidationError as error:
        complain(*(str(each["msg"]).removeprefix("Value error, ") for each in error.errors()))
        raise typer.Exit(BAD_CONFIGURATION) from None
    except GatewayError as error:
        complain(str(error))
        raise typer.Exit(1) from error


def _at(url: str, insecure: bool, user: str | None) -> OpcUaDevice:
    """The device that the options describe. Raises ValidationError."""
    from connectors.opcua_settings import OpcUaDevice

    settings = {"opcua": url, "security": "none" if insecure else "best", "select": "/Objects/**"}
    if user:
        settings["auth"] = {"user": user, "password": password_of(user)}  # type: ignore[assignment]
    return OpcUaDevice.model_validate(settings)


def _in_file(path: Path, device: str | None) -> tuple[OpcUaDevice, str, Path]:
    """A device of a configuration file, with its user and security, its name, and the data folder."""
    from connectors.opcua_settings import OpcUaDevice

    file, _ = load_file(path)
    known = [name for name, one in file.devices.items() if isinstance(one, OpcUaDevice)]
    if device is None and len(known) == 1:
        [device] = known
    if device is None or device not in known:
        complain(f"{path}: name one of its OPC UA devices: {', '.join(known) or 'there is none'}")
        raise typer.Exit(BAD_CONFIGURATION)
    found = file.devices[device]
    assert isinstance(found, OpcUaDevice)
    return found, device, file.gateway.data_dir


def _select(
    settings: OpcUaDevice,
    include: list[str] | None,
    exclude: list[str] | None,
    types: list[str] | None,
    properties: bool,
    limit: int | None,
) -> OpcUaSelect:
    """What the options select; without any, the device's `select:`, else everything. Raises ValidationError."""
    from connectors.opcua_select import OpcUaSelect

    if not (include or types) and settings.select:
        chosen = settings.select.model_dump(exclude={"limit", "refresh"})
        chosen["exclude"] += tuple(exclude or ())
        chosen["properties"] |= properties
    else:
        chosen = {
            "include": include or (() if types else "/Objects/**"),
            "exclude": exclude or (),
            "types": [{"type": one} for one in types or ()],
            "properties": properties,
        }
    return OpcUaSelect.model_validate({**chosen, "limit": limit or 1000})


async def _browse(settings: OpcUaDevice, name: str, select: OpcUaSelect, data_dir: Path, output: _Output) -> None:
    from connectors.opcua_browse import browse, publishing, session
    from connectors.opcua_redundancy import fittest
    from connectors.opcua_security import Access

    url, reverse = await fittest(settings, data_dir), settings.reverse
    if reverse:
        complain(f"{url}: waits for a call from {reverse.server}")
    async with session(url, Access.of(settings, name), data_dir, reverse) as client:
        opened = publishing(client)
        found, missing = await browse(opened, select, _progress)
        complain(*(f"{name}: {why}" for name, why in missing.items()))
        if output.live:
            await _live(opened, found)
        else:
            output.show(found, url)


def _progress(nodes: int, found: int) -> None:
    if nodes > PROGRESS_FROM:
        complain(f"{nodes:,} nodes, {found:,} variables ...")


@dataclass(frozen=True, slots=True)
class _Output:
    """How it is shown."""

    export: bool
    by_index: bool
    as_json: bool
    live: bool

    def show(self, found: Sequence[Seen], url: str) -> None:
        import orjson
        from rich.console import Console

        from connectors.opcua_browse import as_json, tags_block

        if self.as_json:
            print("\n".join(orjson.dumps(as_json(seen)).decode() for seen in found))
        elif self.export:
            print("\n".join(tags_block(found, by_index=self.by_index)))
        else:
            Console(soft_wrap=True, highlight=False).print(_tree(found, url))


def _tree(found: Iterable[Seen], url: str) -> Tree:
    """Names that lie below each other; a variable with its type, value, unit and node id."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(url))
    places: dict[tuple[str, ...], Tree] = {(): root}
    for seen in found:
        for depth in range(1, len(seen.path)):
            above = seen.path[:depth]
            if above not in places:
                places[above] = places[above[:-1]].add(Text(above[-1], "bold"))
        value = Text.assemble(f"{seen.path[-1]}  ", (seen.value.type, "dim"), "  ", _value(seen), f"  {seen.unit}")
        value.append(f"  {seen.node}", "dim")
        places[seen.path] = places[seen.path[:-1]].add(value)
    return root


def _value(seen: Seen) -> Text:
    from rich.text import Text

    return Text(seen.value.text, "red" if seen.value.status & 0x8000_0000 else "green")


async def _live(opened: PublishSession, found: Sequence[Seen]) -> None:
    """On a terminal a table; else a line for each value that has changed."""
    from rich.console import Console
    from rich.live import Live

    from connectors.opcua_browse import limits_of, present

    limits = await limits_of(opened)
    console = Console()
    said: Sequence[Value | None] = [None] * len(found)
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as shown:
        while True:
            values = await present(opened.request, [seen.node for seen in found], limits)
            now = [replace(seen, value=value) for seen, value in zip(found, values, strict=True)]
            if shown:
                shown.update(_table(now), refresh=True)
            else:
                for seen, before in zip(now, said, strict=True):
                    if seen.value != before:
                        print(f"{seen.name} = {seen.value.text} {seen.unit}".rstrip(), flush=True)
                said = values
            await asyncio.sleep(LIVE_S)


def _table(found: Sequence[Seen]) -> RenderableType:
    from rich.table import Table

    rows = Table(expand=True, header_style="bold", border_style="dim")
    rows.add_column("tag", no_wrap=True)
    rows.add_column("value", justify="right", no_wrap=True)
    rows.add_column("unit", no_wrap=True)
    rows.add_column("type", no_wrap=True)
    for seen in found:
        rows.add_row(seen.name, _value(seen), seen.unit, seen.value.type)
    return rows
