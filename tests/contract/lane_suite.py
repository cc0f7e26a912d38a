"""What every lane must do, whatever holds its batches. A new implementation joins by one line in `test_lanes.LANES`.

Batches are told apart by their `number`; the lane gives each a `seq`, one higher than the batch before, dropped ones
included. `Model` knows of each batch only where it is: unread, in a reader's hand, delivered or dropped.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.batch import Batch, Kind
from pipelines.contracts import Lane, Part, Reader, Span
from pipelines.errors import Corrupt
from pipelines.gaps import Gap, Ledger, Reason
from pipelines.lane_memory import SEQ_PER_INSTANCE, WhenFull
from tests.unit.pipelines.fakes import make_batch, rows_of_batch, settle

PLENTY = 1_000_000
ROWS_MAX = 1_000
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Options:
    """What a test asks of a lane."""

    bytes_max: int = PLENTY
    when_full: WhenFull = WhenFull.DROP_OLDEST
    instance: int = 0
    sources: tuple[str, ...] = ("press4", "meter7")
    ledger: Ledger | None = None


class Noted(list[Gap]):
    """A ledger that keeps every gap."""

    def note(self, gap: Gap) -> None:
        self.append(gap)


@dataclass(frozen=True)
class Implementation:
    """One kind of lane: how it is made over a folder, and how many bytes it holds."""

    make: Callable[[Path, Options], Lane]
    held_bytes: Callable[[Any], int]


async def next_of(reader: Reader, rows_max: int = ROWS_MAX) -> tuple[Span, Sequence[Batch]]:
    """A read that must not have to wait for another append."""
    return await asyncio.wait_for(reader.read(rows_max), DEADLINE_S)


async def read_now(reader: Reader) -> tuple[Span, Sequence[Batch]] | None:
    """What a read gives without another append; None where it waits.

    A reader that reads in a thread says so by `fetching`: it does not wait for an append then.
    """
    task = asyncio.create_task(reader.read(ROWS_MAX))
    await settle()
    while getattr(reader, "fetching", False) and not task.done():
        await asyncio.sleep(0.0005)
        await settle()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


async def waits(reader: Reader) -> bool:
    """True where a read finds nothing."""
    return await read_now(reader) is None


async def drain(reader: Reader) -> list[int]:
    """Reads and commits all there is: the numbers of the batches."""
    numbers = list[int]()
    while taken := await read_now(reader):
        numbers.extend(numbers_of(taken[1]))
        reader.commit(taken[0])
    return numbers


async def append(lane: Lane, *numbers: int, rows: int = 1) -> None:
    for number in numbers:
        await lane.append(make_batch(number, rows))


def numbers_of(batches: Sequence[Batch]) -> list[int]:
    return [batch.number for batch in batches]


class LaneSuite:
    """Subclassed once, with the fixture `kind` over all implementations."""

    @pytest.fixture
    async def make(self, kind: Implementation, tmp_path: Path) -> AsyncIterator[Callable[..., Lane]]:
        """make(bytes_max=..., ...): a lane in a folder of its own."""
        made = list[Lane]()

        def make(**options: Any) -> Lane:
            folder = tmp_path / str(len(made))
            folder.mkdir()
            made.append(kind.make(folder, Options(**options)))
            return made[-1]

        yield make
        for lane in made:
            await lane.close()

    # --- what is appended comes out -----------------------------------------------------------------------------

    async def test_batches_come_out_in_order_and_unchanged(self, make: Callable[..., Lane]) -> None:
        """Head, columns and extras of each batch, in the order of `append`; the offered batch is not changed."""
        lane = make()
        nan = float("nan")
        offered = [
            make_batch(0, tag=[5, 6], value=[1.5, nan], kind=[Kind.DOUBLE, Kind.STRING], extra={1: "text"}),
            make_batch(1, tag=[7], value=[nan], kind=Kind.DOUBLE, status=0x800A0000),
            replace(make_batch(2, 3), source_id=4, received_ns=9, origin=b"sub 1 seq 2"),
            make_batch(3, tag=[1], value=[nan], kind=Kind.UINT64, extra={0: 2**64 - 1}),
        ]
        for batch in offered:
            await lane.append(batch)
        span, batches = await next_of(lane.reader(Part.ALL))
        assert [rows_of_batch(batch) for batch in batches] == [rows_of_batch(batch) for batch in offered]
        assert [(b.source_id, b.number, b.received_ns, b.origin, b.clock) for b in batches] == [
            (b.source_id, b.number, b.received_ns, b.origin, b.clock) for b in offered
        ]
        assert span.end - span.start == len(offered)
        assert [batch.seq for batch in offered] == [-1] * len(offered)

    async def test_seq_counts_up_from_the_instance(self, make: Callable[..., Lane]) -> None:
        """seq = instance x 2^36 + n, below 2^53: another start of the gateway never gives the same number again."""
        for instance in (0, 1, 131_071):
            lane = make(instance=instance)
            await append(lane, 0, 1, 2)
            _, batches = await next_of(lane.reader(Part.ALL))
            assert [batch.seq for batch in batches] == [instance * SEQ_PER_INSTANCE + n for n in range(3)]
            assert batches[-1].seq < 2**53

    async def test_takes_what_is_there_up_to_rows_max(self, make: Callable[..., Lane]) -> None:
        """A read takes whole batches while they fit rows_max together."""
        lane = make()
        await append(lane, 0, 1, 2, 3, 4, rows=10)
        reader = lane.reader(Part.ALL)
        assert numbers_of((await next_of(reader, 20))[1]) == [0, 1]
        assert numbers_of((await next_of(reader, 29))[1]) == [2, 3]
        assert numbers_of((await next_of(reader, 1000))[1]) == [4]

    async def test_a_batch_above_rows_max_comes_alone(self, make: Callable[..., Lane]) -> None:
        """A read never comes back empty-handed because the first batch is too large."""
        lane = make()
        await append(lane, 0, rows=50)
        await append(lane, 1)
        reader = lane.reader(Part.ALL)
        assert numbers_of((await next_of(reader, 10))[1]) == [0]
        assert numbers_of((await next_of(reader, 10))[1]) == [1]

    async def test_pending_rows(self, make: Callable[..., Lane]) -> None:
        """Rows count from `append` until `commit`, also while a reader has them in hand."""
        lane = make()
        assert lane.pending_rows == 0
        await append(lane, 0, 1, rows=10)
        reader = lane.reader(Part.ALL)
        span, _ = await next_of(reader, 10)
        assert lane.pending_rows == 20
        reader.commit(span)
        assert lane.pending_rows == 10
        assert lane.counters.totals["rows"] == 20

    async def test_sync_and_close_are_harmless(self, make: Callable[..., Lane]) -> None:
        """`sync` returns with nothing appended and with something; `close` may be called twice."""
        lane = make()
        await asyncio.wait_for(lane.sync(), DEADLINE_S)
        await append(lane, 0)
        await asyncio.wait_for(lane.sync(), DEADLINE_S)
        await lane.close()
        await lane.close()

    # --- waiting and cancellation -------------------------------------------------------------------------------

    async def test_a_waiting_reader_is_woken(self, make: Callable[..., Lane]) -> None:
        """A read that found nothing ends with the next append."""
        lane = make()
        task = asyncio.create_task(lane.reader(Part.ALL).read(ROWS_MAX))
        await settle()
        assert not task.done()
        await append(lane, 0)
        _, batches = await asyncio.wait_for(task, DEADLINE_S)
        assert numbers_of(batches) == [0]

    async def test_wait_takes_nothing(self, make: Callable[..., Lane]) -> None:
        """It returns when there is something for this reader, and at once as long as there is."""
        lane = make()
        live, backlog = lane.reader(Part.LIVE), lane.reader(Part.BACKLOG)
        live_task, backlog_task = asyncio.create_task(live.wait()), asyncio.create_task(backlog.wait())
        await settle()
        assert not live.unread
        await append(lane, 0)
        await asyncio.wait_for(live_task, DEADLINE_S)
        await asyncio.wait_for(live.wait(), DEADLINE_S)
        await settle()
        assert (live.unread, backlog.unread, backlog_task.done()) == (True, False, False)
        live.rewind()
        await asyncio.wait_for(backlog_task, DEADLINE_S)
        assert (live.unread, backlog.unread) == (False, True)
        assert await drain(backlog) == [0]
        assert not backlog.unread

    async def test_two_waiting_readers_are_both_woken_in_turn(self, make: Callable[..., Lane]) -> None:
        """What wakes LIVE must not put BACKLOG to sleep for ever: a rewind of LIVE gives BACKLOG its work."""
        lane = make()
        live, backlog = lane.reader(Part.LIVE), lane.reader(Part.BACKLOG)
        live_task = asyncio.create_task(live.read(ROWS_MAX))
        backlog_task = asyncio.create_task(backlog.read(ROWS_MAX))
        await settle()
        await append(lane, 0)
        assert numbers_of((await asyncio.wait_for(live_task, DEADLINE_S))[1]) == [0]
        await settle()
        assert not backlog_task.done()
        live.rewind()
        assert numbers_of((await asyncio.wait_for(backlog_task, DEADLINE_S))[1]) == [0]

    async def test_cancelling_a_waiting_read_loses_nothing(self, make: Callable[..., Lane]) -> None:
        """A read that is cancelled in the very step in which it is woken has taken nothing."""
        for turns_between in range(4):
            lane = make()
            reader = lane.reader(Part.ALL)
            task = asyncio.create_task(reader.read(ROWS_MAX))
            await settle()
            await append(lane, 0)
            await settle(turns_between)
            task.cancel()
            (taken,) = await asyncio.gather(task, return_exceptions=True)
            left = await drain(reader)
            if isinstance(taken, BaseException):
                assert isinstance(taken, asyncio.CancelledError)
                assert left == [0]
            else:
                assert (numbers_of(taken[1]), left) == ([0], [])

    # --- commit and rewind --------------------------------------------------------------------------------------

    async def test_commit_in_any_order_and_twice(self, make: Callable[..., Lane]) -> None:
        """Spans are committed out of order, each as often as one likes; the rest is read again after a rewind."""
        lane = make()
        await append(lane, 0, 1, 2, 3, 4)
        reader = lane.reader(Part.ALL)
        spans = [(await next_of(reader, 1))[0] for _ in range(5)]
        for index in (3, 1, 3, 1):
            reader.commit(spans[index])
        assert lane.pending_rows == 3
        reader.rewind()
        assert await drain(reader) == [0, 2, 4]
        assert lane.pending_rows == 0

    async def test_rewind_reads_again_in_order_and_with_the_same_seq(self, make: Callable[..., Lane]) -> None:
        """What is delivered a second time carries the number of the first: the consumer's key against duplicates."""
        lane = make()
        await append(lane, 0, 1, 2)
        reader = lane.reader(Part.ALL)
        _, first = await next_of(reader, 2)
        reader.rewind()
        span, second = await next_of(reader)
        assert numbers_of(second) == [0, 1, 2]
        assert [batch.seq for batch in second][:2] == [batch.seq for batch in first]
        reader.commit(span)
        reader.rewind()
        assert await waits(reader)

    async def test_a_late_commit_after_rewind_counts(self, make: Callable[..., Lane]) -> None:
        """A span that turns out to be delivered after the rewind is not read again."""
        lane = make()
        await append(lane, 0, 1)
        reader = lane.reader(Part.ALL)
        span, _ = await next_of(reader, 1)
        reader.rewind()
        reader.commit(span)
        assert await drain(reader) == [1]

    async def test_a_new_reader_begins_with_all_that_is_not_committed(self, make: Callable[..., Lane]) -> None:
        """A reader that was thrown away with a span in hand takes nothing with it."""
        lane = make()
        await append(lane, 0, 1)
        await next_of(lane.reader(Part.ALL))
        assert await drain(lane.reader(Part.ALL)) == [0, 1]

    # --- LIVE and BACKLOG ---------------------------------------------------------------------------------------

    async def test_live_and_backlog_share_the_lane(self, make: Callable[..., Lane]) -> None:
        """LIVE gets what is appended after its creation, BACKLOG what was there before, none both."""
        lane = make()
        await append(lane, 0, 1)
        live, backlog = lane.reader(Part.LIVE), lane.reader(Part.BACKLOG)
        await append(lane, 2, 3)
        assert await drain(live) == [2, 3]
        assert await drain(backlog) == [0, 1]
        assert lane.pending_rows == 0

    async def test_rewind_of_live_makes_backlog(self, make: Callable[..., Lane]) -> None:
        """After LIVE's rewind everything until then is BACKLOG, read or not; what BACKLOG has in hand stays there."""
        lane = make()
        await append(lane, 0, 1)
        live, backlog = lane.reader(Part.LIVE), lane.reader(Part.BACKLOG)
        in_hand, _ = await next_of(backlog, 1)
        await append(lane, 2, 3)
        await next_of(live, 1)
        live.rewind()
        assert await waits(live)
        await append(lane, 4)
        assert await drain(live) == [4]
        assert await drain(backlog) == [1, 2, 3]
        backlog.commit(in_hand)
        assert lane.pending_rows == 0

    async def test_rewind_of_backlog_leaves_live_alone(self, make: Callable[..., Lane]) -> None:
        """BACKLOG starts again while LIVE goes on: LIVE's unread batches stay LIVE, its spans stay in hand."""
        lane = make()
        await append(lane, 0)
        live, backlog = lane.reader(Part.LIVE), lane.reader(Part.BACKLOG)
        await append(lane, 1, 2)
        await next_of(backlog)
        in_hand, batches = await next_of(live, 1)
        assert numbers_of(batches) == [1]
        backlog.rewind()
        assert await drain(backlog) == [0]
        assert await drain(live) == [2]
        live.commit(in_hand)
        assert lane.pending_rows == 0

    # --- a full lane --------------------------------------------------------------------------------------------

    async def test_drop_oldest(self, make: Callable[..., Lane], kind: Implementation) -> None:
        """The newest batches stay, the bound holds at every step, each lost row is counted, seq shows the gap."""
        size = make_batch(0, 10).nbytes
        lane = make(bytes_max=3 * size + 1)
        for number in range(8):
            await append(lane, number, rows=10)
            assert kind.held_bytes(lane) <= 3 * size + 1
        assert (lane.counters.totals["dropped_rows"], lane.counters.totals["dropped_batches"]) == (50, 5)
        _, batches = await next_of(lane.reader(Part.ALL))
        assert [(batch.number, batch.seq) for batch in batches] == [(5, 5), (6, 6), (7, 7)]

    async def test_drop_newest(self, make: Callable[..., Lane], kind: Implementation) -> None:
        """The oldest batches stay, what comes is counted and dropped; once there is room, the gap shows in seq."""
        size = make_batch(0, 10).nbytes
        lane = make(bytes_max=3 * size + 1, when_full=WhenFull.DROP_NEWEST)
        for number in range(8):
            await append(lane, number, rows=10)
            assert kind.held_bytes(lane) <= 3 * size + 1
        assert (lane.counters.totals["dropped_rows"], lane.counters.totals["dropped_batches"]) == (50, 5)
        reader = lane.reader(Part.ALL)
        assert await drain(reader) == [0, 1, 2]
        await append(lane, 8)
        _, batches = await next_of(reader)
        assert [(batch.number, batch.seq) for batch in batches] == [(8, 8)]

    async def test_what_is_in_hand_is_not_dropped(self, make: Callable[..., Lane], kind: Implementation) -> None:
        """A span that is being written is not dropped, nor counted as dropped: the oldest unread batch goes."""
        size = make_batch(0, 10).nbytes
        lane = make(bytes_max=3 * size)
        await append(lane, 0, 1, 2, rows=10)
        reader = lane.reader(Part.ALL)
        span, _ = await next_of(reader, 10)
        await append(lane, 3, 4, rows=10)
        assert lane.counters.totals["dropped_batches"] == 2
        reader.commit(span)
        assert await drain(reader) == [3, 4]

    async def test_full_of_what_is_in_hand(self, make: Callable[..., Lane], kind: Implementation) -> None:
        """Where all that is held is being written, the new batch is the oldest unread one: dropped and counted."""
        size = make_batch(0, 10).nbytes
        lane = make(bytes_max=2 * size)
        await append(lane, 0, 1, rows=10)
        reader = lane.reader(Part.ALL)
        await next_of(reader)
        await append(lane, 2, rows=10)
        assert kind.held_bytes(lane) <= 2 * size
        assert lane.counters.totals["dropped_rows"] == 10
        reader.rewind()
        assert await drain(reader) == [0, 1]

    @pytest.mark.parametrize("when_full", WhenFull)
    async def test_a_batch_larger_than_the_lane(
        self, make: Callable[..., Lane], kind: Implementation, when_full: WhenFull
    ) -> None:
        """It is dropped and counted alone; nothing else makes room for what can never fit."""
        lane = make(bytes_max=1000, when_full=when_full)
        await append(lane, 0)
        await append(lane, 1, rows=500)
        assert (lane.counters.totals["dropped_rows"], lane.counters.totals["dropped_batches"]) == (500, 1)
        assert kind.held_bytes(lane) <= 1000
        assert await drain(lane.reader(Part.ALL)) == [0]

    # --- the ledger ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("when_full", WhenFull)
    async def test_what_is_dropped_is_in_the_ledger(self, make: Callable[..., Lane], when_full: WhenFull) -> None:
        """To the row, each device for itself, from the first to the last arrival."""
        noted, size = Noted(), make_batch(0, 10).nbytes
        lane = make(bytes_max=3 * size + 1, when_full=when_full, ledger=noted)
        for number in range(8):
            batch = make_batch(number, 10)
            await lane.append(replace(batch, source_id=number % 2, received_ns=number))
        kept = (5, 6, 7) if when_full is WhenFull.DROP_OLDEST else (0, 1, 2)
        for source, device in enumerate(("press4", "meter7")):
            lost = [number for number in range(8) if number % 2 == source and number not in kept]
            gaps = [gap for gap in noted if gap.device == device]
            assert {(gap.reason, gap.route, gap.tags) for gap in gaps} == {(Reason.LANE_FULL, "history", ())}
            assert sum(gap.rows or 0 for gap in gaps) == 10 * len(lost)
            assert (min(gap.from_ns for gap in gaps), max(gap.to_ns for gap in gaps)) == (lost[0], lost[-1])

    async def test_a_stop_says_what_is_lost(self, make: Callable[..., Lane]) -> None:
        """What a lane holds that keeps nothing; what is on disk is not lost."""
        noted = Noted()
        lane = make(ledger=noted)
        await append(lane, 0, 1, rows=10)
        reader = lane.reader(Part.ALL)
        reader.commit((await next_of(reader, 10))[0])
        await lane.close()
        await lane.close()
        lost = [] if lane.durable else [(Reason.STOPPED, "press4", 10)]
        assert [(gap.reason, gap.device, gap.rows) for gap in noted] == lost

    # --- position -----------------------------------------------------------------------------------------------

    async def test_restore_takes_what_the_far_side_has(self, make: Callable[..., Lane]) -> None:
        """A position that was stored with a span leaves that span out of what is pending, and keeps all else."""
        lane = make()
        await append(lane, 0, 1, 2)
        reader = lane.reader(Part.ALL)
        await next_of(reader, 1)
        span, _ = await next_of(reader, 1)
        position = lane.position(span)
        reader.rewind()
        lane.restore(position)
        assert lane.pending_rows == 2
        assert await drain(reader) == [0, 2]

    async def test_restore_keeps_what_was_appended_later(self, make: Callable[..., Lane]) -> None:
        """A position speaks of what there was when it was made: batches that came afterwards are pending."""
        lane = make()
        await append(lane, 0, 1)
        reader = lane.reader(Part.ALL)
        span, _ = await next_of(reader, 1)
        position = lane.position(span)
        await append(lane, 2, 3)
        lane.restore(position)
        reader.rewind()
        assert await drain(reader) == [1, 2, 3]

    async def test_an_older_position_brings_nothing_back(self, make: Callable[..., Lane]) -> None:
        """Where the far side was set back behind us (topics from a backup), what we delivered stays so."""
        lane = make()
        await append(lane, 0, 1, 2)
        reader = lane.reader(Part.ALL)
        first, _ = await next_of(reader, 1)
        position = lane.position(first)
        reader.commit(first)
        reader.commit((await next_of(reader, 1))[0])
        reader.rewind()
        lane.restore(position)
        assert lane.pending_rows == 1
        assert await drain(reader) == [2]

    async def test_position_without_a_span_is_as_it_is(self, make: Callable[..., Lane]) -> None:
        """Restored at once, it changes nothing; of an empty lane, too."""
        lane = make()
        lane.restore(lane.position())
        await append(lane, 0, 1)
        reader = lane.reader(Part.ALL)
        span, _ = await next_of(reader, 1)
        reader.commit(span)
        lane.restore(lane.position())
        reader.rewind()
        assert await drain(reader) == [1]

    async def test_a_foreign_position_is_not_believed(self, make: Callable[..., Lane]) -> None:
        """The position of another lane, of the same name or an earlier life, raises and changes nothing."""
        lane, other = make(), make()
        await append(lane, 0, 1)
        await append(other, 0, 1)
        other_reader = other.reader(Part.ALL)
        other_reader.commit((await next_of(other_reader))[0])
        with pytest.raises(Corrupt, match="belongs to another lane"):
            lane.restore(other.position())
        assert await drain(lane.reader(Part.ALL)) == [0, 1]

    async def test_an_unreadable_position_is_corrupt(self, make: Callable[..., Lane]) -> None:
        """Cut off, empty or made of other things: Corrupt, never another error, and nothing is changed."""
        lane = make()
        await append(lane, 0, 1)
        good = lane.position()
        for wrong in (b"", b"\x00", b"\xc1", good[:-1], good + b"\x00", good[1:], b"\x93\x01\x02\x03"):
            with pytest.raises(Corrupt):
                lane.restore(wrong)
        assert await drain(lane.reader(Part.ALL)) == [0, 1]

    # --- everything together ------------------------------------------------------------------------------------

    @given(scenario=st.data())
    @settings(max_examples=150, deadline=None)
    def test_agrees_with_the_model(self, kind: Implementation, scenario: st.DataObject) -> None:
        """Any order of appends, reads, commits, rewinds, new readers and restores, with a lane that is often full."""
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_play(kind, Path(folder), scenario))


@dataclass
class Held:
    """Where one batch is."""

    rows: int
    state: str = "unread"  # unread, hand, delivered, dropped


@dataclass(frozen=True)
class InHand:
    part: Part
    span: Span
    numbers: list[int]


class Model:
    """The lane as its contract describes it; of the policy only whom it hits: when is the lane's arithmetic."""

    def __init__(self, when_full: WhenFull) -> None:
        self.when_full = when_full
        self.batches = list[Held]()
        self.live_from = 0

    def within(self, part: Part) -> range:
        low = self.live_from if part is Part.LIVE else 0
        return range(low, self.live_from if part is Part.BACKLOG else len(self.batches))

    def unread(self, part: Part) -> list[int]:
        return [number for number in self.within(part) if self.batches[number].state == "unread"]

    def pending(self) -> set[int]:
        return {number for number, held in enumerate(self.batches) if held.state in ("unread", "hand")}

    def pending_rows(self) -> int:
        return sum(self.batches[number].rows for number in self.pending())

    def append(self, rows: int, dropped: int) -> None:
        self.batches.append(Held(rows))
        unread = self.unread(Part.ALL)
        if self.when_full is WhenFull.DROP_NEWEST or dropped == 0:
            assert dropped <= 1
            hit = unread[len(unread) - dropped :]
        else:
            # The oldest unread; or, where the new one cannot be helped (too large, all else in hand), that one.
            hit = unread[:dropped]
        for number in hit:
            self.batches[number].state = "dropped"

    def rewind(self, part: Part) -> None:
        for number in self.within(part):
            if self.batches[number].state == "hand":
                self.batches[number].state = "unread"
        if part is Part.LIVE:
            self.live_from = len(self.batches)

    def deliver(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self.batches[number].state in ("unread", "hand"):
                self.batches[number].state = "delivered"


async def _play(kind: Implementation, folder: Path, data: st.DataObject) -> None:
    when_full = data.draw(st.sampled_from(list(WhenFull)), "policy")
    parts = data.draw(st.sampled_from([[Part.ALL], [Part.LIVE, Part.BACKLOG]]), "parts")
    size = make_batch(0, 2).nbytes
    bytes_max = size * data.draw(st.sampled_from([3, 6, 1000]), "batches that fit")
    lane = kind.make(folder, Options(bytes_max=bytes_max, when_full=when_full))
    try:
        await _act(kind, lane, when_full, parts, bytes_max, data)
    finally:
        await lane.close()


async def _act(
    kind: Implementation, lane: Lane, when_full: WhenFull, parts: list[Part], bytes_max: int, data: st.DataObject
) -> None:
    model = Model(when_full)
    readers = {part: lane.reader(part) for part in parts}
    hands = list[InHand]()
    positions = list[tuple[bytes, set[int], int]]()
    actions = st.sampled_from(
        ["append"] * 4 + ["read"] * 3 + ["commit"] * 2 + ["rewind", "reader", "position", "restore"]
    )
    for action in data.draw(st.lists(actions, max_size=50), "actions"):
        part = data.draw(st.sampled_from(parts)) if len(parts) > 1 else parts[0]
        if action == "append":
            # Equal sizes: which batches make room for a new one does not depend on their number of rows.
            before = lane.counters.totals["dropped_batches"]
            await lane.append(make_batch(len(model.batches), 2))
            model.append(2, lane.counters.totals["dropped_batches"] - before)
        elif action == "read":
            await _read(readers[part], part, model, hands, data.draw(st.integers(1, 9)))
        elif action == "commit" and hands:
            hand = data.draw(st.sampled_from(hands))
            readers[hand.part].commit(hand.span)
            model.deliver(hand.numbers)
        elif action in ("rewind", "reader"):
            if action == "rewind":
                readers[part].rewind()
            else:
                readers[part] = lane.reader(part)
            model.rewind(part)
        elif action == "position":
            hand_or_none = data.draw(st.sampled_from([None, *hands]))
            without = set(hand_or_none.numbers) if hand_or_none else set[int]()
            position = lane.position(hand_or_none.span if hand_or_none else None)
            positions.append((position, model.pending() - without, len(model.batches)))
        elif action == "restore" and positions:
            position, pending, end = data.draw(st.sampled_from(positions))
            if pending <= model.pending():  # what was delivered since cannot come back from every lane
                lane.restore(position)
                model.deliver([number for number in model.pending() - pending if number < end])
        assert lane.pending_rows == model.pending_rows()
        assert kind.held_bytes(lane) <= bytes_max
    await _check_the_end(lane, readers, model)


async def _read(reader: Reader, part: Part, model: Model, hands: list[InHand], rows_max: int) -> None:
    unread = model.unread(part)
    if not unread:
        assert await waits(reader)
        return
    span, batches = await next_of(reader, rows_max)
    numbers = numbers_of(batches)
    assert numbers == unread[: len(numbers)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [batch.seq for batch in batches] == numbers
    assert len(batches) == 1 or sum(map(len, batches)) <= rows_max
    assert span.end - span.start == len(batches)
    for number in numbers:
        model.batches[number].state = "hand"
    hands.append(InHand(part, span, numbers))


async def _check_the_end(lane: Lane, readers: dict[Part, Reader], model: Model) -> None:
    """Whatever happened: each batch was delivered, is delivered now, or was counted as dropped."""
    for part, reader in readers.items():
        reader.rewind()
        model.rewind(part)
    for part, reader in readers.items():
        expected = model.unread(part)
        assert await drain(reader) == expected
        model.deliver(expected)
    assert lane.pending_rows == 0
    dropped = [held for held in model.batches if held.state == "dropped"]
    assert lane.counters.totals["dropped_batches"] == len(dropped)
    assert lane.counters.totals["dropped_rows"] == sum(held.rows for held in dropped)
    assert {held.state for held in model.batches} <= {"delivered", "dropped"}
