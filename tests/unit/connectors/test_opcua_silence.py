"""What was taken over from a former session has to show that it works."""

from __future__ import annotations

from connectors.opcua_silence import DISPROVED_MAX, Silence
from pipelines.clock import SystemClock


def test_sessions_in_a_row_that_heard_nothing() -> None:
    """They are counted, whatever attempts to connect fail in between; close is called twice after those."""
    silence = Silence(SystemClock())
    for number in range(1, DISPROVED_MAX + 1):
        silence.begin([7, 8])
        silence.unproven.discard(7)
        assert silence.end() == (number == DISPROVED_MAX)
        assert silence.end() == silence.end() == (number == DISPROVED_MAX)


def test_one_that_heard_of_everything_ends_the_row() -> None:
    """It works, or nothing was taken over."""
    silence = Silence(SystemClock())
    for heard in (set[int](), {7}, set[int](), set[int]()):
        silence.begin([7])
        silence.unproven -= heard
        assert not silence.end()
