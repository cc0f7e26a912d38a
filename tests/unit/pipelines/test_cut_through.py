"""The short way through an idle route: sent in the step of the append, and in all else as every other batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import pytest

from pipelines.batch import Batch
from pipelines.contracts import Acknowledged, CutThroughLane, CutThroughSink, CutThroughSource, Part
from pipelines.errors import GatewayError, NotConnected, Rejected, Transient
from pipelines.lane_memory import MemoryLane
from pipelines.origin import LAST_PART, Entry, Vector
from pipelines.route import Pump, Route, collect
from tests.unit.pipelines.fakes import (
    FakeClock,
    FakeDurableLane,
    FakeSink,
    FakeSource,
    Write,
    make_batch,
    settle,
    until,
)
from tests.unit.pipelines.test_pump import DeadLetters, answer_one
from tests.unit.pipelines.test_route import Only, ended, running


class PromptSink(FakeSink):
    """Sends at once where the test lets it; answers are the test's, as those of writes."""

    def __init__(self, in_flight_max: int = 2, sent_max: int = 4) -> None:
        super().__init__(in_flight_max)
        self.sent_max = sent_max
        self.free = True
        self.bug: Exception | None = None
        self.at_once: list[int] = []

    def send(self, lane: str, batch: Batch) -> Acknowledged | None:
        if self.bug:
            raise self.bug
        if not self.free:
            return None
        answer = asyncio.get_running_loop().create_future()
        write = Write(lane, [batch], b"", False, answer)
        self.writes.append(write)
        self.at_once.append(batch.number)

        async def acknowledged() -> None:
            try:
                await answer
            finally:
                write.ended = True

        return acknowledged


class Bench:
    """A lane, a sink under the test's control, and the pump between them."""

    def __init__(self, in_flight_max: int = 2, sent_max: int = 4, bytes_max: int = 10**7) -> None:
        self.lane = MemoryLane("fast", bytes_max=bytes_max, clock=FakeClock())
        self.sink = PromptSink(in_flight_max, sent_max)
        self.letters = DeadLetters()
        self.pump = Pump(self.lane, self.lane.reader(Part.ALL), self.sink, FakeClock(), self.letters, rows_max=1000)

    def put(self, *numbers: int) -> None:
        """In one step of the event loop."""
        for number in numbers:
            self.lane.put(make_batch(number))

    @property
    def starts(self) -> list[list[int]]:
        return [write.numbers for write in self.sink.writes]


def test_parts_say_what_they_can() -> None:
    """The memory lane and its sink take part; a durable lane, and sinks and sources as they are elsewhere, do not."""
    assert isinstance(MemoryLane("fast", bytes_max=1), CutThroughLane)
    assert isinstance(PromptSink(), CutThroughSink)
    assert not isinstance(FakeDurableLane(), CutThroughLane)
    assert not isinstance(FakeSink(), CutThroughSink)
    assert not isinstance(FakeSource(), CutThroughSource)


async def test_sent_in_the_step_of_the_append() -> None:
    """No turn of the event loop lies between; committed and counted once the broker has it."""
    bench = Bench()
    async with running(bench.pump.run()):
        await settle()
        bench.put(0)
        assert bench.starts == [[0]]
        assert bench.lane.pending_rows == 1
        bench.sink.writes[0].answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
    assert bench.pump.counters.totals == {"rows": 1, "batches": 1, "rejected_rows": 0}
    assert bench.sink.writes[0].batches[0].seq >= 0


async def test_before_the_pump_runs_and_after_it_nothing_is_sent() -> None:
    """What waits for a connection is written when there is one, in one write; what comes after its end stays."""
    bench = Bench()
    bench.put(0, 1)
    async with running(bench.pump.run()):
        await until(lambda: bench.starts == [[0, 1]])
    bench.put(2)
    assert bench.starts == [[0, 1]]
    assert bench.sink.at_once == []
    assert bench.lane.pending_rows == 3


async def test_a_busy_sink_gets_it_in_order_by_the_other_way() -> None:
    """Refused once, the queue goes first: while a write is under way nothing is sent past it."""
    bench = Bench(in_flight_max=2)
    async with running(bench.pump.run()):
        await settle()
        bench.put(0)
        bench.sink.free = False
        bench.put(1)
        bench.sink.free = True
        bench.put(2)
        await until(lambda: bench.starts == [[0], [1, 2]])
        bench.put(3)
        assert bench.sink.at_once == [0]
        await until(lambda: bench.starts == [[0], [1, 2], [3]])
        for write in bench.sink.writes:
            write.answer.set_result(None)
        await until(lambda: not bench.lane.pending_rows)
        bench.put(4)
        assert bench.sink.at_once == [0, 4]
    assert bench.starts == [[0], [1, 2], [3], [4]]


async def test_no_more_than_the_sink_wants_outstanding() -> None:
    """With `sent_max` on their way the next ones are written together, and the short way is open again behind them."""
    bench = Bench(sent_max=2)
    async with running(bench.pump.run()):
        await settle()
        bench.put(0, 1, 2, 3)
        assert bench.starts == [[0], [1]]
        await until(lambda: bench.starts == [[0], [1], [2, 3]])


async def test_strict_order_is_one_write_at_a_time() -> None:
    """A route that has to keep its order over failures takes no short way."""
    bench = Bench(in_flight_max=1)
    async with running(bench.pump.run()):
        await settle()
        bench.put(0)
        assert bench.starts == []
        await until(lambda: bench.starts == [[0]])
        bench.put(1)
        await settle()
        assert bench.starts == [[0]]


async def test_rejected_rows_are_set_aside() -> None:
    """As of a write: dead letter, committed, counted; the route goes on."""
    bench = Bench()
    async with running(bench.pump.run()):
        await settle()
        bench.put(0)
        bench.sink.writes[0].answer.set_exception(Rejected([(0, 0)], "not allowed"))
        await until(lambda: not bench.lane.pending_rows)
        bench.put(1)
        assert bench.sink.at_once == [0, 1]
    assert bench.letters.kept == [("fast", 0, [0], "not allowed")]
    assert bench.pump.counters.totals["rejected_rows"] == 1


@pytest.mark.parametrize("error", [NotConnected("gone"), Transient("quota")])
async def test_nothing_overtakes_what_has_to_be_written_again(error: GatewayError) -> None:
    """From the failure on nothing is sent; the next run writes all that was not acknowledged, in order."""
    bench = Bench()
    task = asyncio.ensure_future(ended(bench.pump.run()))
    await settle()
    bench.put(0, 1, 2)
    bench.sink.writes[1].answer.set_result(None)
    bench.sink.writes[0].answer.set_exception(error)
    await until(lambda: bench.sink.writes[0].ended)
    bench.put(3)
    assert await task == [error]
    assert bench.sink.at_once == [0, 1, 2]
    bench.put(4)
    bench.sink.writes.clear()
    async with running(bench.pump.run()):
        while bench.lane.pending_rows:
            await until(lambda: bench.sink.in_flight)
            bench.sink.in_flight[0].answer.set_result(None)
            await settle(2)
    assert [number for numbers in bench.starts for number in numbers] == [0, 2, 3, 4]


@pytest.mark.parametrize("turns", range(4))
async def test_a_stop_while_the_acknowledgement_is_awaited(turns: int) -> None:
    """Nothing is forgotten and no task is left, from the first step of the one that waits on."""
    bench = Bench()
    async with running(bench.pump.run()) as task:
        await settle()
        bench.put(0)
        await settle(turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bench.lane.pending_rows == 1
    bench.sink.writes.clear()
    async with running(bench.pump.run()):
        await until(lambda: bench.starts == [[0]])


async def test_a_bug_while_sending_leaves_the_batch_to_the_pump() -> None:
    """The error comes out where it was made; the lane has the batch, unread."""
    bench = Bench()
    async with running(bench.pump.run()):
        await settle()
        bench.sink.bug = RuntimeError("bug")
        with pytest.raises(RuntimeError, match="bug"):
            bench.put(0)
        await until(lambda: bench.starts == [[0]])


async def test_what_is_on_its_way_is_not_dropped() -> None:
    """A full lane drops by its policy and counts, but nothing that was sent and may still have to be sent again."""
    size = make_batch(0).nbytes
    bench = Bench(sent_max=2, bytes_max=3 * size)
    async with running(bench.pump.run()):
        await settle()
        bench.put(0, 1, 2, 3, 4)
        assert bench.lane.counters.totals["dropped_batches"] == 2
        await until(lambda: bench.starts == [[0], [1], [4]])


@pytest.mark.parametrize("seed", range(25))
async def test_order_and_no_loss_over_random_failures(seed: int) -> None:
    """Sent, written, refused, failed and stopped at random: each run starts in order, in the end all is delivered."""
    random = Random(seed)
    bench = Bench(random.choice([1, 2, 5]), random.choice([1, 3, 100]))
    delivered, appended = set[int](), 0
    while appended < 60 or bench.lane.pending_rows:
        bench.sink.writes.clear()
        task = asyncio.create_task(bench.pump.run())
        while not task.done() and (appended < 60 or bench.lane.pending_rows):
            bench.sink.free = random.random() < 0.8
            for _ in range(random.randrange(3) if appended < 60 else 0):
                bench.put(appended)
                appended += 1
            await settle(random.randrange(4))
            if random.random() < 0.05:
                break
            answer_one(bench.sink, random, delivered)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError | ExceptionGroup)
        assert bench.sink.in_flight == []
        starts = [number for numbers in bench.starts for number in numbers]
        assert starts == sorted(starts)
    assert delivered == set(range(appended))
    assert bench.pump.counters.totals["batches"] == appended
    assert bench.pump.counters.totals["rows"] + len(bench.letters.kept) == appended


# --- from a source ------------------------------------------------------------------------------------------------


class ShowingSource(FakeSource):
    """Shows what `put` gives to whoever looks, before `read` returns it."""

    ahead: Callable[[Batch], None] | None = None

    def show(self, ahead: Callable[[Batch], None] | None) -> None:
        self.ahead = ahead

    def arrive(self, batch: Batch) -> None:
        """While `read` waits."""
        self.put(batch)
        assert self.ahead
        self.ahead(batch)


def seen_by(lane: MemoryLane) -> list[int]:
    """Numbers of what the lane holds."""
    return [batch.number for batch, _ in lane._held.values()]


async def test_lanes_that_never_wait_have_it_ahead_of_read_the_others_after() -> None:
    """Each lane once; stages of the source and of the routes run once; acknowledged after the durable lane's sync."""
    source, own, stage = ShowingSource(), Only(1, 2, 3), Only(1, 3)
    fast, other, durable = MemoryLane("fast", bytes_max=10**6), MemoryLane("o", bytes_max=10**6), FakeDurableLane()
    routes = [Route("history", [], durable), Route("fast", [stage], fast), Route("other", [], other)]
    async with running(collect(source, routes, [own])):
        await until(lambda: source.ahead)
        for number in (1, 2, 3, 4):
            source.arrive(make_batch(number))
            await until(source.items.empty)
            await settle()
        assert (seen_by(fast), seen_by(other)) == ([1, 3], [1, 2, 3])
        assert [batch.number for batch in durable.batches] == [1, 2, 3]
        assert (own.seen, stage.seen) == ([1, 2, 3, 4], [1, 2, 3])
        assert source.committed == []
        while 4 not in source.committed:
            await until(lambda: any(not sync.done() for sync in durable.syncs))
            [sync.set_result(None) for sync in durable.syncs if not sync.done()]
            await settle()
    assert source.ahead is None
    assert source.counters.totals == {"rows": 4, "batches": 4}


async def test_shown_and_taken_in_one_step() -> None:
    """The lane has it when `ahead` returns, without a turn of the event loop; what was not shown goes by `read`."""
    source, fast = ShowingSource(), MemoryLane("fast", bytes_max=10**6)
    async with running(collect(source, [Route("fast", [], fast)], [])):
        await until(lambda: source.ahead)
        source.put(make_batch(1))
        await until(lambda: seen_by(fast) == [1])
        source.arrive(make_batch(2))
        assert seen_by(fast) == [1, 2]
        await until(lambda: source.committed == [1, 2])
    assert seen_by(fast) == [1, 2]


async def test_what_a_lane_has_is_not_put_again() -> None:
    """After a reconnect the machine sends a notification again: the lane that had it ahead of `read` skips it."""

    def batch(number: int, sequence: int) -> Batch:
        entries: Sequence[Entry] = [Entry(7, 0, 0, 0)]
        return make_batch(number, origin=Vector(entries).after(7, sequence, LAST_PART, 0))

    source, fast, durable = ShowingSource(), MemoryLane("fast", bytes_max=10**6), FakeDurableLane()
    routes = [Route("fast", [], fast), Route("history", [], durable)]
    async with running(collect(source, routes, [])):
        await until(lambda: source.ahead)
        assert source.ahead
        source.ahead(batch(1, 1))  # shown; the stop comes before `read` returns
    async with running(collect(source, routes, [])):
        await until(lambda: source.ahead)
        source.arrive(batch(2, 1))
        await until(lambda: len(durable.batches) == 1)
        source.arrive(batch(3, 2))
        await until(lambda: len(durable.batches) == 2)
    assert seen_by(fast) == [1, 3]
    assert fast.counters.totals["skipped_rows"] == 1
