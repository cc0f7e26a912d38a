"""The durable lane: a journal, a cursor and what was appended lately in memory. The same contract as the memory lane.

`append` writes to the page cache and returns; only the one who appends the batch that needs a new segment waits for the
disk. One task, the keeper, syncs what was appended every `fsync_every`, but only once a second while all of it has been
delivered already; it writes the cursor at most once a second, and removes segments that are delivered. What was
appended lately is read from memory, everything else in a thread.

Full (bytes, the disk's reserve, a full disk): whole segments are dropped, the oldest first, but none of which a reader
has a batch in hand; or what comes is dropped (`when_full`). Every drop is counted in rows, and has used up its numbers.

What is pending: `lane_disk_held`. What is kept, and for how long: `lane_disk_retention`. What is not in memory any
more: `lane_disk_reading`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pipelines import cursor as cursors
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.contracts import Part, Reader, Span
from pipelines.counters import Counters
from pipelines.cursor import Cursor
from pipelines.errors import Corrupt, Permanent, Poisoned
from pipelines.files import Files, RealFiles
from pipelines.gaps import Ledger, NoLedger
from pipelines.journal import Identity, Journal, Segment
from pipelines.lane_disk_held import Held
from pipelines.lane_disk_reading import Reading
from pipelines.lane_disk_retention import Limits, Retention
from pipelines.lane_memory import SEQ_PER_INSTANCE, WhenFull
from pipelines.segment_tables import Index
from pipelines.tags import TagTable
from pipelines.worker import Offload, Worker

__all__ = ["DiskLane", "Limits"]

CURSOR_EVERY_NS: Final = 10**9
CALM_NS: Final = 10**9
"""What is delivered is not lost with the power: its sync, which wears the disk, may wait this long."""


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
        self._files = files or RealFiles()
        self._worker = Worker(name, offload)
        self._poisoned: Poisoned | None = None
        self._closed = False
        self._writing = asyncio.Lock()  # one thread at a time changes the journal
        self._queued = 0  # appends that wait for a new segment
        self._work = asyncio.Event()
        self._readable = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._syncs: list[tuple[int, asyncio.Future[None]]] = []
        self._cursor_dirty = True
        self._cursor_due_ns = 0
        self._calm_until_ns = 0
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
        ledger = NoLedger() if ledger is None else ledger
        self._held = Held(name, self._journal, self.counters, ledger, limits.memory_bytes)
        self._state = self._held.state
        self._retention = Retention(
            self._held, self._journal, limits, when_full, clock, self.counters, self._worker, self._save_origins
        )
        self._reading = Reading(self._held, self._journal, self._worker, self._set_aside)
        self._synced = 0
        self._lock = self._locked()
        self._recover(instance)

    # --- contract -----------------------------------------------------------------------------------------------

    @property
    def pending_rows(self) -> int:
        return self._held.rows

    @property
    def pending_bytes(self) -> int:
        return self._journal.bytes

    @property
    def oldest_ns(self) -> int | None:
        return self._held.oldest_ns

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

    def reader(self, part: Part, synced: bool = False) -> Reader:
        reader = _DiskReader(self, part, synced)
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
                    await self._worker.change(self._journal.sealing())
                    await self._save_origins()
        except Poisoned as error:
            self._fail(error)
        finally:
            if not self._writing.locked():  # cancelled: a thread may be using the files, the process's end closes them
                self._journal.close()
                self._files.close(self._lock)
            self._worker.close()

    # --- appending ----------------------------------------------------------------------------------------------

    def _store(self, batch: Batch) -> bool:
        """False where a new segment is needed first."""
        try:
            if not self._journal.append(batch, self._state.end, self._synced):
                return False
        except Poisoned as error:
            self._fail(error)
            raise
        self._held.add(batch, self._clock)
        self._readable.set()
        self._wake_keeper()
        return True

    async def _store_with_a_new_segment(self, batch: Batch) -> None:
        self._check()
        if self._store(batch):  # another one made it
            return
        try:
            room = await self._retention.make_room(self._journal.size_of(batch))
        except Poisoned as error:
            self._fail(error)
            raise
        if not room or not self._store(batch):
            self._held.refuse(batch)

    # --- reading ------------------------------------------------------------------------------------------------

    def _first_unread(self, part: Part, synced: bool) -> tuple[int, int] | None:
        return self._state.first_unread(part, self._synced if synced else self._state.end)

    def _commit(self, span: Span, rows: Mapping[int, int]) -> None:
        self._held.delivered(span, rows)
        self._cursor_dirty = True
        self._wake_keeper()

    async def _set_aside(self, segment: Segment) -> None:
        self._cursor_dirty = True
        async with self._writing:
            await self._worker.change(partial(self._journal.set_aside, segment))

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
            if self._is_calm():
                self._work.set()
            else:
                async with self._writing:
                    try:
                        await self._group()
                    except Poisoned as error:
                        self._fail(error)  # before anyone else may write
                        return
                if self._cursor_dirty or (self._limits.max_age_ns and self._held.rows):
                    self._work.set()
            await self._clock.sleep(self._limits.fsync_every_ns / 1e9)

    def _is_calm(self) -> bool:
        """Nothing that is not on disk waits for anything but its delivery's being remembered."""
        return not self._held.rows and self._clock.mono_ns() < self._calm_until_ns

    async def _group(self) -> None:
        """One sync for all that was appended; what else is due."""
        self._calm_until_ns = self._clock.mono_ns() + CALM_NS
        end, origins = self._state.end, dict(self._journal.origins)
        if self._synced < end:
            await self._worker.change(self._journal.sync)
            self._synced = end
            self._readable.set()
        for wanted, done in self._syncs:
            if wanted <= end and not done.done():
                done.set_result(None)
        self._syncs = [waiting for waiting in self._syncs if not waiting[1].done()]
        if self._cursor_dirty and self._clock.mono_ns() >= self._cursor_due_ns:
            await self._save_cursor(end, origins)
        await self._retention.expire()
        if await self._retention.remove_delivered():
            self._work.set()

    async def _save_origins(self) -> None:
        """All that was appended must be on disk."""
        await self._save_cursor(self._state.end, dict(self._journal.origins))

    async def _save_cursor(self, end: int, origins: dict[str, bytes]) -> None:
        self._cursor_dirty = False
        self._cursor_due_ns = self._clock.mono_ns() + CURSOR_EVERY_NS
        pending = [(low, min(high, end)) for low, high in self._state.pending if low < end]
        identity = self._journal.identity
        cursor = Cursor(identity.uuid, identity.instance, end, self._synced, pending, origins)
        try:
            await self._worker.change(partial(cursors.save, self._files, self._folder, cursor))
        except OSError:  # the old one lags, and is right
            self._cursor_dirty = True
            self.counters.add("cursor_errors")
        except asyncio.CancelledError:
            self._cursor_dirty = True  # perhaps it was not written
            raise

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
        self._held.take_over(cursor, segment, index, self._clock)


class _DiskReader:
    def __init__(self, lane: DiskLane, part: Part, synced: bool) -> None:
        self._lane = lane
        self._part = part
        self._synced = synced
        self._ahead: dict[int, Batch] = {}
        self._rows: dict[int, int] = {}  # of what is in hand, by offset
        self.fetching = False
        """Waits for the disk, not for an append."""

    @property
    def unread(self) -> bool:
        return self._lane._first_unread(self._part, self._synced) is not None

    async def wait(self) -> None:
        while not self.unread:
            self._lane._check()
            self._lane._readable.clear()
            await self._lane._readable.wait()

    async def read(self, rows_max: int) -> tuple[Span, Sequence[Batch]]:
        lane = self._lane
        while True:
            lane._check()
            found = lane._first_unread(self._part, self._synced)
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
                    self._ahead = await lane._reading.fetch(*found)
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
            batch = self._lane._held.recent(offset)
            if batch is None:
                batch = self._ahead.get(offset)
            if batch is None:
                break
            rows += len(batch)
            if batches and rows > rows_max:
                break
            batches.append(batch)
        return batches
