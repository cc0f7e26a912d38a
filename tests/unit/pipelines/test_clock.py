"""The host's clocks, as components are given them; steps of the wall clock, noticed and flagged."""

import time
from dataclasses import replace

import numpy as np

from pipelines.batch import Flag
from pipelines.clock import NARROW_NS, STEP_NS, UNDISCIPLINED, Clock, ClockState, SystemClock
from pipelines.stage_clock import ClockStepStage
from tests.unit.pipelines.fakes import make_batch

STEPPED = int(Flag.GATEWAY_CLOCK_STEPPED)


class SetClock(SystemClock):
    """A wall clock that the test sets; each reading of the monotonic one takes as long as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_ns = 10**18
        self.now_ns = 0
        self.takes_ns: list[int] = []

    def wall_ns(self) -> int:  # type: ignore[override]
        return self.now_ns + self.ahead_ns

    def mono_ns(self) -> int:  # type: ignore[override]
        self.now_ns += self.takes_ns.pop(0) if self.takes_ns else 100
        return self.now_ns


async def test_system_clock() -> None:
    """Wall time is UTC ns since 1970, monotonic time never steps back, and the clock's quality is not overstated."""
    clock: Clock = SystemClock()
    assert abs(clock.wall_ns() - time.time_ns()) < 3600 * 10**9  # the host's clock may be set meanwhile
    first = clock.mono_ns()
    await clock.sleep(0)
    assert clock.mono_ns() >= first
    assert clock.state == UNDISCIPLINED
    assert (clock.state.source, clock.state.error_ns, clock.state.quality) == ("none", 0, "unknown")


def test_a_step_is_counted_once_with_its_size() -> None:
    """Forward and back; what is smaller than STEP_NS is slewing, as far as anybody can tell."""
    clock = SetClock()
    assert clock.state.steps == 0
    for step_ns, steps in ((3600 * 10**9, 1), (STEP_NS // 2, 1), (-5 * 10**9, 2), (-2 * STEP_NS, 3)):
        clock.ahead_ns += step_ns
        clock.now_ns += 10**9
        assert [clock.state.steps, clock.state.steps] == [steps, steps]
    assert [round(step.size_ns, -6) for step in clock.steps] == [3600 * 10**9, -5 * 10**9, -2 * STEP_NS]
    assert clock.steps[-1].wall_ns <= clock.wall_ns()


def test_a_reading_that_was_interrupted_is_no_step() -> None:
    """It says that the difference lies between two bounds far apart: taken again, and where that is no better, a step
    counts only beyond them. What was known before stays what is compared with."""
    clock, slow = SetClock(), [100, 80 * STEP_NS]
    assert clock.state.steps == 0
    clock.takes_ns = slow * 2
    assert clock.state.steps == 0
    clock.ahead_ns += 70 * STEP_NS
    clock.takes_ns = slow * 2
    assert clock.state.steps == 0
    assert clock.state.steps == 1
    assert abs(clock.steps[0].size_ns - 70 * STEP_NS) < NARROW_NS
    clock.ahead_ns += 10**12
    clock.takes_ns = slow * 2
    assert clock.state.steps == 2


def test_state_is_the_same_object_until_something_changes() -> None:
    """Payloads compare by identity. Steps are kept over what is learnt."""
    clock = SetClock()
    clock.learn("ntp", "locked", 370_000)
    first = clock.state
    clock.learn("ntp", "locked", 370_000)
    assert clock.state is first == ClockState("ntp", 370_000, "locked")
    clock.ahead_ns += 10**9
    assert clock.state == replace(first, steps=1)
    clock.learn("none", "unsync", 0)
    assert clock.state == ClockState("none", 0, "unsync", 1)


def test_what_a_step_touched_is_flagged() -> None:
    """The first batch whose state was asked for behind the step, all of its parts and all of its rows; no other."""
    stage, none, one, two = ClockStepStage(), ClockState(), ClockState(steps=1), ClockState(steps=2)
    came = [(10, none), (20, none), (25, one), (25, one), (30, one), (40, one), (25, two), (50, two), (25, two)]
    flagged = []
    for received_ns, clock in came:
        batch = stage.process(replace(make_batch(rows=3), received_ns=received_ns, clock=clock))
        assert batch and batch.flags.dtype == np.uint8 and len(set(batch.flags.tolist())) == 1
        flagged.append(bool(batch.flags[0] & STEPPED))
    assert flagged == [False, False, True, True, False, False, True, False, False]


def test_the_flag_leaves_the_others_and_the_batch_before_as_they_are() -> None:
    """Sources share their flags column between batches."""
    shared = np.full(2, Flag.ARRIVAL_TIME, dtype=np.uint8)
    shared.setflags(write=False)
    batch = ClockStepStage().process(replace(make_batch(rows=2), flags=shared, clock=ClockState(steps=1)))
    assert batch and batch.flags.tolist() == [Flag.ARRIVAL_TIME | STEPPED] * 2
    assert shared.tolist() == [Flag.ARRIVAL_TIME] * 2
