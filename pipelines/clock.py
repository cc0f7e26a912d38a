"""Time as a parameter: every component is given a `Clock`, tests give their own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ClockState:
    """How good the gateway's wall clock was when a batch was received."""

    source: str = "none"
    """What disciplines the clock: "ptp", "ntp" or "none" (not known to be disciplined)."""
    error_ns: int = 0
    """Estimated error in ns; 0 where nothing is known (source "none")."""


UNDISCIPLINED = ClockState()


class Clock(Protocol):
    """What components know of time."""

    @property
    def state(self) -> ClockState:
        """The wall clock's quality now."""

    def wall_ns(self) -> int:
        """UTC nanoseconds since 1970."""

    def mono_ns(self) -> int:
        """Nanoseconds of a clock that never steps; for durations and deadlines."""

    async def sleep(self, seconds: float) -> None:
        """Waits; cancellation passes through."""


class SystemClock:
    """The host's clocks."""

    state = UNDISCIPLINED
    wall_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
