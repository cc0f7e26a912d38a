"""Register bytes -> columns. Pure: no I/O, no clock.

The replies of one poll cycle are joined and decoded together: per type one gather of bytes (`raw[index]`), one view and
one assignment, however many points and blocks there are. The index arrays, made once per plan, put the bytes into the
host's order, so that word and byte order cost nothing at run time. A type whose points follow each other without a gap
is one view and no gather. Rows come grouped by type; only text, date-times and arrays are made one by one.

Raw values that stand for no value (`Point.invalid`) are found and scales read from registers are applied in the same
columns; what is no number (a BCD digit above 9) or no date has no value either, and `Rows.bad` says why.

Layout on the wire: registers most significant byte first (Modbus Application Protocol V1.1b3, section 4.2); coils and
discrete inputs eight a byte, the first in the least significant bit (section 6.1). Values of several registers have no
standard; see `WordOrder`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isnan
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from connectors.modbus_plan import Block, DataType, Point
from connectors.modbus_time import to_ns
from pipelines.batch import ARRAY, EXACT_INTEGER_MAX, Extra, Kind

BAD_DECODING_ERROR = 0x8007_0000
BAD_NO_DATA = 0x809B_0000
SCALE_MAX = 10
"""A power of ten beyond this, either way, is no scale (SunSpec: 0x8000 where there is none)."""

NUMBER_TYPES: Mapping[DataType, tuple[int, Any]] = {
    DataType.INT8: (Kind.SBYTE, np.int8),
    DataType.UINT8: (Kind.BYTE, np.uint8),
    DataType.INT16: (Kind.INT16, np.int16),
    DataType.UINT16: (Kind.UINT16, np.uint16),
    DataType.INT32: (Kind.INT32, np.int32),
    DataType.UINT32: (Kind.UINT32, np.uint32),
    DataType.INT64: (Kind.INT64, np.int64),
    DataType.UINT64: (Kind.UINT64, np.uint64),
    DataType.FLOAT16: (Kind.FLOAT, np.float16),
    DataType.FLOAT32: (Kind.FLOAT, np.float32),
    DataType.FLOAT64: (Kind.DOUBLE, np.float64),
    DataType.BCD16: (Kind.UINT16, np.uint16),
    DataType.BCD32: (Kind.UINT32, np.uint32),
}
"""Types of numbers: their kind, and what numpy calls them (BCD: the bytes that it comes in)."""
NUMBERS = frozenset(NUMBER_TYPES)
_ROW_ORDER = {kind: at for at, kind in enumerate(sorted(DataType, key=lambda kind: kind not in NUMBERS))}
_BYTE, _FLOAT16, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float16), np.dtype(np.float32)
_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)
_EXACT = frozenset(np.dtype(kind) for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float64))
"""Every number of these is a float64."""
NOTHING_BAD: Mapping[int, int] = MappingProxyType({})
_BCD = frozenset({DataType.BCD16, DataType.BCD32})
_TEN = 10.0 ** np.arange(SCALE_MAX + 1)
_NATIVE_LITTLE = sys.byteorder == "little"


class Rows(NamedTuple):
    """A poll cycle's values."""

    value: npt.NDArray[np.float64]
    """NaN where the value is in `extra`, or where there is none."""
    extra: Extra | None
    """By row, what a float64 cannot hold exactly: integers beyond 2^53, text, date-times (UTC ns), arrays."""
    bad: Mapping[int, int]
    """StatusCode of each row that came, but has no value."""


class _Placed(NamedTuple):
    """A point and where it is read: the first byte of its block in the joined replies, the block and its number."""

    point: Point
    byte: int
    block: Block
    at: int

    @property
    def places(self) -> npt.NDArray[np.intp]:
        """Of its bytes."""
        return self.byte + _byte_order(self.point, self.block)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Rows [start, stop) of one type; `index` gathers their bytes in the host's order."""

    start: int
    stop: int
    index: npt.NDArray[np.intp]
    dtype: np.dtype[Any]
    bcd: bool
    run: tuple[np.dtype[Any], int] | None
    """Where all bytes lie in one stretch: their type as it is on the wire, and the first byte."""

    def column(self, data: bytes) -> npt.NDArray[Any]:
        """The rows' numbers out of the joined replies."""
        if self.run is not None:
            return np.frombuffer(data, self.run[0], self.stop - self.start, self.run[1])
        return np.frombuffer(data, _BYTE)[self.index].view(self.dtype)


@dataclass(frozen=True, slots=True)
class _Bits:
    """Rows [start, stop): bit `shift` of the byte at `index`."""

    start: int
    stop: int
    index: npt.NDArray[np.intp]
    shift: npt.NDArray[np.uint8]

    def column(self, data: bytes) -> npt.NDArray[np.uint8]:
        """0 or 1."""
        return (np.frombuffer(data, _BYTE)[self.index] >> self.shift) & np.uint8(1)


@dataclass(frozen=True, slots=True)
class _Single:
    """One row: text or a date-time, of the bytes at `index`."""

    row: int
    point: Point
    index: npt.NDArray[np.intp]

    def value(self, data: bytes) -> str | int | None:
        raw = np.frombuffer(data, _BYTE)[self.index].tobytes()
        if self.point.type is not DataType.STRING:
            return to_ns(self.point.type, raw)
        return raw.decode(self.point.encoding, "replace").partition("\0")[0].strip()


@dataclass(frozen=True, slots=True)
class _Array:
    """One row: a list of what `items` reads."""

    row: int
    items: _Numbers | _Bits

    def value(self, data: bytes) -> list[Any] | None:
        column = self.items.column(data)
        if isinstance(self.items, _Bits):
            return [bit == 1 for bit in column.tolist()]
        if self.items.bcd:
            numbers = _from_bcd(column)
            return None if np.isnan(numbers).any() else [int(number) for number in numbers.tolist()]
        listed: list[Any] = column.tolist()
        return listed


class Layout:
    """Where each row of a poll cycle comes from; fixed for the blocks that it was made for.

    `absent` points are in no block; they have rows too, the last ones, without values.
    """

    def __init__(self, blocks: Sequence[Block], absent: Sequence[Point] = ()) -> None:
        starts = [0, *accumulate(block.reply_bytes for block in blocks)]
        everything = [
            _Placed(point, starts[at], block, at) for at, block in enumerate(blocks) for point in block.points
        ]
        everything.sort(key=lambda one: (one.point.items > 0, _ROW_ORDER[one.point.type]))
        placed = [one for one in everything if one.point.name]
        scales = [one for one in everything if not one.point.name]
        self.points: tuple[Point, ...] = (*(one.point for one in placed), *absent)
        """The point of each row."""
        self.present = len(placed)
        """Rows of points that are read; those behind are absent."""
        self.block = np.array([one.at for one in placed] + [-1] * len(absent), dtype=np.intp)
        """The block of each row; -1 where it is absent."""
        self.kind = np.array([_kind(point) for point in self.points], dtype=np.uint8)
        self.kind[self.present :] = Kind.NULL
        self.kind.setflags(write=False)
        self._size = len(self.points) + len(scales)
        self._numbers: list[_Numbers] = []
        self._bits: list[_Bits] = []
        self._singles: list[_Single | _Array] = []
        for start, run in [*_runs(placed, 0), *_runs(scales, len(self.points))]:
            self._add(start, run)
        self._sentinels = _Sentinels(placed)
        self._scaling = _Scaling(placed, scales, len(self.points))
        self._only = self._all_in_one(scales)

    def _all_in_one(self, scales: Sequence[_Placed]) -> _Numbers | None:
        """What reads all there is, where nothing but its conversion to float64 is to be done; None: there is more."""
        if len(self._numbers) != 1 or self._bits or self._singles or scales or self._size > self.present:
            return None
        [one] = self._numbers
        return None if one.bcd or one.dtype not in _EXACT or self._sentinels.some else one

    def _add(self, row: int, placed: Sequence[_Placed]) -> None:
        """Rows of one type, from `row` on."""
        point = placed[0].point
        if point.items:
            self._singles += [_Array(row + at, _elements(one)) for at, one in enumerate(placed)]
        elif point.type is DataType.BOOL:
            self._bits.append(_bits(row, placed))
        elif point.type in NUMBERS:
            self._numbers.append(_column(row, placed))
        else:
            self._singles += [_Single(row + at, one.point, one.places) for at, one in enumerate(placed)]

    def rows_without(self, at: int) -> npt.NDArray[np.bool_]:
        """The rows that need block number `at`, for their value or for its scale."""
        rows = self._scaling.needs(at, len(self.points))
        rows[self.block == at] = True
        return rows

    def decode(self, replies: Sequence[bytes]) -> Rows:
        """Data bytes of each block's reply, in the order of the blocks, each `reply_bytes` long -> the rows' values."""
        data = replies[0] if len(replies) == 1 else b"".join(replies)
        if self._only is not None:
            return Rows(self._only.column(data).astype(np.float64), None, NOTHING_BAD)
        value = np.empty(self._size)
        extra: Extra = {}
        bad: dict[int, int] = {}
        for part in self._numbers:
            _numbers(part, data, value, extra, bad)
        for bits in self._bits:
            value[bits.start : bits.stop] = bits.column(data)
        for single in self._singles:
            value[single.row] = np.nan
            if (made := single.value(data)) is None:
                bad[single.row] = BAD_DECODING_ERROR
            else:
                extra[single.row] = made
        self._sentinels.find(value, extra, bad)
        self._scaling.apply(value, extra, bad)
        for row in bad:
            value[row] = np.nan
            extra.pop(row, None)
        if self._size > self.present:
            value[self.present :] = np.nan
            value = value[: len(self.points)]
        return Rows(value, extra or None, bad)


class _Sentinels:
    """Raw values that stand for no value, by row."""

    def __init__(self, placed: Sequence[_Placed]) -> None:
        numbers = [
            (row, _as_read(one.point.type, raw))
            for row, one in enumerate(placed)
            for raw in one.point.invalid
            if not isinstance(raw, str) and not _only_in_extra(raw)
        ]
        self._rows = np.array([row for row, raw in numbers if not isnan(raw)], dtype=np.intp)
        self._raw = np.array([raw for _, raw in numbers if not isnan(raw)])
        self._nan_rows = np.array([row for row, raw in numbers if isnan(raw)], dtype=np.intp)
        self._exact = {
            row: frozenset(one.point.invalid)
            for row, one in enumerate(placed)
            if any(map(_only_in_extra, one.point.invalid))
        }
        self.some = bool(len(self._rows) or len(self._nan_rows) or self._exact)
        """There are any."""

    def find(self, value: npt.NDArray[np.float64], extra: Extra, bad: dict[int, int]) -> None:
        if len(self._rows):
            for row in self._rows[value[self._rows] == self._raw].tolist():
                bad[row] = BAD_NO_DATA
        if len(self._nan_rows):
            for row in self._nan_rows[np.isnan(value[self._nan_rows])].tolist():
                bad[row] = BAD_NO_DATA
        for row, raw in self._exact.items():
            if extra.get(row) in raw:
                bad[row] = BAD_NO_DATA


class _Scaling:
    """Rows times ten to the power of other rows, the last ones."""

    def __init__(self, placed: Sequence[_Placed], scales: Sequence[_Placed], first: int) -> None:
        found = [
            (row, scales[which].at, first + which)
            for row, one in enumerate(placed)
            if one.point.scale_from and (which := _which(one, scales)) is not None
        ]
        self._rows, self._blocks, self._power = np.array(found, dtype=np.intp).reshape(-1, 3).T.copy()

    def needs(self, at: int, rows: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros(rows, dtype=np.bool_)
        mask[self._rows[self._blocks == at]] = True
        return mask

    def apply(self, value: npt.NDArray[np.float64], extra: Extra, bad: dict[int, int]) -> None:
        if not len(self._rows):
            return
        if extra:
            for row in extra.keys() & set(self._rows.tolist()):
                value[row] = float(extra.pop(row))
        power = value[self._power]
        is_scale = np.abs(power) <= SCALE_MAX
        if not is_scale.all():
            for row in self._rows[~is_scale].tolist():
                bad.setdefault(row, BAD_NO_DATA)
            power = np.where(is_scale, power, 0.0)
        factor, raw = _TEN[np.abs(power).astype(np.intp)], value[self._rows]
        value[self._rows] = np.where(power < 0, raw / factor, raw * factor)  # 231 / 10 is 23.1, 231 * 0.1 is not


def _which(one: _Placed, scales: Sequence[_Placed]) -> int | None:
    """The scale of this value: of the same block where that has it."""
    found = [which for which, scale in enumerate(scales) if scale.point == one.point.scale_from]
    return min(found, key=lambda which: scales[which].at != one.at, default=None)


def _only_in_extra(raw: float | str) -> bool:
    return isinstance(raw, str) or (isinstance(raw, int) and abs(raw) > EXACT_INTEGER_MAX)


def _as_read(kind: DataType, raw: float) -> float:
    """As the registers hold it: a text `3.4028235e38` means the nearest of the type."""
    narrow = {DataType.FLOAT16: np.float16, DataType.FLOAT32: np.float32}.get(kind, np.float64)
    with np.errstate(over="ignore"):
        return float(np.array(raw, dtype=narrow))


def _runs(placed: Sequence[_Placed], row: int) -> list[tuple[int, Sequence[_Placed]]]:
    """What follows each other and is of one type, with its first row."""
    runs: list[tuple[int, Sequence[_Placed]]] = []
    start = 0
    for at in range(1, len(placed) + 1):
        if at == len(placed) or _shape(placed[at]) != _shape(placed[start]):
            runs.append((row + start, placed[start:at]))
            start = at
    return runs


def _shape(one: _Placed) -> tuple[DataType, bool]:
    return one.point.type, one.point.items > 0


def _column(row: int, placed: Sequence[_Placed]) -> _Numbers:
    kind = placed[0].point.type
    index, dtype = np.concatenate([one.places for one in placed]), np.dtype(NUMBER_TYPES[kind][1])
    return _Numbers(row, row + len(placed), index, dtype, kind in _BCD, _run(index, dtype))


def _bits(row: int, placed: Sequence[_Placed]) -> _Bits:
    where = [bit_place(one.point, one.byte, one.block) for one in placed]
    index, shift = np.array(where, dtype=np.intp).T.copy()
    return _Bits(row, row + len(placed), index, shift.astype(np.uint8))


def _elements(one: _Placed) -> _Numbers | _Bits:
    placed = [one._replace(point=point) for point in one.point.elements()]
    return _bits(0, placed) if one.point.type is DataType.BOOL else _column(0, placed)


def _numbers(part: _Numbers, data: bytes, value: npt.NDArray[np.float64], extra: Extra, bad: dict[int, int]) -> None:
    column = part.column(data)
    rows = value[part.start : part.stop]
    if part.bcd:
        rows[:] = _from_bcd(column)
        for at in np.flatnonzero(np.isnan(rows)).tolist():
            bad[part.start + at] = BAD_DECODING_ERROR
        return
    if part.dtype is _FLOAT32 or part.dtype is _FLOAT16:
        with np.errstate(invalid="ignore"):  # a signalling NaN is a value like any other
            rows[:] = column
        return
    rows[:] = column
    if part.dtype is _INT64 or part.dtype is _UINT64:
        for at in np.flatnonzero(np.abs(rows) >= EXACT_INTEGER_MAX).tolist():
            number = int(column[at])
            if abs(number) > EXACT_INTEGER_MAX:
                rows[at] = np.nan
                extra[part.start + at] = number


def _from_bcd(column: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Binary coded decimals, four bits a digit -> numbers; NaN where a digit is above 9."""
    number = np.zeros(len(column))
    for digit in range(2 * column.dtype.itemsize):
        nibble = (column >> (4 * digit)) & 15
        number += np.where(nibble > 9, np.nan, nibble * 10.0**digit)
    return number


def _run(index: npt.NDArray[np.intp], dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int] | None:
    """The wire's type and the first byte, where `index` is one stretch, or one with the bytes of each item reversed."""
    first = int(index.min())
    stretch = np.arange(first, first + len(index))
    if np.array_equal(index, stretch):
        return dtype, first
    if np.array_equal(index.reshape(-1, dtype.itemsize)[:, ::-1].ravel(), stretch):
        return dtype.newbyteorder("S"), first
    return None


def _kind(point: Point) -> int:
    if point.scale_from:
        return Kind.DOUBLE
    if point.type.is_time:
        return Kind.DATETIME
    others = {DataType.BOOL: Kind.BOOLEAN, DataType.STRING: Kind.STRING}
    kind = others[point.type] if point.type in others else NUMBER_TYPES[point.type][0]
    return kind + ARRAY if point.items else kind


def bit_place(point: Point, byte: int, block: Block) -> tuple[int, int]:
    """Byte of the joined replies, and the bit in it (0 is the least significant)."""
    if block.table.of_bits:
        place = point.address - block.start
        return byte + place // 8, place % 8
    low_byte = (point.bit < 8) != point.order.bytes_swapped
    return byte + 2 * (point.address - block.start) + low_byte, point.bit % 8


def _byte_order(point: Point, block: Block) -> npt.NDArray[np.intp]:
    """Places of the point's bytes in its block's reply: of numbers in the order that the host wants, else as read."""
    return 2 * (point.address - block.start) + byte_order(point)


def byte_order(point: Point) -> npt.NDArray[np.intp]:
    """The same, counted from the point's own first byte."""
    words = np.arange(2 * point.count, dtype=np.intp).reshape(point.count, 2)
    if point.order.bytes_swapped:
        words = words[:, ::-1]
    if point.order.low_word_first:
        words = words[::-1]
    if point.half:
        words = words[:, :1] if point.half == "high" else words[:, 1:]
    if point.type is DataType.STRING:
        return words.ravel()[: point.length]
    return words.ravel()[::-1] if point.type in NUMBERS and _NATIVE_LITTLE else words.ravel()
