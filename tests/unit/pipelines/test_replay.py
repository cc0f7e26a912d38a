"""Pump with a Replay: live data first, the backlog behind it in the same slots, each in its order; and `strict`."""

from __future__ import annotations

import asyncio
from random import Random

import msgpack
import pytest

from pipelines.contracts import Part
from pipelines.errors import NotConnected
from pipelines.intervals import Intervals
from pipelines.route import REPLAY_BURST_NS, Pump, Replay
from tests.unit.pipelines.fakes import Write, make_batch, settle, until
from tests.unit.pipelines.test_pump import Bench
from tests.unit.pipelines.test_route import ended, running


class CatchUp(Bench):
    """A lane whose LIVE and BACKLOG are pumped beside each other."""

    def __init__(self, in_flight_max: int = 2, rows_max: int = 1000, rows_min: int = 1000, rate: float = 1e12) -> None:
        super().__init__(in_flight_max, rows_max)
        replay = Replay(self.lane.reader(Part.BACKLOG), rows_min, 1000, rate)
        live = self.lane.reader(Part.LIVE)
        self.pump = Pump(self.lane, live, self.sink, self.clock, self.letters, rows_max=rows_max, replay=replay)


def started(bench: Bench) -> list[tuple[bool, list[int]]]:
    return [(write.historical, write.numbers) for write in bench.sink.writes]


async def test_what_waited_is_historical_and_what_comes_is_not() -> None:
    """All that the lane held when the pump started goes out marked; only live data counts as latency."""
    bench = CatchUp()
    await bench.append(0, 1)
    async with running(bench.pump.run()):
        await bench.writes(1)
        await bench.append(2)
        writes = await bench.writes(2)
        for write in list(writes):
            write.answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
    assert started(bench) == [(True, [0, 1]), (False, [2])]
    assert bench.pump.counters.totals == {"rows": 3, "batches": 3, "rejected_rows": 0, "historical_rows": 2}
    bench.pump.latency.flush()
    assert bench.pump.counters.histograms["received_to_ack"].count == 1


async def test_live_waits_for_one_write_of_the_backlog_at_most() -> None:
    """One slot: a live route that never pauses does not keep the backlog waiting for ever either."""
    bench = CatchUp(in_flight_max=1, rows_max=1, rows_min=1)
    await bench.append(*range(10))
    async with running(bench.pump.run()):
        await bench.writes(1)
        await bench.append(*range(10, 30))
        for done in range(30):
            await bench.writes(done + 1)
            await settle()
            assert len(bench.sink.in_flight) == 1
            bench.sink.writes[done].answer.set_result(None)
    kinds = "".join("h" if write.historical else "l" for write in bench.sink.writes)
    assert "hh" not in kinds.rstrip("h")
    assert "lll" not in kinds.rpartition("h")[0]


async def test_a_slot_is_left_for_live() -> None:
    """Several slots: the backlog has one write outstanding, so live data finds the other free at once."""
    bench = CatchUp(in_flight_max=2, rows_max=1, rows_min=1)
    await bench.append(*range(5))
    async with running(bench.pump.run()):
        await bench.writes(1)
        await settle()
        assert started(bench) == [(True, [0])]
        await bench.append(10, 11)
        await bench.writes(2)
        await settle()
        assert started(bench) == [(True, [0]), (False, [10])]


async def test_an_idle_live_side_holds_no_slot() -> None:
    """Nothing new comes: the backlog drains alone, also where there is one slot for both."""
    bench = CatchUp(in_flight_max=1, rows_min=1)
    await bench.append(0, 1, 2)
    async with running(bench.pump.run()):
        for done in range(3):
            (await bench.writes(done + 1))[done].answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
    assert started(bench) == [(True, [0]), (True, [1]), (True, [2])]


async def test_position_is_computed_after_the_write_before_was_committed() -> None:
    """One slot, as an exactly-once sink has it: what LIVE and BACKLOG store is right whichever was written last."""
    bench = CatchUp(in_flight_max=1, rows_max=1, rows_min=1)
    await bench.append(0, 1, 2)
    async with running(bench.pump.run()):
        await bench.writes(1)
        await bench.append(3, 4, 5, 6)
        for done in range(6):
            write = (await bench.writes(done + 1))[done]
            write.answer.set_result(None)
        writes = await bench.writes(7)
    pending = [Intervals(msgpack.unpackb(write.position)[2]) for write in writes]
    assert [len(left) for left in pending] == [2, 5, 4, 3, 2, 1, 0]
    assert {write.historical for write in writes[1:5]} == {True, False}


async def test_what_was_live_when_the_connection_was_lost_is_backlog() -> None:
    """Sent, but not acknowledged when the link went: written again as historical, new data before or beside it."""
    bench = CatchUp(in_flight_max=3, rows_max=1)
    task = asyncio.ensure_future(ended(bench.pump.run()))
    await settle()
    await bench.append(0, 1, 2)
    writes = await bench.writes(3)
    writes[1].answer.set_result(None)
    await until(lambda: bench.lane.pending_rows == 2)
    writes[0].answer.set_exception(NotConnected("no acknowledgement"))
    await task
    await bench.append(3)  # while it is away
    bench.sink.writes.clear()
    async with running(bench.pump.run()):
        await bench.writes(1)
        await bench.append(4)
        await bench.writes(2)
    assert started(bench) == [(True, [0]), (False, [4])]
    assert bench.lane.pending_rows == 4


async def test_a_backlog_keeps_to_its_rate() -> None:
    """Over seconds `rate` rows a second; what a stall kept back is made up for within REPLAY_BURST_NS."""
    bench = CatchUp(rows_min=10, rate=100.0)
    for number in range(20):
        await bench.append(number, rows=10)
    began_ns = bench.clock.now_ns
    async with running(bench.pump.run()):
        for done in range(10):
            (await bench.writes(done + 1))[done].answer.set_result(None)
            await until(lambda done=done: bench.pump.counters.totals["batches"] > done)  # type: ignore[misc]
        await until(lambda: len(bench.sink.writes) == 11)
    assert bench.clock.now_ns - began_ns >= 10**9 - REPLAY_BURST_NS


@pytest.mark.parametrize(("quickest_ms", "rows"), [(1, 2000), (10, 2000), (20, 4000), (40, 8000), (500, 10_000)])
def test_a_long_link_gets_larger_writes(quickest_ms: int, rows: int) -> None:
    """As many as the rate asks for in the time of a write, within bounds."""
    bench = Bench()
    replay = Replay(bench.lane.reader(Part.BACKLOG), 2000, 10_000, 200_000)
    assert replay.rows(quickest_ms * 10**6) == rows


async def test_strict_is_never_overtaken() -> None:
    """One write outstanding, one order, nothing historical; what failed is written again before what follows."""
    bench = Bench(in_flight_max=4, rows_max=1)
    reader = bench.lane.reader(Part.ALL)
    pump = Pump(bench.lane, reader, bench.sink, bench.clock, bench.letters, rows_max=1, in_flight_max=1)
    await bench.append(0, 1, 2)
    task = asyncio.ensure_future(ended(pump.run()))
    (await bench.writes(1))[0].answer.set_result(None)
    (await bench.writes(2))[1].answer.set_exception(NotConnected("gone"))
    await task
    await bench.append(3)
    async with running(pump.run()):
        for done in range(2, 5):
            (await bench.writes(done + 1))[done].answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
    assert started(bench) == [(False, [number]) for number in (0, 1, 1, 2, 3)]


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_beside_each_other(seed: int) -> None:
    """Appended, acknowledged, failed at random: every batch is delivered, live and backlog each in order."""
    random = Random(seed)
    bench = CatchUp(random.choice([1, 2, 4]), random.choice([1, 3]), random.choice([1, 5]))
    delivered, appended = set[int](), 0
    while appended < 60 or bench.lane.pending_rows:
        bench.sink.writes.clear()
        task = asyncio.create_task(bench.pump.run())
        while not task.done() and (appended < 60 or bench.lane.pending_rows):
            for _ in range(random.randrange(3) if appended < 60 else 0):
                await bench.lane.append(make_batch(appended))
                appended += 1
            await settle(random.randrange(4))
            assert sum(write.historical for write in bench.sink.in_flight) <= 1
            _answer(bench.sink.in_flight, random, delivered)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for historical in (True, False):
            starts = [n for write in bench.sink.writes if write.historical is historical for n in write.numbers]
            assert starts == sorted(starts)
    assert delivered == set(range(appended))


def _answer(in_flight: list[Write], random: Random, delivered: set[int]) -> None:
    open_writes = [write for write in in_flight if not write.answer.done()]
    if not open_writes:
        return
    write = random.choice(open_writes)
    if random.random() < 0.1:
        write.answer.set_exception(NotConnected("gone"))
    else:
        delivered.update(write.numbers)
        write.answer.set_result(None)
