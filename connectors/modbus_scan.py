"""Looking at an unknown Modbus line: which units answer, and what a block of registers may mean.

Reads only, one request at a time with a pause between them. A unit is there when it answers anything, also an
exception: it has that table or not, but it is alive; then it is asked what it is. Only exceptions 10 and 11 come from a
gateway that found nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from connectors.modbus_decode import Layout
from connectors.modbus_frames import Reply, query
from connectors.modbus_identify import Interview, described, device_identification, server_id
from connectors.modbus_link import ALONE, ModbusLink
from connectors.modbus_plan import REGISTERS, Block, DataType, Point, WordOrder
from connectors.modbus_register import ORDERS
from connectors.modbus_rest import is_silence
from connectors.modbus_url import Manners, ModbusUrl
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected

UNIT_MAX: Final = 247
"""Serial Line V1.02, section 2.2; 255 is a TCP device's own (Messaging on TCP/IP V1.0b, section 4.4)."""
_TRIED: Final = (
    DataType.INT16,
    DataType.UINT16,
    DataType.FLOAT16,
    DataType.BCD16,
    DataType.INT32,
    DataType.UINT32,
    DataType.FLOAT32,
    DataType.BCD32,
    DataType.INT64,
    DataType.UINT64,
    DataType.FLOAT64,
    DataType.UNIX32,
    DataType.IEC870,
)


class Found(NamedTuple):
    """What a unit answered."""

    unit: int
    answer: str
    """`holding 0 = 42`, or the exception's text."""
    ms: float
    identity: str
    """What it says of itself; empty where it says nothing."""


def parse_units(text: str) -> list[int]:
    """`1-10,17,255` -> unit ids, each once. Raises ValueError, one line."""
    units: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{text!r}: write unit ids and ranges of them: 1-10,17,255")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high <= 255:
            raise ValueError(f"{text!r}: unit ids go from 0 to 255, the lower one first")
        units |= dict.fromkeys(range(low, high + 1))
    return list(units)


async def scan(
    url: ModbusUrl, units: Iterable[int], place: Point, timeout_ns: int, pause_s: float, clock: Clock
) -> AsyncIterator[Found]:
    """The units that answer a read of `place`, as they are found. Raises NotConnected."""
    manners = Manners(pause_ns=int(pause_s * 1e9))
    for unit in units:
        one = replace(url, unit=unit)
        async with _connected(one, timeout_ns, clock, manners) as link:
            began_ns = clock.mono_ns()
            reply = await _read(link, one, place)
            ms = (clock.mono_ns() - began_ns) / 1e6
            if not is_silence(reply):
                answer = reply.failure.reason if reply.failure else f"{place.span} = {_value(place, reply)}"
                yield Found(unit, answer, ms, await _identity(link, one))
        await clock.sleep(pause_s)


async def _identity(link: ModbusLink, url: ModbusUrl) -> str:
    """By function 43 / 14, or else 17. A unit that leaves such a question unanswered is not asked another."""
    interview = Interview(link, url)
    try:
        facts = await device_identification(interview) or await server_id(interview)
    except NotConnected:
        return ""
    return described(facts) or facts.get("server_id", "")


async def read_block(url: ModbusUrl, place: Point, timeout_ns: int, clock: Clock) -> tuple[bytes, float]:
    """Data bytes of one read, and how long it took (ms). Raises NotConnected for whatever kept them away."""
    async with _connected(url, timeout_ns, clock) as link:
        began_ns = clock.mono_ns()
        reply = await _read(link, url, place)
        if reply.failure:
            raise NotConnected(f"modbus {url}: {place.span}: {reply.failure.reason}")
        return reply.data, (clock.mono_ns() - began_ns) / 1e6


def table_of(place: Point, data: bytes) -> list[list[str]]:
    """Rows of text: a head, then each type at each place that it fits, in the word orders that differ for it."""
    if place.table.of_bits:
        bits = int.from_bytes(data, "little")
        return [["address", "bool"], *([str(place.address + at), str(bits >> at & 1)] for at in range(place.count))]
    rows = [["address", "type", *(f"{order} {letters}" for order, letters in ORDERS.items())]]
    words = [data[at : at + 2].hex() for at in range(0, len(data), 2)]
    rows += [[str(place.address + at), "hex", word, "", word[2:] + word[:2], ""] for at, word in enumerate(words)]
    for kind in _TRIED:
        count = REGISTERS[kind]
        for address in range(place.address, place.stop - count + 1, count):
            point = Point("p", place.table, address, count, kind)
            here = data[2 * (address - place.address) :][: 2 * count]
            values = [_decoded(replace(point, order=WordOrder(order)), here) for order in ORDERS]
            if count == 1:  # words in another order are the same word
                values[1] = values[3] = ""
            if any(values):
                rows.append([str(address), kind.value, *values])
    text = Point("p", place.table, place.address, place.count, DataType.STRING, length=len(data))
    texts = [_decoded(replace(text, order=WordOrder(order)), data) for order in ORDERS]
    return [*rows, [str(place.address), "string", *texts]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@asynccontextmanager
async def _connected(
    url: ModbusUrl, timeout_ns: int, clock: Clock, manners: Manners = ALONE
) -> AsyncIterator[ModbusLink]:
    """A connection of its own; closed whatever happens."""
    link = ModbusLink(url, timeout_ns, clock, Counters("source", "scan"), manners)
    try:
        await link.connect()
        yield link
    finally:
        await link.close()


async def _read(link: ModbusLink, url: ModbusUrl, place: Point) -> Reply:
    [reply] = await link.read([query(url, Block(place.table, place.address, place.count, (place,)))])
    return reply


def _value(place: Point, reply: Reply) -> Any:
    layout = Layout([Block(place.table, place.address, place.count, (place,))])
    value, extra, _ = layout.decode([reply.data])
    return (extra or {}).get(0, value.tolist()[0])


def _decoded(point: Point, data: bytes) -> str:
    """As text; empty where the bytes are none of the type."""
    layout = Layout([Block(point.table, point.address, point.count, (point,))])
    value, extra, bad = layout.decode([data])
    if bad:
        return ""
    found = (extra or {}).get(0, float(value[0]))
    if isinstance(found, str):
        shown = (letter if letter.isprintable() and letter != "\ufffd" else "." for letter in found)
        return repr("".join(shown)) if found else ""
    if point.type.is_time:
        return _time_text(int(found))
    return f"{found:.7g}" if point.type.value.startswith("float") else str(int(found))


def _time_text(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
