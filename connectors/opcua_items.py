"""Subscriptions and monitored items of a session: kept or created within the server's limits; bad ones retried."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final

from asyncua import ua

from connectors import opcua_requests
from connectors.opcua_event_items import EVENTS_PER_MESSAGE, EventItems
from connectors.opcua_filters import NOTHING, REFUSED, Unfiltered, encoded
from connectors.opcua_limits import Limits, Service
from connectors.opcua_plan import PlannedItem, PlannedSubscription, Resolved
from connectors.opcua_requests import (
    ATTRIBUTE_DATA_TYPE,
    ATTRIBUTE_VALUE_RANK,
    MODE_REPORTING,
    NO_FILTER,
    Item,
    ItemResult,
    ServiceError,
    status_name,
)
from connectors.opcua_session import PublishSession
from connectors.opcua_state import MonitoredItem, Subscription, aligned
from pipelines.batch import GOOD
from pipelines.clock import Clock

RETRY_FIRST_S: Final = 5.0
RETRY_MAX_S: Final = 300.0
NOTIFICATIONS_MAX: Final = 20_000
"""Values in one PublishResponse; the server sends more of them where it has more."""


class MonitoredItems:
    """Monitored items by their index in the device's `tags:`, which is also their client handle."""

    def __init__(
        self,
        session: PublishSession,
        resolved: Resolved,
        limits: Limits,
        clock: Clock,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._log = log
        self._session = session
        self._clock = clock
        self._resolved = resolved
        self._limits = limits
        self._bad: dict[int, tuple[Subscription, PlannedItem]] = {}  # index -> its subscription, item
        self._known: dict[int, MonitoredItem] = {}  # by index
        self._changed: list[int] = []
        self._retry_s = RETRY_FIRST_S
        self._retry_at_ns = 0
        self._types: dict[int, int] = {}  # built-in, by index
        self.unfiltered = Unfiltered()
        self.mode = MODE_REPORTING
        """Of items that are created."""
        self.subscriptions: list[Subscription] = []
        self.subscribing = False
        """The server has been asked for one: its notifications may come before the answer is read."""
        self.short_queue: tuple[int, int] | None = None
        """Values that the server keeps of an item, and how many were asked for, where that is the least part."""
        self.faults: dict[str, str] = {}
        self.events = EventItems(session, log, self.faults)

    @property
    def nodes(self) -> Sequence[bytes]:
        """The encoded node id of each item, by index."""
        return self._resolved.nodes

    @property
    def bad(self) -> frozenset[int]:
        """The indexes of the items that `retry` would create again."""
        return frozenset(self._bad)

    @property
    def keep_alive_s(self) -> float:
        """Nothing at all for longer than this is a sign of trouble."""
        return max([1.0, *(subscription.keep_alive_s for subscription in self.subscriptions)])

    async def create(self, kept: Sequence[Subscription | None]) -> list[Subscription]:
        """Takes over what the session has (`kept`, in the order of the plan) and creates the rest with all its items.

        Returns what was created. A bad item becomes a fault, never an error. Raises NotConnected, TimeoutError,
        ServiceError, ua.UaError.
        """
        created = []
        for planned, subscription in zip(self._resolved.plan, kept, strict=True):
            if subscription is not None:
                self._adopt(subscription, planned.items)
                if planned.events:
                    await self.events.adopt(subscription, planned.events)
                continue
            made = await self._subscribe(planned)
            created.append(made)
            if planned.events:
                await self.events.create(made, planned.events)
        await self.create_missing()
        return created

    async def report(self) -> None:
        """Items that so far are sampled only report from now on, what their queues hold first (Part 4, 5.12.4).

        Raises like `create`; ServiceError where one of them cannot be.
        """
        self.mode = MODE_REPORTING
        for subscription in self.subscriptions:
            ids = [item.id for item in subscription.items if item.id]
            results = await self._limits.in_parts(Service.MONITORED_ITEMS, ids, partial(self._report, subscription.id))
            for refused in (result.value for result in results if not result.is_good()):
                raise ServiceError(refused)

    async def _report(self, subscription_id: int, ids: Sequence[int]) -> list[ua.StatusCode]:
        wanted = ua.SetMonitoringModeParameters(
            SubscriptionId=subscription_id, MonitoringMode=ua.MonitoringMode.Reporting, MonitoredItemIds=list(ids)
        )
        return list(await self._session.set_monitoring_mode(wanted))

    def without_filters(self) -> None:
        """The server is known to refuse them: none is asked for."""
        wanted = [item for one in self._resolved.plan for item in one.items if item.filter != NOTHING]
        for item in wanted:
            self.unfiltered.add(item.index, item.filter, ua.StatusCodes.BadFilterNotAllowed)
        if wanted:
            self._log.warning("%s", self.unfiltered.info)

    def take(self, resolved: Resolved) -> None:
        """The tags that are known, and maybe more behind them, for what is created from now on."""
        self._resolved = resolved
        planned = {item.index: item for subscription in resolved.plan for item in subscription.items}
        self._bad = {index: (owner, planned[index]) for index, (owner, _) in self._bad.items()}

    async def remove(self, indexes: Collection[int], status: int, why: str) -> None:
        """Bad from now on, until `create_missing` is told to make them again. Raises like `create`."""
        planned = {item.index: item for subscription in self._resolved.plan for item in subscription.items}
        for subscription in self.subscriptions:
            gone = [item for item in subscription.items if item.handle in indexes]
            await self._delete_items(subscription, [item.id for item in gone if item.id])
            for item in gone:
                item.id, item.status = 0, status
                self._turned_bad(subscription, planned[item.handle], status, why)
                del self._bad[item.handle]

    async def create_missing(self, again: Collection[int] = ()) -> None:
        """Every planned item that was never asked for, and `again` those that were removed. Raises like `create`.

        What is learnt later may need subscriptions of its own: the order of `subscriptions` is that of the plan again.
        """
        plan = self._resolved.plan
        owners = aligned(plan, self.subscriptions)
        self.subscriptions = [owner or await self._subscribe(one) for one, owner in zip(plan, owners, strict=True)]
        missing = [
            (subscription, [item for item in planned.items if self._lacks(item, again)])
            for planned, subscription in zip(plan, self.subscriptions, strict=True)
        ]
        columns = await self._column_keys([item.index for _, items in missing for item in items])
        for subscription, items in missing:
            # Values of one type in a row are decoded as one column, so they are created in a row.
            await self._create_items(subscription, sorted(items, key=lambda item: columns[item.index]))
        self._schedule_retry()

    def _lacks(self, item: PlannedItem, again: Collection[int]) -> bool:
        known = self._known.get(item.index)
        return known is None or (item.index in again and not known.id)

    async def retry(self) -> None:
        """Creates again what was bad. Raises like `create`."""
        for subscription in self.subscriptions:
            waiting = [item for owner, item in self._bad.values() if owner is subscription]
            await self._create_items(subscription, waiting)
        await self.events.retry()
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)
        self._schedule_retry()

    def retry_in_s(self) -> float | None:
        """Seconds until `retry` is due; None while no item is bad."""
        if not self._bad and not self.events.bad:
            return None
        return max(self._retry_at_ns - self._clock.mono_ns(), 0) / 1e9

    def take_changed(self) -> Iterator[tuple[int, int]]:
        """(index, status) of each item that turned bad, or bad in another way, since the last call."""
        changed, self._changed = self._changed, []
        return ((index, self._known[index].status) for index in changed)

    def _schedule_retry(self) -> None:
        self._retry_at_ns = self._clock.mono_ns() + int(self._retry_s * 1e9)

    async def _delete_items(self, subscription: Subscription, ids: Sequence[int]) -> None:
        async def delete(part: Sequence[int]) -> list[ua.StatusCode]:
            wanted = ua.DeleteMonitoredItemsParameters(SubscriptionId=subscription.id, MonitoredItemIds=list(part))
            return list(await self._session.delete_monitored_items(wanted))

        await self._limits.in_parts(Service.MONITORED_ITEMS, ids, delete)

    async def _column_keys(self, indexes: Sequence[int]) -> dict[int, tuple[int, bool]]:
        """(built-in type, is an array) by index, for grouping; a large number where the type is not built in."""
        nodes = [self._resolved.nodes[index] for index in indexes]
        request = self._session.request
        types = [_builtin_type(found) for found in await self._limits.read(request, nodes, ATTRIBUTE_DATA_TYPE)]
        arrays = map(_is_array, await self._limits.read(request, nodes, ATTRIBUTE_VALUE_RANK))
        self._types.update(zip(indexes, types, strict=True))
        return dict(zip(indexes, zip(types, arrays, strict=True), strict=True))

    def _adopt(self, subscription: Subscription, items: Sequence[PlannedItem]) -> None:
        self.subscriptions.append(subscription)
        planned = {item.index: item for item in items}
        for known in subscription.items:
            self._known[known.handle] = known
            if known.refused_filter:
                self.unfiltered.add(known.handle, planned[known.handle].filter, known.refused_filter)
            if known.status & 0x8000_0000:
                self._turned_bad(subscription, planned[known.handle], known.status)

    async def _subscribe(self, planned: PlannedSubscription) -> Subscription:
        wanted = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=planned.publishing_ns / 1e6,
            RequestedLifetimeCount=planned.lifetime_count,
            RequestedMaxKeepAliveCount=planned.keep_alive_count,
            MaxNotificationsPerPublish=EVENTS_PER_MESSAGE if planned.events else NOTIFICATIONS_MAX,
            PublishingEnabled=True,
        )
        self.subscribing = True
        try:
            result = await self._session.create_subscription(wanted, lambda _: None)
        finally:
            self.subscribing = False
        subscription = Subscription(
            id=int(result.SubscriptionId),
            stream=self._clock.wall_ns() + len(self.subscriptions),  # two are never one, however coarse the clock
            publishing_ms=float(result.RevisedPublishingInterval),
            keep_alive_count=int(result.RevisedMaxKeepAliveCount),
            lifetime_count=int(result.RevisedLifetimeCount),
            items=[],
        )
        self.subscriptions.append(subscription)
        return subscription

    async def _create_items(self, subscription: Subscription, items: Sequence[PlannedItem]) -> None:
        async def create(part: Sequence[PlannedItem]) -> list[ItemResult]:
            requested = list(map(self._requested, part))
            body = await self._session.request(
                partial(opcua_requests.create_monitored_items, subscription_id=subscription.id, items=requested)
            )
            return opcua_requests.created_items(body, len(part))

        results = await self._limits.in_parts(Service.MONITORED_ITEMS, items, create)
        again = [at for at, result in enumerate(results) if self._filter_refused(items[at], result.status)]
        if again:
            self._log.warning("%s", self.unfiltered.info)
            plain = await self._limits.in_parts(Service.MONITORED_ITEMS, [items[at] for at in again], create)
            for at, result in zip(again, plain, strict=True):
                results[at] = result
        for item, result in zip(items, results, strict=True):
            self._note(subscription, item, result)

    def _requested(self, item: PlannedItem) -> Item:
        wanted = NO_FILTER
        if item.index not in self.unfiltered.filters:
            wanted = encoded(item.filter, self._types.get(item.index))
        return Item(
            self._resolved.nodes[item.index],
            item.index,
            item.sampling_ns / 1e6,
            item.queue,
            wanted,
            item.discard_oldest,
            self.mode,
        )

    def _filter_refused(self, item: PlannedItem, status: int) -> bool:
        """Whether to try without the filter; then that is remembered."""
        if item.filter == NOTHING or status not in REFUSED or item.index in self.unfiltered.filters:
            return False
        self.unfiltered.add(item.index, item.filter, status)
        return True

    def _note(self, subscription: Subscription, item: PlannedItem, result: ItemResult) -> None:
        """Keeps the item's state; one log line for each change."""
        known = self._known.get(item.index)
        if known is None:
            known = self._known[item.index] = MonitoredItem(item.index, item.node, 0, GOOD)
            subscription.items.append(known)
        before = known.status
        known.id, known.status = result.item_id, result.status
        known.refused_filter = self.unfiltered.status if item.index in self.unfiltered.filters else 0
        if not result.status & 0x8000_0000 and result.queue < item.queue:
            short = self.short_queue
            if short is None or result.queue * short[1] < short[0] * item.queue:
                self.short_queue = result.queue, item.queue
        if before == result.status:
            return
        if result.status & 0x8000_0000:
            self._turned_bad(subscription, item, result.status)
        else:
            self._bad.pop(item.index, None)
            self.faults.pop(item.name, None)
            self._log.info("tag %s can be read again", item.name)

    def _turned_bad(self, subscription: Subscription, item: PlannedItem, status: int, why: str = "") -> None:
        self._bad[item.index] = (subscription, item)
        self._changed.append(item.index)
        why = why or self._resolved.why.get(item.name) or f"{item.node}: {status_name(status)}; check the node id"
        self.faults[item.name] = why
        self._log.warning("tag %s cannot be read: %s", item.name, self.faults[item.name])


def _builtin_type(data_type: object) -> int:
    text = str(data_type)
    return int(text[2:]) if text.startswith("i=") and text[2:].isdigit() else 1 << 31


def _is_array(value_rank: object) -> bool:
    """Part 3, 5.6.2: 0 and more are arrays; -1 is a scalar, what is less may be either."""
    return isinstance(value_rank, int) and value_rank >= 0
