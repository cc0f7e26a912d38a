"""`latency_budget`: when a route is late, which leg takes the time, how that is told and shown."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.health import Health
from gateway.latency import LATE_OVER_S, LatencyWatch
from gateway.metrics import LatencyCollector, Metrics
from pipelines.batch import Batch, Flag
from pipelines.contracts import Part
from pipelines.lane_memory import MemoryLane
from pipelines.latency import LANE_TO_ACK, SOURCE_TO_RECEIVED
from pipelines.route import Pump
from tests.unit.gateway.fakes import FakeClock, FakeSink, batch
from tests.unit.gateway.test_metrics import nothing, samples

PAGE = Path(__file__).parents[3] / "docs" / "payloads.md"


async def _none_refused(*_: Any) -> None:
    raise AssertionError


class Bench:
    """A route with a budget of 20 ms; its pump is not run, what it would observe is."""

    def __init__(self, budget_ns: int | None = 20_000_000) -> None:
        self.clock = FakeClock()
        self.lane = MemoryLane("interlock", bytes_max=2**20, clock=self.clock)
        self.pump = Pump(self.lane, self.lane.reader(Part.ALL), FakeSink(), self.clock, _none_refused, rows_max=100)
        self.told: list[Mapping[str, Any]] = []
        budgets = {"interlock": budget_ns} if budget_ns else {}
        self.watch = LatencyWatch([(self.lane, self.pump)], budgets, self.clock, self.told.append)
        self.health = Health("line1-gw", self.clock, [], [self.lane])
        self.health.latency = self.watch

    def second(self, source_ms: float = 1, lane_ms: float = 0.1, ack_ms: float = 2, rows: int = 100) -> None:
        """A second passes in which so many rows took so long on each leg; then the watch looks."""
        self.clock.forward(1)
        now_ns = self.clock.wall_ns()
        lane_ns = now_ns - int(ack_ms * 1e6)
        received_ns = lane_ns - int(lane_ms * 1e6)
        if rows:
            made = replace(batch(rows=rows), received_ns=received_ns, lane_ns=lane_ns)
            made.ts_ns[:] = received_ns - int(source_ms * 1e6)
            self.delivered(made)
        self.watch.look()

    def delivered(self, made: Batch) -> None:
        self.pump.counters.add("rows", len(made))
        self.pump.latency.observe([made], self.clock.wall_ns())

    @property
    def reason(self) -> str:
        return self.watch.routes["interlock"].reason

    def shown(self) -> dict[str, Any]:
        [lane] = self.health.report()["lanes"]
        return dict(lane)


def test_late_and_in_time_again(caplog: pytest.LogCaptureFixture) -> None:
    """Said once when it begins, with the leg that takes the time, and once when it ends; not while it lasts."""
    it = Bench()
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            it.second()
        assert (it.reason, it.told, it.health.status) == ("", [], "ok")
        for _ in range(5):
            it.second(ack_ms=50, rows=100)
        assert it.health.status == "degraded"
        assert (it.shown()["state"], it.shown()["latency_budget_ms"]) == ("degraded", 20.0)
        assert "lane -> acknowledged by the broker" in it.shown()["reason"]
        for _ in range(int(LATE_OVER_S) + 2):
            it.second()
    assert (it.reason, it.shown()["state"], it.health.status) == ("", "up", "ok")
    assert [(message["late"], message["leg"]) for message in it.told] == [(True, LANE_TO_ACK), (False, None)]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert it.watch.routes["interlock"].breaches == 1


def test_one_in_a_hundred_may_take_longer() -> None:
    """p99 is what counts: one row in 200 that takes a second changes nothing."""
    it = Bench()
    for _ in range(20):
        it.second(rows=199)
        it.second(ack_ms=1000, rows=1)
    assert it.reason == ""


def test_hysteresis() -> None:
    """Just below the budget is not in time again; nine tenths of it is."""
    it = Bench()
    for _ in range(12):
        it.second(ack_ms=25)
    assert it.reason
    for _ in range(12):
        it.second(ack_ms=18.2, source_ms=0.5)
    assert it.reason
    for _ in range(12):
        it.second(ack_ms=12)
    assert not it.reason
    for _ in range(12):
        it.second(ack_ms=18.2, source_ms=0.5)
    assert not it.reason
    assert len(it.told) == 2


def test_the_machines_leg() -> None:
    """What the machine takes counts too, and says that its clock may be the reason."""
    it = Bench()
    it.second(source_ms=400)
    assert "machine -> gateway" in it.reason and "unless its clock is behind" in it.reason
    assert it.told[0]["leg"] == SOURCE_TO_RECEIVED


def test_nothing_is_acknowledged() -> None:
    """A broker that says nothing at all makes no latency; what waits does."""
    it = Bench()
    it.second()
    it.lane._wall_ns = it.clock.wall_ns
    made = replace(batch(rows=3), received_ns=it.clock.wall_ns())
    coroutine = it.lane.append(made)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    for _ in range(int(LATE_OVER_S) - 1):
        it.second(rows=0)
        assert not it.reason
    it.second(rows=0)
    assert "nothing was acknowledged for 10 s, 3 rows wait" in it.reason


def test_silence_changes_nothing() -> None:
    """A late route that has nothing to send stays late: nobody knows better."""
    it = Bench()
    it.second(ack_ms=50)
    for _ in range(30):
        it.second(rows=0)
    assert it.reason and len(it.told) == 1


def test_a_clock_ahead_hides_nothing() -> None:
    """Times from the future say nothing of the way; what the gateway and the broker take is held against the budget."""
    it = Bench()
    it.second(source_ms=-1000, ack_ms=50)
    assert it.reason
    shown = it.shown()["latency_ms"]
    assert shown["machine clock ahead"] == {"rows": 100}
    assert "source_to_received" not in shown and shown["received_to_ack"]["rows"] == 100


def test_modbus_has_no_first_leg() -> None:
    """Where the gateway's own time is all there is, the budget is from the arrival."""
    it = Bench()
    it.clock.forward(1)
    made = batch(rows=10)
    made = replace(made, received_ns=it.clock.wall_ns() - 30_000_000, flags=made.flags | Flag.ARRIVAL_TIME)
    it.delivered(made)
    it.watch.look()
    assert "p99 3" in it.reason and set(it.shown()["latency_ms"]) == {"over_s", "received_to_ack"}


async def test_metrics_and_health_show_now() -> None:
    """Quantiles of the last minute, per way; the budget and whether it is exceeded; a shorter look when asked for."""
    it = Bench()
    for _ in range(100):
        it.second(ack_ms=50)
    for _ in range(61):
        it.second(ack_ms=2)
    found = await samples(Metrics([LatencyCollector(it.watch, it.clock)], nothing))
    assert found["gateway_latency_seconds,name=interlock,quantile=0.999,way=lane_to_ack"] == pytest.approx(
        2e-3, rel=0.07
    )
    assert found["gateway_latency_seconds,name=interlock,quantile=0.5,way=source_to_ack"] == pytest.approx(
        3.1e-3, rel=0.07
    )
    assert found["gateway_latency_budget_seconds,name=interlock"] == 0.02
    assert found["gateway_latency_budget_exceeded,name=interlock"] == 0
    assert found["gateway_latency_budget_breaches_total,name=interlock"] == 1
    assert found["gateway_latency_clock_ahead_rows_total,name=interlock"] == 0
    for _ in range(5):
        it.second(ack_ms=9)
    [lane] = it.health.report(over_s=4)["lanes"]
    assert lane["latency_ms"]["over_s"] == 4
    assert lane["latency_ms"]["lane_to_ack"]["p50"] == pytest.approx(9, rel=0.07)


def test_without_a_budget_nothing_is_said() -> None:
    """Measured, shown, never late."""
    it = Bench(None)
    for _ in range(20):
        it.second(ack_ms=5000)
    assert (it.reason, it.told) == ("", []) and "state" not in it.shown() and "latency_ms" in it.shown()


def test_the_notice_is_the_message_of_the_document() -> None:
    """Field by field as docs/payloads.md shows it."""
    section = PAGE.read_text("utf-8").split("## The status topic\n")[1]
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]
    [documented] = [block for block in blocks if "late" in block]
    it = Bench()
    it.second(source_ms=1, ack_ms=30.6)
    [message] = it.told
    assert list({"gateway": "line1-gw", **message}) == list(documented)
    assert {key: type(value) for key, value in message.items()} == {
        key: type(value) for key, value in documented.items() if key != "gateway"
    }
