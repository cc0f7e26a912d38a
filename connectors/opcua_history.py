"""HistoryRead of raw values: requests to bytes, responses to rows (Part 4, 5.10.3 and Part 11, 6.4.3). Pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from connectors.opcua_binary import EPOCH_TICKS, Cursor
from connectors.opcua_decode import TICKS_MAX, TICKS_MIN
from connectors.opcua_requests import TIMESTAMPS_SOURCE, FourByteId, RequestHeader, expect, response_body
from pipelines.batch import GOOD

HISTORY_READ: Final = 664
HISTORY_READ_RESPONSE: Final = 667
READ_RAW_MODIFIED_DETAILS: Final = 649
HISTORY_DATA: Final = 658
"""Numeric identifiers of the binary encodings (Part 6, annex A), namespace 0."""

ATTRIBUTE_ACCESS_LEVEL: Final = 17
HISTORY_READABLE: Final = 0x04
"""Bit of AccessLevel (Part 3, 8.57)."""

_Details: Final = struct.Struct("<?qqI?")  # modified, start, end, values per node, bounds
_NodeTail: Final = struct.Struct("<iHi")  # index range (null), data encoding: namespace 0, null name

Row = tuple[int, Any, int, int]
"""Source time in UTC ns, value as in `extra` or a number, kind, status."""


def history_read(
    header: RequestHeader,
    nodes: Sequence[tuple[bytes, bytes]],
    between_ns: tuple[int, int],
    values_max: int,
    release: bool = False,
) -> bytes:
    """HistoryReadRequest for (encoded node id, continuation point or empty), raw values, oldest first.

    `release` gives the continuation points back and asks for nothing.
    """
    start, end = (ns // 100 + EPOCH_TICKS for ns in between_ns)
    details = _Details.pack(False, start, end, values_max, False)
    parts = [
        header.encode(HISTORY_READ),
        FourByteId.pack(1, 0, READ_RAW_MODIFIED_DETAILS),
        struct.pack("<Bi", 1, len(details)),
        details,
        struct.pack("<I?i", TIMESTAMPS_SOURCE, release, len(nodes)),
    ]
    for node, continuation in nodes:
        parts += (node, _NodeTail.pack(-1, 0, -1), struct.pack("<i", len(continuation) or -1), continuation)
    return b"".join(parts)


def history_pages(body: bytes, count: int) -> list[tuple[int, bytes, bytes]]:
    """HistoryReadResponse -> (status, continuation point, HistoryData bytes) of each node, in order.

    Raises DecodeError, ServiceError.
    """
    cursor = response_body(body, HISTORY_READ_RESPONSE)
    found = []
    for _ in range(cursor.count(9)):
        status, continuation = cursor.uint32(), cursor.bytestring() or b""
        data = cursor.extension_object()
        readable = data["type"] == f"i={HISTORY_DATA}" and data["body"] is not None
        found.append((status, continuation, bytes(data["body"]) if readable else b""))
    return expect(found, count)


def history_rows(data: bytes) -> list[Row]:
    """HistoryData -> rows; values without a source time are left out. Raises DecodeError."""
    if not data:
        return []
    cursor = Cursor(data)
    found = (value_row(cursor) for _ in range(cursor.count(1)))
    return [(ts_ns, value, kind, status) for ts_ns, value, kind, status in found if ts_ns is not None]


def value_row(cursor: Cursor) -> tuple[int | None, Any, int, int]:
    """One DataValue (Part 6, 5.2.2.17) as a `Row`; its time is None where the source gave none."""
    mask = cursor.byte()
    kind, value = cursor.variant() if mask & 0x01 else (0, None)
    status = cursor.uint32() if mask & 0x02 else GOOD
    ticks = cursor.int64() if mask & 0x04 else None
    for bit, size in ((0x10, 2), (0x08, 8), (0x20, 2)):
        if mask & bit:
            cursor.skip(size)
    if ticks is None or not TICKS_MIN <= ticks <= TICKS_MAX:
        return None, value, kind, status
    return (ticks - EPOCH_TICKS) * 100, value, kind, status
