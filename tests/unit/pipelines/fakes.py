"""Stand-ins whose every step the test decides: a source, a durable lane, a sink, a clock; and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.batch import Batch, Extra, Kind
from pipelines.clock import UNDISCIPLINED
from pipelines.contracts import Lane, Part, Reader, Span
from pipelines.counters import Counters
from pipelines.errors import GatewayError

WALL_NS = 1_800_000_000_000_000_000


def make_batch(
    number: int = 0,
    rows: int = 1,
    *,
    tag: Sequence[int] | None = None,
    value: Sequence[float] | None = None,
    kind: Sequence[int] | int = Kind.DOUBLE,
    status: Sequence[int] | int = 0,
    extra: Extra | None = None,
    origin: bytes | None = None,
) -> Batch:
    """A batch of `rows` rows, or of as many as `tag` or `value` has. By default each row's value is `number`."""
    given = tag if tag is not None else value
    count = rows if given is None else len(given)
    return Batch(
        source_id=0,
        number=number,
        origin=origin,
        received_ns=WALL_NS,
        tag=np.array(tag if tag is not None else range(count), dtype=np.uint32),
        ts_ns=np.full(count, WALL_NS, dtype=np.int64),
        value=np.array(value if value is not None else [float(number)] * count, dtype=np.float64),
        status=np.broadcast_to(np.array(status, dtype=np.uint32), count).copy(),
        kind=np.broadcast_to(np.array(kind, dtype=np.uint8), count).copy(),
        flags=np.zeros(count, dtype=np.uint8),
        extra=extra,
    )


def rows_of_batch(batch: Batch) -> list[tuple[Any, ...]]:
    """The batch row by row, in a form in which NaN equals NaN and True differs from 1."""
    columns = (batch.tag, batch.ts_ns, batch.status, batch.kind, batch.flags)
    values = [f"{type(value).__name__} {value!r}" for value in batch.values()]
    return list(zip(*(column.tolist() for column in columns), values, strict=True))


async def until(condition: Callable[[], object], turns: int = 10_000) -> None:
    """Returns as soon as `condition` holds; the deadline is in turns of the event loop, no time passes."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never came to hold")


async def settle(turns: int = 20) -> None:
    """Lets every task that can go on do so, before a test states that something has NOT happened."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def pending_of(lane: Lane) -> list[int]:
    """The numbers of the batches that a new reader is given; there must be some."""
    _, batches = await asyncio.wait_for(lane.reader(Part.ALL).read(10**9), timeout=10)
    return [batch.number for batch in batches]


class FakeClock:
    """Stands still until the test moves it."""

    state = UNDISCIPLINED

    def __init__(self) -> None:
        self.now_ns = WALL_NS

    def wall_ns(self) -> int:
        return self.now_ns

    def mono_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        await asyncio.sleep(0)


class FakeSource:
    """Gives what was put into it, raises errors that were put into it, and remembers what was committed."""

    replayable = True
    info = ""

    def __init__(self, name: str = "press4") -> None:
        self.name = name
        self.counters = Counters("source", name)
        self.faults: Mapping[str, str] = {}
        self.items: asyncio.Queue[Batch | GatewayError] = asyncio.Queue()
        self.committed: list[int] = []

    def put(self, *items: Batch | GatewayError) -> None:
        for item in items:
            self.items.put_nowait(item)

    async def connect(self, resume: Sequence[bytes]) -> None:
        return

    async def read(self) -> Batch:
        item = await self.items.get()
        if isinstance(item, GatewayError):
            raise item
        return item

    def commit(self, number: int) -> None:
        self.committed.append(number)

    async def close(self) -> None:
        return


class FakeDurableLane:
    """Keeps what is appended; every `sync` waits until the test lets the disk answer."""

    durable = True

    def __init__(self, name: str = "history") -> None:
        self.name = name
        self.counters = Counters("lane", name)
        self.batches: list[Batch] = []
        self.syncs: list[asyncio.Future[None]] = []
        self.origins: dict[str, bytes] = {}
        """What it has from before."""

    @property
    def pending_rows(self) -> int:
        return sum(len(batch) for batch in self.batches)

    @property
    def pending_bytes(self) -> int:
        return sum(batch.nbytes for batch in self.batches)

    @property
    def oldest_ns(self) -> int | None:
        return self.batches[0].received_ns if self.batches else None

    def origin(self, source: str) -> bytes | None:
        return self.origins.get(source)

    async def append(self, batch: Batch) -> None:
        self.batches.append(batch)

    async def sync(self) -> None:
        answer = asyncio.get_running_loop().create_future()
        self.syncs.append(answer)
        await answer

    def reader(self, part: Part, synced: bool = False) -> Reader:
        raise NotImplementedError

    def position(self, span: Span | None = None) -> bytes:
        raise NotImplementedError

    def restore(self, position: bytes) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        return


@dataclass
class Write:
    """One `write` in progress; the test plays the broker by `answer.set_result(None)` or `.set_exception(...)`."""

    lane: str
    batches: Sequence[Batch]
    position: bytes
    historical: bool
    answer: asyncio.Future[None] = field(repr=False)
    ended: bool = False

    @property
    def numbers(self) -> list[int]:
        return [batch.number for batch in self.batches]


class FakeSink:
    """Remembers every write in the order of its start, and leaves the answer to the test."""

    def __init__(self, in_flight_max: int = 4) -> None:
        self.name = "plant"
        self.in_flight_max = in_flight_max
        self.keeps_positions = True
        self.counters = Counters("sink", self.name)
        self.server = ""
        self.faults: Mapping[str, str] = {}
        self.writes: list[Write] = []

    @property
    def in_flight(self) -> list[Write]:
        return [write for write in self.writes if not write.ended]

    async def connect(self) -> Mapping[str, bytes]:
        return {}

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        answer = asyncio.get_running_loop().create_future()
        write = Write(lane, batches, position, historical, answer)
        self.writes.append(write)
        try:
            await answer
        finally:
            write.ended = True

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        return
