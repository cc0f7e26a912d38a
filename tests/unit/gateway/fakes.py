"""Doubles for the gateway's tests: a clock that jumps, sessions that follow a script, sources and sinks in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.supervisor import State, Status
from pipelines.batch import Batch, BatchBuilder, Kind
from pipelines.clock import UNDISCIPLINED
from pipelines.counters import Counters

START_NS = 1_795_343_713_000_000_000


class FakeClock:
    """Time passes only by `sleep`, which returns at once, and by `forward`."""

    state = UNDISCIPLINED

    def __init__(self) -> None:
        self.now_ns = 0
        self.slept: list[float] = []

    def wall_ns(self) -> int:
        return START_NS + self.now_ns

    def mono_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.forward(seconds)
        await asyncio.sleep(0)

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@dataclass
class ScriptedSession:
    """Each session takes the next two entries: what `connect` does and what `run` does (None: returns, or waits)."""

    script: list[BaseException | Callable[[], Awaitable[None]] | None]
    kind: str = "source"
    name: str = "press4"
    address: str = "opc.tcp://10.0.0.5:4840"
    server: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)
    info: str = ""
    closed: int = 0
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    close_hangs: bool = False
    """Until the script is at its end, `run` waits; then `waiting` is set."""

    async def connect(self) -> None:
        await self._next()

    async def run(self) -> None:
        await self._next()

    async def close(self) -> None:
        self.closed += 1
        if self.close_hangs:
            await asyncio.Event().wait()

    async def _next(self) -> None:
        if not self.script:
            self.waiting.set()
            await asyncio.Event().wait()
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        if step is not None:
            await step()


@dataclass
class FakeComponent:
    """What health and metrics want to know."""

    kind: str
    name: str
    status: Status
    server: str = ""
    faults: Mapping[str, str] = field(default_factory=dict)
    info: str = ""


def component(kind: str, name: str, state: State, reason: str = "", **faults: str) -> FakeComponent:
    return FakeComponent(kind, name, Status(state, START_NS, reason, attempts=3 if reason else 0), faults=faults)


def batch(number: int = 0, rows: int = 1, tag: int = 0) -> Batch:
    builder = BatchBuilder()
    for row in range(rows):
        builder.add(tag, START_NS, float(row), Kind.DOUBLE)
    return builder.build(source_id=0, number=number, received_ns=START_NS)


class FakeSource:
    """Gives the batches that are put into `queue`."""

    replayable = False
    info = ""

    def __init__(self, name: str = "press4") -> None:
        self.name = name
        self.counters = Counters("source", name)
        self.faults: dict[str, str] = {}
        self.queue: asyncio.Queue[Batch] = asyncio.Queue()
        self.events: list[str] = []
        self.closed = asyncio.Event()

    async def connect(self, resume: Sequence[bytes]) -> None:
        self.events.append("connect")

    async def read(self) -> Batch:
        return await self.queue.get()

    def commit(self, number: int) -> None:
        self.events.append(f"commit {number}")

    async def close(self) -> None:
        self.events.append("close")
        self.closed.set()


class FakeSink:
    """Takes writes while `open` is set; remembers the rows."""

    in_flight_max = 2
    keeps_positions = True

    def __init__(self, name: str = "broker") -> None:
        self.name = name
        self.counters = Counters("sink", name)
        self.server = ""
        self.faults: dict[str, str] = {}
        self.rows = 0
        self.open = asyncio.Event()
        self.lost = asyncio.Event()
        self.events: list[str] = []
        self.connect_error: Exception | None = None

    async def connect(self) -> Mapping[str, bytes]:
        self.events.append("connect")
        if self.connect_error:
            raise self.connect_error
        return {}

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        await self.open.wait()
        self.rows += sum(map(len, batches))

    async def wait_closed(self) -> None:
        await self.lost.wait()

    async def close(self) -> None:
        self.events.append("close")


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Returns as soon as `condition` holds; fails after `within_s`."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.001)
