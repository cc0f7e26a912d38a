"""The durable lane: a journal, a cursor and what was appended lately in memory. The same contract as the memory lane.

`append` writes to the page cache and returns; only the one who appends the batch that needs a new segment waits for the
disk. One task, the keeper, syncs what was appended every `fsync_every`, writes the cursor at most once a second, and
removes segments that are delivered. What was appended lately is read from memory, everything else in a thread.

Full (bytes, the disk's reserve, a full disk): whole segments are dropped, the oldest first, but none of which a reader
has a batch in hand; or what comes is dropped (`when_full`). Every drop is counted in rows, and has used up its numbers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from pipelines import cursor as cursors
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.contracts import Part, Reader, Span
from pipelines.counters import Counters
from pipelines.cursor import Cursor
from pipelines.errors import Corrupt, Permanent, Poisoned
from pipelines.files import Files, RealFiles
from pipelines.gaps import Gap, Ledger, NoLedger, Reason, of_batches
from pipelines.intervals import Intervals
from pipelines.journal import Identity, Journal, NoRoom, Segment
from pipelines.lane_memory import SEQ_PER_INSTANCE, WhenFull
from pipelines.pending import Pending
from pipelines.segment import Index, Tables
from pipelines.tags import TagTable
from pipelines.translation import Translation

CURSOR_EVERY_NS: Final = 10**9
NO_ROOM_FOR_NS: Final = 10**9
"""A disk that had no room is not asked again before."""
SEGMENT_BYTES_MAX: Final = 64 * 2**20
SEGMENTS_MIN: Final = 16
"""A lane has at least as many: dropping one costs little of what is held."""
AGES_MIN: Final = 8
"""With a `max_age`, a segment spans at most this part of it."""
REMOVED_PER_GROUP: Final = 8
"""Delivered segments: whoever waits for a sync does not wait for more to be removed."""

T = TypeVar("T")
Offload = Callable[[Callable[[], T]], Awaitable[T]]
"""Runs a function that waits for the disk, in a thread; the simulator runs it at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a disk lane may take."""

    bytes_max: int
    memory_bytes: int = 16 * 2**20
    """Of batches that were appended lately."""
    fsync_every_ns: int = 100_000_000
    max_age_ns: int | None = None
    reserve_bytes: int = 0
    """Left free on the disk."""
    segment_bytes: int | None = None
    """None: a fair part of `bytes_max`."""

    @property
    def segment(self) -> int:
        """Bytes of one segment."""
        return self.segment_bytes or max(min(SEGMENT_BYTES_MAX, self.bytes_max // SEGMENTS_MIN), 1)


class Threads:
    """An `Offload`: two threads of one lane's own, so that a reader does not wait for a sync."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"lane-{name}")

    async def __call__(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Without waiting for what is still being read."""
        self._executor.shutdown(wait=False)


class DiskLane:
    """See `contracts.Lane`. The constructor reads what a former process left; it waits for the disk.

    Raises Permanent where another process has the folder, and Poisoned where it cannot be used at all.
    """

    durable = True

    def __init__(
        self,
        name: str,
        folder: Path,
        clock: Clock,
        limits: Limits,
        *,
        tags: TagTable | None = None,
        sources: Sequence[str] = (),
        when_full: WhenFull = WhenFull.DROP_OLDEST,
        instance: int = 0,
        ledger: Ledger | None = None,
        files: Files | None = None,
        offload: Offload[Any] | None = None,
    ) -> None:
        self.name = name
        self.counters = Counters("lane", name)
        self._folder = folder
        self._clock = clock
        self._limits = limits
        self._when_full = when_full
        self._ledger = NoLedger() if ledger is None else ledger
        self._files = files or RealFiles()
        self._offload: Offload[Any] = offload or Threads(name)
        self._rows = 0
        self._recent: OrderedDict[int, tuple[Batch, int]] = OrderedDict()  # offset -> batch, its bytes; oldest first
        self._recent_bytes = 0
        self._unnamed = Intervals()
        self._poisoned: Poisoned | None = None
        self._closed = False
        self._writing = asyncio.Lock()  # one thread at a time changes the journal
        self._queued = 0  # appends that wait for a new segment
        self._no_room_until_ns = 0
        self._work = asyncio.Event()
        self._readable = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._syncs: list[tuple[int, asyncio.Future[None]]] = []
        self._cursor_dirty = True
        self._cursor_due_ns = 0
        self._journal = Journal(
            self._files,
            folder,
            Identity(name, uuid4().bytes, instance),
            tags if tags is not None else TagTable(),  # an empty one is false
            sources,
            self.counters,
            limits.segment,
            limits.reserve_bytes,
        )
        self._state = Pending(0)
        self._synced = 0
        self._lock = self._locked()
        self._recover(instance)

    # --- contract -----------------------------------------------------------------------------------------------

    @property
    def pending_rows(self) -> int:
        return self._rows

    @property
    def pending_bytes(self) -> int:
        return self._journal.bytes

    @property
    def oldest_ns(self) -> int | None:
        first = self._state.pending.first_in(0, self._state.end)
        segment = self._journal.segment_of(first[0]) if first else None
        if first is None or segment is None:
            return None
        content = segment.content  # as far as it is in memory
        return content.index.received_ns[content.index.between(*first).start] if content else segment.first_ns

    def origin(self, source: str) -> bytes | None:
        return self._journal.origins.get(source)

    async def append(self, batch: Batch) -> None:
        self._check_open()
        if self._queued or not self._store(batch):
            self._queued += 1
            try:
                async with self._writing:
                    await self._store_with_a_new_segment(batch)
            finally:
                self._queued -= 1

    async def sync(self) -> None:
        self._check_open()
        if self._synced >= self._state.end:
            return
        done = asyncio.get_running_loop().create_future()
        self._syncs.append((self._state.end, done))
        self._wake_keeper()
        await done

    def reader(self, part: Part) -> Reader:
        reader = _DiskReader(self, part)
        reader.rewind()
        return reader

    def position(self, span: Span | None = None) -> bytes:
        return self._state.position(self._journal.identity.uuid, span)

    def restore(self, position: bytes) -> None:
        try:
            delivered = self._state.delivered(self._journal.identity.uuid, position)
        except Corrupt as error:
            raise Corrupt(f"lane {self.name}: {error}") from error
        for low, high in delivered:
            self._commit(Span(low, high), {})

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._keeper:
                self._keeper.cancel()
                await asyncio.wait([self._keeper])
            if self._poisoned is None:
                async with self._writing:
                    await self._group()
                    await self._in_thread(self._journal.seal)
                    await self._save_cursor(self._state.end, dict(self._journal.origins))
        except Poisoned as error:
            self._fail(error)
        finally:
            if not self._writing.locked():  # cancelled: a thread may be using the files, the process's end closes them
                self._journal.close()
                self._files.close(self._lock)
            if isinstance(self._offload, Threads):
                self._offload.close()

    # --- appending ----------------------------------------------------------------------------------------------

    def _store(self, batch: Batch) -> bool:
        """False where a new segment is needed first."""
        offset, rows, size = self._state.end, len(batch), batch.nbytes
        try:
            if not self._journal.append(batch, offset, self._synced):
                return False
        except Poisoned as error:
            self._fail(error)
            raise
        self._state.end += 1
        self._state.add(offset)
        segment = self._journal.segments[-1]
        segment.touched_ns = self._clock.mono_ns()
        segment.pending_batches += 1
        segment.pending_rows += rows
        self._rows += rows
        self.counters.add("rows", rows)
        self._remember(offset, batch.numbered(offset), size)
        self._readable.set()
        self._wake_keeper()
        return True

    async def _store_with_a_new_segment(self, batch: Batch) -> None:
        self._check()
        if self._store(batch):  # another one made it
            return
        try:
            room = await self._make_room(self._journal.size_of(batch))
        except Poisoned as error:
            self._fail(error)
            raise
        if not room or not self._store(batch):
            self._state.end += 1
            self._count_drop(len(batch), 1)
            for gap in of_batches(Reason.LANE_FULL, self.name, [batch], self._journal.sources):
                self._ledger.note(gap)

    async def _make_room(self, size: int) -> bool:
        """A new segment that takes a batch of `size` bytes; drops others for it by the policy. False: there is none."""
        wanted = self._journal.bytes_for(size)
        if wanted > self._limits.bytes_max or self._clock.mono_ns() < self._no_room_until_ns:
            return False
        if self._journal.active:
            await self._in_thread(self._journal.seal)
        while self._journal.bytes + wanted > self._limits.bytes_max:
            if not await self._drop_one():
                return False
        while True:
            try:
                now = self._clock.wall_ns()
                await self._in_thread(partial(self._journal.roll, size, now, self._state.end))
                self._journal.segments[-1].began_ns = self._clock.mono_ns()
                return True
            except NoRoom:
                self.counters.add("disk_full")
                if not await self._drop_one():
                    self._no_room_until_ns = self._clock.mono_ns() + NO_ROOM_FOR_NS
                    return False

    async def _drop_one(self) -> bool:
        """Gives up what is delivered already, else, where the policy says so, the oldest that nobody has in hand."""
        chosen = await self._indexed(self._droppable)
        if chosen is None:
            return False
        self._give_up(chosen, Reason.LANE_FULL)
        if chosen is self._journal.segments[-1]:  # with the newest origins: sealed, so they are on disk
            await self._save_cursor(self._state.end, dict(self._journal.origins))
        await self._remove(chosen)
        return True

    def _droppable(self) -> Segment | None:
        free = [segment for segment in self._journal.segments if self._is_free(segment)]
        chosen = next((segment for segment in free if not segment.pending_batches), None)
        if chosen is None and free and self._when_full is WhenFull.DROP_OLDEST:
            chosen = free[0]
        return chosen

    async def _indexed(self, choose: Callable[[], Segment | None]) -> Segment | None:
        """What is chosen, with its index in memory. Chosen anew after the disk: a reader may have taken from it."""
        while (chosen := choose()) and chosen.pending_batches and chosen.content is None:
            await self._in_thread(partial(self._journal.content, chosen))
        return chosen

    async def _remove(self, segment: Segment) -> None:
        self._journal.segments.remove(segment)
        await self._in_thread(partial(self._journal.remove, segment.path))

    def _is_free(self, segment: Segment) -> bool:
        return not segment.writer and not segment.pins and not self._state.in_hand(segment.first, segment.end)

    def _is_delivered(self, segment: Segment) -> bool:
        return not (segment.pending_batches or segment.broken or segment.pins or segment.writer)

    def _give_up(self, segment: Segment, reason: Reason) -> None:
        self._count_drop(*self._lose(reason, segment, segment.first, segment.end))

    def _count_drop(self, rows: int, batches: int) -> None:
        self.counters.add("dropped_rows", rows)
        self.counters.add("dropped_batches", batches)

    def _lose(self, reason: Reason, segment: Segment, low: int, high: int) -> tuple[int, int]:
        """As `_forget`, and a gap for each device in the ledger."""
        index, noted = self._journal.content(segment).index, 0
        for start, end in self._state.pending.within(low, high):
            for source, rows, from_ns, to_ns in index.by_source(start, end):
                device = self._journal.device_of(segment, source)
                self._ledger.note(Gap(reason, device, self.name, (), from_ns, to_ns, rows))
                noted += rows
        rows, batches = self._forget(segment, low, high, {})
        if rows > noted:  # its index cannot be read any more
            self._ledger.note(Gap(reason, "", self.name, (), segment.first_ns, segment.last_ns, rows - noted))
        return rows, batches

    def _remember(self, offset: int, batch: Batch, size: int) -> None:
        self._recent[offset] = (batch, size)
        self._recent_bytes += size
        while self._recent_bytes > self._limits.memory_bytes:
            self._recent_bytes -= self._recent.popitem(last=False)[1][1]

    # --- reading ------------------------------------------------------------------------------------------------

    def _commit(self, span: Span, rows: Mapping[int, int]) -> None:
        for segment, low, high in self._journal.between(span.start, span.end):
            self._forget(segment, low, high, rows)
        self._cursor_dirty = True
        self._wake_keeper()

    def _forget(self, segment: Segment, low: int, high: int, known: Mapping[int, int]) -> tuple[int, int]:
        """Delivered or dropped: what of [low, high) was still pending, in rows and batches.

        `known` are rows by offset, so that nobody has to ask the disk.
        """
        rows = batches = 0
        for start, end in self._state.pending.within(low, high):
            rows += self._rows_of(segment, start, end, known)
            batches += end - start
            for offset in range(max(start, next(iter(self._recent), end)), end):
                self._recent_bytes -= self._recent.pop(offset, (None, 0))[1]
        self._state.forget(low, high)
        segment.pending_rows -= rows
        segment.pending_batches -= batches
        self._rows -= rows
        return rows, batches

    def _rows_of(self, segment: Segment, start: int, end: int, known: Mapping[int, int]) -> int:
        if end - start == segment.pending_batches:
            return segment.pending_rows
        rows = [known.get(offset) for offset in range(start, end)] if start in known else [None]
        if None not in rows:
            return sum(filter(None, rows))
        return self._journal.content(segment).index.rows_between(start, end)

    async def _fetch(self, low: int, high: int) -> dict[int, Batch]:
        """From disk: batches from offset `low` on below `high`; empty where `low` cannot be read and is given up."""
        parts = self._journal.parts(low, high)
        if not parts:
            self._state.forget(low, low + 1)
            return {}
        first, path = parts[0][0], parts[0][0].path
        for segment, _, _ in parts:
            segment.pins += 1
        try:
            found = await self._offload(partial(self._journal.read, parts))
        except Corrupt:
            if first.path == path:  # else another reader has just set it aside
                await self._give_up_damaged(first, low)
            return {}
        finally:
            for segment, _, _ in parts:
                segment.pins -= 1
        batches = dict[int, Batch]()
        for segment, tables, these in found:
            batches.update((batch.seq, self._translated(segment, tables, batch)) for batch in these)
        return batches

    def _translated(self, segment: Segment, tables: Tables, batch: Batch) -> Batch:
        if not segment.foreign:
            return batch
        if segment.translation is None:
            segment.translation = Translation(tables, self._journal.tags, self._journal.sources)
        known = segment.translation.of(batch)
        if len(known) < len(batch) and batch.seq not in self._unnamed:  # a damaged table; read again, counted once
            self._unnamed.add(batch.seq, batch.seq + 1)
            self.counters.add("corrupt_rows", len(batch) - len(known))
            device = tables.sources.get(batch.source_id, "")
            received_ns, lost = batch.received_ns, len(batch) - len(known)
            self._ledger.note(Gap(Reason.CORRUPT, device, self.name, (), received_ns, received_ns, lost))
        return known

    async def _give_up_damaged(self, segment: Segment, unreadable: int) -> None:
        """Counts what cannot be read, to the row, and goes on behind it."""
        whole = await self._offload(partial(self._journal.whole, segment))
        for low, high in self._state.unread.within(segment.first, segment.end):
            for offset in range(low, high):
                if offset == unreadable or (offset not in whole and offset not in self._recent):
                    rows, batches = self._lose(Reason.CORRUPT, segment, offset, offset + 1)
                    self.counters.add("corrupt_rows", rows)
                    self.counters.add("corrupt_batches", batches)
        self._cursor_dirty = True
        async with self._writing:
            await self._in_thread(partial(self._journal.set_aside, segment))

    # --- keeping ------------------------------------------------------------------------------------------------

    def _wake_keeper(self) -> None:
        self._work.set()
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"keeper {self.name}")
            self._keeper.add_done_callback(self._keeper_ended)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        error = None if keeper.cancelled() else keeper.exception()
        if isinstance(error, Exception):  # a bug: whoever waits for a sync would wait for ever
            poison = Poisoned(f"lane {self.name}: its keeper ended: {error!r}")
            poison.__cause__ = error
            self._fail(poison)

    async def _keep(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            async with self._writing:
                try:
                    await self._group()
                except Poisoned as error:
                    self._fail(error)  # before anyone else may write
                    return
            if self._cursor_dirty or (self._limits.max_age_ns and self._rows):
                self._work.set()
            await self._clock.sleep(self._limits.fsync_every_ns / 1e9)

    async def _group(self) -> None:
        """One sync for all that was appended; what else is due."""
        end, origins = self._state.end, dict(self._journal.origins)
        if self._synced < end:
            await self._in_thread(self._journal.sync)
            self._synced = end
        for wanted, done in self._syncs:
            if wanted <= end and not done.done():
                done.set_result(None)
        self._syncs = [waiting for waiting in self._syncs if not waiting[1].done()]
        if self._cursor_dirty and self._clock.mono_ns() >= self._cursor_due_ns:
            await self._save_cursor(end, origins)
        if self._limits.max_age_ns is not None:
            await self._expire(self._limits.max_age_ns)
        delivered = list(islice(filter(self._is_delivered, self._journal.segments[:-1]), REMOVED_PER_GROUP))
        for segment in filter(self._is_delivered, delivered):  # still: a reader may take one while another is removed
            await self._remove(segment)
        if len(delivered) == REMOVED_PER_GROUP:
            self._work.set()

    async def _save_cursor(self, end: int, origins: dict[str, bytes]) -> None:
        self._cursor_dirty = False
        self._cursor_due_ns = self._clock.mono_ns() + CURSOR_EVERY_NS
        pending = [(low, min(high, end)) for low, high in self._state.pending if low < end]
        identity = self._journal.identity
        cursor = Cursor(identity.uuid, identity.instance, end, self._synced, pending, origins)
        try:
            await self._in_thread(partial(cursors.save, self._files, self._folder, cursor))
        except OSError:  # the old one lags, and is right
            self._cursor_dirty = True
            self.counters.add("cursor_errors")
        except asyncio.CancelledError:
            self._cursor_dirty = True  # perhaps it was not written
            raise

    async def _expire(self, max_age_ns: int) -> None:
        """By the clock that never steps: a wall clock that is set must not make everything old."""
        now_ns = self._clock.mono_ns()
        active = self._journal.active
        if active and active.pending_batches and active.began_ns < now_ns - max_age_ns // AGES_MIN:
            await self._in_thread(self._journal.seal)
        while expired := await self._indexed(partial(self._untouched_since, now_ns - max_age_ns)):
            self.counters.add("expired_rows", expired.pending_rows)
            self._give_up(expired, Reason.EXPIRED)

    def _untouched_since(self, mono_ns: int) -> Segment | None:
        old = (each for each in self._journal.segments if each.pending_batches and each.touched_ns < mono_ns)
        return next(filter(self._is_free, old), None)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """What changes the journal is waited for even where the caller is cancelled: nothing else may begin before."""
        running = asyncio.ensure_future(self._offload(work))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        failure = running.exception()
        if cancelled and not isinstance(failure, Poisoned):
            raise cancelled from failure  # else who passes over the error would pass over the cancellation, too
        result: T = running.result()
        return result

    def _check(self) -> None:
        if self._poisoned:
            raise Poisoned(str(self._poisoned)) from self._poisoned

    def _check_open(self) -> None:
        self._check()
        if self._closed:
            raise RuntimeError(f"lane {self.name} is closed")

    def _fail(self, error: Poisoned) -> None:
        """From now on every call raises; whoever waits, too."""
        self._poisoned = error
        for _, done in self._syncs:
            if not done.done():
                done.set_exception(Poisoned(str(error)))
        self._readable.set()

    # --- start --------------------------------------------------------------------------------------------------

    def _locked(self) -> int:
        try:
            self._files.make_folder(self._folder)
            return self._files.lock(self._folder / "lock")
        except BlockingIOError as error:
            raise Permanent(f"{self._folder} is in use by another gateway: two cannot share a data folder") from error
        except OSError as error:
            raise Poisoned(f"{self._folder} cannot be used: {error.strerror or error}") from error

    def _recover(self, instance: int) -> None:
        cursor = self._cursor()
        self._journal.recover(cursor.synced if cursor else 0, partial(self._took, cursor))
        if cursor:
            self._journal.identity.uuid = cursor.uuid
            if cursor.end >= self._journal.end:
                self._journal.origins = {**self._journal.origins, **cursor.origins}
            else:
                self._journal.origins = {**cursor.origins, **self._journal.origins}
        last = max(self._journal.end, cursor.end if cursor else 0)
        self._state.start(max(instance * SEQ_PER_INSTANCE, last))
        self._synced = self._state.end

    def _cursor(self) -> Cursor | None:
        try:
            return cursors.load(self._files, self._folder)
        except (Corrupt, OSError):  # all is pending then: better twice than never
            self.counters.add("corrupt_cursors")
            return None

    def _took(self, cursor: Cursor | None, segment: Segment, index: Index) -> None:
        """What of a segment that was found is pending, and what of it is lost."""
        if segment.lost_rows:
            devices = {self._journal.device_of(segment, source) for source in index.sources}
            device = devices.pop() if len(devices) == 1 else ""
            gap = Gap(Reason.CORRUPT, device, self.name, (), segment.first_ns, segment.last_ns, segment.lost_rows)
            self._ledger.note(gap)
        segment.touched_ns = self._clock.mono_ns() - max(self._clock.wall_ns() - segment.last_ns, 0)
        known = [*cursor.pending, (cursor.end, segment.end)] if cursor else [(segment.first, segment.end)]
        for low, high in known:
            for start, end in index.runs(max(low, segment.first), min(high, segment.end)):
                self._state.pending.add(start, end)
                rows = index.rows_between(start, end)
                segment.pending_batches += end - start
                segment.pending_rows += rows
                self._rows += rows


class _DiskReader:
    def __init__(self, lane: DiskLane, part: Part) -> None:
        self._lane = lane
        self._part = part
        self._ahead: dict[int, Batch] = {}
        self._rows: dict[int, int] = {}  # of what is in hand, by offset
        self.fetching = False
        """Waits for the disk, not for an append."""

    @property
    def unread(self) -> bool:
        return self._lane._state.first_unread(self._part) is not None

    async def wait(self) -> None:
        while not self.unread:
            self._lane._check()
            self._lane._readable.clear()
            await self._lane._readable.wait()

    async def read(self, rows_max: int) -> tuple[Span, Sequence[Batch]]:
        lane = self._lane
        while True:
            lane._check()
            found = lane._state.first_unread(self._part)
            if found is None:
                await self.wait()
            elif batches := self._take(*found, rows_max):
                span = Span(found[0], found[0] + len(batches))
                lane._state.unread.remove(span.start, span.end)
                self._rows.update(zip(range(span.start, span.end), map(len, batches), strict=True))
                return span, batches
            else:
                self.fetching = True
                try:
                    self._ahead = await lane._fetch(*found)
                finally:
                    self.fetching = False

    def commit(self, span: Span) -> None:
        self._lane._commit(span, self._rows)
        for offset in range(span.start, span.end):
            self._rows.pop(offset, None)

    def rewind(self) -> None:
        self._rows.clear()
        self._lane._state.rewind(self._part)
        self._lane._readable.set()

    def _take(self, low: int, high: int, rows_max: int) -> list[Batch]:
        """What is in memory of [low, high), as far as it goes."""
        batches = list[Batch]()
        rows = 0
        for offset in range(low, high):
            recent = self._lane._recent.get(offset)
            batch = recent[0] if recent else self._ahead.get(offset)
            if batch is None:
                break
            rows += len(batch)
            if batches and rows > rows_max:
                break
            batches.append(batch)
        return batches
