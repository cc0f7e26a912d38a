"""How much a disk lane keeps: room for the next segment by bytes and the disk's reserve, age, what is delivered.

Whole segments go, the oldest first, but none of which a reader has a batch in hand. Whoever calls holds the lane's
lock: one thing at a time changes the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.gaps import Reason
from pipelines.journal import Journal, NoRoom, Segment
from pipelines.lane_disk_held import Held
from pipelines.lane_memory import WhenFull
from pipelines.worker import Worker

NO_ROOM_FOR_NS: Final = 10**9
"""A disk that had no room is not asked again before."""
SEGMENT_BYTES_MAX: Final = 64 * 2**20
SEGMENTS_MIN: Final = 16
"""A lane has at least as many: dropping one costs little of what is held."""
AGES_MIN: Final = 8
"""With a `max_age`, a segment spans at most this part of it."""
REMOVED_PER_GROUP: Final = 8
"""Delivered segments: whoever waits for a sync does not wait for more to be removed."""


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


class Retention:
    """`save_origins` puts each source's newest origin on disk, before the segment that has them goes."""

    def __init__(
        self,
        held: Held,
        journal: Journal,
        limits: Limits,
        when_full: WhenFull,
        clock: Clock,
        counters: Counters,
        worker: Worker,
        save_origins: Callable[[], Awaitable[None]],
    ) -> None:
        self._held = held
        self._journal = journal
        self._limits = limits
        self._when_full = when_full
        self._clock = clock
        self._counters = counters
        self._worker = worker
        self._save_origins = save_origins
        self._no_room_until_ns = 0

    async def make_room(self, size: int) -> bool:
        """A new segment that takes a batch of `size` bytes; drops others for it by the policy. False: there is none."""
        wanted = self._journal.bytes_for(size)
        if wanted > self._limits.bytes_max or self._clock.mono_ns() < self._no_room_until_ns:
            return False
        if self._journal.active:
            await self._worker.change(self._journal.sealing())
        while self._journal.bytes + wanted > self._limits.bytes_max:
            if not await self._drop_one():
                return False
        while True:
            try:
                roll = partial(self._journal.roll, size, self._clock.wall_ns(), self._held.state.end)
                await self._worker.change(roll)
                self._journal.segments[-1].began_ns = self._clock.mono_ns()
                return True
            except NoRoom:
                self._counters.add("disk_full")
                if not await self._drop_one():
                    self._no_room_until_ns = self._clock.mono_ns() + NO_ROOM_FOR_NS
                    return False

    async def expire(self) -> None:
        """By the clock that never steps: a wall clock that is set must not make everything old."""
        if self._limits.max_age_ns is None:
            return
        now_ns = self._clock.mono_ns()
        active = self._journal.active
        if active and active.pending_batches and active.began_ns < now_ns - self._limits.max_age_ns // AGES_MIN:
            await self._worker.change(self._journal.sealing())
        while expired := await self._indexed(partial(self._untouched_since, now_ns - self._limits.max_age_ns)):
            self._counters.add("expired_rows", expired.pending_rows)
            self._held.drop(expired, Reason.EXPIRED)

    async def remove_delivered(self) -> bool:
        """Segments in which nothing is pending, but the newest. True where there may be more of them."""
        delivered = list(islice(filter(_is_delivered, self._journal.segments[:-1]), REMOVED_PER_GROUP))
        for segment in filter(_is_delivered, delivered):  # still: a reader may take one while another is removed
            await self._remove(segment)
        return len(delivered) == REMOVED_PER_GROUP

    async def _drop_one(self) -> bool:
        """Gives up what is delivered already, else, where the policy says so, the oldest that nobody has in hand."""
        chosen = await self._indexed(self._droppable)
        if chosen is None:
            return False
        self._held.drop(chosen, Reason.LANE_FULL)
        if chosen is self._journal.segments[-1]:  # with the newest origins: sealed, so they are on disk
            await self._save_origins()
        await self._remove(chosen)
        return True

    def _droppable(self) -> Segment | None:
        free = [segment for segment in self._journal.segments if self._held.is_free(segment)]
        chosen = next((segment for segment in free if not segment.pending_batches), None)
        if chosen is None and free and self._when_full is WhenFull.DROP_OLDEST:
            chosen = free[0]
        return chosen

    def _untouched_since(self, mono_ns: int) -> Segment | None:
        old = (each for each in self._journal.segments if each.pending_batches and each.touched_ns < mono_ns)
        return next(filter(self._held.is_free, old), None)

    async def _indexed(self, choose: Callable[[], Segment | None]) -> Segment | None:
        """What is chosen, with its index in memory. Chosen anew after the disk: a reader may have taken from it."""
        while (chosen := choose()) and chosen.pending_batches and chosen.content is None:
            await self._worker.change(partial(self._journal.content, chosen))
        return chosen

    async def _remove(self, segment: Segment) -> None:
        self._journal.segments.remove(segment)
        await self._worker.change(partial(self._journal.remove, segment.path))


def _is_delivered(segment: Segment) -> bool:
    return not (segment.pending_batches or segment.broken or segment.pins or segment.writer)
