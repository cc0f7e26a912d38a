"""What a disk lane holds: which batches are pending, how many rows they are, and those that were appended lately.

Every batch that leaves is forgotten here, delivered or lost; what is lost is noted in the ledger, device by device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.contracts import Span
from pipelines.counters import Counters
from pipelines.cursor import Cursor
from pipelines.gaps import Gap, Ledger, Reason, of_batches
from pipelines.journal import Journal, Segment
from pipelines.pending import Pending
from pipelines.segment_tables import Index


class Held:
    """Counts by segment, too: one that holds nothing pending may go."""

    def __init__(self, name: str, journal: Journal, counters: Counters, ledger: Ledger, memory_bytes: int) -> None:
        self.state = Pending(0)
        self.rows = 0
        self._name = name
        self._journal = journal
        self._counters = counters
        self._ledger = ledger
        self._memory_bytes = memory_bytes
        self._recent: OrderedDict[int, tuple[Batch, int]] = OrderedDict()  # offset -> batch, its bytes; oldest first
        self._recent_bytes = 0

    @property
    def oldest_ns(self) -> int | None:
        """As `contracts.Lane.oldest_ns`."""
        first = self.state.pending.first_in(0, self.state.end)
        segment = self._journal.segment_of(first[0]) if first else None
        if first is None or segment is None:
            return None
        index = segment.content.index if segment.content else Index()  # as far as it is in memory, and can be read
        at = index.between(*first).start
        return index.received_ns[at] if at < len(index) else segment.first_ns

    def recent(self, offset: int) -> Batch | None:
        """A batch that is in memory."""
        found = self._recent.get(offset)
        return found[0] if found else None

    def is_free(self, segment: Segment) -> bool:
        """No reader has anything of it in hand, and nothing is written to it."""
        return not segment.writer and not segment.pins and not self.state.in_hand(segment.first, segment.end)

    # --- what comes ---------------------------------------------------------------------------------------------

    def add(self, batch: Batch, clock: Clock) -> None:
        """The journal has it."""
        offset, rows, size = self.state.end, len(batch), batch.nbytes
        self.state.end += 1
        self.state.add(offset)
        segment = self._journal.segments[-1]
        segment.touched_ns = clock.mono_ns()
        segment.pending_batches += 1
        segment.pending_rows += rows
        self.rows += rows
        self._counters.add("rows", rows)
        self._recent[offset] = (batch.numbered(offset, clock.wall_ns()), size)
        self._recent_bytes += size
        while self._recent_bytes > self._memory_bytes:
            self._recent_bytes -= self._recent.popitem(last=False)[1][1]

    def refuse(self, batch: Batch) -> None:
        """There is no room for it: it uses up its number, so that a consumer sees the gap."""
        self.state.end += 1
        self.count_drop(len(batch), 1)
        for gap in of_batches(Reason.LANE_FULL, self._name, [batch], self._journal.sources):
            self._ledger.note(gap)

    def take_over(self, cursor: Cursor | None, segment: Segment, index: Index, clock: Clock) -> None:
        """What of a former process's segment is pending, and what of it is lost."""
        if segment.lost_rows:
            devices = {self._journal.device_of(segment, source) for source in index.sources}
            device = devices.pop() if len(devices) == 1 else ""
            self._note(Reason.CORRUPT, device, segment.first_ns, segment.last_ns, segment.lost_rows)
        segment.touched_ns = clock.mono_ns() - max(clock.wall_ns() - segment.last_ns, 0)
        known = [*cursor.pending, (cursor.end, segment.end)] if cursor else [(segment.first, segment.end)]
        for low, high in known:
            for start, end in index.runs(max(low, segment.first), min(high, segment.end)):
                self.state.pending.add(start, end)
                rows = index.rows_between(start, end)
                segment.pending_batches += end - start
                segment.pending_rows += rows
                self.rows += rows

    # --- what goes ----------------------------------------------------------------------------------------------

    def delivered(self, span: Span, rows: Mapping[int, int]) -> None:
        """`rows` by offset, as far as they are known, so that nobody has to ask the disk."""
        for segment, low, high in self._journal.between(span.start, span.end):
            self._forget(segment, low, high, rows)

    def drop(self, segment: Segment, reason: Reason) -> None:
        """All of it that is pending; counted."""
        self.count_drop(*self._lose(reason, segment, segment.first, segment.end))

    def drop_damaged(self, segment: Segment, offset: int) -> None:
        """One batch, which cannot be read."""
        rows, batches = self._lose(Reason.CORRUPT, segment, offset, offset + 1)
        self._counters.add("corrupt_rows", rows)
        self._counters.add("corrupt_batches", batches)

    def count_unnamed(self, device: str, batch: Batch, rows: int) -> None:
        """Rows of a batch whose tags nobody knows any more."""
        self._counters.add("corrupt_rows", rows)
        self._note(Reason.CORRUPT, device, batch.received_ns, batch.received_ns, rows)

    def count_drop(self, rows: int, batches: int) -> None:
        """Kept by nobody."""
        self._counters.add("dropped_rows", rows)
        self._counters.add("dropped_batches", batches)

    def _lose(self, reason: Reason, segment: Segment, low: int, high: int) -> tuple[int, int]:
        """As `_forget`, and a gap for each device in the ledger."""
        index, noted = self._journal.content(segment).index, 0
        for start, end in self.state.pending.within(low, high):
            for source, rows, from_ns, to_ns in index.by_source(start, end):
                self._note(reason, self._journal.device_of(segment, source), from_ns, to_ns, rows)
                noted += rows
        rows, batches = self._forget(segment, low, high, {})
        if rows > noted:  # its index cannot be read any more
            self._note(reason, "", segment.first_ns, segment.last_ns, rows - noted)
        return rows, batches

    def _note(self, reason: Reason, device: str, from_ns: int, to_ns: int, rows: int) -> None:
        self._ledger.note(Gap(reason, device, self._name, (), from_ns, to_ns, rows))

    def _forget(self, segment: Segment, low: int, high: int, known: Mapping[int, int]) -> tuple[int, int]:
        """Delivered or dropped: what of [low, high) was still pending, in rows and batches."""
        rows = batches = 0
        for start, end in self.state.pending.within(low, high):
            rows += self._rows_of(segment, start, end, known)
            batches += end - start
            for offset in range(max(start, next(iter(self._recent), end)), end):
                self._recent_bytes -= self._recent.pop(offset, (None, 0))[1]
        self.state.forget(low, high)
        segment.pending_rows -= rows
        segment.pending_batches -= batches
        self.rows -= rows
        return rows, batches

    def _rows_of(self, segment: Segment, start: int, end: int, known: Mapping[int, int]) -> int:
        if end - start == segment.pending_batches:
            return segment.pending_rows
        rows = [known.get(offset) for offset in range(start, end)] if start in known else [None]
        if None not in rows:
            return sum(filter(None, rows))
        return self._journal.content(segment).index.rows_between(start, end)
