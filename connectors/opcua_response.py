"""PublishResponse bytes -> the frame around the data. Pure: no I/O, no state.

Layout (OPC UA Part 4, 5.13.5 and Part 6, 5.2): type id, ResponseHeader, SubscriptionId, AvailableSequenceNumbers,
MoreNotifications, NotificationMessage (SequenceNumber, PublishTime, NotificationData[]), Results[], DiagnosticInfos[].
Nearly all are alike: nothing in the header, one DataChangeNotification, no diagnostics. Those are read by their fields'
places, in a fifth of the time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from connectors.opcua_binary import Cursor, DecodeError

PUBLISH_RESPONSE: Final = 829
REPUBLISH_RESPONSE: Final = 835
SERVICE_FAULT: Final = 397
DATA_CHANGE: Final = 811
EVENT_LIST: Final = 916
STATUS_CHANGE: Final = 820
"""Numeric identifiers of the binary encodings (Part 6, annex A: NodeIds.csv), namespace 0."""

_Header: Final = struct.Struct("<qIIBi3s")
_Message: Final = struct.Struct("<Iqi")
_Int32: Final = struct.Struct("<i")
NO_OBJECT: Final = b"\0\0\0"
"""A null ExtensionObject."""
_FOUR_BYTE_ID: Final = 0x0001
"""Encoding byte and namespace of a NodeId in four bytes; the identifier stands above them (Part 6, 5.2.2.9)."""
_RECORD_BYTES_MIN: Final = 5
_LISTED_MAX: Final = 64
"""Sequence numbers, or results, in a response that counts as one like all."""


@dataclass(slots=True)
class DataChange:
    """Where one DataChangeNotification's records lie in the body."""

    start: int
    end: int
    count: int


@dataclass(slots=True)
class PublishResponse:
    """The frame around the data. `result` is the service result; the other fields hold only when it is not bad."""

    result: int
    subscription_id: int = 0
    sequence_number: int = 0
    available: tuple[int, ...] = ()
    """Sequence numbers that the server still keeps for Republish."""
    more: bool = False
    status_change: int | None = None
    """Status of a StatusChangeNotification, such as BadTimeout when the subscription has expired."""
    ack_results: tuple[int, ...] = ()
    changes: list[DataChange] = field(default_factory=list)
    events: list[DataChange] = field(default_factory=list)
    """Where the EventFieldLists of an EventNotificationList lie: `opcua_event_decode`."""
    skipped: int = 0
    """Notifications of kinds that nobody reads."""

    @property
    def rows(self) -> int:
        """Data changes and events in all parts; 0 for a keep-alive."""
        if len(self.changes) == 1 and not self.events:
            return self.changes[0].count
        return sum(part.count for part in (*self.changes, *self.events))

    @property
    def numbered(self) -> bool:
        """It has taken a sequence number: a keep-alive has not."""
        return bool(self.changes or self.events or self.skipped)


def parse_response(body: bytes) -> PublishResponse:
    """The frame of a PublishResponse, RepublishResponse (it names no subscription) or ServiceFault.

    Raises DecodeError where the bytes are anything else.
    """
    if len(body) < _Plain.size:
        return _any(body)
    kind, _time, _handle, result, diagnostics, texts, more, subscription, listed = _Plain.unpack_from(body)
    plain = kind == PUBLISH_RESPONSE << 16 | _FOUR_BYTE_ID and diagnostics == 0 and texts <= 0 and more == NO_OBJECT
    if not plain or result & 0x8000_0000 or not -1 <= listed <= _LISTED_MAX:
        return _any(body)
    rest = _rest(max(listed, 0))
    at = _Plain.size + rest.size
    if at > len(body):
        return _any(body)
    *available, further, number, _published, parts, part, encoding, size, count = rest.unpack_from(body, _Plain.size)
    end = at - _Int32.size + size
    results = (len(body) - end) // 4 - 2
    whole = end >= at and len(body) - end == 8 + 4 * results and 0 <= results <= _LISTED_MAX
    if parts != 1 or part != DATA_CHANGE << 16 | _FOUR_BYTE_ID or encoding != 1 or not whole:
        return _any(body)
    found, *acknowledged, infos = _tail(results).unpack_from(body, end)
    if max(found, 0) != results or infos > 0 or not 0 <= count * _RECORD_BYTES_MIN <= end - at:
        return _any(body)
    changes = [DataChange(at, end, count)]
    return PublishResponse(
        result, subscription, number, tuple(available), further != 0, None, tuple(acknowledged), changes
    )


_Plain: Final = struct.Struct("<I qIIBi3s Ii")
"""Type id, response header, subscription id, how many sequence numbers follow."""


@lru_cache(maxsize=_LISTED_MAX + 1)
def _rest(available: int) -> struct.Struct:
    """Sequence numbers, more, a message with one part: its type id, encoding, size, how many records it has."""
    return struct.Struct(f"<{available}I B Iqi IBi i")


@lru_cache(maxsize=_LISTED_MAX + 1)
def _tail(results: int) -> struct.Struct:
    """How many results, they, how many DiagnosticInfos."""
    return struct.Struct(f"<i {results}I i")


def _any(body: bytes) -> PublishResponse:
    """One that may be unlike the others."""
    cursor = Cursor(body)
    encoding = cursor.node_id()
    result = response_header(cursor)
    if encoding == f"i={SERVICE_FAULT}":
        return PublishResponse(result or 0x8000_0000)
    if encoding == f"i={REPUBLISH_RESPONSE}":
        republished = PublishResponse(result)
        if not result & 0x8000_0000:
            _notification_message(cursor, republished)
        return republished
    if encoding != f"i={PUBLISH_RESPONSE}":
        raise DecodeError(f"expected a PublishResponse, received type {encoding}")
    if result & 0x8000_0000:
        return PublishResponse(result)
    response = PublishResponse(result, subscription_id=cursor.uint32())
    response.available = tuple(cursor.uint32() for _ in range(cursor.count(4)))
    response.more = cursor.byte() != 0
    _notification_message(cursor, response)
    response.ack_results = tuple(cursor.uint32() for _ in range(cursor.count(4)))
    for _ in range(cursor.count(1)):
        cursor.diagnostic_info()
    return response


def response_header(cursor: Cursor) -> int:
    """Part 4, 7.33; returns the service result."""
    plain = _Header.unpack_from(cursor.body, cursor.at) if cursor.at + _Header.size <= cursor.end else None
    if plain and plain[3] == 0 and plain[4] <= 0 and plain[5] == NO_OBJECT:
        cursor.skip(_Header.size)
        return int(plain[2])
    cursor.skip(12)
    result = cursor.uint32()
    cursor.diagnostic_info()
    for _ in range(cursor.count(4)):
        cursor.text()
    cursor.extension_object()
    return result


def _notification_message(cursor: Cursor, response: PublishResponse) -> None:
    """Part 4, 7.26."""
    response.sequence_number, _published, parts = cursor.unpack(_Message)
    for _ in range(parts):
        type_id = cursor.node_id()
        if cursor.byte() != 1:
            raise DecodeError(f"notification data without a binary body at offset {cursor.at}")
        size = cursor.int32()
        start = cursor.skip(size)
        part = Cursor(cursor.body, start, cursor.at)
        if type_id == f"i={DATA_CHANGE}":
            count = part.count(_RECORD_BYTES_MIN)
            response.changes.append(DataChange(part.at, part.end, count))
        elif type_id == f"i={EVENT_LIST}":
            count = part.count(8)
            response.events.append(DataChange(part.at, part.end, count))
        elif type_id == f"i={STATUS_CHANGE}":
            response.status_change = part.uint32()
        else:
            response.skipped += 1
