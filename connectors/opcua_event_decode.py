"""EventNotificationList bytes -> rows: the fields of an event as one structure. Pure: no I/O, no clock.

Layout (Part 4, 7.25.3): EventFieldList[]: client handle 4, Variant[], the fields in the select clauses' order.
An event has as many fields as were asked for, else it is refused. Events are rare and wide: they are read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from connectors.opcua_binary import EPOCH_TICKS, Cursor, DecodeError
from connectors.opcua_decode import TICKS_MAX, TICKS_MIN, Columns
from connectors.opcua_response import PublishResponse
from pipelines.batch import ARRAY, Flag, Kind
from pipelines.rfc3339 import rfc3339

EVENTS_MAX: Final = 50
"""Events of one part: about a millisecond."""

_NOTHING: Final = ((Kind.NODE_ID, "i=0"), (Kind.DATETIME, -EPOCH_TICKS * 100))
"""Null as a NodeId and as a DateTime (Part 6, 5.2.2.5 and 5.2.2.9)."""
_TIME_MIN, _TIME_MAX = (TICKS_MIN - EPOCH_TICKS) * 100, (TICKS_MAX - EPOCH_TICKS) * 100


class Event(NamedTuple):
    """One event, by the client handle of its monitored item."""

    handle: int
    ts_ns: int
    flags: int
    fields: dict[str, Any]


def decode_events(
    body: bytes,
    response: PublishResponse,
    names: Mapping[int, Sequence[str]],
    arrival_ns: int,
    wanted: Callable[[Event], bool] = lambda _: True,
) -> Iterator[tuple[Columns, int]]:
    """The wanted events in order, in parts of 1 to `EVENTS_MAX`, with the number of events read for each.

    `names` are the fields' by client handle. A row's value is a structure: fields that an event does not have are left
    out, a DateTime is RFC 3339 text. Raises DecodeError; the parts before have been yielded.
    """
    found: list[Event] = []
    read = 0
    for events in response.events:
        cursor = Cursor(body, events.start, events.end)
        for _ in range(events.count):
            event = _event(cursor, names, arrival_ns)
            if wanted(event):
                if len(found) == EVENTS_MAX:
                    yield _columns(found), read
                    found, read = [], 0
                found.append(event)
            read += 1
        if cursor.at != cursor.end:
            raise DecodeError(f"{cursor.end - cursor.at} bytes are left over behind the events at {cursor.at}")
    if found:
        yield _columns(found), read


def _columns(events: Sequence[Event]) -> Columns:
    columns = Columns.empty(len(events))
    columns.handle[:] = [event.handle for event in events]
    columns.ts_ns[:] = [event.ts_ns for event in events]
    columns.flags[:] = [event.flags for event in events]
    columns.kind[:] = Kind.EXTENSION_OBJECT
    columns.value[:] = math.nan
    columns.extra.update(enumerate(event.fields for event in events))
    return columns


def _event(cursor: Cursor, names: Mapping[int, Sequence[str]], arrival_ns: int) -> Event:
    handle = cursor.uint32()
    wanted = names.get(handle)
    if wanted is None:
        raise DecodeError(f"event handle {handle} was never given to the server")
    count = cursor.count()
    if count != len(wanted):
        raise DecodeError(f"{count} fields in an event that has {len(wanted)}")
    fields: dict[str, Any] = {}
    ts_ns, flags = arrival_ns, Flag.ARRIVAL_TIME
    for name in wanted:
        kind, value = cursor.variant()
        if name == "Time" and kind == Kind.DATETIME and _TIME_MIN <= value <= _TIME_MAX:
            ts_ns, flags = value, 0
        if value is not None and (kind, value) not in _NOTHING:
            fields[name] = _shown(value) if kind & ~ARRAY == Kind.DATETIME else value
    return Event(handle, ts_ns, flags, fields)


def _shown(value: Any) -> Any:
    """A DateTime (UTC ns) as text, in a structure, where nothing else says what the number is."""
    return [_shown(one) for one in value] if isinstance(value, list) else rfc3339(value)
