"""Points -> few reads. Pure: no I/O, no clock; the same points give the same plan.

A request costs far more than the registers in it: about 70 us of this gateway's CPU, a round trip, and on a serial line
some 20 bytes of frame and silence. So points that lie near each other are read together, and the registers between them
are read and thrown away. Limits are those of the Modbus Application Protocol V1.1b3, sections 6.1-6.4: 125 registers or
2000 bits a request; a device may allow fewer (`max_block`) and may refuse a read that touches an address which it does
not have, which is why a gap is only bridged up to `max_gap`, never across a `forbidden` range, and never again where
the device has refused such a read (`Known`).

The sweep takes as many points into a read as fit, in order of address. No plan has fewer reads: whether points fit
together only depends on where they begin and end, and points between two that fit together fit as well; so what a read
that begins earlier could take, one that begins later can take too (held by a test against an exhaustive search).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

REGISTERS_MAX = 125
"""Registers in one read (V1.1b3, sections 6.3 and 6.4)."""
BITS_PER_REGISTER = 16
ADDRESSES = 65_536


class Table(Enum):
    """The four tables of a device and the function code that reads each (V1.1b3, sections 4.3 and 6.1-6.4)."""

    HOLDING = ("holding", 3)
    INPUT = ("input", 4)
    COIL = ("coil", 1)
    DISCRETE = ("discrete", 2)

    def __init__(self, word: str, function: int) -> None:
        self.word = word
        self.function = function

    @property
    def of_bits(self) -> bool:
        """Addresses of this table are single bits, not registers."""
        return self.function < 3


class DataType(Enum):
    """What the registers of a point mean; the value is the word of the configuration file."""

    BOOL = "bool"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BCD16 = "bcd16"
    BCD32 = "bcd32"
    STRING = "string"
    UNIX32 = "unix32"
    UNIX64 = "unix64"
    UNIX64_MS = "unix64-ms"
    IEC870 = "iec870"
    POWERLOGIC = "powerlogic"
    S7_DATETIME = "s7-datetime"
    BCD_DATETIME = "bcd-datetime"
    DATETIME6 = "datetime6"

    @property
    def is_time(self) -> bool:
        """A date-time; see `connectors.modbus_time`."""
        return self in DATE_TIMES


DATE_TIMES = frozenset(
    {
        DataType.UNIX32,
        DataType.UNIX64,
        DataType.UNIX64_MS,
        DataType.IEC870,
        DataType.POWERLOGIC,
        DataType.S7_DATETIME,
        DataType.BCD_DATETIME,
        DataType.DATETIME6,
    }
)
_NOT_SCALED = frozenset({DataType.BOOL, DataType.STRING, *DATE_TIMES})
REGISTERS: Mapping[DataType, int] = {
    DataType.BOOL: 1,
    DataType.INT8: 1,
    DataType.UINT8: 1,
    DataType.INT16: 1,
    DataType.UINT16: 1,
    DataType.FLOAT16: 1,
    DataType.BCD16: 1,
    DataType.INT32: 2,
    DataType.UINT32: 2,
    DataType.FLOAT32: 2,
    DataType.BCD32: 2,
    DataType.UNIX32: 2,
    DataType.POWERLOGIC: 3,
    DataType.BCD_DATETIME: 3,
    DataType.INT64: 4,
    DataType.UINT64: 4,
    DataType.FLOAT64: 4,
    DataType.UNIX64: 4,
    DataType.UNIX64_MS: 4,
    DataType.IEC870: 4,
    DataType.S7_DATETIME: 4,
    DataType.DATETIME6: 6,
}
"""Of one value; a string has its own length."""


class WordOrder(Enum):
    """How a value of several registers is laid out; letters are a 32-bit value's bytes, A the most significant."""

    BIG = "big"
    """ABCD, as the standard has it (V1.1b3, section 4.2)."""
    LITTLE = "little"
    """CDAB: low word first, bytes within a word as in the standard."""
    BIG_BYTE_SWAPPED = "big-byte-swapped"
    """BADC: high word first, bytes within each word swapped."""
    LITTLE_BYTE_SWAPPED = "little-byte-swapped"
    """DCBA: everything reversed."""

    @property
    def low_word_first(self) -> bool:
        return self in {WordOrder.LITTLE, WordOrder.LITTLE_BYTE_SWAPPED}

    @property
    def bytes_swapped(self) -> bool:
        return self in {WordOrder.BIG_BYTE_SWAPPED, WordOrder.LITTLE_BYTE_SWAPPED}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a device: `count` registers (or one bit) of `table` from the 0-based `address` on."""

    name: str
    table: Table
    address: int
    count: int
    type: DataType
    order: WordOrder = WordOrder.BIG
    bit: int = 0
    """Of a BOOL in a register: 0 is the least significant."""
    length: int = 0
    """Of a STRING: bytes."""
    half: str = ""
    """`low` or `high`: the byte that an INT8 or UINT8 is, or that holds each character of a STRING."""
    items: int = 0
    """Of an array: how many values; 0 for a single one."""
    encoding: str = "utf-8"
    """Of a STRING: Python's name of the code page."""
    scale_from: Point | None = None
    """The value is times ten to the power of this one (SunSpec `sunssf`), which has no name."""
    invalid: tuple[int | float | str, ...] = ()
    """Raw values that stand for no value."""

    @property
    def stop(self) -> int:
        """One beyond the last address."""
        return self.address + self.count

    @property
    def span(self) -> Range:
        """Its addresses."""
        return Range(self.table, self.address, self.stop)

    def elements(self) -> list[Point]:
        """The values of an array one by one; a single value is its own only element."""
        if not self.items:
            return [self]
        each = self.count // self.items
        return [replace(self, address=self.address + at * each, count=each, items=0) for at in range(self.items)]


def scaled_by(point: Point, scale: Point) -> Point:
    """`point` times ten to the power of `scale`. Raises ValueError, one line."""
    if point.type in _NOT_SCALED or point.items:
        raise ValueError("scale_from is for single numbers")
    if not scale.type.value.startswith(("int", "uint")) or scale.items:
        raise ValueError(f"scale_from: {scale.span} is not an integer register, such as holding 40080 int16")
    if scale.table is not point.table:
        raise ValueError(f"scale_from: {scale.span} must be a {point.table.word} register, as the value is")
    return replace(point, scale_from=replace(scale, name=""))


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses [start, stop) of a table."""

    table: Table
    start: int
    stop: int

    def holds(self, other: Range) -> bool:
        """All of `other` is in it."""
        return self.table is other.table and self.start <= other.start and other.stop <= self.stop

    def touches(self, other: Range) -> bool:
        """Some of `other` is in it."""
        return self.table is other.table and self.start < other.stop and other.start < self.stop

    def __str__(self) -> str:
        return f"{self.table.word} {self.start}" + (f"-{self.stop - 1}" if self.stop > self.start + 1 else "")


@dataclass(frozen=True, slots=True)
class Known:
    """What a device has shown of itself; see `connectors.modbus_holes`."""

    refused: tuple[Range, ...] = ()
    """A read that holds all of one of these is refused: at least one of its addresses does not exist."""
    limits: Mapping[Table, int] = field(default_factory=dict)
    """Addresses in one read at most, where that is less than `max_block`."""

    def refuses(self, span: Range) -> bool:
        """It is known that a read of `span` fails."""
        return any(span.holds(hole) for hole in self.refused)


NOTHING_KNOWN = Known()


@dataclass(frozen=True, slots=True)
class Block:
    """One read: `count` addresses from `start` on, and the points that it answers, by address."""

    table: Table
    start: int
    count: int
    points: tuple[Point, ...]

    @property
    def reply_bytes(self) -> int:
        """Data bytes of the reply: two a register, one for each eight bits begun."""
        return (self.count + 7) // 8 if self.table.of_bits else 2 * self.count

    @property
    def span(self) -> Range:
        """Its addresses."""
        return Range(self.table, self.start, self.start + self.count)

    @property
    def place(self) -> str:
        """`holding 40`, `input 0-99`: for people."""
        return str(self.span)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Points that come in one read: one alone, or a value and the register that scales it."""

    start: int
    stop: int
    points: tuple[Point, ...]


def plan(
    points: Iterable[Point],
    max_gap: int,
    max_block: int,
    forbidden: Sequence[Range] = (),
    known: Known = NOTHING_KNOWN,
) -> tuple[Block, ...]:
    """The reads that cover every point exactly once.

    Each is at most `max_block` registers long and bridges gaps of at most `max_gap` registers, but none that touches a
    `forbidden` range or makes it a read that is known to be refused. Both limits are 16 times as many addresses in the
    tables of bits. A value that has a `scale_from` comes in one read with it, whatever is between them, where any read
    may reach from one to the other; else in another read of the same cycle.

    Raises ValueError for a point that is itself longer than `max_block`.
    """
    points = list(points)
    blocks: list[Block] = []
    for table in Table:
        words = BITS_PER_REGISTER if table.of_bits else 1
        holes = [hole for hole in forbidden if hole.table is table]
        refused = [hole for hole in known.refused if hole.table is table]
        rules = _Rules(max_gap * words, max_block * words, known.limits.get(table, ADDRESSES), holes, refused)
        units = _units([point for point in points if point.table is table], rules)
        blocks.extend(_block(part) for part in _parts(units, rules))
    return tuple(blocks)


@dataclass(frozen=True, slots=True)
class _Rules:
    """What may be one read, in addresses of one table."""

    gap: int
    size: int
    limit: int
    holes: Sequence[Range]
    refused: Sequence[Range]

    def may_hold(self, start: int, stop: int) -> bool:
        return stop - start <= min(self.size, self.limit) and not any(
            start <= hole.start and hole.stop <= stop for hole in self.refused
        )

    def may_bridge(self, start: int, stop: int) -> bool:
        """[start, stop) is read along, whatever it holds."""
        return not any(hole.start < stop and hole.stop > start for hole in self.holes)


def _units(points: Sequence[Point], rules: _Rules) -> list[_Unit]:
    """In order of address."""
    units: dict[tuple[int, int], tuple[Point, ...]] = {}
    for point in points:
        if point.count > rules.size:
            raise ValueError(f"{point.name}: needs {point.count} registers in one read, max_block is {rules.size}")
        for parts in _together(point, rules):
            span = min(part.address for part in parts), max(part.stop for part in parts)
            units[span] = units.get(span, ()) + parts
    return [_Unit(*span, units[span]) for span in sorted(units)]


def _together(point: Point, rules: _Rules) -> Iterator[tuple[Point, ...]]:
    scale = point.scale_from
    if scale is None or scale.table is not point.table:  # a scale in another table comes in a read of its own
        yield (point,)
        return
    first, second = sorted((point, scale), key=lambda part: part.address)
    stop = max(first.stop, second.stop)
    if rules.may_hold(first.address, stop) and rules.may_bridge(first.stop, second.address):
        yield point, scale
    else:
        yield (point,)
        yield (scale,)


def _parts(units: Sequence[_Unit], rules: _Rules) -> Iterator[list[Point]]:
    """One sweep over what is in order of address; each part starts at its first unit and grows while it may."""
    part: list[Point] = []
    start = stop = 0
    for unit in units:
        fits = unit.start - stop <= rules.gap and rules.may_hold(start, max(stop, unit.stop))
        if part and fits and rules.may_bridge(stop, unit.start):
            part.extend(unit.points)
            stop = max(stop, unit.stop)
            continue
        if part:
            yield part
        part, start, stop = list(unit.points), unit.start, unit.stop
    if part:
        yield part


def _block(points: Iterable[Point]) -> Block:
    """Each scale once, however many values need it."""
    ordered = sorted(dict.fromkeys(points), key=lambda point: (point.address, point.stop))
    start = ordered[0].address
    return Block(ordered[0].table, start, max(point.stop for point in ordered) - start, tuple(ordered))


def halves(block: Block) -> tuple[Block, Block] | None:
    """Two reads in place of one that the device refused: cut in the widest gap, or else near the middle.

    Gaps first, because a register that nobody asked for is the usual culprit. None where nothing is left to cut: all
    points lie on the same addresses. No point is ever divided.
    """
    points, best, cut = block.points, (-1, 0), 0
    stop = points[0].stop
    for at in range(1, len(points)):
        before, point = points[at - 1], points[at]
        if (before.address, before.stop) != (point.address, point.stop):
            score = (max(point.address - stop, 0), -abs(2 * at - len(points)))
            if score > best or not cut:
                best, cut = score, at
        stop = max(stop, point.stop)
    return (_block(points[:cut]), _block(points[cut:])) if cut else None


def describe(blocks: Iterable[Block]) -> list[str]:
    """One line a read: `holding 0-99 (100 registers, 40 tags, 2 gaps bridged)`."""
    return [_describe(block) for block in blocks]


def _describe(block: Block) -> str:
    gaps, stop = 0, block.start
    for point in block.points:
        gaps += point.address > stop
        stop = max(stop, point.stop)
    parts = [
        _count(block.count, "bit" if block.table.of_bits else "register"),
        _count(sum(point.name != "" for point in block.points), "tag"),
        *([_count(gaps, "gap") + " bridged"] if gaps else []),
    ]
    return f"{block.place} ({', '.join(parts)})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
