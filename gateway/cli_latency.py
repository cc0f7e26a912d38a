"""`gateway latency`: measures on this host, prints tables or JSON, or writes the table of docs/latency.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.command import BAD_CONFIGURATION, complain

app = typer.Typer()
BEGIN: Final = "<!-- made by: gateway latency --markdown docs/latency.md -->"
END: Final = "<!-- end -->"
COLUMNS: Final = ("p50", "p99", "p99.9", "max")
LEGS: Final[Mapping[str, str]] = {
    "source_to_received": "gateway: machine -> received",
    "received_to_lane": "gateway: -> in the route's memory",
    "lane_to_ack": "gateway: -> acknowledged by the broker",
}


@app.command()
def latency(
    rate: Annotated[
        float, typer.Option(min=1.0, max=1000.0, help="Changes a second of the machine that is started.")
    ] = 100.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long each of the two is measured.")] = 10.0,
    broker: Annotated[
        str, typer.Option(help="mqtt://host:port of your own broker.", show_default="one is started")
    ] = "",
    opcua: Annotated[
        str, typer.Option(help="opc.tcp://... of your own server, without security.", show_default="one is started")
    ] = "",
    node: Annotated[str, typer.Option(help="With --opcua: a variable that changes.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON, times in us.")] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write the table into this document.", show_default=False, exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Measure latency on this host: the floor, a real gateway with a fast route, the difference, and what of the host
    matters."""
    import json

    from gateway.latency_host import advice, host
    from gateway.latency_machine import NODE
    from gateway.latency_measure import Asked, MeasureFailed, measure

    if bool(opcua) != bool(node):
        complain("--opcua and --node belong together")
        raise typer.Exit(BAD_CONFIGURATION)
    page = markdown.read_text("utf-8") if markdown else f"{BEGIN}{END}"
    if END not in page.partition(BEGIN)[2]:
        complain(f"{markdown}: there is no {BEGIN} ... {END}")
        raise typer.Exit(BAD_CONFIGURATION)
    facts = host()
    try:
        found = measure(Asked(rate, seconds, broker, opcua, node or NODE), _say)
    except MeasureFailed as failed:
        complain(str(failed))
        raise typer.Exit(1) from None
    found["host"] = facts
    if markdown:
        markdown.write_text(with_table(page, found), "utf-8")
    elif as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, advice(facts))


def _say(what: str) -> None:
    complain(f"measuring {what}")


def _print(found: Mapping[str, Any], advice: Iterable[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_title(found), title_justify="left", header_style="bold")
    table.add_column("us")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, cells in _rows(found):
        table.add_row(name, *cells)
    host = Table(title="This host", title_justify="left", show_header=False)
    for fact, value in found["host"].items():
        host.add_row(fact.replace("_", " "), value)
    console = Console()
    for each in (table, host):
        console.print(each)
    for line in advice:
        console.print(f"- {line}", soft_wrap=True, highlight=False)


def with_table(page: str, found: Mapping[str, Any]) -> str:
    """The document with the figures between its markers, which it has."""
    head, _, rest = page.partition(BEGIN)
    tail, host = rest.partition(END)[2], found["host"]
    tuned = f"governor {host['governor']}, PREEMPT_RT {host['preempt_rt']}, {host['scheduling']}, load {host['load']}."
    lines = [f"{_title(found)};", f"{host['machine']}, {host['kernel']}, {host['python']},", tuned, ""]
    lines += ["| us | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join([name, *cells]) + " |" for name, cells in _rows(found)]
    return "\n".join([head + BEGIN, "", *lines, "", END + tail])


def _title(found: Mapping[str, Any]) -> str:
    return f"{found['machine']} to {found['broker']}, {found['rate']:g} changes/s, {found['seconds']:g} s each"


def _rows(found: Mapping[str, Any]) -> Iterable[tuple[str, list[str]]]:
    yield "machine -> subscriber: floor", _cells(found["floor"])
    yield "machine -> subscriber: gateway", _cells(found["gateway"])
    yield "the gateway's more", _cells(found["difference"])
    yield "the floor, before and after it, differs by", _cells(found["unrest"])
    for leg, words in LEGS.items():
        if leg in found["legs"]:
            yield words, _cells(found["legs"][leg])


def _cells(times: Mapping[str, float]) -> list[str]:
    return [f"{times[column]:,.0f}" for column in COLUMNS]
