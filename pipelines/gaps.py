"""Gaps: what could not be kept or collected, said once and in numbers. The ledger that keeps them is the runtime's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipelines.batch import Batch
from pipelines.tags import device_of


class Reason(StrEnum):
    """Why rows are missing."""

    LANE_FULL = "buffer full"
    EXPIRED = "older than max_age"
    CORRUPT = "damaged on disk"
    QUEUE_OVERFLOW = "queue overflow at the machine"
    MISSED = "notifications missed"
    DISCONNECTED = "machine disconnected"
    STOPPED = "not delivered at the stop"
    FORGOTTEN = "buffer wiped or replaced"
    MAP_CHANGED = "the device is another than before, its tags follow"
    """No row is missing: what the tags of the entry mean, or which there are, changed with the device's firmware."""
    CLOCK_STEPPED = "the gateway's clock was set"
    """No row is missing: times before and after do not fit together."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One hole in one device's data."""

    reason: Reason
    device: str
    route: str
    """The lane that could not keep the rows; empty where they were never collected."""
    tags: tuple[str, ...]
    """Their names; empty: any of the device."""
    from_ns: int
    to_ns: int
    """Arrival of the first and the last missing row, as far as it is known; UTC ns."""
    rows: int | None
    """None: nobody knows."""
    backfilled: bool = False
    """Filled afterwards, from the machine's own history."""
    detail: str = ""
    """What else there is to say, for people."""


class Ledger(Protocol):
    """Keeps gaps. For the event loop's thread."""

    def note(self, gap: Gap) -> None:
        """Never waits, never raises; gaps of one kind that follow each other may become one entry."""


class NoLedger:
    """Keeps nothing; for parts that stand alone."""

    def note(self, gap: Gap) -> None:
        """Forgets it."""


def of_batches(reason: Reason, route: str, batches: Iterable[Batch], devices: Sequence[str]) -> Iterator[Gap]:
    """One gap for each device, of batches in the order of their arrival that a lane could not keep."""
    found: dict[int, tuple[int, int, int]] = {}
    for batch in batches:
        from_ns, _, rows = found.get(batch.source_id, (batch.received_ns, 0, 0))
        found[batch.source_id] = from_ns, batch.received_ns, rows + len(batch)
    for source, (from_ns, to_ns, rows) in found.items():
        device = device_of(devices[source]) if source < len(devices) else ""
        yield Gap(reason, device, route, (), from_ns, to_ns, rows)
