"""Gaps: what could not be kept or collected, said once and in numbers. The ledger that keeps them is the runtime's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Reason(StrEnum):
    """Why rows are missing."""

    LANE_FULL = "buffer full"
    EXPIRED = "older than max_age"
    CORRUPT = "damaged on disk"
    QUEUE_OVERFLOW = "queue overflow at the machine"
    MISSED = "notifications missed"
    DISCONNECTED = "machine disconnected"
    STOPPED = "not delivered at the stop"


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


class Ledger(Protocol):
    """Keeps gaps."""

    def note(self, gap: Gap) -> None:
        """Never waits, never raises; gaps of one kind that follow each other may become one entry."""


class NoLedger:
    """Keeps nothing; for parts that stand alone."""

    def note(self, gap: Gap) -> None:
        """Forgets it."""
