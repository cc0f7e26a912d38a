"""What a machine could not give while it was away is in the ledger, once it is back or the gateway ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.session import SinkSession, SourceSession
from pipelines.batch import Batch
from pipelines.contracts import Part
from pipelines.errors import NotConnected
from pipelines.gaps import Gap, Reason
from pipelines.lane_memory import MemoryLane
from pipelines.route import Route
from tests.unit.gateway.fakes import START_NS, FakeClock, FakeSink, FakeSource, batch

S = 10**9


class Ledger(list[Gap]):
    def note(self, gap: Gap) -> None:
        self.append(gap)


class Machine(FakeSource):
    """Gives one batch, then it is gone; `off`: it cannot be reached."""

    off = False

    async def connect(self, resume: Sequence[bytes]) -> None:
        if self.off:
            raise NotConnected("nobody there")

    async def read(self) -> Batch:
        if self.queue.empty():
            raise NotConnected("gone")
        return self.queue.get_nowait()


def session(machine: Machine, ledger: Ledger) -> tuple[SourceSession, FakeClock]:
    clock, lane = FakeClock(), MemoryLane("live", bytes_max=2**20)
    return SourceSession(machine, "modbus", [Route("live", [], lane)], [], clock, ledger), clock


async def test_from_the_last_batch_until_it_is_back() -> None:
    """The time of arrival of its last batch begins the gap, the connection ends it; attempts between do not matter."""
    machine, ledger = Machine(), Ledger()
    it, clock = session(machine, ledger)
    await it.connect()
    machine.queue.put_nowait(batch())
    clock.forward(5)
    with pytest.raises(ExceptionGroup):
        await it.run()
    machine.off = True
    for _ in range(3):
        clock.forward(5)
        with pytest.raises(NotConnected):
            await it.connect()
    assert ledger == []
    machine.off = False
    await it.connect()
    await it.connect()
    assert ledger == [Gap(Reason.DISCONNECTED, "press4", "", (), START_NS, START_NS + 20 * S, None)]


async def test_never_reached_is_said_at_the_end() -> None:
    """From the first attempt on; a machine that is there at the end has no gap."""
    machine, ledger = Machine(), Ledger()
    it, clock = session(machine, ledger)
    machine.off = True
    with pytest.raises(NotConnected):
        await it.connect()
    clock.forward(7)
    it.note_absence()
    it.note_absence()
    assert ledger == [Gap(Reason.DISCONNECTED, "press4", "", (), START_NS, START_NS + 7 * S, None)]


async def test_a_machine_that_keeps_what_was_not_read_has_no_gap() -> None:
    """Its own source knows what it lacks (OPC UA: queue overflow, missed notifications)."""
    machine, ledger = Machine(), Ledger()
    machine.replayable = True  # type: ignore[misc]
    it, _ = session(machine, ledger)
    with pytest.raises(ExceptionGroup):
        await it.run()
    await it.connect()
    assert ledger == []


async def test_a_wiped_buffer_is_said() -> None:
    """The far side speaks of a lane that is not this one: not believed, and in the ledger."""
    clock, ledger = FakeClock(), Ledger()
    lane, other = MemoryLane("live", bytes_max=2**20), MemoryLane("live", bytes_max=2**20)
    await lane.append(batch())

    class Remembers(FakeSink):
        async def connect(self) -> dict[str, bytes]:  # type: ignore[override]
            return {"live": other.position()}

    await SinkSession(Remembers(), "kafka", [lane], [], clock, ledger).connect()
    assert [(gap.reason, gap.route, gap.rows) for gap in ledger] == [(Reason.FORGOTTEN, "live", None)]
    _, batches = await asyncio.wait_for(lane.reader(Part.ALL).read(10), 10)
    assert len(batches) == 1
