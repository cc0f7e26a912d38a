"""PublishResponses as batches: each row decoded, looked at by whom it concerns, given its place in the numbering.

A notification is cut into parts of at most `ROWS_MAX` rows, so that a message of 65,000 values does not hold the event
loop; it counts as delivered with the last one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors.opcua_backfill import Backfill
from connectors.opcua_batches import Batches
from connectors.opcua_binary import DecodeError
from connectors.opcua_decode import OVERFLOW_BITS, RUN_MIN, Columns, decode_changes, decode_few
from connectors.opcua_events import EventReader
from connectors.opcua_overlap import Overlap
from connectors.opcua_response import PublishResponse
from connectors.opcua_streams import Streams
from connectors.opcua_upkeep import Upkeep
from pipelines.batch import Batch, BatchBuilder
from pipelines.clock import Clock, ClockState
from pipelines.origin import LAST_PART

ROWS_MAX: Final = 1000
"""Rows of one batch: about 0.1 ms of decoding when they are numbers."""

PAUSE: Final = BatchBuilder().build(0, 0, 0)
"""Among batches: the loop has been held long enough."""

Rows = tuple[npt.NDArray[np.uint32], Columns, int, int]
"""Tags and rows of one part, their newest source time (0: they do not say), and how many records were read for it."""


@dataclass
class Notifications:
    """Lives as long as the source. Who is told of what: `backfill` and `upkeep` of every row, `overflown` of the tags
    that the server's queue was too short for: number of values, tags, and the time that they are missing from, and to
    (0: not known)."""

    names: Sequence[str]
    """By client handle; grows."""
    make: Batches
    streams: Streams
    events: EventReader
    backfill: Backfill
    upkeep: Upkeep
    clock: Clock
    overflown: Callable[[int, tuple[str, ...], int, int], None]
    arrival_ns: int = 0
    """Of what was delivered last."""
    overlap: Overlap | None = None
    """After a fail-over: what the server before has sent already."""

    def batches(self, body: bytes, response: PublishResponse) -> Iterator[Batch]:
        """None of a message is given before all of it has turned out to be in order. Raises DecodeError.

        One without rows is acknowledged, where it has a number, when this is called; one with rows by the batches.
        """
        if rows := response.rows:
            return self._batches_of(body, response, rows)
        if response.numbered:
            self.streams.acknowledge(response.subscription_id, response.sequence_number)
        return iter(())

    def _batches_of(self, body: bytes, response: PublishResponse, left: int) -> Iterator[Batch]:
        arrival_ns, clock = self.clock.wall_ns(), self.clock.state  # in this order: see Clock.state
        if self.overlap is not None and self.overlap.is_over:
            self.overlap = None
        if left < RUN_MIN and not response.events and self._plain():
            yield self._few(body, response, arrival_ns, clock)
            self.arrival_ns = arrival_ns
            return
        parts: deque[Rows] = deque()
        for rows in self._rows_of(body, response, arrival_ns):
            if parts:
                yield PAUSE
            parts.append(rows)
        number, some = 0, False
        while parts:
            tag, columns, newest_ns, read = parts.popleft()
            left -= read
            part = number if left else LAST_PART
            origin = self.streams.origin(response.subscription_id, response.sequence_number, part, newest_ns)
            batch = self.make.notified(tag, columns, origin, arrival_ns, clock) if len(tag) else None
            number += 1
            some = some or batch is not None
            if not left:
                self._settle(response, some)
            if batch is not None:
                yield batch
        if left:  # events that nobody wants
            self._settle(response, some)
        self.arrival_ns = arrival_ns

    def _plain(self) -> bool:
        """Nobody but the route wants to see each row."""
        told = self.upkeep.heartbeat is not None or self.backfill.open or self.overlap is not None
        return self.make.plain and not told

    def _few(self, body: bytes, response: PublishResponse, arrival_ns: int, clock: ClockState) -> Batch:
        """A whole message, without numpy."""
        rows, extra = decode_few(body, response, arrival_ns)
        known, overflown = len(self.names), []
        for row in rows:
            if row[0] >= known:
                raise DecodeError(f"client handle {row[0]} was never given to the server")
            if row[3] & OVERFLOW_BITS == OVERFLOW_BITS:
                overflown.append(row)
        if overflown:
            handles, times, *_ = zip(*overflown, strict=True)
            self._values_overflown(np.array(handles, np.uint32), np.array(times, np.int64))
        self.backfill.live_few(rows)
        newest_ns = min(max(rows[0][1], rows[-1][1]), arrival_ns)
        origin = self.streams.origin(response.subscription_id, response.sequence_number, LAST_PART, newest_ns)
        batch = self.make.few(rows, extra, origin, arrival_ns, clock)
        self.streams.delivered(batch.number, response.subscription_id, response.sequence_number)
        return batch

    def _settle(self, response: PublishResponse, some: bool) -> None:
        """All parts are out: acknowledged when the last batch is safe, or at once where there was none."""
        if some:
            self.streams.delivered(self.make.number, response.subscription_id, response.sequence_number)
        else:
            self.streams.acknowledge(response.subscription_id, response.sequence_number)

    def _rows_of(self, body: bytes, response: PublishResponse, arrival_ns: int) -> Iterator[Rows]:
        """Values, then events, part by part."""
        for received in decode_changes(body, response, arrival_ns, ROWS_MAX):
            columns, read = received, len(received.handle)
            handle, ts_ns = columns.handle, columns.ts_ns
            if int(handle.max()) >= len(self.make.tag_ids):
                raise DecodeError(f"client handle {int(handle.max())} was never given to the server")
            if self.overlap is not None:
                columns = self.overlap.without(columns)
                handle, ts_ns = columns.handle, columns.ts_ns
                if not len(handle):
                    yield handle, columns, 0, read
                    continue
            overflown = (columns.status & OVERFLOW_BITS) == OVERFLOW_BITS
            if overflown.any():
                self._values_overflown(handle[overflown], ts_ns[overflown])
            self.backfill.live(handle, ts_ns)
            if self.upkeep.heartbeat is not None:
                self.upkeep.heartbeat.live(columns)
            # Not the largest, which costs more than the rest of an origin: rows come in order of time, item by item.
            yield self.make.tag_ids[handle], columns, min(max(int(ts_ns[0]), int(ts_ns[-1])), arrival_ns), read
        if response.events:
            for tag, columns, read in self.events.parts(body, response, arrival_ns):
                yield tag, columns, 0, read  # their times say nothing of how far the values are
            if overflown_events := self.events.take_overflown():
                self.overflown(len(overflown_events), tuple(dict.fromkeys(overflown_events)), 0, 0)

    def _values_overflown(self, handle: npt.NDArray[np.uint32], ts_ns: npt.NDArray[np.int64]) -> None:
        """Lost is what lay between an item's newest value and the first one that says so, by the machine's times."""
        items, first = np.unique(handle, return_index=True)
        to_ns = int(ts_ns[first].max())
        from_ns = self.backfill.newest_ns(items) or self.arrival_ns or to_ns
        self.overflown(len(handle), tuple(self.names[item] for item in items.tolist()), min(from_ns, to_ns), to_ns)
