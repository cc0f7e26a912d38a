"""`gateway modbus scan`, `gateway modbus try`: what is on a line, and what its registers may mean. Both only read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from gateway.command import BAD_CONFIGURATION, complain, on_loop

app = typer.Typer(
    help="Look at Modbus devices: which units there are, what their registers hold.", no_args_is_help=True
)
Url = Annotated[str, typer.Argument(help="As behind `modbus:` in the file: tcp://host:502/1.", show_default=False)]
Timeout = Annotated[str, typer.Option(help="For connecting and for each request.")]


@app.command()
def scan(
    url: Url,
    units: Annotated[str, typer.Option(help="Unit ids to try: 1-10,17,255.")] = "1-247",
    register: Annotated[str, typer.Option(help="What each is asked for.")] = "holding 0 uint16",
    timeout: Timeout = "500ms",
    pause: Annotated[str, typer.Option(help="Between two requests.")] = "50ms",
) -> None:
    """Find the units behind an address, and what they are. Gentle: one after the other. Code 1 where nobody answers."""
    from connectors.modbus_register import parse_register
    from connectors.modbus_scan import Found, parse_units
    from connectors.modbus_scan import scan as look
    from connectors.modbus_url import parse_url
    from gateway.log import setup
    from pipelines.clock import SystemClock
    from pipelines.quantities import count, duration_ns

    setup("text", "warning")

    async def run() -> list[Found]:
        found = []
        wait_s = duration_ns(pause) / 1e9
        place = parse_register(register, "register")
        async for one in look(parse_url(url), parse_units(units), place, duration_ns(timeout), wait_s, SystemClock()):
            says = f"  ({one.identity})" if one.identity else ""
            print(f"unit {one.unit:<3}  {one.ms:7.1f} ms  {one.answer}{says}", flush=True)
            found.append(one)
        return found

    with _failures():
        found = on_loop(run)
    complain(f"{count(len(found), 'unit')} of {len(parse_units(units))} tried")
    raise typer.Exit(0 if found else 1)


@app.command("try")
def try_block(
    url: Url,
    table: Annotated[str, typer.Argument(help="holding, input, coil or discrete.", show_default=False)],
    address: Annotated[str, typer.Argument(help="The protocol's, counted from 0.", show_default=False)],
    registers: Annotated[int, typer.Argument(min=1, max=125, help="How many.")] = 4,
    timeout: Timeout = "1s",
) -> None:
    """Read one block and show it in all types and word orders: what looks right is what to write in the file."""
    from connectors.modbus_register import parse_register
    from connectors.modbus_scan import aligned, read_block, table_of
    from connectors.modbus_url import parse_url
    from gateway.log import setup
    from pipelines.clock import SystemClock
    from pipelines.quantities import duration_ns

    setup("text", "warning")
    kind = "bool" if table.lower() in {"coil", "discrete"} else "uint16"
    with _failures():
        place = parse_register(f"{table} {address} {kind}[{registers}]", "block")
        data, ms = on_loop(lambda: read_block(parse_url(url), place, duration_ns(timeout), SystemClock()))
    print(f"{place.span} of {parse_url(url)}, {ms:.1f} ms")
    for line in aligned(table_of(place, data)):
        print(line)


@contextmanager
def _failures() -> Iterator[None]:
    """Each is a line: code 2 for what was typed, 1 for what the device or its line does."""
    from pipelines.errors import GatewayError

    try:
        yield
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(BAD_CONFIGURATION) from error
    except GatewayError as error:
        complain(str(error))
        raise typer.Exit(1) from error
