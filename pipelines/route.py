"""A route's three movements: offer (source -> stages -> lane), pump (lane -> sink) and settle (lanes -> source).

`collect` drives one source: it reads, offers to every route and lets `Settler` acknowledge behind it. Acquisition waits
for lanes only, never for a sink. `collect` and `Pump.run` end with an exception group: several tasks may fail at once,
and the supervisor picks the error that decides.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from pipelines.batch import Batch, rows_of
from pipelines.clock import Clock
from pipelines.contracts import Lane, Reader, Sink, Source, Span, Stage
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Rejected

ROWS_PER_BATCH_MAX = 1000
"""Larger batches are split before they pass stages: bounds one step on the event loop and one MQTT message."""
BATCH_IN_ROWS = 50
"""What a batch costs beside its rows, in rows: `collect` gives way after `ROWS_PER_BATCH_MAX` of both."""

DeadLetter = Callable[[str, Batch, Sequence[int], str], Awaitable[None]]
"""(lane name, batch, row numbers, reason): keeps what a broker will never take."""


class Route:
    """selector -> stages -> one lane per sink; the sink side is `Pump`. Each lane numbers the batches by itself."""

    def __init__(self, name: str, stages: Sequence[Stage], *lanes: Lane) -> None:
        self.name = name
        self.stages = stages
        self.lanes = lanes
        self.counters = Counters("route", name)

    async def offer(self, batch: Batch) -> None:
        """Returned: every lane has every row that the stages let through."""
        kept = _through(self.stages, batch)
        self.counters.add("rows", len(batch))
        self.counters.add("filtered_rows", len(batch) - (len(kept) if kept is not None else 0))
        if kept is not None:
            for part in kept.split(ROWS_PER_BATCH_MAX):
                for lane in self.lanes:
                    await lane.append(part)


def _through(stages: Sequence[Stage], batch: Batch) -> Batch | None:
    """What the stages leave of a batch; None where no row is left."""
    left: Batch | None = batch
    for stage in stages:
        if left is not None:
            left = stage.process(left)
    return left if left is not None and len(left) else None


class Settler:
    """Acknowledges to a source what all lanes hold: one group sync for all batches that arrived meanwhile."""

    def __init__(self, source: Source, lanes: Sequence[Lane]) -> None:
        self._source = source
        self._durable = [lane for lane in lanes if lane.durable]
        self._offered = -1
        self._wake = asyncio.Event()

    def offered(self, number: int) -> None:
        """Every lane has batch `number`; it is committed after their next sync (at once where no lane is durable)."""
        if not self._durable:
            self._source.commit(number)
            return
        self._offered = number
        self._wake.set()

    async def run(self) -> None:
        """Never returns; ends with the errors of the lanes' syncs."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            number = self._offered
            async with asyncio.TaskGroup() as syncs:
                for lane in self._durable:
                    syncs.create_task(lane.sync())
            self._source.commit(number)


async def collect(source: Source, routes: Sequence[Route], stages: Sequence[Stage]) -> None:
    """Reads `source` for ever: through its own `stages` (scale, deadband of its tags), then to every route.

    Ends only by the source's error or a lane's.
    """
    settler = Settler(source, [lane for route in routes for lane in route.lanes])
    async with asyncio.TaskGroup() as group:
        group.create_task(settler.run())
        work = 0
        while True:
            batch = await source.read()
            source.counters.add("rows", len(batch))
            source.counters.add("batches")
            for index, part in enumerate(batch.split(ROWS_PER_BATCH_MAX)):
                if index:
                    await asyncio.sleep(0)
                await _spread(_through(stages, part), routes)
            settler.offered(batch.number)
            # A source that always has something never suspends; neither does a memory lane. Acknowledged first: a
            # stop finds us here.
            work += BATCH_IN_ROWS + len(batch)
            if work >= ROWS_PER_BATCH_MAX:
                work = 0
                await asyncio.sleep(0)


async def _spread(batch: Batch | None, routes: Sequence[Route]) -> None:
    if batch is not None:
        for route in routes:
            await route.offer(batch)


class Pump:
    """Moves one lane's batches to a sink, several writes at a time, and commits each span when the sink has it."""

    def __init__(
        self, lane: Lane, reader: Reader, sink: Sink, clock: Clock, dead_letter: DeadLetter, *, rows_max: int
    ) -> None:
        self._lane = lane
        self._reader = reader
        self._sink = sink
        self._clock = clock
        self._dead_letter = dead_letter
        self._rows_max = rows_max
        self.counters = Counters("pump", lane.name)

    async def run(self) -> None:
        """Never returns; ends with the sink's errors. What was not committed is unread again at the next `run`.

        The first failed write ends the others: nothing may overtake what has to be written again.
        """
        self._reader.rewind()
        slots = asyncio.Semaphore(self._sink.in_flight_max)
        async with asyncio.TaskGroup() as writes:
            while True:
                await slots.acquire()
                span, batches = await self._reader.read(self._rows_max)
                writes.create_task(self._deliver(span, batches, slots))

    async def _deliver(self, span: Span, batches: Sequence[Batch], slots: asyncio.Semaphore) -> None:
        rejected = 0
        try:
            await self._sink.write(self._lane.name, batches, self._lane.position(span), historical=False)
        except Rejected as refusal:
            await self._set_aside(batches, refusal)
            rejected = len(refusal.rows)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # A client library cancelled its own future. A TaskGroup takes a cancelled child for finished: the span
            # would stay in hand and its slot be gone, unnoticed.
            raise NotConnected("a write was given up by the client library") from error
        self._reader.commit(span)
        slots.release()
        self._count(batches, rejected)

    async def _set_aside(self, batches: Sequence[Batch], refusal: Rejected) -> None:
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for index, row in refusal.rows:
            rows[index].append(row)
        for index in sorted(rows):
            await self._dead_letter(self._lane.name, batches[index], rows[index], refusal.reason)

    def _count(self, batches: Sequence[Batch], rejected: int) -> None:
        now = self._clock.wall_ns()
        self.counters.add("rows", rows_of(batches) - rejected)
        self.counters.add("rejected_rows", rejected)
        self.counters.add("batches", len(batches))
        ts_ns = batches[0].ts_ns if len(batches) == 1 else np.concatenate([batch.ts_ns for batch in batches])
        received_ns = np.array([batch.received_ns for batch in batches], dtype=np.int64)
        self.counters.histograms["source_to_ack"].observe(now - ts_ns)
        self.counters.histograms["received_to_ack"].observe(now - received_ns)
