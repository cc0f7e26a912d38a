"""Pump: from a lane into a sink, in order, several writes at a time, and nothing forgotten when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import pytest

from pipelines.batch import Batch
from pipelines.contracts import Part
from pipelines.errors import GatewayError, NotConnected, Permanent, Rejected, Transient
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump
from tests.unit.pipelines.fakes import FakeClock, FakeSink, Write, make_batch, pending_of, settle, until
from tests.unit.pipelines.test_route import ended, running


class DeadLetters:
    """Remembers what was set aside; may refuse."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int, list[int], str]] = []
        self.error: Exception | None = None

    async def __call__(self, lane: str, refused: Sequence[tuple[Batch, Sequence[int]]], reason: str) -> None:
        if self.error:
            raise self.error
        self.kept += [(lane, batch.number, list(rows), reason) for batch, rows in refused]


class Bench:
    """A lane, a sink under the test's control, and the pump between them."""

    def __init__(self, in_flight_max: int = 4, rows_max: int = 1000) -> None:
        self.clock = FakeClock()
        self.lane = MemoryLane("history", bytes_max=10**7, clock=self.clock)
        self.sink = FakeSink(in_flight_max)
        self.letters = DeadLetters()
        reader = self.lane.reader(Part.ALL)
        self.pump = Pump(self.lane, reader, self.sink, self.clock, self.letters, rows_max=rows_max)

    async def append(self, *numbers: int, rows: int = 1) -> None:
        for number in numbers:
            await self.lane.append(make_batch(number, rows))

    async def writes(self, count: int) -> list[Write]:
        """Waits until so many writes have been started in all."""
        await until(lambda: len(self.sink.writes) >= count)
        return self.sink.writes


async def test_an_idle_route_sends_at_once_a_busy_one_in_bulk() -> None:
    """The first batch goes alone without a timer; what comes while all slots are taken goes in one write."""
    bench = Bench(in_flight_max=1)
    async with running(bench.pump.run()):
        await bench.append(0)
        await bench.writes(1)
        await bench.append(1, 2, 3)
        await settle()
        bench.sink.writes[0].answer.set_result(None)
        await bench.writes(2)
    assert [write.numbers for write in bench.sink.writes] == [[0], [1, 2, 3]]
    assert {(write.lane, write.historical) for write in bench.sink.writes} == {("history", False)}


async def test_rows_max_bounds_a_write() -> None:
    """A write holds whole batches up to rows_max rows."""
    bench = Bench(rows_max=25)
    await bench.append(0, 1, 2, 3, 4, rows=10)
    async with running(bench.pump.run()):
        await bench.writes(3)
    assert [write.numbers for write in bench.sink.writes] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("in_flight_max", [1, 2, 5])
async def test_in_flight_max_and_order_of_starts(in_flight_max: int) -> None:
    """Never more writes outstanding than allowed, always that many when there is work, started in lane order."""
    bench = Bench(in_flight_max, rows_max=1)
    await bench.append(*range(12))
    random = Random(in_flight_max)
    async with running(bench.pump.run()):
        for done in range(12):
            await until(lambda done=done: len(bench.sink.in_flight) == min(in_flight_max, 12 - done))  # type: ignore[misc]
            await settle()
            assert len(bench.sink.in_flight) <= in_flight_max
            random.choice(bench.sink.in_flight).answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
    assert [write.numbers for write in bench.sink.writes] == [[number] for number in range(12)]


async def test_commit_only_after_the_broker_has_it() -> None:
    """A write that has not returned leaves its rows pending; acknowledged out of order, each leaves as it is told."""
    bench = Bench(rows_max=10)
    await bench.append(0, 1, 2, rows=10)
    async with running(bench.pump.run()):
        writes = await bench.writes(3)
        await settle()
        assert bench.lane.pending_rows == 30
        writes[2].answer.set_result(None)
        await until(lambda: bench.lane.pending_rows == 20)
        writes[0].answer.set_result(None)
        await until(lambda: bench.lane.pending_rows == 10)
    assert await pending_of(bench.lane) == [1]


async def test_position_of_a_write_leaves_its_span_out() -> None:
    """The position that a sink stores with the rows is right exactly when they are stored."""
    bench = Bench(in_flight_max=1, rows_max=1)
    await bench.append(0, 1, 2)
    async with running(bench.pump.run()):
        (write,) = await bench.writes(1)
        await bench.append(3)
    bench.lane.restore(write.position)
    assert await pending_of(bench.lane) == [1, 2, 3]


async def test_a_sink_that_keeps_no_positions_gets_none() -> None:
    """A position is not packed for nothing."""
    bench = Bench()
    bench.sink.keeps_positions = False
    await bench.append(0)
    async with running(bench.pump.run()):
        [write] = await bench.writes(1)
    assert write.position == b""


async def test_counts() -> None:
    """Rows, batches and every leg's latency are counted when the broker has acknowledged, and only then."""
    bench = Bench(in_flight_max=1)
    await bench.append(0, 1, rows=10)
    async with running(bench.pump.run()):
        (write,) = await bench.writes(1)
        assert bench.pump.counters.totals == {}
        bench.clock.now_ns += 3_000_000
        write.answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
    counters = bench.pump.counters
    assert counters.totals == {"rows": 20, "batches": 2, "rejected_rows": 0}
    bench.pump.latency.flush()
    for way in ("source_to_ack", "received_to_ack", "lane_to_ack"):
        found = counters.histograms[way]
        assert (found.count, found.sum_ns) == (20, 60_000_000)
    for leg in ("source_to_received", "received_to_lane"):
        assert (counters.histograms[leg].count, counters.histograms[leg].sum_ns) == (20, 0)


# --- rejected rows ----------------------------------------------------------------------------------------------


async def test_rejected_rows_are_kept_and_the_lane_goes_on() -> None:
    """Refused rows go to the dead letters by batch and row, the write is committed, they count as not delivered."""
    bench = Bench(in_flight_max=1)
    await bench.append(0, 1, 2, rows=10)
    async with running(bench.pump.run()):
        (write,) = await bench.writes(1)
        write.answer.set_exception(Rejected([(2, 5), (0, 1), (2, 3)], "too large"))
        await until(lambda: not bench.lane.pending_rows)
        await bench.append(3)
        await bench.writes(2)
    assert bench.letters.kept == [("history", 0, [1], "too large"), ("history", 2, [5, 3], "too large")]
    assert bench.pump.counters.totals == {"rows": 27, "batches": 3, "rejected_rows": 3}


async def test_a_dead_letter_that_cannot_be_kept_is_not_committed() -> None:
    """Where the refused rows could not be set aside, the whole write stays pending."""
    bench = Bench()
    bench.letters.error = ValueError("bug")
    await bench.append(0)
    task = asyncio.ensure_future(ended(bench.pump.run()))
    (write,) = await bench.writes(1)
    write.answer.set_exception(Rejected([(0, 0)], "no"))
    assert [str(error) for error in await task] == ["bug"]
    assert bench.lane.pending_rows == 1


# --- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NotConnected("gone"), Transient("quota"), Permanent("refused"), RuntimeError("bug")])
async def test_a_failure_ends_all_writes_and_the_next_run_delivers_again(error: Exception) -> None:
    """Every other write in flight is ended; the next run sends all that was not acknowledged again, in lane order."""
    bench = Bench(in_flight_max=3, rows_max=1)
    await bench.append(*range(5))
    task = asyncio.ensure_future(ended(bench.pump.run()))
    writes = await bench.writes(3)
    writes[1].answer.set_result(None)
    await bench.writes(4)
    writes[2].answer.set_exception(error)
    assert await task == [error]
    assert bench.sink.in_flight == []
    assert bench.lane.pending_rows == 4
    bench.sink.writes.clear()
    async with running(bench.pump.run()):
        while bench.lane.pending_rows:
            await until(lambda: bench.sink.in_flight)
            bench.sink.in_flight[0].answer.set_result(None)
            await settle(2)
    assert [write.numbers for write in bench.sink.writes] == [[0], [2], [3], [4]]


@pytest.mark.parametrize(("largest", "sizes"), [(3, [10, 5, 2, 3, 4, 2, 3, 4]), (1, [10, 5, 2, 1, 2, 1, 2])])
async def test_writes_get_smaller_until_a_slow_link_takes_them(largest: int, sizes: list[int]) -> None:
    """Half the rows after a lost connection, down to one large batch; after a success one batch more."""

    tried: list[int] = []

    class SlowSink(FakeSink):
        async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
            tried.append(len(batches))
            if len(batches) > largest:
                raise NotConnected("not within the time-out")

    lane, sink = MemoryLane("history", bytes_max=10**7), SlowSink(in_flight_max=1)
    for number in range(30):
        await lane.append(make_batch(number, 1000))
    pump = Pump(lane, lane.reader(Part.ALL), sink, FakeClock(), DeadLetters(), rows_max=10_000)
    while lane.pending_rows:
        async with running(ended(pump.run())) as task:
            await until(lambda task=task: task.done() or not lane.pending_rows)
    assert tried[: len(sizes)] == sizes


async def test_several_failures_at_once_all_come_out() -> None:
    """A lost connection fails every write in flight: none of the errors is swallowed."""
    bench = Bench(in_flight_max=3, rows_max=1)
    await bench.append(0, 1, 2)
    task = asyncio.ensure_future(ended(bench.pump.run()))
    for index, write in enumerate(list(await bench.writes(3))):
        write.answer.set_exception(NotConnected(f"gone {index}"))
    assert sorted(str(error) for error in await task) == ["gone 0", "gone 1", "gone 2"]
    assert bench.lane.pending_rows == 3


async def test_a_write_that_a_library_gives_up_is_a_failure() -> None:
    """A client library that cancels its own future must not take span and slot away unnoticed: NotConnected."""
    bench = Bench(in_flight_max=2, rows_max=1)
    await bench.append(0, 1)
    task = asyncio.ensure_future(ended(bench.pump.run()))
    writes = await bench.writes(2)
    writes[0].answer.cancel()
    (error,) = await task
    assert isinstance(error, NotConnected)
    assert bench.lane.pending_rows == 2


@pytest.mark.parametrize("turns", range(6))
async def test_cancellation_forgets_nothing(turns: int) -> None:
    """A stop at any step, while writing or just being acknowledged, leaves the uncommitted to the next run."""
    bench = Bench(in_flight_max=2, rows_max=1)
    async with running(bench.pump.run()) as task:
        await bench.append(0, 1, 2)
        writes = await bench.writes(2)
        writes[0].answer.set_result(None)
        await settle(turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bench.sink.in_flight == []
    left = bench.lane.pending_rows
    bench.sink.writes.clear()
    async with running(bench.pump.run()):
        while bench.lane.pending_rows:
            await until(lambda: bench.sink.in_flight)
            bench.sink.in_flight[0].answer.set_result(None)
            await settle(2)
    assert [write.numbers for write in bench.sink.writes] == [[number] for number in range(3 - left, 3)]


async def test_cancellation_while_idle() -> None:
    """A stop while the pump waits for a batch ends it at once."""
    bench = Bench()
    async with running(bench.pump.run()) as task:
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


BROKER: Sequence[Callable[[Write, Random], GatewayError | None]] = (
    *(lambda write, random: None,) * 12,
    lambda write, random: NotConnected("gone"),
    lambda write, random: Transient("quota"),
    lambda write, random: Rejected([(0, 0)], "no"),
)


@pytest.mark.parametrize("seed", range(25))
async def test_nothing_is_lost_over_random_failures(seed: int) -> None:
    """Acknowledged out of order, refused, failed and stopped at random: at the end every batch was delivered or set
    aside, none was taken as delivered that was not, and each run started its writes in lane order."""
    random = Random(seed)
    bench = Bench(in_flight_max=random.choice([1, 2, 5]), rows_max=random.choice([1, 3, 100]))
    delivered, appended = set[int](), 0
    while appended < 60 or bench.lane.pending_rows:
        bench.sink.writes.clear()
        task = asyncio.create_task(bench.pump.run())
        while not task.done() and (appended < 60 or bench.lane.pending_rows):
            for _ in range(random.randrange(3) if appended < 60 else 0):
                await bench.append(appended)
                appended += 1
            await settle(random.randrange(4))
            if random.random() < 0.05:
                break
            answer_one(bench.sink, random, delivered)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError | ExceptionGroup)
        assert bench.sink.in_flight == []
        starts = [number for write in bench.sink.writes for number in write.numbers]
        assert starts == sorted(starts)
    assert delivered == set(range(appended))
    assert bench.pump.counters.totals["batches"] == appended
    assert bench.pump.counters.totals["rows"] + len(bench.letters.kept) == appended


def answer_one(sink: FakeSink, random: Random, delivered: set[int]) -> None:
    open_writes = [write for write in sink.in_flight if not write.answer.done()]
    if not open_writes:
        return
    write = random.choice(open_writes)
    refusal = random.choice(BROKER)(write, random)
    if refusal is None or isinstance(refusal, Rejected):
        delivered.update(write.numbers)
    if refusal is None:
        write.answer.set_result(None)
    else:
        write.answer.set_exception(refusal)
