"""A device's subscriptions as they live on its server, kept on disk, so that a new process can take them over.

`data_dir/opcua/<device>.json`: see `pipelines/json_file.py`. It belongs to one plan (the
server's address and what is subscribed to): a changed configuration, or a damaged file, means new subscriptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import orjson

from connectors.opcua_plan import PlannedSubscription
from pipelines.json_file import JsonFile

FORMAT: Final = 1
FOLDER: Final = "opcua"
KEEP_ALIVE_S_MAX: Final = 600.0


@dataclass(slots=True)
class MonitoredItem:
    """One monitored item, by its client handle: its place in the device's `tags:`."""

    handle: int
    node: str
    id: int
    """The server's; 0 where it does not exist."""
    status: int
    """Of its creation; a bad one is tried again."""
    refused_filter: int = 0
    """Why the server does not filter it as asked; 0: it does."""


@dataclass(slots=True)
class Subscription:
    """One subscription of the plan, as the server revised it."""

    id: int
    """The server's; may be used again for another one after a restart of the server."""
    stream: int
    """Ours: wall clock ns of its creation, never used again."""
    publishing_ms: float
    keep_alive_count: int
    lifetime_count: int
    items: list[MonitoredItem]
    model_changes: int = 0
    """The server's id of the item that says when its address space has changed; 0 where there is none."""
    events: list[MonitoredItem] = field(default_factory=list)
    """Likewise, by their place in the device's `events:`."""
    unfiltered: list[int] = field(default_factory=list)
    """Handles of events that the gateway filters: the server does not take their where clause."""

    @property
    def keep_alive_s(self) -> float:
        """An idle one says that it is alive about this often. A server that says more than KEEP_ALIVE_S_MAX, be it
        infinity, is not waited for that long."""
        return min(self.publishing_ms * self.keep_alive_count / 1000, KEEP_ALIVE_S_MAX)


@dataclass(slots=True)
class DeviceState:
    """What has to be known to go on with a device."""

    fingerprint: str
    server_start: str = ""
    """When the server started, in its own words: one that was restarted has none of these subscriptions."""
    subscriptions: list[Subscription | None] = field(default_factory=list)
    """In the order of the plan; None: has to be created."""
    session: tuple[str, str] | None = None
    """Authentication token and anonymous policy's id, only where there is neither a user nor a secured channel: such
    subscriptions may not be handed to another session (Part 4, 5.13.7), but the session can be taken up again."""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Times [from, to], UTC ns, in which nothing was collected and that the server's history may fill."""


def fingerprint(url: str, plan: Sequence[PlannedSubscription]) -> str:
    """Equal where the same items are subscribed to, under the same handles and in the same way, at the same server."""
    return hashlib.sha256(orjson.dumps([url, plan])).hexdigest()


def of_handles(
    plan: Sequence[PlannedSubscription], subscriptions: Sequence[Subscription | None]
) -> list[PlannedSubscription]:
    """The part of a plan that these subscriptions have: what a device has learnt since may follow behind it."""
    handles = {item.handle for one in subscriptions if one is not None for item in one.items}
    parts = (replace(one, items=[item for item in one.items if item.index in handles]) for one in plan)
    return [one for one in parts if one.items or one.events]


def aligned(
    plan: Sequence[PlannedSubscription], subscriptions: Sequence[Subscription | None]
) -> list[Subscription | None]:
    """The subscription that each part of the plan has, by its first item; None where it has to be created.

    One without any items yet is for the first part that has none of its own.
    """
    made = [one for one in subscriptions if one is not None]
    by_handle = {item.handle: one for one in made for item in one.items}
    of_events = next((one for one in made if one.events), None)
    empty = iter([one for one in made if not one.items and not one.events])

    def owner(planned: PlannedSubscription) -> Subscription | None:
        if planned.events:
            return of_events
        return (by_handle.get(planned.items[0].index) if planned.items else None) or next(empty, None)

    return [owner(planned) for planned in plan]


class StateFile:
    """The file of one device. `load`, `save` and `remove` wait for the disk."""

    def __init__(self, data_dir: Path, device: str) -> None:
        self._file = JsonFile(data_dir / FOLDER / f"{device}.json", FORMAT)
        self.path = self._file.path
        self.save = self._file.save
        self.remove = self._file.remove

    def load(self) -> DeviceState | None:
        """What was saved last; None where nothing was. Raises Corrupt, OSError."""
        return self._file.load(lambda content: _unpacked(content["state"]))

    def pack(self, state: DeviceState) -> bytes:
        """What `save` takes."""
        return self._file.pack({"state": state})


def _unpacked(packed: dict[str, object]) -> DeviceState:
    state = DeviceState(**packed)  # type: ignore[arg-type]
    state.subscriptions = [_subscription(one) if one is not None else None for one in state.subscriptions]
    state.session = None if state.session is None else (str(state.session[0]), str(state.session[1]))
    state.gaps = [(int(start), int(end)) for start, end in state.gaps]
    return state


def _subscription(packed: object) -> Subscription:
    subscription = Subscription(**packed)  # type: ignore[arg-type]
    subscription.items = [MonitoredItem(**item) for item in subscription.items]  # type: ignore[arg-type]
    subscription.events = [MonitoredItem(**item) for item in subscription.events]  # type: ignore[arg-type]
    return subscription
