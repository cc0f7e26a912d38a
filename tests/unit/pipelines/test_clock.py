"""The host's clocks, as components are given them."""

import time

from pipelines.clock import UNDISCIPLINED, Clock, SystemClock


async def test_system_clock() -> None:
    """Wall time is UTC ns since 1970, monotonic time never steps back, and the clock's quality is not overstated."""
    clock: Clock = SystemClock()
    assert abs(clock.wall_ns() - time.time_ns()) < 3600 * 10**9  # the host's clock may be set meanwhile
    first = clock.mono_ns()
    await clock.sleep(0)
    assert clock.mono_ns() >= first
    assert clock.state == UNDISCIPLINED
    assert (clock.state.source, clock.state.error_ns) == ("none", 0)
