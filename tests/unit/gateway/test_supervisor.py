"""The state machine of every component: states, waits, log lines, cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.supervisor import TO_SINKS, Patience, State, Supervisor, describe, worst
from pipelines.errors import NotConnected, Permanent, Poisoned, Transient
from tests.unit.gateway.fakes import FakeClock, ScriptedSession

HIGHEST = 1.0
TO_MACHINES = Patience()


@asynccontextmanager
async def supervised(
    session: ScriptedSession, clock: FakeClock, random: float = HIGHEST, patience: Patience = TO_MACHINES
) -> AsyncIterator[Supervisor]:
    """The supervisor at the end of the session's script."""
    supervisor = Supervisor(session, clock, lambda: random, patience)
    task = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(60):
            await asyncio.wait({task, asyncio.create_task(session.waiting.wait())}, return_when="FIRST_COMPLETED")
        if task.done():
            task.result()
        yield supervisor
    finally:
        task.cancel()
        await asyncio.wait([task])


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records if record.levelno >= level]


@pytest.fixture(autouse=True)
def _debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway")


async def test_comes_up(caplog: pytest.LogCaptureFixture) -> None:
    """connect returned: up, one line, nothing else."""
    async with supervised(ScriptedSession([None]), FakeClock()) as supervisor:
        assert supervisor.status.state is State.UP
        assert lines(caplog) == ["INFO up"]
        assert caplog.records[0].__dict__["fields"] == {"address": "opc.tcp://10.0.0.5:4840"}


async def test_back_off_grows_to_its_limit_with_full_jitter() -> None:
    """0.5 s doubled up to 30 s, times what the random source gives."""
    refused = NotConnected("10.0.0.5:4840 refuses connections")
    clock = FakeClock()
    async with supervised(ScriptedSession([refused] * 9), clock):
        assert clock.slept == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    clock = FakeClock()
    async with supervised(ScriptedSession([refused] * 3), clock, random=0.25):
        assert clock.slept == [0.125, 0.25, 0.5]


@pytest.mark.parametrize(("patience", "good_s"), [(TO_MACHINES, 10.0), (TO_SINKS, 2.0)])
async def test_back_off_starts_again_after_a_good_session(patience: Patience, good_s: float) -> None:
    """A session that lasted `stable_s` resets the waits; a shorter one does not."""
    gone, clock = NotConnected("gone"), FakeClock()

    async def lasts() -> None:
        clock.forward(good_s)
        raise gone

    async with supervised(ScriptedSession([gone, gone, None, gone, None, lasts]), clock, patience=patience):
        assert clock.slept == [0.5, 1, 2, 0]


async def test_what_is_put_right_is_tried_at_once() -> None:
    """A refusal that somebody can cure is looked at every second; not cured, it waits as long as any other."""
    looks = iter([False, False, True])
    refused, clock = Permanent("its certificate is not trusted", lambda: next(looks)), FakeClock()
    async with supervised(ScriptedSession([refused, None]), clock):
        assert clock.slept == [1, 1]
    clock = FakeClock()
    async with supervised(ScriptedSession([Permanent("never", lambda: False), None]), clock):
        assert clock.slept == [1] * 60


async def test_a_good_session_is_followed_by_an_attempt_at_once() -> None:
    """Another server or path may work; only once, only after a session that was up, and not after a bug."""
    gone, clock = NotConnected("gone"), FakeClock()
    async with supervised(ScriptedSession([None, gone, gone, None, gone]), clock):
        assert clock.slept == [0, 1, 2]
    clock = FakeClock()
    async with supervised(ScriptedSession([None, KeyError("x")]), clock):
        assert clock.slept == [0.5]


async def test_one_line_per_outage(caplog: pytest.LogCaptureFixture) -> None:
    """What fails in the same way again is counted and logged at debug; coming back is one line with the count."""
    refused = NotConnected("10.0.0.5:4840 refuses connections")
    async with supervised(ScriptedSession([refused, refused, refused, None]), FakeClock()):
        assert lines(caplog) == ["WARNING down: 10.0.0.5:4840 refuses connections", "INFO up again"]
        assert caplog.records[-1].__dict__["fields"]["attempts"] == 4
        assert caplog.records[-1].__dict__["fields"]["after_s"] == 3.5
        assert len(lines(caplog, logging.DEBUG)) == 4


async def test_another_reason_is_another_line(caplog: pytest.LogCaptureFixture) -> None:
    """A new reason in the same outage is said at info; two reasons that take turns are said once each."""
    one, other = NotConnected("refused"), NotConnected("no route")
    async with supervised(ScriptedSession([one, other, one, other]), FakeClock()) as supervisor:
        assert lines(caplog) == ["WARNING down: refused", "INFO still down: no route"]
        assert supervisor.status.reason == "no route"
        assert supervisor.status.attempts == 4


async def test_permanent_is_faulted_and_tried_again_slowly(caplog: pytest.LogCaptureFixture) -> None:
    """Faulted, every 60 s, said once; it stays in that state while it is tried."""
    clock = FakeClock()
    wrong = Permanent("user or password refused")
    async with supervised(ScriptedSession([wrong, wrong]), clock) as supervisor:
        assert clock.slept == [60, 60]
        assert supervisor.status.state is State.FAULTED
        assert lines(caplog) == ["ERROR faulted: user or password refused"]


async def test_transient_waits_as_long_as_it_says() -> None:
    """`retry_after_s` is taken as it is, without jitter, within a limit."""
    clock = FakeClock()
    async with supervised(ScriptedSession([None, Transient("busy", 7), None, Transient("busy", 10_000)]), clock) as it:
        assert clock.slept == [7, 300]
        assert it.status.state is State.DOWN


async def test_bug_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Restarted with back-off; also after it was up in between, the same bug has no second traceback."""
    clock = FakeClock()
    async with supervised(ScriptedSession([None, KeyError("x"), None, KeyError("x")]), clock) as supervisor:
        assert supervisor.status.state is State.RESTARTING
        assert clock.slept == [0.5, 1]
        assert [record for record in caplog.records if record.exc_info] == [caplog.records[1]]
        assert supervisor.status.reason == "KeyError: 'x'"


async def test_group_is_unwrapped_to_what_decides() -> None:
    """A TaskGroup's errors: the worst leaf counts, nested or not."""
    inner = ExceptionGroup("inner", [Transient("busy"), NotConnected("gone")])
    assert isinstance(worst(ExceptionGroup("outer", [inner, Transient("busy")])), NotConnected)
    assert isinstance(worst(ExceptionGroup("outer", [inner, Permanent("refused")])), Permanent)
    assert isinstance(worst(ExceptionGroup("outer", [Permanent("refused"), ValueError("bug")])), ValueError)
    assert isinstance(worst(ExceptionGroup("outer", [ValueError("bug"), Poisoned("fsync failed")])), Poisoned)
    group = ExceptionGroup("writes", [NotConnected("gone"), NotConnected("gone")])
    async with supervised(ScriptedSession([None, group]), FakeClock()) as supervisor:
        assert (supervisor.status.state, supervisor.status.reason) == (State.DOWN, "gone")


async def test_poisoned_passes_through() -> None:
    """Storage that failed ends the process: the supervisor closes and lets it go, out of its group."""
    session = ScriptedSession([None, ExceptionGroup("group", [Poisoned("fsync failed")])])
    with pytest.raises(Poisoned):
        await Supervisor(session, FakeClock(), lambda: 1.0).run()
    assert session.closed == 1


async def test_every_session_is_closed_once() -> None:
    """After a failed connect, after a failed run and after a cancellation."""
    session = ScriptedSession([NotConnected("refused"), None, NotConnected("gone"), None])
    async with supervised(session, FakeClock()):
        assert session.closed == 2
    assert session.closed == 3


@pytest.mark.parametrize("script", [[], [None], [NotConnected("refused")] * 3])
async def test_cancelled_in_any_state_it_is_stopped(script: list[BaseException | None]) -> None:
    """During connect, during run and in a back-off: CancelledError passes, the state is stopped."""
    session = ScriptedSession(list(script))
    supervisor = Supervisor(session, FakeClock(), lambda: 1.0)
    task = asyncio.create_task(supervisor.run())
    await asyncio.wait_for(session.waiting.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert supervisor.status.state is State.STOPPED


async def test_a_librarys_own_cancelled_future_is_not_a_stop() -> None:
    """CancelledError without a cancellation of the task is a broken connection."""
    async with supervised(ScriptedSession([None, asyncio.CancelledError(), None]), FakeClock()) as supervisor:
        assert supervisor.status.state is State.UP


async def test_a_stop_is_a_stop_whatever_the_session_makes_of_it() -> None:
    """Client libraries lose a cancellation now and then and raise something else: it is not tried again."""

    async def loses_the_cancellation() -> None:
        session.waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise NotConnected("refused") from None

    session = ScriptedSession([loses_the_cancellation, None])
    supervisor = Supervisor(session, FakeClock(), lambda: 1.0)
    task = asyncio.create_task(supervisor.run())
    await asyncio.wait_for(session.waiting.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert supervisor.status.state is State.STOPPED


async def test_a_session_that_returns_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """`run` has no good end."""
    async with supervised(ScriptedSession([None, None]), FakeClock()) as supervisor:
        assert supervisor.status.reason == "the session ended"


async def test_close_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A close that hangs is left behind with a line; the next session begins."""
    session = ScriptedSession([NotConnected("refused"), None], close_hangs=True)
    supervisor = Supervisor(session, FakeClock(), lambda: 1.0, close_budget=lambda: 0.01)
    task = asyncio.create_task(supervisor.run())
    await asyncio.wait_for(session.waiting.wait(), 60)
    assert supervisor.status.state is State.UP
    assert "WARNING did not close in time and was left behind" in lines(caplog)
    task.cancel()
    await asyncio.wait([task])


def test_describe_is_one_line() -> None:
    """Our errors by their text, others with their type, line breaks taken out."""
    assert describe(NotConnected("10.0.0.5:4840\n refused")) == "10.0.0.5:4840 refused"
    assert describe(ValueError("a\nb")) == "ValueError: a b"
    assert describe(ValueError()) == "ValueError"
