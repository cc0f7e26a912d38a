"""The fast lane: batches in memory, bounded in bytes, one policy when full. Outlives an outage, not the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final
from uuid import uuid4

import msgpack

from pipelines.batch import Batch
from pipelines.clock import Clock, SystemClock
from pipelines.contracts import CutThroughReader, Part, Span
from pipelines.counters import Counters
from pipelines.errors import Corrupt
from pipelines.gaps import Ledger, NoLedger, Reason, of_batches
from pipelines.intervals import Intervals

SEQ_PER_INSTANCE: Final = 2**36
"""`seq` is the data folder's instance count times this, plus n: below 2^53 for 131,072 starts, 2^36 batches each."""


class WhenFull(StrEnum):
    """What a full lane gives up."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"


class MemoryLane:
    """See `contracts.Lane`. `bytes_max` bounds what is held; what does not fit is dropped by `when_full` and counted.

    An offset is the batch's seq. Two sets of offsets tell all: what is pending, and what of it is unread. The rest of
    what is pending, readers have in hand.
    """

    durable = False

    def __init__(
        self,
        name: str,
        *,
        bytes_max: int,
        sources: Sequence[str] = (),
        when_full: WhenFull = WhenFull.DROP_OLDEST,
        instance: int = 0,
        ledger: Ledger | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.counters = Counters("lane", name)
        self._bytes_max = bytes_max
        self._sources = sources
        self._ledger = NoLedger() if ledger is None else ledger
        self._wall_ns = (clock or SystemClock()).wall_ns
        self._closed = False
        self._when_full = when_full
        self._uuid = uuid4().bytes
        self._end = instance * SEQ_PER_INSTANCE
        self._held: dict[int, tuple[Batch, int]] = {}  # offset -> batch, its bytes
        self._bytes = 0
        self._rows = 0
        self._pending = Intervals()
        self._unread = Intervals()
        self._live_from = self._end
        self._readable = asyncio.Event()
        self._take: Callable[[int, Batch], bool] | None = None

    @property
    def pending_rows(self) -> int:
        return self._rows

    @property
    def pending_bytes(self) -> int:
        """Memory held by what is pending."""
        return self._bytes

    @property
    def oldest_ns(self) -> int | None:
        oldest = self._pending.first_in(0, self._end)
        return self._held[oldest[0]][0].received_ns if oldest else None

    def origin(self, source: str) -> bytes | None:
        return None  # it starts empty

    async def append(self, batch: Batch) -> None:
        self.put(batch)

    def put(self, batch: Batch) -> None:
        """`append`, which never waits here."""
        size, rows = batch.nbytes, len(batch)
        offset = self._end
        self._end += 1
        if self._bytes + size > self._bytes_max and not self._make_room(size):
            self._count_drop(batch)
            return
        numbered = batch.numbered(offset, self._wall_ns())
        self._held[offset] = numbered, size
        self._pending.add(offset, offset + 1)
        self._bytes += size
        self._rows += rows
        self.counters.totals["rows"] += rows
        taken = False
        try:
            taken = self._take is not None and not self._unread and self._take(offset, numbered)
        finally:
            if not taken:
                self._unread.add(offset, offset + 1)
                self._readable.set()

    async def sync(self) -> None:
        return

    def reader(self, part: Part, synced: bool = False) -> CutThroughReader:
        reader = _MemoryReader(self, part)
        reader.rewind()
        return reader

    def position(self, span: Span | None = None) -> bytes:
        pending = self._pending
        if span:
            pending = pending.copy()
            pending.remove(span.start, span.end)
        packed: bytes = msgpack.packb([self._uuid, self._end, list(pending)])
        return packed

    def restore(self, position: bytes) -> None:
        uuid, end, pending = self._parsed(position)
        if uuid != self._uuid:
            raise Corrupt(f"lane {self.name}: the position belongs to another lane and is not believed")
        delivered = self._pending.copy()
        delivered.remove(end, self._end)
        for start, stop in pending:
            delivered.remove(start, stop)
        for start, stop in delivered:
            self._forget(start, stop)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._say(Reason.STOPPED, (batch for batch, _ in self._held.values()))

    def _parsed(self, position: bytes) -> tuple[bytes, int, Intervals]:
        try:
            uuid, end, pairs = msgpack.unpackb(position)
            return uuid, int(end), Intervals((int(start), int(stop)) for start, stop in pairs)
        except (ValueError, TypeError, OverflowError) as error:
            raise Corrupt(f"lane {self.name}: unreadable position: {error}") from error

    def _make_room(self, size: int) -> bool:
        """Drops the oldest batches that no reader has in hand, where the policy says so, until `size` bytes fit."""
        if self._when_full is WhenFull.DROP_NEWEST or size > self._bytes_max:
            return False
        while self._bytes + size > self._bytes_max:
            oldest = self._unread.first_in(0, self._end)
            if oldest is None:
                return False
            self._count_drop(self._held[oldest[0]][0])
            self._forget(oldest[0], oldest[0] + 1)
        return True

    def _count_drop(self, batch: Batch) -> None:
        self.counters.add("dropped_rows", len(batch))
        self.counters.add("dropped_batches")
        self._say(Reason.LANE_FULL, [batch])

    def _say(self, reason: Reason, batches: Iterable[Batch]) -> None:
        for gap in of_batches(reason, self.name, batches, self._sources):
            self._ledger.note(gap)

    def _forget(self, start: int, end: int) -> None:
        for offset in range(start, end):
            batch, size = self._held.pop(offset, (None, 0))
            self._bytes -= size
            self._rows -= len(batch) if batch is not None else 0
        self._pending.remove(start, end)
        self._unread.remove(start, end)

    def _bounds(self, part: Part) -> tuple[int, int]:
        low = self._live_from if part is Part.LIVE else 0
        return low, self._live_from if part is Part.BACKLOG else self._end

    def _next(self, part: Part, rows_max: int) -> tuple[Span, list[Batch]] | None:
        found = self._unread.first_in(*self._bounds(part))
        if found is None:
            return None
        start, limit = found
        batches = [self._held[start][0]]
        rows = len(batches[0])
        for offset in range(start + 1, limit):
            batch = self._held[offset][0]
            rows += len(batch)
            if rows > rows_max:
                break
            batches.append(batch)
        span = Span(start, start + len(batches))
        self._unread.remove(span.start, span.end)
        return span, batches

    def _rewind(self, part: Part) -> None:
        low, high = self._bounds(part)
        for start, end in self._pending:
            self._unread.add(max(start, low), min(end, high))
        if part is Part.LIVE:
            self._live_from = self._end
        self._readable.set()


class _MemoryReader:
    def __init__(self, lane: MemoryLane, part: Part) -> None:
        self._lane = lane
        self._part = part

    @property
    def unread(self) -> bool:
        return self._lane._unread.first_in(*self._lane._bounds(self._part)) is not None

    async def wait(self) -> None:
        while not self.unread:
            # `set` wakes every waiting reader; those that find nothing of theirs come back here.
            self._lane._readable.clear()
            await self._lane._readable.wait()

    async def read(self, rows_max: int) -> tuple[Span, Sequence[Batch]]:
        while (taken := self._lane._next(self._part, rows_max)) is None:
            await self.wait()
        return taken

    def hand_over(self, take: Callable[[int, Batch], bool] | None) -> None:
        self._lane._take = take

    def commit(self, span: Span) -> None:
        self._lane._forget(span.start, span.end)

    def rewind(self) -> None:
        self._lane._rewind(self._part)
