"""One simulated life after the other of a disk lane, and what must hold whatever happens. See `test_simulation`.

`World` plays random actions with weights that are random per seed, and keeps a model of the lane that knows only what
the contract says: which batches are pending, in hand, delivered, dropped, on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from pipelines import lane_disk
from pipelines.batch import UNDISCIPLINED, Batch
from pipelines.contracts import Part, Reader, Span
from pipelines.errors import Corrupt, NotConnected, Poisoned
from pipelines.gaps import Gap, Reason
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import WhenFull
from pipelines.route import Pump, Replay
from pipelines.tags import Tag, TagTable
from tests.sim.faulty_files import Crash, FaultyFiles
from tests.unit.pipelines.fakes import WALL_NS, FakeSink, Write, settle

FOLDER: Final = Path("/data/lanes/history")
SOURCES: Final = ["press4", "meter7"]
ACTIONS: Final = ["append", "append_many", "sync", "read", "commit", "rewind", "tick", "restore", "foreign", "burst"]
ENDS: Final = ["crash", "kill", "close", "crash_in", "fsync_fails", "rot", "crash_in_cursor"]


class Clock:
    """Moves only by `forward`."""

    state = UNDISCIPLINED

    def __init__(self) -> None:
        self.now_ns = 0
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def wall_ns(self) -> int:
        return WALL_NS + self.now_ns

    def mono_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_ns + int(seconds * 1e9), future))
        await future

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        for until, future in self._sleepers:
            if until <= self.now_ns and not future.done():
                future.set_result(None)
        self._sleepers = [(until, future) for until, future in self._sleepers if not future.done()]


class CountingLedger:
    """Adds up."""

    def __init__(self) -> None:
        self.rows = 0

    def note(self, gap: Gap) -> None:
        unknown = gap.reason is Reason.CORRUPT and not gap.device  # its row, and so whose it was, cannot be read
        assert (gap.device in SOURCES or unknown) and gap.from_ns <= gap.to_ns, gap
        assert gap.rows is not None, gap
        self.rows += gap.rows


@dataclass
class Sent:
    """One batch that was appended."""

    batch: Batch
    seq: int
    synced: bool = False


@dataclass
class World:
    """`chance` decides everything."""

    chance: Random
    clock: Clock = field(default_factory=Clock)
    number: int = 0
    instance: int = 0
    pending: dict[int, Sent] = field(default_factory=dict)
    """By seq; what the lane must still have."""
    hands: list[tuple[Reader, Span]] = field(default_factory=list)
    late: list[Span] = field(default_factory=list)
    """Delivered, as it turns out after a rewind."""
    committed: dict[int, Sent] = field(default_factory=dict)
    dropped: dict[int, Sent] = field(default_factory=dict)
    """A crash may bring back what was dropped right before it: the file's removal was not yet on disk."""
    counted: set[int] = field(default_factory=set)
    """Seqs of what was ever dropped, whether it came back or not."""
    cursor_committed: set[int] = field(default_factory=set)
    """Seqs that were committed when the last cursor was written that is on disk."""
    seqs: set[int] = field(default_factory=set)
    rotten: set[int] = field(default_factory=set)
    positions: list[tuple[bytes, set[int]]] = field(default_factory=list)
    fsync_failed: bool = False
    synced_number: dict[int, int] = field(default_factory=dict)
    """source id -> newest number that was synced."""
    foreign_position: bytes = b""
    far_position: bytes = b""
    """What an exactly-once sink keeps beside the rows."""
    far: set[int] = field(default_factory=set)
    """Seqs of those rows."""
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ending = ""
        self.tags = TagTable()
        for number in range(3):
            self.tags.add(Tag("press4", f"t{number}"))
        self.files = FaultyFiles(self.chance, self.chance.choice([10**7, 10**7, 6_000]))
        self.weights = [self.chance.random() ** 2 for _ in ACTIONS]
        self.end_weights = [self.chance.random() ** 3 for _ in ENDS]
        self.when_full = self.chance.choice(list(WhenFull))
        self.limits = Limits(
            bytes_max=self.chance.choice([3_000, 8_000, 10**6, 10**6, 10**6]),
            memory_bytes=self.chance.choice([0, 1_000, 10**6]),
            segment_bytes=self.chance.choice([1, 1_000, 2_000, 10**5]),
            max_age_ns=self.chance.choice([None, None, 2 * 10**9]),
        )
        self.parts = self.chance.choice([[Part.ALL], [Part.LIVE, Part.BACKLOG]])
        if self.chance.random() < 0.15:
            self._dwell_on_the_cursor()
        self.pumped = self.chance.random() < 0.5
        self.exactly_once = self.pumped and self.chance.random() < 0.5
        self.only_synced = self.exactly_once or self.chance.random() < 0.2

    def _dwell_on_the_cursor(self) -> None:
        """Segments in which what is delivered stays beside what is not: only the cursor tells the two apart."""
        self.limits = replace(self.limits, segment_bytes=10**5, bytes_max=10**6)
        for action in ("append_many", "read", "commit", "tick"):
            self.weights[ACTIONS.index(action)] += 1
        for end in ("crash_in_cursor", "kill", "close"):
            self.end_weights[ENDS.index(end)] += 1

    # --- lives --------------------------------------------------------------------------------------------------

    async def play(self, lives: int, actions: int) -> None:
        """Raises AssertionError where something does not hold."""
        saved = lane_disk.cursors.save
        lane_disk.cursors.save = self._watched(saved)  # type: ignore[assignment]
        try:
            for _ in range(lives):
                await self._life(self.chance.randint(0, actions))
            self.ending, self.files.capacity = "", 10**9
            await self._open()
            await self._drain()
            await self.lane.close()
        finally:
            lane_disk.cursors.save = saved

    async def _life(self, actions: int) -> None:
        end = self.ending = self.chance.choices(ENDS, self.end_weights)[0]
        self.log.append(f"life {self.instance + 1} until {end}")
        try:
            await self._open()
            if end == "crash_in":
                self.files.crash_at = self.files.operations + self.chance.randint(1, 40)
            elif end == "fsync_fails":
                self.files.fail_sync_at = self.files.operations + self.chance.randint(1, 15)
            self._start_pump()
            for _ in range(actions):
                await self._act(self.chance.choices(ACTIONS, self.weights)[0])
            if end == "crash_in_cursor":
                await self._save_the_cursor_twice()
            if end in ("close", "rot"):
                known, before = set(self.pending), dict(self.lane.counters.totals)
                await self._close_at_work()
                self._check_drops(known, before)
        except Crash:
            self.log.append("crashed")
            self._forget_what_was_being_dropped()
        except Poisoned as error:
            self.log.append(f"poisoned: {error}")
            self._forget_what_was_being_dropped()
            assert self.fsync_failed or (self.files.fail_sync_at == -1 and end == "fsync_fails"), "poisoned by nothing"
        await self._end(end)

    async def _close_at_work(self) -> None:
        """The keeper is stopped in the middle of what it does, maybe on a disk that is full just then.

        Not before a byte goes bad: without room for a footer less is known of what was lost.
        """
        capacity = self.files.capacity
        if self.chance.random() < 0.5:
            if self.ending == "close":
                self.files.capacity = self.chance.choice([capacity, 0])
            self.clock.forward(1.5)
            await settle(self.chance.randint(1, 7))
        await self._stop_pump()
        await self._try(self.lane.close())
        self.files.capacity = capacity

    async def _save_the_cursor_twice(self) -> None:
        """With something delivered before each."""
        for action in ("append_many", "read", "commit", "late_tick", "append", "read", "commit", "late_tick"):
            await self._act(action)

    async def _end(self, end: str) -> None:
        """The process is gone, and maybe the power."""
        closed = getattr(self, "lane", None) is not None and self.lane._closed and not self.lane._poisoned
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        self.files.crash_at = 0
        await settle(4)
        if end in ("crash", "crash_in", "crash_in_cursor", "fsync_fails") or (
            end == "kill" and self.chance.random() < 0.3
        ):
            self.files.crash()
        elif end == "rot" and closed:
            self.files.crash()
            self._rot()
        else:
            self.files.kill()
        self.hands.clear()
        self.late.clear()
        self.fsync_failed = False

    async def _open(self) -> None:
        self.instance += 1
        self.ledger = CountingLedger()
        self.lane = DiskLane(
            "history",
            FOLDER,
            self.clock,
            self.limits,
            tags=self.tags,
            sources=SOURCES,
            when_full=self.when_full,
            instance=self.instance,
            ledger=self.ledger,
            files=self.files,
            offload=self._offload,
        )
        self._check_after_start()
        self._restore_from_far()
        self.readers = {part: self.lane.reader(part, self.only_synced) for part in self.parts}
        self.sink, self.looked = FakeSink(1 if self.exactly_once else self.chance.choice([1, 3])), 0

    def _restore_from_far(self) -> None:
        """As a sink's session does when it has connected."""
        if self.exactly_once and self.far_position:
            with suppress(Corrupt):  # a lane of which nothing is left
                self.lane.restore(self.far_position)
            for seq in self.far & set(self.pending):
                self.committed[seq] = self.pending.pop(seq)
            assert not self.far.intersection(self._stored()), "the far side has it, and is sent it again"
            for seq in set(self.pending) - set(self._stored()):
                assert seq in self.counted, "the far side lacks it, and it is taken for delivered"
                self._give_up(seq)

    async def _offload(self, work: Callable[[], Any]) -> Any:
        for _ in range(self.chance.randint(0, 2)):
            await asyncio.sleep(0)
        result = work()
        for _ in range(self.chance.randint(0, 1)):
            await asyncio.sleep(0)
        return result

    def _rot(self) -> None:
        """One byte of one batch goes bad while nothing runs: that batch may be lost, and none else."""
        whole = [path for path in self.files.names_disk if path.endswith(".segment")]
        if not whole or self.lane.counters.totals["disk_full"] or self.lane.counters.totals["cursor_errors"]:
            return  # on a full disk, footer and cursor may lack: then less is known to have been synced
        node = self.files.names_disk[self.chance.choice(whole)]
        found = [frame for frame in lane_disk_frames(node.disk) if frame[0] in self.pending]
        if found:
            seq, start, end = self.chance.choice(found)
            at = self.chance.randrange(start, end)
            if self.chance.random() < 0.3:
                at = start + self.chance.choice([4, 5])  # format and kind: what decides how all the rest is read
            node.disk[at] ^= 1 << self.chance.randrange(8)
            node.now = bytearray(node.disk)
            self.rotten.add(seq)
            self.log.append(f"rot in {seq}")

    # --- actions ------------------------------------------------------------------------------------------------

    async def _act(self, action: str) -> None:
        dropped = dict(self.lane.counters.totals)
        known = set(self.pending)
        await getattr(self, f"_{action}")()
        self.log.append(f"{action} {len(known)}->{len(self.lane._state.pending)}")
        self._check_drops(known, dropped)

    async def _append(self, rows: int | None = None) -> None:
        rows = rows or self.chance.choice([1, 1, 2, 5, 30])
        if self.chance.random() < 0.1:
            self.tags.add(Tag("press4", f"t{len(self.tags)}"))
        number, self.number = self.number, self.number + 1
        source = self.chance.randrange(len(SOURCES))
        batch = self._batch(number, rows, source, self.chance.randrange(len(self.tags)))
        offset = self.lane._state.end
        sent = Sent(batch, offset)
        self.pending[offset] = sent  # it may be there even where a crash interrupts us
        try:
            await self._try(self.lane.append(batch))
        except (Crash, Poisoned):
            raise
        sent.seq = offset
        assert offset not in self.seqs, "a seq was given twice"
        self.seqs.add(offset)

    def _batch(self, number: int, rows: int, source: int, first_tag: int) -> Batch:
        """Small, and different from every other."""
        status = np.zeros(rows, dtype=np.uint32)
        small = np.zeros(rows, dtype=np.uint8)
        return Batch(
            source,
            number,
            str(number).encode(),
            self.clock.wall_ns(),
            (np.arange(rows, dtype=np.uint32) + first_tag) % len(self.tags),
            np.full(rows, WALL_NS, dtype=np.int64),
            np.full(rows, float(number)),
            status,
            small,
            small,
        )

    async def _append_many(self) -> None:
        for _ in range(self.chance.randint(1, 6)):
            await self._append(1)

    async def _burst(self) -> None:
        """Several sources at the same time: what waits for a new segment keeps its turn."""
        numbers = range(self.number, self.number + 3)
        self.number += 3
        batches = [self._batch(number, 2, 0, 0) for number in numbers]
        first = self.lane._state.end
        for at, batch in enumerate(batches):
            self.pending[first + at] = Sent(batch, first + at)
            self.seqs.add(first + at)
        await self._try(gather(*(self.lane.append(batch) for batch in batches)))

    async def _sync(self) -> None:
        covered = [sent for sent in self.pending.values() if sent.seq < self.lane._state.end]
        task = asyncio.ensure_future(self.lane.sync())
        for turn in range(1000):
            if task.done():
                break
            assert turn < 999, "sync does not return"
            await self._turns()
            self.clock.forward(0.05)
        await self._try(task)
        for sent in covered:
            self._note_synced(sent)

    async def _tick(self) -> None:
        self.clock.forward(self.chance.choice([0.01, 0.2, 1.5]))
        await self._turns()

    async def _late_tick(self) -> None:
        for _ in range(3):
            self.clock.forward(0.6)
            await settle(10)
            self._look()

    async def _turns(self) -> None:
        await settle(self.chance.choice([1, 3, 10]))
        self._look()

    async def _read(self) -> None:
        if self.pumped:
            await self._answer(True)
            return
        reader = self.readers[self.chance.choice(self.parts)]
        taken = await self._read_now(reader, self.chance.choice([1, 10, 1000]))
        if taken:
            self._check_read(reader, *taken)
            self.hands.append((reader, taken[0]))

    async def _commit(self) -> None:
        if self.pumped:
            await self._answer(True)
        elif self.late and self.chance.random() < 0.3:
            span = self.late.pop()
            self.readers[self.parts[0]].commit(span)
            self._committed(span)
        elif self.hands:
            reader, span = self.hands.pop(self.chance.randrange(len(self.hands)))
            reader.commit(span)
            self._committed(span)

    async def _rewind(self) -> None:
        if self.pumped:
            await self._answer(False)
            return
        reader = self.readers[self.chance.choice(self.parts)]
        reader.rewind()
        self.late += [span for whose, span in self.hands if whose is reader and self.chance.random() < 0.5]
        self.hands = [hand for hand in self.hands if hand[0] is not reader]

    async def _restore(self) -> None:
        """A position of our own that was stored with a span; what was pending then and is not in it is delivered."""
        if self.pumped:
            return
        if self.hands and self.chance.random() < 0.7:
            span = self.chance.choice(self.hands)[1]
            position = self.lane.position(span)
            if self.chance.random() < 0.5:
                self.lane.restore(position)
                self._committed(span)

    async def _foreign(self) -> None:
        if not self.foreign_position:
            files = FaultyFiles(Random(1), 10**6)
            other = DiskLane("history", Path("/other"), self.clock, self.limits, files=files, offload=self._offload)
            self.foreign_position = other.position()
        before = set(self._stored())
        try:
            self.lane.restore(self.foreign_position)
        except Corrupt:
            assert set(self._stored()) == before
            return
        raise AssertionError("the position of another lane was believed")

    # --- pump ---------------------------------------------------------------------------------------------------

    def _start_pump(self) -> None:
        if self.pumped:
            live, backlog = self.readers[self.parts[0]], self.readers.get(Part.BACKLOG)
            replay = Replay(backlog, 5, 20, self.chance.choice([50.0, 1e9])) if backlog else None
            pump = Pump(self.lane, live, self.sink, self.clock, _no_dead_letter, rows_max=20, replay=replay)
            self.written = {False: self.lane._state.end - 1 if backlog else -1, True: -1}
            self.pump = asyncio.ensure_future(pump.run())

    async def _stop_pump(self) -> None:
        if self.pumped:
            self.pump.cancel()
            await asyncio.wait([self.pump])
            await settle(3)

    def _check_starts(self) -> None:
        """Live data from the pump's start on, the backlog from before, each in its order."""
        while self.looked < len(self.sink.writes):
            write = self.sink.writes[self.looked]
            self.looked += 1
            self._check_is_synced(write.batches)
            seqs = [batch.seq for batch in write.batches]
            assert seqs == sorted(seqs), "out of order in a write"
            assert seqs[0] > self.written[write.historical], "out of order, or live what is not"
            assert not write.historical or seqs[-1] < self.lane._state._live_from, "historical what is live"
            self.written[write.historical] = seqs[-1]

    async def _answer(self, good: bool) -> None:
        await self._turns()
        self._check_starts()
        if self.pump.done():
            self._raise_unless_disconnected()
            self._start_pump()
            await self._turns()
            self._check_starts()
        open_writes = [write for write in self.sink.in_flight if not write.answer.done()]
        if not open_writes:
            return
        write = self.chance.choice(open_writes)
        self._check_write(write)
        if not good:
            write.answer.set_exception(NotConnected("the broker went away"))
            await settle(6)
            return
        write.answer.set_result(None)
        self.far_position = write.position
        self.far.update(batch.seq for batch in write.batches)
        for batch in write.batches:
            sent = self.pending.pop(batch.seq, None)
            if sent:
                self.committed[batch.seq] = sent
        await settle(4)

    def _raise_unless_disconnected(self) -> None:
        error = None if self.pump.cancelled() else self.pump.exception()
        if isinstance(error, BaseExceptionGroup):
            _, error = error.split(NotConnected)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is not None:
            raise error

    def _check_write(self, write: Write) -> None:
        for batch in write.batches:
            self._check_batch(batch)

    # --- checks -------------------------------------------------------------------------------------------------

    def _stored(self) -> list[int]:
        return [seq for low, high in self.lane._state.pending for seq in range(low, high)]

    def _look(self) -> None:
        """A keeper that failed has poisoned the lane, or met a crash."""
        keeper = self.lane._keeper
        if keeper and keeper.done() and not keeper.cancelled() and keeper.exception():
            raise keeper.exception() or AssertionError

    async def _try(self, work: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> Any:
        try:
            return await work
        except Poisoned:
            assert self.files.fail_sync_at == -1, "poisoned, but no sync failed"
            self.fsync_failed = True
            raise

    async def _read_now(self, reader: Any, rows_max: int) -> tuple[Span, Sequence[Batch]] | None:
        task = asyncio.ensure_future(reader.read(rows_max))
        await settle(3)
        while reader.fetching and not task.done():
            await settle(1)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return None
        return await self._try(task)

    def _check_read(self, reader: Reader, span: Span, batches: Sequence[Batch]) -> None:
        assert [batch.seq for batch in batches] == list(range(span.start, span.end))
        self._check_is_synced(batches)
        for batch in batches:
            self._check_batch(batch)
        in_hand = {seq for _, hand in self.hands for seq in range(hand.start, hand.end)}
        mine = [seq for part, r in self.readers.items() if r is reader for seq in self._of(part)]
        open_ = [seq for seq in mine if seq in self.pending and seq not in in_hand and seq not in self.rotten]
        assert not open_ or open_[0] >= span.start or self.rotten, "not the oldest first"

    def _check_is_synced(self, batches: Sequence[Batch]) -> None:
        """What is given out survives a power cut, and so does its origin: no machine sends it again."""
        for batch in batches if self.only_synced else ():
            sent = self.pending.get(batch.seq)
            if sent:
                self._note_synced(sent)

    def _note_synced(self, sent: Sent) -> None:
        sent.synced = True
        known = self.synced_number.get(sent.batch.source_id, -1)
        self.synced_number[sent.batch.source_id] = max(known, sent.batch.number)

    def _of(self, part: Part) -> list[int]:
        live_from = self.lane._state._live_from
        seqs = sorted(self._stored())
        return [s for s in seqs if part is Part.ALL or (s >= live_from) is (part is Part.LIVE)]

    def _check_batch(self, batch: Batch) -> None:
        sent = self.pending.get(batch.seq) or self.committed.get(batch.seq)
        assert sent is not None, f"{batch.seq} was never appended"
        assert batch.number == sent.batch.number, f"{batch.seq} is {batch.number}, was {sent.batch.number}"
        assert batch.value.tolist() == sent.batch.value.tolist()
        assert batch.tag.tolist() == sent.batch.tag.tolist()
        assert (batch.origin, batch.source_id) == (sent.batch.origin, sent.batch.source_id)
        assert batch.received_ns == sent.batch.received_ns

    def _committed(self, span: Span) -> None:
        for seq in range(span.start, span.end):
            sent = self.pending.pop(seq, None)
            if sent:
                self.committed[seq] = sent

    def _check_drops(self, known: set[int], before: dict[str, int]) -> None:
        """Whatever left the lane was committed, or is counted to the row; by its policy, and never out of a hand."""
        stored = set(self._stored())
        vanished = sorted(set(self.pending) - stored)
        assert stored <= set(self.pending) | set(self.committed), "the lane has what nobody gave it"
        rows = sum(len(self.pending[seq].batch) for seq in vanished)
        totals = self.lane.counters.totals
        assert self.ledger.rows == totals["dropped_rows"] + totals["corrupt_rows"], "not in the ledger to the row"
        counted = sum(totals[name] - before.get(name, 0) for name in ("dropped_rows", "corrupt_rows"))
        assert rows == counted, f"{rows} rows are gone, {counted} are counted"
        in_hand = {seq for _, hand in self.hands for seq in range(hand.start, hand.end)}
        assert not in_hand & set(vanished), "dropped out of a hand"
        if self.when_full is WhenFull.DROP_NEWEST and self.limits.max_age_ns is None:
            assert not known & set(vanished) - self.rotten, "drop_newest dropped what it had"
        for seq in vanished:
            self._give_up(seq)
        held = sum(len(self.pending[seq].batch) for seq in stored & set(self.pending))
        assert self.lane.pending_rows >= held
        taken = sum(len(node.now) for path, node in self.files.names_now.items() if ".segment" in path)
        assert taken <= self.limits.bytes_max, "more disk than it was given"

    def _check_after_start(self) -> None:
        stored = self._stored()
        lost = [sent for seq, sent in self.pending.items() if seq not in stored]
        for sent in lost:
            assert not sent.synced or sent.seq in self.rotten, f"{sent.seq} was synced and is lost"
        for seq in stored:
            if seq in self.dropped:
                self.pending[seq] = self.dropped.pop(seq)
            if seq not in self.pending:
                assert seq in self.committed, f"{seq} was never appended"
                assert seq not in self.cursor_committed, f"{seq} was committed, the cursor knew, and it came back"
                self.pending[seq] = self.committed.pop(seq)
        for sent in lost:
            del self.pending[sent.seq]
        newest_kept = max((s for s in stored), default=-1)
        assert all(sent.seq > newest_kept or sent.seq in self.rotten for sent in lost), "a gap was taken for whole"
        assert self.lane._state.end > max(self.seqs, default=-1), "seqs would be given again"
        assert self.lane.pending_rows == sum(len(self.pending[seq].batch) for seq in stored) or self.rotten
        self._check_origins({sent.batch.number: sent.batch.source_id for sent in lost})
        for seq in stored:
            self.pending[seq].synced = True  # what a start took over is on disk

    def _forget_what_was_being_dropped(self) -> None:
        """The crash came in the middle of it: what was appended or dropped in that step may be there or not."""
        stored = set(self._stored()) if hasattr(self, "lane") else set(self.pending)
        for seq in set(self.pending) - stored:
            self._give_up(seq)

    def _give_up(self, seq: int) -> None:
        self.dropped[seq] = self.pending.pop(seq)
        self.counted.add(seq)

    def _check_origins(self, lost: dict[int, int]) -> None:
        """What the machine is asked to leave out, the lane has (or had); what was synced is left out."""
        for source, name in enumerate(SOURCES):
            origin = self.lane.origin(name)
            newest = int(origin) if origin is not None else -1
            full = self.files.capacity < 10**6  # all segments may be dropped, and no room for the cursor
            assert full or newest >= self.synced_number.get(source, -1), "an origin that was synced is not known"
            wrongly = [number for number, whose in lost.items() if whose == source and number <= newest]
            assert not wrongly or self.rotten, f"{wrongly} are lost, and the machine would not send them again"

    async def _drain(self) -> None:
        """At the end: all that must be there comes out, once, in order."""
        known, before = set(self.pending), dict(self.lane.counters.totals)
        reader = self.lane.reader(Part.ALL)
        last = -1
        while taken := await self._read_now(reader, 1000):
            span, batches = taken
            for batch in batches:
                self._check_batch(batch)
                assert batch.seq > last, "out of order"
                last = batch.seq
            reader.commit(span)
            self._committed(span)
        self._check_drops(known, before)
        assert not self.pending, "not all came out"
        assert self.lane.pending_rows == 0

    def _watched(self, save: Callable[..., None]) -> Callable[..., None]:
        def watched(files: Any, folder: Path, cursor: Any) -> None:
            if folder == FOLDER and self.ending == "crash_in_cursor" and self.chance.random() < 0.5:
                self.files.crash_at = self.files.operations + self.chance.choice([2, 3, 3, 4, 5, 9])
            save(files, folder, cursor)
            if folder == FOLDER:
                pending = {seq for low, high in cursor.pending for seq in range(low, high)}
                self.cursor_committed = {seq for seq in self.committed if seq < cursor.end and seq not in pending}

        return watched


async def gather(*work: Coroutine[Any, Any, Any]) -> None:
    """All of them; the first error after all have ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _no_dead_letter(lane: str, refused: Sequence[tuple[Batch, Sequence[int]]], reason: str) -> None:
    raise AssertionError("nothing is rejected here")


def lane_disk_frames(data: bytearray) -> list[tuple[int, int, int]]:
    """(seq, start, end) of every batch in a segment."""
    from pipelines.frame import FrameKind, decode_batch, frames

    return [(decode_batch(f).batch.seq, f.start, f.end) for f in frames(bytes(data)) if f.kind == FrameKind.BATCH]
