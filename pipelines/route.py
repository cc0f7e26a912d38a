"""A route's three movements: offer (source -> stages -> lane), pump (lane -> sink) and settle (lanes -> source).

A pump with a `Replay` writes live data first and the backlog behind it, both in the lane's `in_flight_max` slots. The
backlog has one write outstanding at a time and takes its turn in the order of asking: live waits for one write of it
at most, and live that never pauses does not keep it waiting for ever.

`collect` drives one source: it reads, offers to every route and lets `Settler` acknowledge behind it. Acquisition waits
for lanes only, never for a sink. `collect` and `Pump.run` end with an exception group: several tasks may fail at once,
and the supervisor picks the error that decides.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipelines.batch import Batch, rows_of
from pipelines.clock import Clock
from pipelines.contracts import (
    Acknowledged,
    CutThroughLane,
    CutThroughReader,
    CutThroughSink,
    CutThroughSource,
    Lane,
    Reader,
    Sink,
    Source,
    Span,
    Stage,
)
from pipelines.counters import Counters
from pipelines.cut_through import CutThrough
from pipelines.errors import NotConnected, Rejected
from pipelines.latency import Latency, Sessions
from pipelines.origin import Mark

ROWS_PER_BATCH_MAX = 1000
"""Larger batches are split before they pass stages: bounds one step on the event loop and one MQTT message."""
BATCH_IN_ROWS = 50
"""What a batch costs beside its rows, in rows: `collect` gives way after `ROWS_PER_BATCH_MAX` of both."""

LAST_BATCH = "last_batch_timestamp_seconds"
"""Gauge of a source: when its newest batch arrived, seconds since 1970."""
REPLAY_BURST_NS = 100_000_000
"""A backlog that was kept waiting makes up for as much, faster than its rate."""

DeadLetter = Callable[[str, Sequence[tuple[Batch, Sequence[int]]], str], Awaitable[None]]
"""(lane name, batches with their row numbers, reason): keeps what a broker will never take."""


Marked = tuple[Lane, Mark]
"""A lane, and how far it is with one source."""


class Route:
    """selector -> stages -> one lane per sink; the sink side is `Pump`. Each lane numbers the batches by itself."""

    def __init__(self, name: str, stages: Sequence[Stage], *lanes: Lane) -> None:
        self.name = name
        self.stages = stages
        self.lanes = lanes
        self.counters = Counters("route", name)
        self._marks: dict[str, list[Mark]] = {}

    def marked(self, source: str) -> Sequence[Marked]:
        """The lanes, and how far each is with a source that begins a session; kept over its sessions."""
        marks = self._marks.setdefault(source, [Mark() for _ in self.lanes])
        for lane, mark in zip(self.lanes, marks, strict=True):
            mark.rewind(lane.origin(source))
        return list(zip(self.lanes, marks, strict=True))

    async def offer(self, batch: Batch, to: Sequence[Marked] | None = None) -> None:
        """Returned: every lane (or those in `to`) has every row that the stages let through."""
        parts = self._left_of(batch)
        for lane, mark in [(lane, Mark()) for lane in self.lanes] if to is None else to:
            for part in _marked(parts, batch.origin, mark):
                await lane.append(part)

    def put(self, batch: Batch, to: Sequence[tuple[CutThroughLane, Mark]]) -> None:
        """`offer`, where no lane waits."""
        parts = self._left_of(batch)
        for lane, mark in to:
            for part in _marked(parts, batch.origin, mark) if mark.behind else parts:
                lane.put(part)
            if not mark.behind:
                mark.took(batch.origin)

    def _left_of(self, batch: Batch) -> Sequence[Batch]:
        """What the stages let through, in parts; counted."""
        kept = _through(self.stages, batch)
        rows, left = len(batch), len(kept) if kept is not None else 0
        totals = self.counters.totals
        totals["rows"] += rows
        totals["filtered_rows"] += rows - left
        if kept is None:
            return []
        return [kept] if left <= ROWS_PER_BATCH_MAX else list(kept.split(ROWS_PER_BATCH_MAX))


def _marked(parts: Sequence[Batch], origin: bytes | None, mark: Mark) -> Iterator[Batch]:
    """The parts of a batch as one lane takes them; it has them when the last one is taken."""
    ahead = mark.ahead(origin)
    for part in parts:
        as_it_is = part.origin is None or part.origin == ahead
        yield part if as_it_is else replace(part, origin=ahead)
    mark.took(ahead)


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

    What a machine sends again goes only to the lanes that do not have it. Ends only by the source's error or a lane's.
    """
    settler = Settler(source, [lane for route in routes for lane in route.lanes])
    with _intake(source, routes, stages) as intake:
        async with asyncio.TaskGroup() as group:
            group.create_task(settler.run())
            work = 0
            while True:
                batch = await source.read()
                source.counters.add("rows", len(batch))
                source.counters.add("batches")
                source.counters.set(LAST_BATCH, batch.received_ns / 1e9)
                await intake.take(batch)
                settler.offered(batch.number)
                # A source that always has something never suspends; neither does a memory lane. Acknowledged first: a
                # stop finds us here.
                work += BATCH_IN_ROWS + len(batch)
                if work >= ROWS_PER_BATCH_MAX:
                    work = 0
                    await asyncio.sleep(0)


class _Intake:
    """What a source gives, to every route: lanes that never wait may have it ahead of `read`."""

    def __init__(self, source: str, routes: Sequence[Route], stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._promptly: list[tuple[Route, Sequence[tuple[CutThroughLane, Mark]]]] = []
        self._later: list[tuple[Route, Sequence[Marked]]] = []
        self._seen: deque[tuple[int, list[Batch]]] = deque()
        """Shown, and not yet read."""
        for route in routes:
            marked = route.marked(source)
            never_wait = [(lane, mark) for lane, mark in marked if isinstance(lane, CutThroughLane)]
            if len(never_wait) == len(marked):
                self._promptly.append((route, never_wait))
            else:
                self._later.append((route, marked))

    @property
    def cuts_through(self) -> bool:
        """Some lane may have something ahead of `read`."""
        return bool(self._promptly)

    def ahead(self, batch: Batch) -> None:
        """See `contracts.CutThroughSource`."""
        left = _through(self._stages, batch)
        if left is not None:
            for route, lanes in self._promptly:
                to = []
                for one in lanes:
                    if not one[1].behind or not _has(one, batch):
                        to.append(one)
                if to:
                    route.put(left, to)
        self._seen.append((batch.number, [] if left is None else [left]))

    async def take(self, batch: Batch) -> None:
        """Returned: every lane has it."""
        while self._seen and self._seen[0][0] <= batch.number:
            number, parts = self._seen.popleft()
            if number == batch.number:
                wanting = _wanting(self._later, batch)
                for part in parts:
                    await _spread(part, wanting)
                return
        wanting = [*_wanting(self._promptly, batch), *_wanting(self._later, batch)]
        for index, part in enumerate(batch.split(ROWS_PER_BATCH_MAX)):
            if index:
                await asyncio.sleep(0)
            await _spread(_through(self._stages, part), wanting)


@contextmanager
def _intake(source: Source, routes: Sequence[Route], stages: Sequence[Stage]) -> Iterator[_Intake]:
    """For one session of the source, which shows it what it can."""
    intake = _Intake(source.name, routes, stages)
    if not (intake.cuts_through and isinstance(source, CutThroughSource)):
        yield intake
        return
    source.show(intake.ahead)
    try:
        yield intake
    finally:
        source.show(None)


def _wanting(marked: Sequence[tuple[Route, Sequence[Marked]]], batch: Batch) -> list[tuple[Route, Sequence[Marked]]]:
    """Of each route, the lanes that do not have it."""
    wanting = [(route, [one for one in lanes if not _has(one, batch)]) for route, lanes in marked]
    return [(route, lanes) for route, lanes in wanting if lanes]


def _has(marked: Marked, batch: Batch) -> bool:
    """Counts what the lane has already."""
    lane, mark = marked
    if not mark.has(batch.origin):
        return False
    lane.counters.add("skipped_rows", len(batch))
    return True


async def _spread(batch: Batch | None, wanting: Sequence[tuple[Route, Sequence[Marked]]]) -> None:
    if batch is not None:
        for route, lanes in wanting:
            await route.offer(batch, lanes)


@dataclass(frozen=True)
class Replay:
    """How a backlog is delivered beside live data."""

    reader: Reader
    """Of the lane's BACKLOG; the pump's own is of LIVE then."""
    rows_min: int
    """What a write takes where it is acknowledged at once; live data waits for one write at most."""
    rows_max: int
    """What it takes over a link so long that the rate needs it."""
    rate: float
    """Rows per second at most. Everywhere here a batch counts as BATCH_IN_ROWS more: tiny ones cost more than rows."""

    def rows(self, quickest_ns: int) -> int:
        """For the next write, where the quickest one took so long: what `rate` asks for in that time."""
        return max(self.rows_min, min(int(self.rate * quickest_ns / 1e9), self.rows_max))


class Pump:
    """Moves one lane's batches to a sink, several writes at a time, and commits each span when the sink has it."""

    def __init__(
        self,
        lane: Lane,
        reader: Reader,
        sink: Sink,
        clock: Clock,
        dead_letter: DeadLetter,
        *,
        rows_max: int,
        in_flight_max: int | None = None,
        replay: Replay | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        """in_flight_max: fewer writes at a time than the sink allows; with 1, no batch overtakes a failed one.
        sessions: of the sources."""
        self._lane = lane
        self._reader = reader
        self._sink = sink
        self._clock = clock
        self._dead_letter = dead_letter
        self._rows_max = self._rows_now = rows_max
        self._in_flight_max = min(in_flight_max or sink.in_flight_max, sink.in_flight_max)
        self._replay = replay
        self._cut_through: CutThrough | None = None
        queued_only = bool(replay) or self._in_flight_max == 1
        if isinstance(reader, CutThroughReader) and isinstance(sink, CutThroughSink) and not queued_only:
            self._cut_through = CutThrough(lane.name, reader, sink)
        self.counters = Counters("pump", lane.name)
        self.latency = Latency(self.counters, sessions)

    async def run(self) -> None:
        """Never returns; ends with the sink's errors. What was not committed is unread again at the next `run`.

        The first failed write ends the others: nothing may overtake what has to be written again. Those
        after one that ended with its connection are half as large, and each that succeeds lets the next be a batch
        larger: what is too much for a slow link within the sink's time-outs is not tried for ever.
        """
        self._reader.rewind()
        slots = asyncio.Semaphore(self._in_flight_max)
        async with asyncio.TaskGroup() as writes:
            if self._replay:
                writes.create_task(self._catch_up(self._replay, slots))
            with self._cutting_through(writes):
                while True:
                    await self._slot(slots)
                    span, batches = await self._reader.read(self._rows_now)
                    writes.create_task(self._deliver(span, batches, self._begin(slots)))

    @contextmanager
    def _cutting_through(self, writes: asyncio.TaskGroup) -> Iterator[None]:
        """Where lane and sink can: meanwhile batches may be sent without the loop in `run`."""
        short = self._cut_through
        if short is None:
            yield
            return

        def deliver(span: Span, batches: Sequence[Batch], sent: Acknowledged) -> None:
            writes.create_task(self._deliver(span, batches, short.ended, sent=sent))

        short.start(deliver)
        try:
            yield
        finally:
            short.stop()

    def _begin(self, slots: asyncio.Semaphore) -> Callable[[], None]:
        """A write of `run` in its slot; to be called when it has ended well."""
        if self._cut_through is None:
            return slots.release
        return self._cut_through.hold(slots.release)

    async def _slot(self, slots: asyncio.Semaphore) -> None:
        """Takes one as soon as there is something to write as well: who waits for data holds none."""
        while True:
            await self._reader.wait()
            await slots.acquire()
            if self._reader.unread:
                return
            slots.release()

    async def _catch_up(self, replay: Replay, slots: asyncio.Semaphore) -> None:
        """Reads ahead of its slot: the disk is slow, and a backlog does not become a larger write by waiting."""
        replay.reader.rewind()
        due_ns, quickest_ns, share = self._clock.mono_ns(), 0, 1.0
        while True:
            rows = int(replay.rows(quickest_ns) * share)
            span, batches = await replay.reader.read(min(rows, self._rows_now))
            await slots.acquire()
            began_ns = self._clock.mono_ns()
            await self._deliver(span, batches, slots.release, replay)
            now = self._clock.mono_ns()
            quickest_ns = min(quickest_ns or now - began_ns, now - began_ns)
            cost = rows_of(batches) + BATCH_IN_ROWS * len(batches)
            share = rows_of(batches) / cost
            due_ns = max(due_ns, now - REPLAY_BURST_NS) + int(cost / replay.rate * 1e9)
            await self._clock.sleep(max(due_ns - now, 0) / 1e9)

    async def _deliver(
        self,
        span: Span,
        batches: Sequence[Batch],
        release: Callable[[], None],
        replay: Replay | None = None,
        sent: Acknowledged | None = None,
    ) -> None:
        """Written, or only awaited where it is `sent` already; then committed, and its slot released."""
        try:
            rejected = await self._acknowledged(span, batches, replay, sent)
        except BaseException:
            if self._cut_through:
                self._cut_through.stop()
            raise
        (replay.reader if replay else self._reader).commit(span)
        release()
        self._rows_now = min(self._rows_now + ROWS_PER_BATCH_MAX, self._rows_max)
        self._count(batches, rejected)
        if replay:
            self.counters.add("historical_rows", rows_of(batches) - rejected)
        else:
            # How old a backlog is says nothing of the latency now.
            self.latency.observe(batches, self._clock.wall_ns())

    async def _acknowledged(
        self, span: Span, batches: Sequence[Batch], replay: Replay | None, sent: Acknowledged | None
    ) -> int:
        """The sink has it all, but for so many rows that were set aside: only then the next position is known."""
        try:
            if sent:
                await sent()
            else:
                position = self._lane.position(span) if self._sink.keeps_positions else b""
                await self._sink.write(self._lane.name, batches, position, historical=replay is not None)
        except Rejected as refusal:
            await self._set_aside(batches, refusal)
            return len(refusal.rows)
        except NotConnected:
            least = min(ROWS_PER_BATCH_MAX, self._rows_max)
            self._rows_now = max(min(rows_of(batches), self._rows_now) // 2, least)
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # A client library cancelled its own future. A TaskGroup takes a cancelled child for finished: the span
            # would stay in hand and its slot be gone, unnoticed.
            raise NotConnected("a write was given up by the client library") from error
        return 0

    async def _set_aside(self, batches: Sequence[Batch], refusal: Rejected) -> None:
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for index, row in refusal.rows:
            rows[index].append(row)
        refused = [(batches[index], rows[index]) for index in sorted(rows)]
        await self._dead_letter(self._lane.name, refused, refusal.reason)

    def _count(self, batches: Sequence[Batch], rejected: int) -> None:
        self.counters.add("rows", rows_of(batches) - rejected)
        self.counters.add("rejected_rows", rejected)
        self.counters.add("batches", len(batches))
