"""What of a disk lane is no longer in memory, read in a thread; what cannot be read is given up, batch by batch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from pipelines.batch import Batch
from pipelines.errors import Corrupt
from pipelines.intervals import Intervals
from pipelines.journal import Journal
from pipelines.lane_disk_held import Held
from pipelines.segment import Segment
from pipelines.segment_tables import Tables
from pipelines.translation import Translation
from pipelines.worker import Worker


class Reading:
    """`set_aside` renames a damaged segment, when it is its turn to change the journal."""

    def __init__(
        self, held: Held, journal: Journal, worker: Worker, set_aside: Callable[[Segment], Awaitable[None]]
    ) -> None:
        self._held = held
        self._journal = journal
        self._worker = worker
        self._set_aside = set_aside
        self._unnamed = Intervals()

    async def fetch(self, low: int, high: int) -> dict[int, Batch]:
        """Batches from offset `low` on below `high`; empty where `low` cannot be read and is given up."""
        parts = self._journal.parts(low, high)
        if not parts:
            self._held.state.forget(low, low + 1)
            return {}
        first, path = parts[0][0], parts[0][0].path
        for segment, _, _ in parts:
            segment.pins += 1
        try:
            found = await self._worker.read(partial(self._journal.read, parts))
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

    async def _give_up_damaged(self, segment: Segment, unreadable: int) -> None:
        """Counts what cannot be read, to the row, and goes on behind it."""
        whole = await self._worker.read(partial(self._journal.whole, segment))
        for low, high in self._held.state.unread.within(segment.first, segment.end):
            for offset in range(low, high):
                if offset == unreadable or (offset not in whole and self._held.recent(offset) is None):
                    self._held.drop_damaged(segment, offset)
        await self._set_aside(segment)

    def _translated(self, segment: Segment, tables: Tables, batch: Batch) -> Batch:
        if not segment.foreign:
            return batch
        if segment.translation is None:
            segment.translation = Translation(tables, self._journal.tags, self._journal.sources)
        known = segment.translation.of(batch)
        if len(known) < len(batch) and batch.seq not in self._unnamed:  # a damaged table; read again, counted once
            self._unnamed.add(batch.seq, batch.seq + 1)
            self._held.count_unnamed(tables.sources.get(batch.source_id, ""), batch, len(batch) - len(known))
        return known
