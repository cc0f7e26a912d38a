"""Events of a device as rows: what is wanted of them, and what they say of their own subscription.

After each connect the server is asked for the alarms that it retains (ConditionRefresh, Part 9, 5.5.7): what comes
between the refresh's start and its end carries `"refresh": true`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors.opcua_decode import Columns
from connectors.opcua_event_decode import Event, decode_events
from connectors.opcua_event_filter import QUEUE_OVERFLOW, REFRESH_END, REFRESH_REQUIRED, REFRESH_START
from connectors.opcua_plan import PlannedEvents
from connectors.opcua_response import PublishResponse
from pipelines.tags import Tag, TagTable

REFRESH_MAX_NS: Final = 60 * 10**9
"""A refresh whose end is not heard of is over by then."""

_START, _END, _REQUIRED, _OVERFLOW = (
    f"i={one}" for one in (REFRESH_START, REFRESH_END, REFRESH_REQUIRED, QUEUE_OVERFLOW)
)
_OF_THE_SUBSCRIPTION: Final = frozenset((_START, _END, _REQUIRED, _OVERFLOW))


class EventReader:
    """Notifications -> rows. Lives as long as the source; `begin` for each session."""

    def __init__(self, device: str, planned: Sequence[PlannedEvents], tags: TagTable) -> None:
        self.names = tuple(events.name for events in planned)
        self.tag_ids = np.array([tags.add(Tag(device, name, event=True)) for name in self.names], dtype=np.uint32)
        self._planned = planned
        self._fields = {events.index: events.fields for events in planned}
        self._unfiltered: Mapping[int, frozenset[str]] = {}
        self._refreshing: dict[int, int] = {}  # client handle -> when it is over at the latest
        self._overflown: list[str] = []
        self._refresh_due = False
        self._refreshed_ns: int | None = None

    def begin(self, unfiltered: Mapping[int, frozenset[str]]) -> None:
        """A session begins; `unfiltered`: `EventItems`."""
        self._unfiltered = unfiltered
        self._refreshing.clear()
        self._overflown.clear()
        self._refresh_due, self._refreshed_ns = bool(self.names), None

    def take_refresh(self, now_ns: int) -> bool:
        """Whether the server is to be asked for its retained alarms now: it was not yet, has lost some, or says so.

        Not more often than every `REFRESH_MAX_NS`: one that retains more than its queue takes would never be done.
        """
        asked_ns = self._refreshed_ns
        if not self._refresh_due or (asked_ns is not None and now_ns - asked_ns < REFRESH_MAX_NS):
            return False
        self._refresh_due, self._refreshed_ns = False, now_ns
        return True

    def parts(
        self, body: bytes, response: PublishResponse, arrival_ns: int
    ) -> Iterator[tuple[npt.NDArray[np.uint32], Columns, int]]:
        """(tags, rows, events read), part by part. Raises DecodeError."""

        def wanted(event: Event) -> bool:
            self._heed(event, arrival_ns)
            return event.handle not in self._unfiltered or self._passes(event)

        for columns, read in decode_events(body, response, self._fields, arrival_ns, wanted):
            yield self.tag_ids[columns.handle], columns, read

    def take_overflown(self) -> list[str]:
        """Names of the streams whose queue at the server ran over since the last call."""
        overflown, self._overflown = self._overflown, []
        return overflown

    def _heed(self, event: Event, arrival_ns: int) -> None:
        """Marks what belongs to a refresh, remembers what is said of the subscription."""
        kind = event.fields.get("EventType")
        if kind == _START:
            self._refreshing[event.handle] = arrival_ns + REFRESH_MAX_NS
        if arrival_ns < self._refreshing.get(event.handle, 0):
            event.fields["refresh"] = True
        if kind == _END:
            self._refreshing.pop(event.handle, None)
        if kind == _OVERFLOW:
            self._overflown.append(self.names[event.handle])
        self._refresh_due |= kind in (_OVERFLOW, _REQUIRED)

    def _passes(self, event: Event) -> bool:
        """What the where clause would have said."""
        kind, severity = event.fields.get("EventType"), event.fields.get("Severity")
        if kind in _OF_THE_SUBSCRIPTION:
            return True
        types, least = self._unfiltered[event.handle], self._planned[event.handle].severity
        severe = not isinstance(severity, int) or severity >= least  # one that has none is not kept back
        return severe and (not types or kind in types)
