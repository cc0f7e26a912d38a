"""The monitored items of a device's events: created, taken over, retried; and the refresh of retained alarms.

They have a subscription of their own, with the device's publishing interval; its notifications are numbered, kept,
republished and acknowledged as those of values are.

A server that does not know the where clause's operators may say so in a detail of a Good result, and send nothing ever
(Eclipse Milo does): the item is made without a where clause then, and the gateway filters.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from asyncua import Node, ua
from asyncua.common.ua_utils import get_node_subtypes

from connectors.opcua_event_filter import event_filter
from connectors.opcua_plan import PlannedEvents
from connectors.opcua_requests import status_name
from connectors.opcua_session import PublishSession
from connectors.opcua_state import MonitoredItem, Subscription
from pipelines.batch import GOOD
from pipelines.errors import NotConnected

Log = logging.LoggerAdapter[logging.Logger]

EVENTS_PER_MESSAGE: Final = 200
"""Events in one PublishResponse: a few milliseconds, where none of them is wanted."""
CONDITION_REFRESH: Final = (ua.ObjectIds.ConditionType, ua.ObjectIds.ConditionType_ConditionRefresh)
BAD: Final = 0x8000_0000


class EventItems:
    """One session's items, by their index below `events:`, which is their client handle."""

    def __init__(self, session: PublishSession, log: Log, faults: dict[str, str]) -> None:
        self._session = session
        self._log = log
        self._faults = faults
        self._subscription: Subscription | None = None
        self._bad: dict[int, PlannedEvents] = {}
        self._changed: list[tuple[int, int]] = []
        self.unfiltered: dict[int, frozenset[str]] = {}
        """Those that the gateway filters -> the types asked for and their subtypes; empty: all."""

    @property
    def bad(self) -> bool:
        """Some have to be tried again."""
        return bool(self._bad)

    async def adopt(self, subscription: Subscription, planned: Sequence[PlannedEvents]) -> None:
        """Takes over what the server has. Raises like `create`."""
        self._subscription = subscription
        status = {item.handle: item.status for item in subscription.events}
        for events in planned:
            self._note(events, status.get(events.index, GOOD))
            if events.index in subscription.unfiltered:
                self.unfiltered[events.index] = await self._subtypes(events)

    async def create(self, subscription: Subscription, planned: Sequence[PlannedEvents]) -> None:
        """Raises NotConnected, TimeoutError; a bad item becomes a fault."""
        self._subscription = subscription
        for events in planned:
            subscription.events.append(MonitoredItem(events.index, events.node, 0, GOOD))
            await self._create(subscription, events)

    async def retry(self) -> None:
        """Creates again what was bad. Raises like `create`."""
        for events in list(self._bad.values()):
            assert self._subscription is not None
            await self._create(self._subscription, events)

    def take_changed(self) -> Sequence[tuple[int, int]]:
        """(index, status) of each that turned bad since the last call."""
        changed, self._changed = self._changed, []
        return changed

    async def refresh(self) -> None:
        """Asks for the alarms that the server retains, if it has a method for that. Raises NotConnected."""
        if self._subscription is None:
            return
        condition_type, method = (ua.NodeId(ua.Int32(one)) for one in CONDITION_REFRESH)
        subscription = ua.Variant(self._subscription.id, ua.VariantType.UInt32)
        call = self._session.call([ua.CallMethodRequest(condition_type, method, [subscription])])
        try:
            status, _ = await _asked(call)
        except TimeoutError:  # a method that is not there at all, at some servers
            status = ua.StatusCodes.BadTimeout
        if status & BAD:
            self._log.info("the server repeats no retained alarms (ConditionRefresh: %s)", status_name(status))

    async def _create(self, subscription: Subscription, events: PlannedEvents) -> None:
        """One call each: a filter that is refused as a whole costs no other item."""
        wanted = event_filter(events)
        status, result = await self._requested(subscription, events, wanted)
        if wanted.WhereClause.Elements and (status & BAD or _refused_where(result)):
            if not status & BAD:
                await self._session.delete_monitored_items(
                    ua.DeleteMonitoredItemsParameters(subscription.id, [result.MonitoredItemId])
                )
            self._log.info("events %s: the server does not take the where clause, the gateway filters", events.name)
            self.unfiltered[events.index] = await self._subtypes(events)
            subscription.unfiltered = sorted(self.unfiltered)
            wanted.WhereClause = ua.ContentFilter()
            status, result = await self._requested(subscription, events, wanted)
        item = next(one for one in subscription.events if one.handle == events.index)
        item.status, item.id = status, int(result.MonitoredItemId) if result is not None else 0
        self._note(events, status)
        if not status & BAD:
            self._without(events, result)

    async def _requested(
        self, subscription: Subscription, events: PlannedEvents, wanted: ua.EventFilter
    ) -> tuple[int, Any]:
        parameters = ua.CreateMonitoredItemsParameters(
            SubscriptionId=subscription.id,
            TimestampsToReturn=ua.TimestampsToReturn.Neither,
            ItemsToCreate=[_request(events, wanted)],
        )
        return await _asked(self._session.create_monitored_items(parameters))

    async def _subtypes(self, events: PlannedEvents) -> frozenset[str]:
        try:
            nodes = [Node(self._session, ua.NodeId.from_string(text)) for text in events.types]
            found = [one.nodeid.to_string() for node in nodes for one in await get_node_subtypes(node)]
        except ua.UaStatusCodeError as error:
            self._log.warning(
                "events %s: the server does not tell its event types (%s), only the named ones are taken",
                events.name,
                status_name(error.code),
            )
            return frozenset(events.types)
        return frozenset(found)

    def _note(self, events: PlannedEvents, status: int) -> None:
        was_bad = self._bad.pop(events.index, None) is not None
        self._faults.pop(events.name, None)
        if not status & BAD:
            if was_bad:
                self._log.info("events %s can be had again", events.name)
            return
        self._bad[events.index] = events
        self._faults[events.name] = f"{events.node}: {status_name(status)}; check notifier, types and fields"
        if not was_bad:
            self._changed.append((events.index, status))
            self._log.warning("events %s cannot be had: %s", events.name, self._faults[events.name])

    def _without(self, events: PlannedEvents, result: Any) -> None:
        """Fields that the server does not know stay empty: said once."""
        statuses = getattr(result.FilterResult, "SelectClauseResults", None) or ()
        unknown = [field for field, one in zip(events.fields, statuses, strict=False) if one.value & BAD]
        if unknown:
            self._log.info("events %s: the server does not know the fields %s", events.name, ", ".join(unknown))


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


def _refused_where(result: Any) -> bool:
    where = getattr(result.FilterResult, "WhereClauseResult", None)
    elements = (where.ElementResults if where is not None else None) or ()
    return any(element.StatusCode.value & BAD for element in elements)


def _request(events: PlannedEvents, wanted: ua.EventFilter) -> ua.MonitoredItemCreateRequest:
    return ua.MonitoredItemCreateRequest(
        ItemToMonitor=ua.ReadValueId(ua.NodeId.from_string(events.node), ua.AttributeIds.EventNotifier),
        MonitoringMode=ua.MonitoringMode.Reporting,
        RequestedParameters=ua.MonitoringParameters(
            ClientHandle=events.index,
            SamplingInterval=0.0,
            Filter=wanted,
            QueueSize=events.queue,
            DiscardOldest=True,
        ),
    )
