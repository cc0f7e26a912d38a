"""Settings -> the subscriptions and monitored items that a device gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.opcua_event_settings import ALWAYS
from connectors.opcua_requests import encode_node_id
from connectors.opcua_select import described
from connectors.opcua_settings import OpcUaDevice
from pipelines.quantities import format_duration

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


def plan_subscriptions(settings: OpcUaDevice) -> list[PlannedSubscription]:
    """One subscription per publishing interval, shortest first, the last one for events; by their handles."""
    # With `select:` the device's own interval is always there, for what is learnt.
    by_interval: dict[int, list[PlannedItem]] = {settings.every: []} if settings.select else {}
    for index, (name, tag) in enumerate(settings.tags.items()):
        item = PlannedItem(index, name, tag.node, settings.sampling_ns(tag), settings.queue_values(tag))
        by_interval.setdefault(settings.publishing_ns(tag), []).append(item)
    lifetime = settings.lifetime
    planned = [PlannedSubscription(interval, lifetime, items) for interval, items in sorted(by_interval.items())]
    if settings.events:
        planned.append(PlannedSubscription(settings.every, lifetime, (), plan_events(settings)))
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
    def of(cls, device: OpcUaDevice, why: Mapping[str, str]) -> Resolved:
        """About 10 us for a tag."""
        nodes = [encode_node_id(tag.node) for tag in device.tags.values()]
        return cls(device, plan_subscriptions(device), nodes, why)


def describe_plan(settings: OpcUaDevice) -> list[str]:
    """The lines that `gateway plan` prints for this device."""
    lines = [f"{settings.opcua}, security {settings.security}, {len(settings.tags)} tags"]
    for subscription in plan_subscriptions(settings):
        interval = format_duration(subscription.publishing_ns)
        items = len(subscription.items) + len(subscription.events)
        lines.append(f"subscription every {interval}: {items} monitored items")
        for item in subscription.items:
            sampling = format_duration(item.sampling_ns) if item.sampling_ns else "every change"
            lines.append(f"  {item.name}: {item.node}, sampling {sampling}, queue {item.queue}")
        for events in subscription.events:
            types = ", ".join(events.types) or "all types"
            lines.append(f"  {events.name}: events of {events.node}, {types}, severity from {events.severity}")
    if settings.select:
        lines += described(settings.select)
    return lines
