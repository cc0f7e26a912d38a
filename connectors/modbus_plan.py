"""Points -> few reads. Pure: no I/O, no clock; the same points give the same plan.

A request costs far more than the registers in it: about 70 us of this gateway's CPU, a round trip, and on a serial line
some 20 bytes of frame and silence. So points that lie near each other are read together, and the registers between them
are read and thrown away. Limits are those of the Modbus Application Protocol V1.1b3, sections 6.1-6.4: 125 registers or
2000 bits a request; a device may allow fewer (`max_block`) and may refuse a read that touches an address which it does
not have, which is why a gap is only bridged up to `max_gap` and never across a `forbidden` range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"
    UINT32 = "uint32"
    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    STRING = "string"


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
    """Of a STRING: characters (bytes)."""

    @property
    def stop(self) -> int:
        """One beyond the last address."""
        return self.address + self.count


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses [start, stop) of a table."""

    table: Table
    start: int
    stop: int


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
    def place(self) -> str:
        """`holding 40`, `input 0-99`: for people."""
        last = self.start + self.count - 1
        return f"{self.table.word} {self.start}" + (f"-{last}" if last > self.start else "")


def plan(points: Iterable[Point], max_gap: int, max_block: int, forbidden: Sequence[Range] = ()) -> tuple[Block, ...]:
    """The reads that cover every point exactly once.

    Each is at most `max_block` registers long and bridges gaps of at most `max_gap` registers, but none that touches a
    `forbidden` range. Both limits are 16 times as many addresses in the tables of bits.

    Raises ValueError for a point that is itself longer than `max_block`.
    """
    ordered = sorted(points, key=lambda point: (point.address, point.stop))
    blocks: list[Block] = []
    for table in Table:
        unit = BITS_PER_REGISTER if table.of_bits else 1
        own = [point for point in ordered if point.table is table]
        holes = [hole for hole in forbidden if hole.table is table]
        blocks.extend(_block(part) for part in _parts(own, max_gap * unit, max_block * unit, holes))
    return tuple(blocks)


def _parts(points: Sequence[Point], gap: int, size: int, holes: Sequence[Range]) -> Iterator[list[Point]]:
    """One sweep over points in order of address; each part starts at its first point and grows while it may."""
    part: list[Point] = []
    start = stop = 0
    for point in points:
        if point.count > size:
            raise ValueError(f"{point.name}: needs {point.count} registers in one read, max_block is {size}")
        fits = point.stop - start <= size and point.address - stop <= gap
        if part and fits and not any(hole.start < point.address and hole.stop > stop for hole in holes):
            part.append(point)
            stop = max(stop, point.stop)
            continue
        if part:
            yield part
        part, start, stop = [point], point.address, point.stop
    if part:
        yield part


def _block(points: Sequence[Point]) -> Block:
    start = points[0].address
    return Block(points[0].table, start, max(point.stop for point in points) - start, tuple(points))


def halves(block: Block) -> tuple[Block, Block] | None:
    """Two reads in place of one that the device refused: cut in the widest gap, or else near the middle.

    None where nothing is left to cut: all points lie on the same addresses. No point is ever divided.
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
        _count(len(block.points), "tag"),
        *([_count(gaps, "gap") + " bridged"] if gaps else []),
    ]
    return f"{block.place} ({', '.join(parts)})"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
