"""Buffers that drop samples: said once when it begins and once when it is over, and in health meanwhile."""

from __future__ import annotations

import pytest

from gateway.drops import OVER_AFTER_S
from gateway.health import Health
from gateway.supervisor import State
from pipelines.lane_memory import MemoryLane
from tests.unit.gateway.fakes import FakeClock, batch, component


async def test_a_full_buffer_is_said_and_degrades(caplog: pytest.LogCaptureFixture) -> None:
    """One line however long it lasts; which buffer, how many, and which key bounds it; over when nothing more drops."""
    caplog.set_level("INFO", "gateway")
    clock, lane = FakeClock(), MemoryLane("live", bytes_max=200)
    health = Health("line1-gw", clock, [component("source", "a", State.UP), component("sink", "b", State.UP)], [lane])
    health.drops.look()
    assert health.status == "ok" and not caplog.records
    for _ in range(3):
        for number in range(9):
            await lane.append(batch(number))
        clock.forward(OVER_AFTER_S / 2)
        health.drops.look()
    dropped = lane.counters.totals["dropped_rows"]
    [said] = caplog.records
    assert said.levelname == "WARNING" and "drops samples" in said.getMessage() and "`memory`" in said.getMessage()
    shown = health.report()
    assert (shown["status"], shown["lanes"][0]["state"]) == ("degraded", "degraded")
    assert shown["lanes"][0]["reason"].startswith(f"{dropped} samples dropped: ")
    clock.forward(OVER_AFTER_S)
    health.drops.look()
    assert health.status == "ok" and "reason" not in health.report()["lanes"][0]
    assert caplog.records[-1].__dict__["fields"] == {"dropped": dropped} and len(caplog.records) == 2


async def test_a_full_disk_is_told_from_a_full_buffer() -> None:
    """What is to be done is another thing; a second spell counts its own samples."""
    clock, lane = FakeClock(), MemoryLane("live", bytes_max=200)
    health = Health("line1-gw", clock, [], [lane])
    for number in range(9):
        await lane.append(batch(number))
    health.drops.look()
    lane.counters.add("dropped_rows", 5)
    lane.counters.add("disk_full")
    health.drops.look()
    assert "the disk has no room" in health.drops.reasons["live"]
    clock.forward(OVER_AFTER_S)
    health.drops.look()
    lane.counters.add("dropped_rows", 3)
    lane.counters.add("expired_rows", 3)
    health.drops.look()
    assert health.drops.reasons == {}  # older than max_age: as the file wants it
    lane.counters.add("dropped_rows", 7)
    health.drops.look()
    assert health.drops.reasons["live"].startswith("7 samples dropped: its buffer is full")
