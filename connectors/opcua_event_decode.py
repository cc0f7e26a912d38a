"""EventNotificationList bytes -> rows: the fields of an event as one structure. Pure: no I/O, no clock.

Layout (Part 4, 7.25.3): EventFieldList[]: client handle 4, Variant[], the fields in the select clauses' order.
An event has as many fields as were asked for, else it is refused. Events are rare and wide: they are read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from connectors.opcua_binary import EPOCH_TICKS, Cursor, DecodeError
from connectors.opcua_decode import TICKS_MAX, TICKS_MIN, Columns, PublishResponse
from pipelines.batch import ARRAY, Flag, Kind

EVENTS_MAX: Final = 50
"""Events of one part: about a millisecond."""

_NO_NODE: Final = "i=0"
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 -- formatted below, always with Z
_TIME_MIN, _TIME_MAX = (TICKS_MIN - EPOCH_TICKS) * 100, (TICKS_MAX - EPOCH_TICKS) * 100


def decode_events(
    body: bytes, response: PublishResponse, fields: Sequence[Sequence[str]], arrival_ns: int
) -> Iterator[Columns]:
    """The events in order, in parts of at most `EVENTS_MAX`; `fields` by client handle. A row's value is a structure.

    Fields that an event does not have are left out. A DateTime is RFC 3339 text. Raises DecodeError; the parts before
    have been yielded.
    """
    for events in response.events:
        cursor = Cursor(body, events.start, events.end)
        left = events.count
        while left:
            columns = Columns.empty(min(left, EVENTS_MAX))
            for row in range(len(columns.handle)):
                handle, event, time_ns = _event(cursor, fields)
                columns.handle[row] = handle
                columns.ts_ns[row] = arrival_ns if time_ns is None else time_ns
                columns.flags[row] = Flag.ARRIVAL_TIME if time_ns is None else 0
                columns.extra[row] = event
            columns.kind[:] = Kind.EXTENSION_OBJECT
            columns.value[:] = math.nan
            left -= len(columns.handle)
            if not left and cursor.at != cursor.end:
                raise DecodeError(f"{cursor.end - cursor.at} bytes are left over behind the events at {cursor.at}")
            yield columns


def _event(cursor: Cursor, fields: Sequence[Sequence[str]]) -> tuple[int, dict[str, Any], int | None]:
    """(client handle, field -> value, its Time where it has a usable one)."""
    handle = cursor.uint32()
    if handle >= len(fields):
        raise DecodeError(f"event handle {handle} was never given to the server")
    count = cursor.count()
    if count != len(fields[handle]):
        raise DecodeError(f"{count} fields in an event that has {len(fields[handle])}")
    event: dict[str, Any] = {}
    time_ns = None
    for name in fields[handle]:
        kind, value = cursor.variant()
        if name == "Time" and kind == Kind.DATETIME and _TIME_MIN <= value <= _TIME_MAX:
            time_ns = value
        if value is not None and (kind != Kind.NODE_ID or value != _NO_NODE):
            event[name] = _shown(value) if kind & ~ARRAY == Kind.DATETIME else value
    return handle, event, time_ns


def _shown(value: Any) -> Any:
    """A DateTime (UTC ns) as text, in a structure, where nothing else says what the number is."""
    if isinstance(value, list):
        return [_shown(one) for one in value]
    seconds, fraction_ns = divmod(value, 10**9)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return None
    return f"{text}.{fraction_ns:09d}".rstrip("0") + "Z" if fraction_ns else text + "Z"
