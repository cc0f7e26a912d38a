"""How MonitoredItemNotifications of one shape lie in the body: layouts derived from a record's mask and type. Pure.

Part 4, 7.25.2 and Part 6, 5.2.2.16 and 5.2.2.17. The only state are caches: RECORDS has at most one entry for each
mask and encoding.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np

from connectors.opcua_binary import FIXED
from connectors.opcua_variable import READ, Reader
from pipelines.batch import ARRAY, Kind

_ArrayShape: Final = struct.Struct("<BBi")
VALUE_AT: Final = 6
"""Offset of the value in a record that has one: behind client handle, mask and Variant encoding."""
Shape: TypeAlias = bytes
"""DataValue mask and Variant encoding."""
PARTS: Final = (
    (0x02, "status", "I"),
    (0x04, "source", "q"),
    (0x10, "source_ps", "H"),
    (0x08, "server", "q"),
    (0x20, "server_ps", "H"),
)
"""What follows the value, in this order, for each bit of the DataValue mask (Part 6, 5.2.2.17)."""


SIZED: Final = {Kind.DATETIME: np.dtype("<i8"), Kind.GUID: np.dtype("V16")}
"""Types of a fixed size that are no numbers: found like numbers, kept in `extra`."""


@dataclass(frozen=True, slots=True)
class Record:
    """How records of one shape lie in the body."""

    size: int
    """Bytes; 0 where it differs from record to record."""
    layout: np.dtype[Any] | None
    """Of the whole record, where it has a size."""
    read: Reader | None
    """Reads a value of no fixed size. Neither this nor a layout: `_Rows` reads the record."""
    counted: bool
    """An array of numbers: as long as the next one, where their counts are the same."""
    tail: np.dtype[Any]
    tail_bytes: int
    """Of the parts behind the value."""


RECORDS: Final[dict[Shape, Record]] = {}
"""Filled on first sight of a shape."""
HANDLE: Final = np.dtype("<u4")
ARRAY_RUN_MAX: Final = 1000
"""Elements of arrays that are decoded as a run."""


def learn(shape: Shape) -> Record:
    """Derives the record of a shape: DataValue mask and Variant encoding (Part 6, 5.2.2.16 and 5.2.2.17)."""
    mask, encoding = shape.ljust(2, b"\0")
    if mask & 0xC0 or not mask & 0x01:
        record = _record(mask, [], None)
    elif value := FIXED.get(encoding) or SIZED.get(encoding):
        record = _record(mask, [("value", value)], None)
    else:
        counted = bool(encoding & ARRAY) and encoding & ~ARRAY in FIXED
        record = _record(mask, [], READ.get(encoding), counted)
    RECORDS[shape] = record
    return record


@lru_cache(maxsize=1024)
def array_record(shape: bytes) -> Record:
    """The same for arrays of numbers with as many elements: here a shape is followed by the array's length."""
    mask, encoding, count = _ArrayShape.unpack(shape)
    value = ("value", FIXED[encoding & ~ARRAY], (count,))
    return _record(mask, [("count", "<i4"), value] if 0 < count <= ARRAY_RUN_MAX else [], READ[encoding])


def _record(mask: int, value: list[Any], read: Reader | None, counted: bool = False) -> Record:
    tail = np.dtype([(name, f"<{code}") for bit, name, code in PARTS if mask & bit])
    head = [("handle", HANDLE), ("mask", "u1"), ("encoding", "u1")]
    layout = np.dtype([*head, *value, *tail.descr]) if value else None
    return Record(layout.itemsize if layout else 0, layout, read, counted, tail, tail.itemsize)
