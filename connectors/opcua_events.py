"""Events and alarms of a device: their monitored items, what a refresh means, and the rows that they become.

They have a subscription of their own, with the device's publishing interval; its notifications are numbered, kept,
republished and acknowledged as those of values are. After each connect the server is asked for the alarms that it
retains (ConditionRefresh, Part 9, 5.5.7): what comes between the refresh's start and end carries `"refresh": true`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from asyncua import ua

from connectors.opcua_decode import Columns, PublishResponse
from connectors.opcua_event_decode import decode_events
from connectors.opcua_event_filter import (
    QUEUE_OVERFLOW,
    REFRESH_END,
    REFRESH_REQUIRED,
    REFRESH_START,
    event_filter,
)
from connectors.opcua_plan import PlannedEvents
from connectors.opcua_requests import status_name
from connectors.opcua_session import PublishSession
from connectors.opcua_state import MonitoredItem, Subscription
from pipelines.batch import GOOD
from pipelines.errors import NotConnected
from pipelines.tags import Tag, TagTable

Log = logging.LoggerAdapter[logging.Logger]

REFRESH_MAX_NS: Final = 60 * 10**9
"""A refresh whose end is not heard of is over by then."""
CONDITION_REFRESH: Final = (ua.ObjectIds.ConditionType, ua.ObjectIds.ConditionType_ConditionRefresh)


class EventItems:
    """The monitored items of one session's events, by their index below `events:`, which is their client handle."""

    def __init__(self, session: PublishSession, log: Log, faults: dict[str, str]) -> None:
        self._session = session
        self._log = log
        self._faults = faults
        self._subscription: Subscription | None = None
        self._bad: dict[int, PlannedEvents] = {}
        self._changed: list[tuple[int, int]] = []

    @property
    def bad(self) -> bool:
        """Some have to be tried again."""
        return bool(self._bad)

    def adopt(self, subscription: Subscription, planned: Sequence[PlannedEvents]) -> None:
        """Takes over what the server has."""
        self._subscription = subscription
        status = {item.handle: item.status for item in subscription.events}
        for events in planned:
            self._note(events, status.get(events.index, GOOD))

    async def create(self, subscription: Subscription, planned: Sequence[PlannedEvents]) -> None:
        """Raises NotConnected, TimeoutError, ua.UaError; a bad item becomes a fault."""
        self._subscription = subscription
        for events in planned:
            subscription.events.append(MonitoredItem(events.index, events.node, 0, GOOD))
        await self._create(planned)

    async def retry(self) -> None:
        """Creates again what was bad. Raises like `create`."""
        await self._create(list(self._bad.values()))

    def take_changed(self) -> Sequence[tuple[int, int]]:
        """(index, status) of each that turned bad since the last call."""
        changed, self._changed = self._changed, []
        return changed

    async def refresh(self) -> None:
        """Asks for the alarms that the server retains. One that has none, or no such method, is left alone."""
        if self._subscription is None:
            return
        condition_type, method = (ua.NodeId(ua.Int32(one)) for one in CONDITION_REFRESH)
        subscription = ua.Variant(self._subscription.id, ua.VariantType.UInt32)
        call = self._session.call([ua.CallMethodRequest(condition_type, method, [subscription])])
        status, _ = await _asked(call)
        if status & 0x8000_0000:
            self._log.info("the server repeats no retained alarms (ConditionRefresh: %s)", status_name(status))

    async def _create(self, planned: Sequence[PlannedEvents]) -> None:
        """One call each: a filter that is refused as a whole costs no other."""
        assert self._subscription is not None or not planned
        for events in planned:
            assert self._subscription is not None
            parameters = ua.CreateMonitoredItemsParameters(
                SubscriptionId=self._subscription.id,
                TimestampsToReturn=ua.TimestampsToReturn.Neither,
                ItemsToCreate=[_request(events)],
            )
            item = next(one for one in self._subscription.events if one.handle == events.index)
            item.status, result = await _asked(self._session.create_monitored_items(parameters))
            item.id = int(result.MonitoredItemId or 0) if result else 0
            self._note(events, item.status)
            if result and not item.status & 0x8000_0000:
                self._without(events, result.FilterResult)

    def _note(self, events: PlannedEvents, status: int) -> None:
        was_bad = self._bad.pop(events.index, None) is not None
        self._faults.pop(events.name, None)
        if not status & 0x8000_0000:
            if was_bad:
                self._log.info("events %s can be had again", events.name)
            return
        self._bad[events.index] = events
        self._faults[events.name] = f"{events.node}: {status_name(status)}; check notifier, types and fields"
        if not was_bad:
            self._changed.append((events.index, status))
            self._log.warning("events %s cannot be had: %s", events.name, self._faults[events.name])

    def _without(self, events: PlannedEvents, result: object) -> None:
        """Fields that the server does not know stay empty: said once."""
        statuses = getattr(result, "SelectClauseResults", None) or ()
        bad = [field for field, one in zip(events.fields, statuses, strict=False) if one.value & 0x8000_0000]
        if bad:
            self._log.info("events %s: the server does not know the fields %s", events.name, ", ".join(bad))


async def _asked(call: Awaitable[Sequence[Any]]) -> tuple[int, Any]:
    """(status, result) of a service call with one operation; a call that is refused as a whole has no result.

    Raises NotConnected, TimeoutError.
    """
    try:
        [result] = await call
    except ua.UaStatusCodeError as error:
        return int(error.code), None
    except TimeoutError:
        raise
    except (OSError, ua.UaError, ValueError) as error:
        raise NotConnected(f"the server's answer about events cannot be had: {error}") from error
    return int(result.StatusCode.value), result


def _request(events: PlannedEvents) -> ua.MonitoredItemCreateRequest:
    return ua.MonitoredItemCreateRequest(
        ItemToMonitor=ua.ReadValueId(ua.NodeId.from_string(events.node), ua.AttributeIds.EventNotifier),
        MonitoringMode=ua.MonitoringMode.Reporting,
        RequestedParameters=ua.MonitoringParameters(
            ClientHandle=events.index,
            SamplingInterval=0.0,
            Filter=event_filter(events),
            QueueSize=events.queue,
            DiscardOldest=True,
        ),
    )


class EventReader:
    """Notifications -> rows, and what they say of the subscription itself. Lives as long as the source."""

    def __init__(self, device: str, planned: Sequence[PlannedEvents], tags: TagTable) -> None:
        self.names = tuple(events.name for events in planned)
        self.tag_ids = np.array([tags.add(Tag(device, name, event=True)) for name in self.names], dtype=np.uint32)
        self._fields = [events.fields for events in planned]
        self._refreshing: dict[int, int] = {}  # client handle -> when it is over at the latest
        self.refresh_due = False
        """The server has lost track, or says so: `EventItems.refresh`, then false."""

    def begin(self) -> None:
        """A session begins."""
        self._refreshing.clear()
        self.refresh_due = bool(self.names)

    def parts(
        self, body: bytes, response: PublishResponse, arrival_ns: int
    ) -> Iterator[tuple[npt.NDArray[np.uint32], Columns, list[int]]]:
        """(tags, rows, the indices of those whose queue at the server ran over). Raises DecodeError."""
        for columns in decode_events(body, response, self._fields, arrival_ns):
            overflown = [
                handle
                for handle, event in zip(columns.handle.tolist(), columns.extra.values(), strict=True)
                if self._mark(handle, event, arrival_ns)
            ]
            yield self.tag_ids[columns.handle], columns, overflown

    def _mark(self, handle: int, event: dict[str, object], arrival_ns: int) -> bool:
        """Marks what belongs to a refresh; whether it says that the queue ran over."""
        kind = event.get("EventType")
        if kind == _START:
            self._refreshing[handle] = arrival_ns + REFRESH_MAX_NS
        if arrival_ns < self._refreshing.get(handle, 0):
            event["refresh"] = True
        if kind == _END:
            self._refreshing.pop(handle, None)
        overflown = kind == _OVERFLOW
        self.refresh_due |= overflown or kind == _REQUIRED
        return overflown


_START, _END, _REQUIRED, _OVERFLOW = (
    f"i={one}" for one in (REFRESH_START, REFRESH_END, REFRESH_REQUIRED, QUEUE_OVERFLOW)
)
