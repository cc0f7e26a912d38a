"""Settings -> the subscriptions and monitored items that a device gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from connectors.opcua_event_settings import ALWAYS
from connectors.opcua_requests import encode_node_id
from connectors.opcua_select import described
from connectors.opcua_settings import Filter, OpcUaDevice
from connectors.profile import AUTO
from pipelines.quantities import count, format_duration

KEEP_ALIVE_NS: Final = 5 * 10**9
"""An idle subscription says that it is alive about this often."""
KEEP_ALIVES_MIN: Final = 3
"""A subscription lives at least as many keep-alives without a PublishRequest (Part 4, 5.13.2.2)."""


@dataclass(frozen=True, slots=True)
class PlannedItem:
    """One tag of a subscription; `index` is its place in the device's `tags:`, and its client handle."""

    index: int
    name: str
    node: str
    sampling_ns: int
    queue: int
    filter: Filter
    discard_oldest: bool


@dataclass(frozen=True, slots=True)
class PlannedEvents:
    """One stream of events; `index` is its place in the device's `events:`, and its client handle."""

    index: int
    name: str
    node: str
    types: Sequence[str]
    fields: Sequence[str]
    severity: int
    queue: int


@dataclass(frozen=True, slots=True)
class PlannedSubscription:
    """All tags of a device with one publishing interval, or all its events."""

    publishing_ns: int
    lifetime_ns: int
    items: Sequence[PlannedItem]
    events: Sequence[PlannedEvents] = ()

    @property
    def keep_alive_count(self) -> int:
        """Publishing intervals without data after which the server sends an empty response."""
        return max(1, KEEP_ALIVE_NS // self.publishing_ns)

    @property
    def lifetime_count(self) -> int:
        """Publishing intervals without a PublishRequest after which the server deletes the subscription."""
        return max(KEEP_ALIVES_MIN * self.keep_alive_count, self.lifetime_ns // self.publishing_ns)


def plan_subscriptions(
    settings: OpcUaDevice, items_max: int | None = None, subscriptions_max: int | None = None
) -> list[PlannedSubscription]:
    """One subscription per publishing interval, shortest first, the last one for events; by their handles.

    Several of one interval where one would have more than `items_max`, or the file's `items_per_subscription`. With
    more than `subscriptions_max` intervals, those that are nearest to each other share the shorter one. Tags that are
    learnt later have the device's own interval, and follow: no other one changes its subscription.
    """
    by_interval: dict[int, list[PlannedItem]] = {settings.every: []} if settings.learns_tags else {}
    if settings.learns_tags and items_max:
        items_max = max(items_max - 1, 1)  # one is for changes of the address space
    for index, (name, tag) in enumerate(settings.tags.items()):
        item = PlannedItem(
            index,
            name,
            tag.node,
            settings.sampling_ns(tag),
            settings.queue_values(tag),
            settings.filter_of(tag),
            settings.discard_of(tag) == "oldest",
        )
        by_interval.setdefault(settings.publishing_ns(tag), []).append(item)
    intervals_max = max(subscriptions_max - bool(settings.events), 1) if subscriptions_max else len(by_interval)
    while len(by_interval) > intervals_max:
        shorter, longer = min(pairwise(sorted(by_interval)), key=lambda pair: pair[1] / pair[0])
        by_interval[shorter] = sorted(by_interval[shorter] + by_interval.pop(longer), key=lambda item: item.index)
    room = min(filter(None, (items_max, settings.items_per_subscription)), default=len(settings.tags) or 1)
    planned = [
        PlannedSubscription(interval, settings.lifetime, items[at : at + room])
        for interval, items in sorted(by_interval.items())
        for at in range(0, len(items) or 1, room)
    ]
    if settings.events:
        planned.append(PlannedSubscription(settings.every, settings.lifetime, (), plan_events(settings)))
    return planned


def plan_events(settings: OpcUaDevice) -> list[PlannedEvents]:
    """In the order of the file; the fields that are always there first."""
    return [
        PlannedEvents(
            index,
            name,
            events.node,
            events.types,
            tuple(dict.fromkeys((*ALWAYS, *events.fields))),
            events.severity,
            events.queue,
        )
        for index, (name, events) in enumerate(settings.events.items())
    ]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A device's tags by node ids of the server that is connected, in the order of their client handles."""

    device: OpcUaDevice
    plan: list[PlannedSubscription]
    nodes: list[bytes]
    """Encoded."""
    why: Mapping[str, str]
    """Tag -> what is wrong with its address."""

    @classmethod
    def of(
        cls,
        device: OpcUaDevice,
        why: Mapping[str, str],
        items_max: int | None = None,
        subscriptions_max: int | None = None,
    ) -> Resolved:
        """About 10 us for a tag. The limits are those of `plan_subscriptions`."""
        nodes = [encode_node_id(tag.node) for tag in device.tags.values()]
        return cls(device, plan_subscriptions(device, items_max, subscriptions_max), nodes, why)


def describe_plan(settings: OpcUaDevice) -> list[str]:
    """The lines that `gateway plan` prints for this device."""
    wanted = settings.secured
    security = f"{wanted.policy} {wanted.mode}" if wanted else "none"
    lines = [f"{settings.opcua}, security {security}, {count(len(settings.tags), 'tag')}"]
    for subscription in plan_subscriptions(settings):
        interval = format_duration(subscription.publishing_ns)
        items = len(subscription.items) + len(subscription.events)
        lines.append(f"subscription every {interval}: {count(items, 'monitored item')}")
        for item in subscription.items:
            sampling = format_duration(item.sampling_ns) if item.sampling_ns else "every change"
            more = f", {item.filter}" if str(item.filter) else ""
            lines.append(f"  {item.name}: {item.node}, sampling {sampling}, queue {item.queue}{more}")
        for events in subscription.events:
            types = ", ".join(events.types) or "all types"
            lines.append(f"  {events.name}: events of {events.node}, {types}, severity from {events.severity}")
    if settings.profile:
        lines.append(
            f"tags of {'the profiles that fit' if settings.profile == AUTO else f'profile {settings.profile}'}"
        )
    if settings.select:
        lines += described(settings.select)
    return lines
