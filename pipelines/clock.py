"""Time as a parameter: every component is given a `Clock`, tests give their own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, Protocol

STEP_NS: Final = 1_000_000
"""A change of wall clock against monotonic clock beyond this, and beyond what two readings leave open, is a step. On
Linux slewing moves both clocks alike and only steps come between them; elsewhere it is 0.5 ms a second at most."""
NARROW_NS: Final = 50_000
"""A reading that took longer was interrupted: it is taken once more, and not compared with afterwards."""
STEPS_KEPT: Final = 100
_NEVER: Final = -(2**63)

Source = Literal["ptp", "ntp", "kernel", "none"]
"""What disciplines the clock: ptp4l, chrony, somebody whom only the kernel knows, nobody."""
Quality = Literal["locked", "holdover", "unsync", "unknown"]
"""Follows its source; did so until lately, and its error estimate grows; follows none; nobody could tell."""


@dataclass(frozen=True, slots=True)
class ClockState:
    """How good the gateway's wall clock was when a batch was received."""

    source: str = "none"
    """A `Source`; text of any kind where a later version wrote it to disk."""
    error_ns: int = 0
    """Estimated bound of the error in ns; 0 where nothing is known (not locked, not in holdover)."""
    quality: str = "unknown"
    """A `Quality`."""
    steps: int = 0
    """How often the clock was seen to have been set, since the process started."""


UNDISCIPLINED = ClockState()


class Step(NamedTuple):
    """The wall clock was set."""

    wall_ns: int
    """After it, when it was noticed."""
    size_ns: int
    """Positive: forward. Good to what the two readings leave open, microseconds as a rule."""


class Clock(Protocol):
    """What components know of time."""

    @property
    def state(self) -> ClockState:
        """The wall clock's quality now, `steps` up to here: asked for after the times of a batch were taken."""

    def wall_ns(self) -> int:
        """UTC nanoseconds since 1970."""

    def mono_ns(self) -> int:
        """Nanoseconds of a clock that never steps; for durations and deadlines."""

    async def sleep(self, seconds: float) -> None:
        """Waits; cancellation passes through."""


class SystemClock:
    """The host's clocks. A step is noticed by the first `state` after it."""

    wall_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)

    def __init__(self) -> None:
        self.steps: deque[Step] = deque(maxlen=STEPS_KEPT)
        """The newest."""
        self._state = UNDISCIPLINED
        self._offset_ns = _NEVER
        self._doubt_ns = 0

    @property
    def state(self) -> ClockState:
        """Reads the wall clock between two readings of the monotonic one: their difference changes by steps only."""
        before, wall, after = self.mono_ns(), self.wall_ns(), self.mono_ns()
        offset_ns = wall - after
        if -STEP_NS < offset_ns - self._offset_ns < STEP_NS and after - before < NARROW_NS:
            self._offset_ns, self._doubt_ns = offset_ns, NARROW_NS
            return self._state
        return self._look_again()

    def _look_again(self) -> ClockState:
        """The reading was interrupted, or another than the last."""
        before, wall, after = self.mono_ns(), self.wall_ns(), self.mono_ns()
        offset_ns, doubt_ns = wall - after, after - before
        change_ns, first = offset_ns - self._offset_ns, self._offset_ns == _NEVER
        stepped = not first and abs(change_ns) > STEP_NS + doubt_ns + self._doubt_ns
        if stepped:
            self.steps.append(Step(wall, change_ns))
            self._state = replace(self._state, steps=self._state.steps + 1)
        if first or stepped or doubt_ns < NARROW_NS:
            self._offset_ns, self._doubt_ns = offset_ns, doubt_ns
        return self._state

    def learn(self, source: Source, quality: Quality, error_ns: int) -> None:
        """What `state` says from now on; the same object as long as nothing changes."""
        known = self._state
        if (source, quality, error_ns) != (known.source, known.quality, known.error_ns):
            self._state = ClockState(source, error_ns, quality, known.steps)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
