"""A value that the server failed to report is delivered, whatever comes between its reading and its delivery."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from connectors.opcua_decode import Columns
from connectors.opcua_heartbeat import Heartbeat, Late
from connectors.opcua_limits import Limits
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from pipelines.batch import Kind
from pipelines.clock import SystemClock
from pipelines.counters import Counters

LOG = logging.LoggerAdapter(logging.getLogger(__name__), {})
AFTER_NS = 1_000_000_000


class Clock(SystemClock):
    """Goes when it is told to."""

    now_ns = 10**18

    def mono_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Session:
    def nudge(self) -> None:
        """Nobody waits."""


async def test_a_session_that_ends_before_a_late_value_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value counts as not delivered: the next session reads it again, with the time that it has then."""
    found = Late(0, 5, 2.5, Kind.DOUBLE, 0)

    async def read(*_: object) -> list[Late]:
        return [found]

    monkeypatch.setattr(Heartbeat, "_read", read)
    settings: dict[str, Any] = {
        "opcua": "opc.tcp://127.0.0.1:4840",
        "security": "none",
        "heartbeat": "1s",
        "tags": {"a": "ns=1;s=a"},
    }
    clock = Clock()
    heartbeat = Heartbeat(0, clock, Counters("source", "press"), LOG)
    heartbeat.grow(OpcUaDevice.model_validate(settings), ["a"], [b""])
    columns = Columns.empty(1)
    columns.handle[:], columns.ts_ns[:], columns.value[:], columns.kind[:] = 0, 1, 1.5, Kind.DOUBLE
    session = cast(PublishSession, Session())
    heartbeat.begin()
    heartbeat.live(columns)
    for _ in range(2):
        clock.now_ns += 2 * AFTER_NS
        await heartbeat.look(session, Limits(LOG))
        heartbeat.begin()
    assert heartbeat.take() == []
    clock.now_ns += 2 * AFTER_NS
    await heartbeat.look(session, Limits(LOG))
    assert heartbeat.take() == [found]
    clock.now_ns += 2 * AFTER_NS
    await heartbeat.look(session, Limits(LOG))
    assert heartbeat.take() == []
