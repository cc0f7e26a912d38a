"""Register bytes -> columns. Pure: no I/O, no clock.

The replies of one poll cycle are joined and decoded together: per type one gather of bytes (`raw[index]`), one view and
one assignment, however many points and blocks there are. The index arrays, made once per plan, put the bytes into the
host's order, so that word and byte order cost nothing at run time. A type whose points follow each other without a gap
is one view and no gather. Rows come grouped by type, strings last.

Layout on the wire: registers most significant byte first (Modbus Application Protocol V1.1b3, section 4.2); coils and
discrete inputs eight a byte, the first in the least significant bit (section 6.1). Values of several registers have no
standard; see `WordOrder`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.modbus_plan import Block, DataType, Point
from pipelines.batch import EXACT_INTEGER_MAX, Extra, Kind

_NUMBERS: dict[DataType, tuple[int, Any]] = {
    DataType.INT16: (Kind.INT16, np.int16),
    DataType.UINT16: (Kind.UINT16, np.uint16),
    DataType.INT32: (Kind.INT32, np.int32),
    DataType.UINT32: (Kind.UINT32, np.uint32),
    DataType.INT64: (Kind.INT64, np.int64),
    DataType.UINT64: (Kind.UINT64, np.uint64),
    DataType.FLOAT32: (Kind.FLOAT, np.float32),
    DataType.FLOAT64: (Kind.DOUBLE, np.float64),
}
_BYTE, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)
_NATIVE_LITTLE = sys.byteorder == "little"


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Rows [start, stop) of one type; `index` gathers their bytes in the host's order."""

    start: int
    stop: int
    index: npt.NDArray[np.intp]
    dtype: np.dtype[Any]
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


@dataclass(frozen=True, slots=True)
class _Text:
    """One row: the bytes at `index`."""

    row: int
    index: npt.NDArray[np.intp]


class Layout:
    """Where each row of a poll cycle comes from; fixed for the blocks that it was made for."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        starts = [0, *accumulate(block.reply_bytes for block in blocks)]
        placed = [
            (point, starts[at], block, at)
            for kind in (*_NUMBERS, DataType.BOOL, DataType.STRING)
            for at, block in enumerate(blocks)
            for point in block.points
            if point.type is kind
        ]
        self.points: tuple[Point, ...] = tuple(point for point, *_ in placed)
        """The point of each row."""
        self.block = np.array([at for *_, at in placed], dtype=np.intp)
        """The block of each row."""
        self.kind = np.array([_kind(point) for point in self.points], dtype=np.uint8)
        self.kind.setflags(write=False)
        self._numbers: list[_Numbers] = []
        self._bits: list[_Bits] = []
        self._texts: list[_Text] = []
        row = 0
        while row < len(placed):
            kind = placed[row][0].type
            stop = next((at for at in range(row, len(placed)) if placed[at][0].type is not kind), len(placed))
            self._add(kind, row, [(point, byte, block) for point, byte, block, _ in placed[row:stop]])
            row = stop

    def _add(self, kind: DataType, row: int, placed: Sequence[tuple[Point, int, Block]]) -> None:
        """Rows of one type, from `row` on."""
        stop = row + len(placed)
        if kind is DataType.BOOL:
            where = [_bit(point, byte, block) for point, byte, block in placed]
            index, shift = np.array(where, dtype=np.intp).T.copy()
            self._bits.append(_Bits(row, stop, index, shift.astype(np.uint8)))
            return
        indexes = [byte + _byte_order(point, block) for point, byte, block in placed]
        if kind is DataType.STRING:
            self._texts.extend(_Text(row + at, index) for at, index in enumerate(indexes))
        else:
            index, dtype = np.concatenate(indexes), np.dtype(_NUMBERS[kind][1])
            self._numbers.append(_Numbers(row, stop, index, dtype, _run(index, dtype)))

    def decode(self, replies: Sequence[bytes]) -> tuple[npt.NDArray[np.float64], Extra | None]:
        """Data bytes of each block's reply, in the order of the blocks, each `reply_bytes` long -> the rows' values.

        What a float64 cannot hold exactly (integers beyond 2^53, text) is NaN there and in the second part, by row.
        """
        data = replies[0] if len(replies) == 1 else b"".join(replies)
        value = np.empty(len(self.points))
        extra: Extra = {}
        for part in self._numbers:
            _numbers(part, data, value, extra)
        for bits in self._bits:
            value[bits.start : bits.stop] = (np.frombuffer(data, _BYTE)[bits.index] >> bits.shift) & 1
        for text in self._texts:
            raw = np.frombuffer(data, _BYTE)[text.index].tobytes()
            value[text.row] = np.nan
            extra[text.row] = raw.partition(b"\0")[0].decode("utf-8", "replace").strip()
        return value, extra or None


def _numbers(part: _Numbers, data: bytes, value: npt.NDArray[np.float64], extra: Extra) -> None:
    column = part.column(data)
    if part.dtype is _FLOAT32:
        with np.errstate(invalid="ignore"):  # a signalling NaN is a value like any other
            value[part.start : part.stop] = column
        return
    value[part.start : part.stop] = column
    if part.dtype is _INT64 or part.dtype is _UINT64:
        for at in np.flatnonzero(np.abs(value[part.start : part.stop]) >= EXACT_INTEGER_MAX).tolist():
            number = int(column[at])
            if abs(number) > EXACT_INTEGER_MAX:
                value[part.start + at] = np.nan
                extra[part.start + at] = number


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
    if point.type is DataType.BOOL:
        return Kind.BOOLEAN
    return Kind.STRING if point.type is DataType.STRING else _NUMBERS[point.type][0]


def _bit(point: Point, byte: int, block: Block) -> tuple[int, int]:
    """Byte of the joined replies, and the bit in it (0 is the least significant)."""
    if block.table.of_bits:
        place = point.address - block.start
        return byte + place // 8, place % 8
    low_byte = (point.bit < 8) != point.order.bytes_swapped
    return byte + 2 * (point.address - block.start) + low_byte, point.bit % 8


def _byte_order(point: Point, block: Block) -> npt.NDArray[np.intp]:
    """Places of the point's bytes in its block's reply, in the order that the host wants them (text: reading order)."""
    words = np.arange(2 * point.count, dtype=np.intp).reshape(point.count, 2)
    if point.order.bytes_swapped:
        words = words[:, ::-1]
    if point.type is DataType.STRING:
        return 2 * (point.address - block.start) + words.ravel()[: point.length]
    if point.order.low_word_first:
        words = words[::-1]
    most_significant_first = words.ravel()
    host = most_significant_first[::-1] if _NATIVE_LITTLE else most_significant_first
    return 2 * (point.address - block.start) + host
