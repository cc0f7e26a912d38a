"""The publish loop: who is shown a response in the step of its arrival, and who gets those that come behind it."""

from __future__ import annotations

import asyncio

from connectors.opcua_channel import ChannelClient
from connectors.opcua_session import PublishSession
from pipelines.clock import SystemClock
from tests.unit.pipelines.fakes import settle


def waiting(taken: list[bytes]) -> tuple[PublishSession, asyncio.Task[bytes | None]]:
    """A session that somebody waits at; `taken` gets what is shown and starts with `t`."""
    session = PublishSession(ChannelClient(1.0), SystemClock(), 1.0)

    def shown(body: bytes) -> bool:
        taken.append(body)
        return body.startswith(b"t")

    session.on_response = shown
    return session, asyncio.create_task(session.response())


async def test_what_was_taken_comes_before_what_is_behind_it() -> None:
    """Two in one step: only the first is shown; who waits goes on without it, and gets the second afterwards."""
    taken: list[bytes] = []
    session, response = waiting(taken)
    await settle()
    session._arrived(b"t1")
    session._arrived(b"t2")
    assert await response is None
    assert await session.response() == b"t2"
    assert taken == [b"t1"]


async def test_what_is_not_taken_comes_by_response() -> None:
    """And what arrives while nobody waits is not shown."""
    taken: list[bytes] = []
    session, response = waiting(taken)
    session._arrived(b"t0")
    assert await response == b"t0"
    response = asyncio.create_task(session.response())
    await settle()
    session._arrived(b"1")
    assert await response == b"1"
    assert taken == [b"1"]


async def test_a_cancelled_wait_is_not_confused_with_the_next() -> None:
    """What was taken while the wait was being cancelled does not end the next one."""
    session, response = waiting([])
    await settle()
    session._arrived(b"t1")
    response.cancel()
    await asyncio.gather(response, return_exceptions=True)
    again = asyncio.create_task(session.response())
    await settle()
    assert not again.done()
    session._arrived(b"t2")
    assert await again is None
