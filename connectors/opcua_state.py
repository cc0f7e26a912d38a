"""A device's subscriptions as they live on its server, kept on disk, so that a new process can take them over.

`data_dir/opcua/<device>.json`: one JSON object behind its CRC-32, written anew as a whole. It belongs to one plan (the
server's address and what is subscribed to): a changed configuration, or a damaged file, means new subscriptions.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from connectors.opcua_plan import PlannedSubscription
from pipelines.errors import Corrupt
from pipelines.files import RealFiles, replace_file

FORMAT: Final = 1
FOLDER: Final = "opcua"


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
    events: list[MonitoredItem] = field(default_factory=list)
    """Likewise, by their place in the device's `events:`."""
    unfiltered: list[int] = field(default_factory=list)
    """Handles of events that the gateway filters: the server does not take their where clause."""

    @property
    def keep_alive_s(self) -> float:
        """An idle one says that it is alive about this often."""
        return self.publishing_ms * self.keep_alive_count / 1000


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


def fingerprint(url: str, plan: list[PlannedSubscription]) -> str:
    """Equal where the same items are subscribed to, under the same handles and in the same way, at the same server."""
    return hashlib.sha256(orjson.dumps([url, plan])).hexdigest()


class StateFile:
    """The file of one device. Its methods wait for the disk."""

    def __init__(self, data_dir: Path, device: str) -> None:
        self.path = data_dir / FOLDER / f"{device}.json"
        self._files = RealFiles()
        self._lock = threading.Lock()

    def load(self) -> DeviceState | None:
        """What was saved last; None where nothing was. Raises Corrupt, OSError."""
        try:
            data = self._files.read(self.path)
        except FileNotFoundError:
            return None
        checksum, _, body = data.partition(b"\n")
        if checksum != _checksum(body):
            raise Corrupt(f"{self.path} is damaged")
        try:
            packed = orjson.loads(body)
            if packed["format"] != FORMAT:
                raise Corrupt(f"{self.path} was written by another version")
            return _unpacked(packed["state"])
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"{self.path} cannot be understood: {error!r}") from error

    def save(self, packed: bytes) -> None:
        """Keeps what `pack` made. Raises OSError; then what was saved before is still there."""
        with self._lock:
            self._files.make_folder(self.path.parent)
            replace_file(self._files, self.path, packed)

    def remove(self) -> None:
        """Raises OSError."""
        with self._lock, suppress(FileNotFoundError):
            self._files.remove(self.path)


def pack(state: DeviceState) -> bytes:
    """The file's content."""
    body = orjson.dumps({"format": FORMAT, "state": state})
    return _checksum(body) + b"\n" + body


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


def _checksum(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x}".encode()
