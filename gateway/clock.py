"""How good the host's clock is: looked at every second, told to the clock that stamps batches, shown, and an alarm.

    locked    chrony, ptp4l or somebody whom the kernel knows keeps it right; of several the one with the smallest bound
    holdover  nobody does since a while; the last bound grows by 15 ppm, which a quartz in a plant stays within
    unsync    nobody does, or not for so long that the bound is beyond a second
    unknown   nothing could be read for three seconds, or ever

Steps are noticed by the clock itself, with every batch; here each becomes a line in the log, a notice to the brokers,
an entry in the ledger and a count. Nothing of this ever stops collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.clock_readings import Absent, Reader, Reading
from gateway.health import utc
from gateway.log import Log
from pipelines.clock import Quality, Source, Step, SystemClock
from pipelines.counters import Counters
from pipelines.gaps import Gap, Ledger, Reason
from pipelines.quantities import format_duration

EVERY_S: Final = 1.0
FAILED_MAX: Final = 3
"""Looks that fail before what was read before them counts no more."""
DRIFT_PPM: Final = 15
HOLDOVER_NS_MAX: Final = 10**9
"""Beyond it nobody can build on the clock."""
CURED_SHARE: Final = 0.8
"""The alarm ends below so much of its limit, so that it does not come and go."""
STEPS_SHOWN: Final = 5

Tell = Callable[[str, Mapping[str, Any]], None]
"""(kind, message) to every broker."""


@dataclass
class _Asked:
    """One reader, and what is known by it."""

    read: Reader
    reading: Reading | None = None
    failed: int = 0
    trouble: str = "not read yet"

    def ask(self) -> None:
        """In a thread: may block for as long as the reader's time-outs."""
        try:
            self.reading, self.failed, self.trouble = self.read(), 0, ""
        except Absent as absent:
            self.reading, self.failed, self.trouble = None, 0, str(absent)
        except (OSError, ValueError) as error:
            self.missed(str(error) or type(error).__name__)

    def missed(self, trouble: str) -> None:
        """Nothing came this time."""
        self.failed, self.trouble = self.failed + 1, trouble
        if self.failed >= FAILED_MAX:
            self.reading = None

    def shown(self) -> dict[str, Any]:
        known = {"locked": self.reading.locked, **self.reading.shown} if self.reading else {}
        return known | ({"trouble": self.trouble} if self.trouble else {})


class ClockWatch:
    """Keeps a SystemClock's state true. `alarm` is one line while the clock is worse than it may be, else empty."""

    def __init__(
        self, clock: SystemClock, readers: Mapping[str, Reader], max_error_ns: int | None, ledger: Ledger
    ) -> None:
        self.counters = Counters("clock", "system")
        self.counters.add("steps", 0)
        self.alarm = ""
        self.tell: Tell = lambda kind, message: None
        self._clock = clock
        self._asked = {name: _Asked(reader) for name, reader in readers.items()}
        self._max_error_ns = max_error_ns
        if max_error_ns:
            self.counters.set("alarm", 0)
        self._ledger = ledger
        self._locked: tuple[Source, int, int] | None = None
        """Source, error and monotonic time of the last lock."""
        self._steps = 0
        self._log = Log("clock")

    async def run(self) -> None:
        """Never returns."""
        while True:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(asyncio.to_thread(self._ask))
                while not (await asyncio.wait([asking], timeout=EVERY_S))[0]:
                    self._late()
                    self.look()
            self.look()
            await self._clock.sleep(EVERY_S)

    def look(self) -> None:
        """Judges what was read last, and reports what is new."""
        self._report_steps()
        source, quality, error_ns = self._judge()
        self._clock.learn(source, quality, error_ns)
        self._count(quality, error_ns)
        self._watch_limit()

    def report(self) -> dict[str, Any]:
        """For `/health`: the judgement and all that was read."""
        state = self._clock.state
        shown: dict[str, Any] = {"state": state.quality, "source": state.source}
        if state.error_ns:
            shown["error_us"] = state.error_ns / 1000
        shown |= {"steps_total": state.steps} | ({"alarm": self.alarm} if self.alarm else {})
        if self._clock.steps:
            shown["steps"] = [_shown_step(step) for step in list(self._clock.steps)[-STEPS_SHOWN:]]
        return shown | {"read": {name: asked.shown() for name, asked in self._asked.items()}}

    def _ask(self) -> None:
        for asked in self._asked.values():
            asked.ask()

    def _late(self) -> None:
        """The thread hangs in a call of the system."""
        for asked in self._asked.values():
            asked.missed("no answer")

    def _judge(self) -> tuple[Source, Quality, int]:
        """The smallest bound counts: what nobody keeps right any more has one that grows."""
        now_ns = self._clock.mono_ns()
        readings = [asked.reading for asked in self._asked.values() if asked.reading]
        best = min((each for each in readings if each.locked), key=lambda each: each.error_ns, default=None)
        held_ns = self._locked[1] + (now_ns - self._locked[2]) * DRIFT_PPM // 10**6 if self._locked else HOLDOVER_NS_MAX
        if best and (self._locked is None or best.source == self._locked[0] or best.error_ns <= held_ns):
            self._locked = (best.source, best.error_ns, now_ns)
            return best.source, "locked", rounded_up(best.error_ns)
        if self._locked and held_ns < HOLDOVER_NS_MAX:
            return self._locked[0], "holdover", rounded_up(held_ns)
        return "none", "unsync" if readings else "unknown", 0

    def _count(self, quality: Quality, error_ns: int) -> None:
        self.counters.set("locked", int(quality == "locked"))
        if error_ns:
            self.counters.set("error_bound_seconds", error_ns / 1e9)
        else:
            self.counters.gauges.pop("error_bound_seconds", None)

    def _watch_limit(self) -> None:
        """The alarm comes at once, and goes when the error is well within the limit."""
        limit_ns, state = self._max_error_ns, self._clock.state
        if limit_ns is None:
            return
        words = f"its error may be {state.error_ns / 1000:g} us" if state.error_ns else "nobody keeps it right"
        line = (
            f"the gateway's clock is worse than max_clock_error ({format_duration(limit_ns)}): {state.quality}, {words}"
        )
        well = bool(state.error_ns) and state.error_ns <= limit_ns * (CURED_SHARE if self.alarm else 1.0)
        if well == (not self.alarm):
            self.alarm = self.alarm and line
            return
        self.alarm = "" if well else line
        self.counters.set("alarm", int(bool(self.alarm)))
        if self.alarm:
            self._log.warning(self.alarm)
        else:
            self._log.info(f"within max_clock_error again: {state.quality}, {words}")
        self.tell("clock", {"alarm": self.alarm or None, "state": state.quality, "source": state.source})

    def _report_steps(self) -> None:
        new = self._clock.state.steps - self._steps
        self._steps += new
        for step in list(self._clock.steps)[-new:] if new else ():
            self._report(step)

    def _report(self, step: Step) -> None:
        seconds = step.size_ns / 1e9
        self.counters.add("steps")
        self._log.warning(f"the gateway's clock was set, by {seconds:+.6f} s; the batches concerned are flagged")
        self._ledger.note(_entry(step))
        self.tell("clock", {"stepped_us": step.size_ns // 1000, "t": step.wall_ns // 1000})


def rounded_up(ns: int) -> int:
    """To two digits: what changes every second is not encoded anew each time, and a bound stays one."""
    unit: int = 10 ** max(len(str(ns)) - 2, 0)
    return -(-ns // unit) * unit


def _entry(step: Step) -> Gap:
    """No row is missing; times on its two sides do not fit together."""
    before_ns = step.wall_ns - step.size_ns
    return Gap(
        Reason.CLOCK_STEPPED,
        "",
        "",
        (),
        min(before_ns, step.wall_ns),
        max(before_ns, step.wall_ns),
        0,
        detail=f"by {step.size_ns / 1e9:+.6f} s",
    )


def _shown_step(step: Step) -> dict[str, Any]:
    return {"at": utc(step.wall_ns), "seconds": round(step.size_ns / 1e9, 6)}
