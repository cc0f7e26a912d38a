"""Route.offer, and collect with its Settler: from a source into lanes, acknowledged when it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from pipelines.batch import Batch
from pipelines.contracts import Lane, Stage
from pipelines.errors import NotConnected, Poisoned
from pipelines.lane_memory import MemoryLane
from pipelines.origin import LAST_PART, Entry, Vector
from pipelines.route import ROWS_PER_BATCH_MAX, Route, Settler, collect
from tests.unit.pipelines.fakes import FakeDurableLane, FakeSource, make_batch, pending_of, settle, until


class Only:
    """A stage that lets the batches of some numbers through."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.seen: list[int] = []

    def process(self, batch: Batch) -> Batch | None:
        self.seen.append(batch.number)
        return batch if batch.number in self.numbers else None


class First:
    """A stage that leaves the first `rows` rows; it may leave an empty batch rather than None."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def process(self, batch: Batch) -> Batch | None:
        return batch.take(slice(0, self.rows))


@asynccontextmanager
async def running(coroutine: Awaitable[None]) -> AsyncIterator[asyncio.Task[None]]:
    """A task beside the test; it must end by cancellation, and leave nothing running."""
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(coroutine)
    assert isinstance(task, asyncio.Task)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.all_tasks() <= before


async def ended(coroutine: Awaitable[None]) -> list[BaseException]:
    """The errors, out of their groups, that end `coroutine`; nothing is left running."""
    before = asyncio.all_tasks()
    with pytest.raises(BaseExceptionGroup) as group:
        await asyncio.wait_for(coroutine, 10)
    assert asyncio.all_tasks() <= before
    return leaves(group.value)


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def route(lane: Lane, *stages: Stage, name: str = "history") -> Route:
    return Route(name, stages, lane)


# --- offer ------------------------------------------------------------------------------------------------------


async def test_offer_passes_the_stages_in_order() -> None:
    """Each stage sees what the one before left; once nothing is left the next is not asked."""
    lane, last = FakeDurableLane(), Only(1, 2)
    offered = route(lane, Only(1, 3), last)
    for number in (1, 2, 3):
        await offered.offer(make_batch(number))
    assert last.seen == [1, 3]
    assert [batch.number for batch in lane.batches] == [1]


async def test_offer_counts_what_stages_leave_out() -> None:
    """Rows offered and rows left out are counted per route: what came in is what went on plus what was filtered."""
    lane = FakeDurableLane()
    offered = route(lane, First(3))
    await offered.offer(make_batch(1, 10))
    await offered.offer(make_batch(2, 2))
    assert offered.counters.totals == {"rows": 12, "filtered_rows": 7}
    assert lane.pending_rows == 5


async def test_offer_appends_no_empty_batch() -> None:
    """A batch without rows, offered or left over, makes no message."""
    lane = FakeDurableLane()
    await route(lane).offer(make_batch(rows=0))
    await route(lane, First(0)).offer(make_batch(rows=5))
    assert lane.batches == []


async def test_offer_fills_every_lane_and_runs_the_stages_once() -> None:
    """A route to several sinks: a stage with state sees each batch once, each lane has what it left."""
    one, other, stage = FakeDurableLane(), FakeDurableLane(), Only(1, 3)
    offered = Route("history", [stage], one, other)
    for number in (1, 2, 3):
        await offered.offer(make_batch(number))
    assert stage.seen == [1, 2, 3]
    assert [batch.number for batch in one.batches] == [batch.number for batch in other.batches] == [1, 3]


async def test_offer_splits_large_batches() -> None:
    """The lane gets parts of at most ROWS_PER_BATCH_MAX rows, in order; the last one only carries the origin."""
    lane = FakeDurableLane()
    rows = 2 * ROWS_PER_BATCH_MAX + 1
    await route(lane).offer(make_batch(1, value=list(range(rows)), origin=b"o"))
    assert [len(batch) for batch in lane.batches] == [ROWS_PER_BATCH_MAX, ROWS_PER_BATCH_MAX, 1]
    assert [value for batch in lane.batches for value in batch.values()] == list(range(rows))
    assert [batch.origin for batch in lane.batches] == [None, None, b"o"]


# --- collect ----------------------------------------------------------------------------------------------------


async def test_collect_offers_to_every_route_and_counts() -> None:
    """Every route gets every batch after the source's own stages; the source counts what it read."""
    source, one, two = FakeSource(), FakeDurableLane("one"), FakeDurableLane("two")
    source.put(make_batch(0, 3), make_batch(1, 4), make_batch(2, 5))
    async with running(collect(source, [route(one), route(two, Only(2))], [Only(1, 2)])):
        await until(lambda: len(one.batches) == 2)
    assert [batch.number for batch in one.batches] == [1, 2]
    assert [batch.number for batch in two.batches] == [2]
    assert source.counters.totals == {"rows": 12, "batches": 3}


async def test_what_a_lane_has_is_not_offered_to_it_again() -> None:
    """A machine repeats what was not acknowledged: skipped, counted, in the lane that has it; the others get it, and
    it is acknowledged."""
    first, again = Vector([]), Vector([Entry(1, 0, 0, 0), Entry(2, 0, 0, 0)])
    one, two = FakeDurableLane("one"), FakeDurableLane("two")
    one.origins["press4"] = first.after(1, 5, LAST_PART, 0)
    routes, source = [route(one, name="one"), route(two, name="two")], FakeSource()
    source.put(*(make_batch(n, 2, origin=again.after(1, n, LAST_PART, 0)) for n in (4, 5, 6)))
    source.put(make_batch(7, origin=again.after(2, 1, LAST_PART, 0)))
    async with running(collect(source, routes, [])):
        await until(lambda: len(two.batches) == 4)
    assert [batch.number for batch in one.batches] == [6, 7]
    assert [lane.counters.totals.get("skipped_rows", 0) for lane in (one, two)] == [4, 0]
    source.put(make_batch(8, origin=again.after(1, 6, LAST_PART, 0)))
    async with running(collect(source, routes, [])):
        await until(lambda: two.counters.totals.get("skipped_rows"))
    assert one.counters.totals["skipped_rows"] == 5, "of its own session, too"


async def test_commit_only_after_sync() -> None:
    """A machine's data is acknowledged when the disk has it, not before: promise number one."""
    source, lane = FakeSource(), FakeDurableLane()
    async with running(collect(source, [route(lane)], [])):
        source.put(make_batch(7))
        await until(lambda: lane.syncs)
        await settle()
        assert source.committed == []
        lane.syncs[0].set_result(None)
        await until(lambda: source.committed)
        assert source.committed == [7]


async def test_commit_waits_for_every_durable_lane() -> None:
    """The slowest disk decides; a memory lane beside it needs no sync."""
    source, one, two = FakeSource(), FakeDurableLane("one"), FakeDurableLane("two")
    memory = MemoryLane("fast", bytes_max=10_000)
    async with running(collect(source, [route(one), route(memory), route(two)], [])):
        source.put(make_batch(7))
        await until(lambda: one.syncs and two.syncs)
        one.syncs[0].set_result(None)
        await settle()
        assert source.committed == []
        two.syncs[0].set_result(None)
        await until(lambda: source.committed)


async def test_one_sync_for_all_that_arrived_meanwhile() -> None:
    """While a sync is under way reading goes on; the next sync acknowledges all of it with the newest number."""
    source, lane = FakeSource(), FakeDurableLane()
    async with running(collect(source, [route(lane)], [])):
        source.put(make_batch(0))
        await until(lambda: lane.syncs)
        source.put(make_batch(1), make_batch(2), make_batch(3))
        await until(lambda: len(lane.batches) == 4)
        await settle()
        assert len(lane.syncs) == 1
        lane.syncs[0].set_result(None)
        await until(lambda: len(lane.syncs) == 2)
        assert source.committed == [0]  # the first sync says nothing of what was appended after it began
        lane.syncs[1].set_result(None)
        await until(lambda: len(source.committed) == 2)
        assert source.committed == [0, 3]


async def test_filtered_out_batches_are_committed() -> None:
    """What no route wants, and what a source's own stage leaves out, is acknowledged all the same."""
    source, lane = FakeSource(), FakeDurableLane()
    async with running(collect(source, [route(lane, Only(0))], [Only(0, 1)])):
        source.put(make_batch(1), make_batch(2))
        await until(lambda: lane.syncs)
        lane.syncs[0].set_result(None)
        await until(lambda: source.committed == [2])
    assert lane.batches == []


async def test_without_durable_lanes_commit_is_at_once() -> None:
    """A source whose lanes are all memory is acknowledged as soon as they hold the batch."""
    source, lane = FakeSource(), MemoryLane("fast", bytes_max=10_000)
    async with running(collect(source, [route(lane)], [])):
        source.put(make_batch(0), make_batch(1))
        await until(lambda: len(source.committed) == 2)
    assert source.committed == [0, 1]
    assert await pending_of(lane) == [0, 1]


async def test_sync_error_ends_collect() -> None:
    """A failed fsync ends the source's task with that error: nothing is acknowledged, the other syncs end with it."""
    source, one, two = FakeSource(), FakeDurableLane("one"), FakeDurableLane("two")
    source.put(make_batch(0))
    task = asyncio.ensure_future(ended(collect(source, [route(one), route(two)], [])))
    await until(lambda: one.syncs and two.syncs)
    one.syncs[0].set_exception(Poisoned("disk"))
    assert [str(error) for error in await task] == ["disk"]
    assert two.syncs[0].cancelled()
    assert source.committed == []


async def test_source_error_ends_collect() -> None:
    """NotConnected comes out; what was not yet synced stays unacknowledged, so that the machine sends it again."""
    source, lane = FakeSource(), FakeDurableLane()
    source.put(make_batch(0), NotConnected("press4: gone"))
    assert [str(error) for error in await ended(collect(source, [route(lane)], []))] == ["press4: gone"]
    assert (len(lane.batches), source.committed) == (1, [])


async def test_append_error_ends_collect_without_a_commit() -> None:
    """A lane that cannot take a batch ends collect; neither this batch nor a later one is acknowledged."""

    class Broken(FakeDurableLane):
        async def append(self, batch: Batch) -> None:
            raise Poisoned("no space left")

    source = FakeSource()
    source.put(make_batch(0), make_batch(1))
    assert [type(error) for error in await ended(collect(source, [route(Broken())], []))] == [Poisoned]
    assert source.committed == []


async def test_large_batches_pass_stages_in_parts() -> None:
    """One step on the loop is bounded: stages see parts; the batch is acknowledged once, after its last part."""
    source, lane, stage = FakeSource(), MemoryLane("fast", bytes_max=10**6), Only(5)
    async with running(collect(source, [route(lane)], [stage])):
        source.put(make_batch(5, 3 * ROWS_PER_BATCH_MAX))
        await until(lambda: source.committed)
    assert source.committed == [5]
    assert (stage.seen, lane.pending_rows) == ([5, 5, 5], 3 * ROWS_PER_BATCH_MAX)


class Endless(FakeSource):
    """Always has a batch ready: its read never suspends."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.number = -1

    async def read(self) -> Batch:
        self.number += 1
        assert self.number < 1000, "the loop never came back to the test"
        return make_batch(self.number, self.rows)


@pytest.mark.parametrize(("rows", "batches_at_most"), [(1, 20), (1000, 1), (100, 7)])
async def test_a_source_that_never_waits_gives_way(rows: int, batches_at_most: int) -> None:
    """Acquisition in full flood leaves the loop to others after about ROWS_PER_BATCH_MAX rows."""
    source, lane = Endless(rows), MemoryLane("fast", bytes_max=10**6)
    async with running(collect(source, [route(lane)], [])):
        await settle(1)
        before = source.number
        await settle(1)
        assert 0 < source.number - before <= batches_at_most


async def test_a_stop_in_full_flood_commits_what_was_appended() -> None:
    """Where collect gives way, what the lanes hold is acknowledged already: a stop there makes no duplicate."""
    source, lane = Endless(1000), MemoryLane("fast", bytes_max=10**9)
    async with running(collect(source, [route(lane)], [])):
        await settle(5)
    assert source.committed[-1] == (await pending_of(lane))[-1] == source.number


async def test_cancellation_passes_through() -> None:
    """A stop while reading, and a stop while a sync is under way, end collect with CancelledError and nothing left."""
    for put in (False, True):
        source, lane = FakeSource(), FakeDurableLane()
        if put:
            source.put(make_batch(0))
        async with running(collect(source, [route(lane)], [])) as task:
            await until(lambda lane=lane, put=put: bool(lane.syncs) == put)  # type: ignore[misc]
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_settler_commits_nothing_by_itself() -> None:
    """Without an offered batch there is no sync and no commit."""
    source, lane = FakeSource(), FakeDurableLane()
    async with running(Settler(source, [lane]).run()):
        await settle()
    assert (lane.syncs, source.committed) == ([], [])
