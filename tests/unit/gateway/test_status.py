"""What brokers are told: when, and what."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.session import SinkSession
from gateway.status import PENDING_EVERY_S, Destination, StatusReporter
from gateway.supervisor import State, Status, Supervisor
from pipelines.gaps import Gap, Reason
from pipelines.lane_memory import MemoryLane
from tests.unit.gateway.fakes import START_NS, FakeClock, FakeSink, batch

PAGE = Path(__file__).parents[3] / "docs" / "payloads.md"


class Telling(FakeSink):
    """A sink that remembers what it was told."""

    def __init__(self, name: str = "broker") -> None:
        super().__init__(name)
        self.told: list[tuple[str, Mapping[str, Any]]] = []

    def announce(self, kind: str, message: Mapping[str, Any]) -> None:
        self.told.append((kind, message))


class Bench:
    """One destination that can be told, one that cannot."""

    def __init__(self) -> None:
        self.clock, self.sink = FakeClock(), Telling("plant-mqtt")
        self.lane = MemoryLane("scada", bytes_max=2**20)
        sessions = [SinkSession(self.sink, "", [self.lane], []), SinkSession(FakeSink("log"), "", [], [])]
        self.supervisors = [Supervisor(session, self.clock, lambda: 1.0) for session in sessions]
        self.reporter = StatusReporter(list(map(Destination, self.supervisors, sessions)), self.clock)


async def test_changes_at_once_pending_now_and_then() -> None:
    """The first look and each change of state or server is told; what only waits, every few seconds, if it changed."""
    it = Bench()
    it.reporter.look()
    it.reporter.look()
    assert len(it.sink.told) == 1
    it.supervisors[0].status = Status(State.UP, START_NS)
    it.sink.server = "mqtts://a"
    it.clock.forward(1)
    it.reporter.look()
    kind, message = it.sink.told[-1]
    assert (kind, len(it.sink.told)) == ("status", 2)
    assert message["destinations"] == [
        {
            "name": "plant-mqtt",
            "state": "up",
            "server": "mqtts://a",
            "since": START_NS // 1000 + 1_000_000,
            "pending": {"scada": {"rows": 0, "seconds": 0.0}},
        },
        {"name": "log", "state": "connecting", "server": None, "since": START_NS // 1000, "pending": {}},
    ]
    await it.lane.append(batch(rows=3))
    it.reporter.look()
    assert len(it.sink.told) == 2
    it.clock.forward(PENDING_EVERY_S)
    it.reporter.look()
    assert it.sink.told[-1][1]["destinations"][0]["pending"]["scada"]["rows"] == 3
    it.sink.server = "mqtts://b"
    it.reporter.look()
    it.clock.forward(0.5)
    it.reporter.look()
    assert len(it.sink.told) == 4


def test_a_gap_is_the_message_of_the_document() -> None:
    """Field by field as docs/payloads.md shows it."""
    it = Bench()
    section = PAGE.read_text("utf-8").split("## The status topic\n")[1]
    documented = json.loads(re.findall(r"```json\n(.*?)```", section, re.DOTALL)[1])
    from_ns, to_ns = documented["from"] * 1000, documented["to"] * 1000
    it.reporter.note(Gap(Reason.LANE_FULL, "press4", "scada", ("temperature",), from_ns, to_ns, 7))
    [(kind, message)] = it.sink.told
    assert kind == "gap" and {"gateway": "line1-gw", **message} == documented
