"""The values of a few rows out of one reply without numpy, whose every call costs a microsecond, cold five.

Only for points that are one number or one bit and nothing else; `modbus_decode.Layout` is for all there is. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from connectors.modbus_decode import bit_place, byte_order
from connectors.modbus_plan import Block, DataType, Point
from pipelines.batch import EXACT_INTEGER_MAX

Scalars = Callable[[bytes], list[float] | None]
"""The data of the block's reply -> a value for each point; None where one is more than a float64 can hold."""

_CODES: Final[Mapping[DataType, str]] = {
    DataType.BOOL: "B",
    DataType.INT8: "b",
    DataType.UINT8: "B",
    DataType.INT16: "h",
    DataType.UINT16: "H",
    DataType.INT32: "i",
    DataType.UINT32: "I",
    DataType.INT64: "q",
    DataType.UINT64: "Q",
    DataType.FLOAT16: "e",
    DataType.FLOAT32: "f",
    DataType.FLOAT64: "d",
}
"""`struct`'s, in the host's order."""
_WIDE: Final = {DataType.INT64, DataType.UINT64}


def scalars(block: Block, points: Sequence[Point]) -> Scalars | None:
    """For these points of a block, in their order; None where one of them takes more than that."""
    if not all(map(_is_plain, points)):
        return None
    found = [_places(block, point) for point in points]
    places = [place for own, _ in found for place in own]
    shifts = [shift for _, shift in found]
    unpack = struct.Struct("=" + "".join(_CODES[point.type] for point in points)).unpack
    bits, wide = any(shift is not None for shift in shifts), any(point.type in _WIDE for point in points)

    def decode(data: bytes) -> list[float] | None:
        values = unpack(bytes(map(data.__getitem__, places)))
        if bits:
            values = tuple(
                value if shift is None else value >> shift & 1 for value, shift in zip(values, shifts, strict=True)
            )
        if wide and any(isinstance(value, int) and abs(value) > EXACT_INTEGER_MAX for value in values):
            return None
        return list(map(float, values))

    return decode


def _is_plain(point: Point) -> bool:
    return point.type in _CODES and not (point.items or point.invalid or point.scale_from)


def _places(block: Block, point: Point) -> tuple[list[int], int | None]:
    """Of the point's bytes, in the host's order; and of a bit, which it is."""
    if point.type is DataType.BOOL:
        place, shift = bit_place(point, 0, block)
        return [place], shift
    return (2 * (point.address - block.start) + byte_order(point)).tolist(), None
