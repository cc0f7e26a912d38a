"""Subscriptions and monitored items of a session: kept or created within the server's limits; bad ones retried."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from asyncua import Client, ua

from connectors import opcua_requests
from connectors.opcua_event_items import EVENTS_PER_MESSAGE, EventItems
from connectors.opcua_plan import PlannedItem, PlannedSubscription, Resolved
from connectors.opcua_requests import ATTRIBUTE_DATA_TYPE, ATTRIBUTE_VALUE_RANK, Item, ItemResult, status_name
from connectors.opcua_session import PublishSession
from connectors.opcua_state import MonitoredItem, Subscription
from pipelines.batch import GOOD
from pipelines.clock import Clock

T = TypeVar("T")

PER_CALL: Final = 1000
"""Nodes per service call where the server names no limit of its own."""
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
        clock: Clock,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._log = log
        self._session = session
        self._clock = clock
        self._resolved = resolved
        self._per_read = self._per_call = PER_CALL
        self._bad: dict[int, tuple[Subscription, PlannedItem]] = {}  # index -> its subscription, item
        self._known: dict[int, MonitoredItem] = {}  # by index
        self._changed: list[int] = []
        self._retry_s = RETRY_FIRST_S
        self._retry_at_ns = 0
        self.subscriptions: list[Subscription] = []
        self.faults: dict[str, str] = {}
        self.events = EventItems(session, log, self.faults)

    @property
    def keep_alive_s(self) -> float:
        """Nothing at all for longer than this is a sign of trouble."""
        return max([1.0, *(subscription.keep_alive_s for subscription in self.subscriptions)])

    async def create(self, client: Client, kept: Sequence[Subscription | None]) -> list[Subscription]:
        """Takes over what the session has (`kept`, in the order of the plan) and creates the rest with all its items.

        Returns what was created. A bad item becomes a fault, never an error. Raises NotConnected, TimeoutError,
        ServiceError, ua.UaError.
        """
        self._per_read, self._per_call = await _operation_limits(client)
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
            for part in _chunks([item.id for item in gone if item.id], self._per_call):
                await self._session.delete_monitored_items(
                    ua.DeleteMonitoredItemsParameters(SubscriptionId=subscription.id, MonitoredItemIds=list(part))
                )
            for item in gone:
                item.id, item.status = 0, status
                self._turned_bad(subscription, planned[item.handle], status, why)
                del self._bad[item.handle]

    async def create_missing(self, again: Collection[int] = ()) -> None:
        """Every planned item that was never asked for, and `again` those that were removed. Raises like `create`."""
        missing = [
            (subscription, [item for item in planned.items if item.index not in self._known or item.index in again])
            for planned, subscription in zip(self._resolved.plan, self.subscriptions, strict=True)
        ]
        columns = await self._column_keys([item.index for _, items in missing for item in items])
        for subscription, items in missing:
            # Values of one type in a row are decoded as one column, so they are created in a row.
            await self._create_items(subscription, sorted(items, key=lambda item: columns[item.index]))
        self._schedule_retry()

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

    async def _column_keys(self, indexes: Sequence[int]) -> dict[int, tuple[int, bool]]:
        """(built-in type, is an array) by index, for grouping; a large number where the type is not built in."""
        keys: dict[int, tuple[int, bool]] = {}
        for part in _chunks(indexes, self._per_read):
            nodes = [self._resolved.nodes[index] for index in part]
            types = map(_builtin_type, await self._attribute(nodes, ATTRIBUTE_DATA_TYPE))
            arrays = map(_is_array, await self._attribute(nodes, ATTRIBUTE_VALUE_RANK))
            keys.update(zip(part, zip(types, arrays, strict=True), strict=True))
        return keys

    async def _attribute(self, nodes: Sequence[bytes], attribute: int) -> list[Any]:
        body = await self._session.request(partial(opcua_requests.read, nodes=nodes, attribute=attribute))
        return opcua_requests.read_values(body, len(nodes))

    def _adopt(self, subscription: Subscription, items: Sequence[PlannedItem]) -> None:
        self.subscriptions.append(subscription)
        planned = {item.index: item for item in items}
        for known in subscription.items:
            self._known[known.handle] = known
            if known.status & 0x8000_0000:
                self._turned_bad(subscription, planned[known.handle], known.status)

    async def _subscribe(self, planned: PlannedSubscription) -> Subscription:
        result = await self._session.create_subscription(
            ua.CreateSubscriptionParameters(
                RequestedPublishingInterval=planned.publishing_ns / 1e6,
                RequestedLifetimeCount=planned.lifetime_count,
                RequestedMaxKeepAliveCount=planned.keep_alive_count,
                MaxNotificationsPerPublish=EVENTS_PER_MESSAGE if planned.events else NOTIFICATIONS_MAX,
                PublishingEnabled=True,
            ),
            lambda _: None,
        )
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
        for part in _chunks(items, self._per_call):
            requested = [
                Item(self._resolved.nodes[item.index], item.index, item.sampling_ns / 1e6, item.queue) for item in part
            ]
            body = await self._session.request(
                partial(opcua_requests.create_monitored_items, subscription_id=subscription.id, items=requested)
            )
            results = opcua_requests.created_items(body, len(part))
            for item, result in zip(part, results, strict=True):
                self._note(subscription, item, result)

    def _note(self, subscription: Subscription, item: PlannedItem, result: ItemResult) -> None:
        """Keeps the item's state; one log line for each change."""
        known = self._known.get(item.index)
        if known is None:
            known = self._known[item.index] = MonitoredItem(item.index, item.node, 0, GOOD)
            subscription.items.append(known)
        before = known.status
        known.id, known.status = result.item_id, result.status
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


async def _operation_limits(client: Client) -> tuple[int, int]:
    """(nodes per Read, items per CreateMonitoredItems); Part 5, 6.3.11: 0 or absent means no limit."""
    ids = (
        ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
        ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
    )
    limits = []
    for identifier in ids:  # one by one: a limit of 1 node per Read is legal
        [value] = await client.uaclient.session.read_attributes(
            [ua.NodeId(ua.Int32(identifier))], ua.AttributeIds.Value
        )
        number = value.Value.Value if value.Value is not None else None
        limits.append(min(number, PER_CALL) if isinstance(number, int) and number > 0 else PER_CALL)
    return limits[0], limits[1]


def _builtin_type(data_type: object) -> int:
    text = str(data_type)
    return int(text[2:]) if text.startswith("i=") and text[2:].isdigit() else 1 << 31


def _is_array(value_rank: object) -> bool:
    """Part 3, 5.6.2: 0 and more are arrays; -1 is a scalar, what is less may be either."""
    return isinstance(value_rank, int) and value_rank >= 0


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
