"""Subscriptions and monitored items of one session: created in batches within the server's limits, bad ones retried."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from asyncua import Client, ua

from connectors import opcua_requests
from connectors.opcua_plan import LIFETIME_KEEP_ALIVES, PlannedItem, PlannedSubscription, plan_subscriptions
from connectors.opcua_requests import ATTRIBUTE_DATA_TYPE, ATTRIBUTE_VALUE_RANK, Item, status_name
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
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
        self, session: PublishSession, settings: OpcUaDevice, clock: Clock, log: logging.LoggerAdapter[logging.Logger]
    ) -> None:
        self._log = log
        self._session = session
        self._clock = clock
        self._plan = plan_subscriptions(settings)
        self._nodes = [opcua_requests.encode_node_id(tag.node) for tag in settings.tags.values()]
        self._per_call = PER_CALL
        self._bad: dict[int, tuple[int, PlannedItem]] = {}  # index -> subscription id, item
        self._status: dict[int, int] = {}
        self._changed: list[int] = []
        self._retry_s = RETRY_FIRST_S
        self._retry_at_ns = 0
        self.subscription_ids: list[int] = []
        self.keep_alive_s = 0.0
        self.faults: dict[str, str] = {}

    async def create(self, client: Client) -> None:
        """Creates every subscription with all its items. A bad item becomes a fault, never an error.

        Raises NotConnected, TimeoutError, ServiceError, ua.UaError.
        """
        per_read, self._per_call = await _operation_limits(client)
        columns = await self._column_keys(per_read)
        for planned in self._plan:
            subscription_id = await self._subscribe(planned)
            # Values of one type in a row are decoded as one column, so they are created in a row.
            items = sorted(planned.items, key=lambda item: columns[item.index])
            await self._create_items(subscription_id, items)
        self._schedule_retry()

    async def retry(self) -> None:
        """Creates again what was bad. Raises like `create`."""
        waiting: dict[int, list[PlannedItem]] = {}
        for subscription_id, item in self._bad.values():
            waiting.setdefault(subscription_id, []).append(item)
        for subscription_id, items in waiting.items():
            await self._create_items(subscription_id, items)
        self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)
        self._schedule_retry()

    def retry_in_s(self) -> float | None:
        """Seconds until `retry` is due; None while no item is bad."""
        if not self._bad:
            return None
        return max(self._retry_at_ns - self._clock.mono_ns(), 0) / 1e9

    def take_changed(self) -> Iterator[tuple[int, int]]:
        """(index, status) of each item that turned bad, or bad in another way, since the last call."""
        changed, self._changed = self._changed, []
        return ((index, self._status[index]) for index in changed)

    def _schedule_retry(self) -> None:
        self._retry_at_ns = self._clock.mono_ns() + int(self._retry_s * 1e9)

    async def _column_keys(self, per_call: int) -> list[tuple[int, bool]]:
        """(built-in type, is an array) per item, for grouping; a large number where the type is not built in."""
        types: list[int] = []
        arrays: list[bool] = []
        for nodes in _chunks(self._nodes, per_call):
            types += map(_builtin_type, await self._attribute(nodes, ATTRIBUTE_DATA_TYPE))
            arrays += map(_is_array, await self._attribute(nodes, ATTRIBUTE_VALUE_RANK))
        return list(zip(types, arrays, strict=True))

    async def _attribute(self, nodes: Sequence[bytes], attribute: int) -> list[Any]:
        body = await self._session.request(partial(opcua_requests.read, nodes=nodes, attribute=attribute))
        return opcua_requests.read_values(body, len(nodes))

    async def _subscribe(self, planned: PlannedSubscription) -> int:
        keep_alive = planned.keep_alive_count
        result = await self._session.create_subscription(
            ua.CreateSubscriptionParameters(
                RequestedPublishingInterval=planned.publishing_ns / 1e6,
                RequestedLifetimeCount=keep_alive * LIFETIME_KEEP_ALIVES,
                RequestedMaxKeepAliveCount=keep_alive,
                MaxNotificationsPerPublish=NOTIFICATIONS_MAX,
                PublishingEnabled=True,
            ),
            lambda _: None,
        )
        alive_s = result.RevisedPublishingInterval * result.RevisedMaxKeepAliveCount / 1000
        self.keep_alive_s = max(self.keep_alive_s, alive_s, 1.0)
        self.subscription_ids.append(result.SubscriptionId)
        return int(result.SubscriptionId)

    async def _create_items(self, subscription_id: int, items: Sequence[PlannedItem]) -> None:
        for part in _chunks(items, self._per_call):
            requested = [Item(self._nodes[item.index], item.index, item.sampling_ns / 1e6, item.queue) for item in part]
            body = await self._session.request(
                partial(opcua_requests.create_monitored_items, subscription_id=subscription_id, items=requested)
            )
            results = opcua_requests.created_items(body, len(part))
            for item, result in zip(part, results, strict=True):
                self._note(subscription_id, item, result.status)

    def _note(self, subscription_id: int, item: PlannedItem, status: int) -> None:
        """Keeps the item's state; one log line for each change."""
        if self._status.get(item.index, GOOD) == status:
            return
        self._status[item.index] = status
        if status & 0x8000_0000:
            self._bad[item.index] = (subscription_id, item)
            self._changed.append(item.index)
            self.faults[item.name] = f"{item.node}: {status_name(status)}; check the node id"
            self._log.warning("tag %s cannot be read: %s", item.name, self.faults[item.name])
        else:
            self._bad.pop(item.index, None)
            self.faults.pop(item.name, None)
            self._log.info("tag %s can be read again", item.name)


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
