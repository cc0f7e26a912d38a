"""The host's clock, judged every second: locked, holdover, unsync, unknown; the alarm; steps reported."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.clock import DRIFT_PPM, FAILED_MAX, ClockWatch, rounded_up
from gateway.clock_readings import Absent, Reading
from pipelines.clock import Source, SystemClock
from pipelines.gaps import Gap, Reason
from tests.unit.gateway.fakes import START_NS, until

SECOND = 10**9


class MovedClock(SystemClock):
    """Time passes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns, self.ahead_ns = 0, START_NS

    def wall_ns(self) -> int:  # type: ignore[override]
        return self.now_ns + self.ahead_ns

    def mono_ns(self) -> int:  # type: ignore[override]
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)
        await asyncio.sleep(0)


class Host:
    """What the readers find; the watch over them, looked at second by second."""

    def __init__(self, max_error_ns: int | None = None) -> None:
        self.found: dict[str, Reading | Exception] = {"ptp4l": Absent("no ptp4l"), "chrony": Absent("no chrony")}
        self.found["kernel"] = Reading("kernel", False, 16 * SECOND, {"synchronised": False})
        self.clock = MovedClock()
        self.gaps: list[Gap] = []
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        readers = {name: self._reader(name) for name in self.found}
        self.watch = ClockWatch(self.clock, readers, max_error_ns, self)
        self.watch.tell = lambda kind, message: self.told.append((kind, message))

    def note(self, gap: Gap) -> None:
        self.gaps.append(gap)

    def has(self, name: str, source: Source, error_ns: int) -> None:
        self.found[name] = Reading(source, True, error_ns, {})

    def after(self, seconds: float = 1) -> tuple[str, str, int]:
        """What is known by then: source, quality, error."""
        self.clock.now_ns += round(seconds * SECOND)
        self.watch._ask()
        self.watch.look()
        state = self.clock.state
        return state.source, state.quality, state.error_ns

    def _reader(self, name: str) -> Callable[[], Reading]:
        def read() -> Reading:
            found = self.found[name]
            if isinstance(found, Exception):
                raise found
            return found

        return read


def test_the_smallest_bound_counts() -> None:
    """ptp4l, chrony and the kernel may all say something; nobody who is not locked does."""
    host = Host()
    assert host.after() == ("none", "unsync", 0)
    host.has("kernel", "kernel", 4 * 10**8)
    assert host.after() == ("kernel", "locked", 4 * 10**8)
    host.has("chrony", "ntp", 371_234)
    assert host.after() == ("ntp", "locked", 380_000)
    host.has("ptp4l", "ptp", 604)
    assert host.after() == ("ptp", "locked", 610)
    assert host.watch.report()["read"]["chrony"] == {"locked": True}


def test_holdover_grows_and_ends() -> None:
    """Nobody keeps the clock right any more: 15 ppm on top of the last bound, until another's is better or 1 s."""
    host = Host()
    host.has("chrony", "ntp", 500_000)
    host.after()
    host.found["chrony"] = Absent("chronyd was stopped")
    assert host.after(100) == ("ntp", "holdover", 500_000 + 100 * 1000 * DRIFT_PPM)
    host.has("kernel", "kernel", 10_000_000)
    assert host.after(100) == ("ntp", "holdover", 500_000 + 200 * 1000 * DRIFT_PPM)
    assert host.after(800)[:2] == ("kernel", "locked")
    host.found["kernel"] = Reading("kernel", False, 16 * SECOND, {})
    assert host.after(3600)[:2] == ("kernel", "holdover")
    assert host.after(24 * 3600) == ("none", "unsync", 0)
    host.has("chrony", "ntp", 500_000)
    assert host.after() == ("ntp", "locked", 500_000)


def test_what_fails_counts_for_three_looks() -> None:
    """A reader that fails now and then changes nothing; then what it said is stale. Where nobody says anything, the
    state is unknown."""
    host = Host()
    host.has("chrony", "ntp", 500_000)
    host.after()
    host.found = {name: TimeoutError("no answer") for name in host.found}
    for _ in range(FAILED_MAX - 1):
        assert host.after() == ("ntp", "locked", 500_000)
    assert host.after()[1] == "holdover"
    assert host.watch.report()["read"]["chrony"] == {"trouble": "no answer"}
    assert host.after(24 * 3600) == ("none", "unknown", 0)


async def test_a_reader_that_hangs_makes_it_unknown_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop does not wait for it."""
    monkeypatch.setattr("gateway.clock.EVERY_S", 0.001)
    host, hangs = Host(), threading.Event()
    host.after()
    assert host.clock.state.quality == "unsync"
    watch = ClockWatch(host.clock, {"kernel": lambda: hangs.wait(60) and None}, None, host)  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(watch.run())
    await until(lambda: host.clock.state.quality == "unknown")
    hangs.set()
    task.cancel()
    await asyncio.wait([task])


async def test_it_looks_again_and_again() -> None:
    """Every second, by the clock that it keeps."""
    host = Host()
    task = asyncio.create_task(host.watch.run())
    await until(lambda: host.clock.state.quality == "unsync")
    host.has("chrony", "ntp", 500_000)
    await until(lambda: host.clock.state.quality == "locked")
    task.cancel()
    await asyncio.wait([task])


def test_the_alarm_has_a_margin(caplog: pytest.LogCaptureFixture) -> None:
    """It comes as soon as the clock is worse, goes below 80 % of the limit, is told both times and counted."""
    caplog.set_level("INFO")
    host = Host(max_error_ns=1_000_000)
    host.has("chrony", "ntp", 1_000_000)
    host.after()
    assert not host.watch.alarm
    for error_ns, alarmed in ((1_100_000, True), (900_000, True), (800_000, False), (950_000, False)):
        host.has("chrony", "ntp", error_ns)
        host.after()
        assert bool(host.watch.alarm) is alarmed
        assert host.watch.counters.gauges["alarm"] == alarmed
    host.found["chrony"] = Absent("no chrony")
    host.after(3600)
    assert host.watch.alarm == (
        "the gateway's clock is worse than max_clock_error (1ms): holdover, its error may be 55000 us"
    )
    assert [message["alarm"] is None for _, message in host.told] == [False, True, False]
    assert len([record for record in caplog.records if "max_clock_error" in record.message]) == 3


def test_nobody_keeps_it_right_is_an_alarm_too() -> None:
    """Whatever the limit is. Without a limit there is none."""
    host = Host(max_error_ns=3600 * SECOND)
    host.after()
    assert host.watch.alarm.endswith("(1h): unsync, nobody keeps it right")
    assert host.watch.report()["alarm"] == host.watch.alarm
    silent = Host()
    silent.after()
    assert not silent.watch.alarm and not silent.told and "alarm" not in silent.watch.counters.gauges


def test_a_step_is_reported_once() -> None:
    """Log, notice, ledger, count, health: with its size, on whichever side of a second it was noticed."""
    host = Host()
    host.after()
    for step_ns in (3600 * SECOND, -SECOND // 2):
        host.clock.ahead_ns += step_ns
        assert host.clock.state.steps  # a batch
    host.after()
    host.after()
    assert [message for _, message in host.told] == [
        {"stepped_us": 3_600_000_000, "t": (START_NS + 3601 * SECOND) // 1000},
        {"stepped_us": -500_000, "t": (START_NS + 3601 * SECOND - SECOND // 2) // 1000},
    ]
    assert [(gap.reason, gap.rows, gap.detail) for gap in host.gaps] == [
        (Reason.CLOCK_STEPPED, 0, "by +3600.000000 s"),
        (Reason.CLOCK_STEPPED, 0, "by -0.500000 s"),
    ]
    assert all(gap.to_ns >= gap.from_ns for gap in host.gaps)
    assert host.watch.counters.totals["steps"] == 2
    report = host.watch.report()
    assert (report["steps_total"], [step["seconds"] for step in report["steps"]]) == (2, [3600.0, -0.5])


def test_bounds_are_rounded_up_to_two_digits() -> None:
    """So that a payload's text for them lasts."""
    assert [rounded_up(ns) for ns in (1, 99, 604, 37_001, 10**9)] == [1, 99, 610, 38_000, 10**9]
