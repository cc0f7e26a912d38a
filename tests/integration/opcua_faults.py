"""Faults between a real OPC UA server and a supervised source, and the account of every value that the server took.

A `Plant` is a server whose variable counts, a proxy that can go silent, and a gateway's source with its supervisor. A
fault is right when new values arrive afterwards and each that the server took has arrived or lies in the ledger.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from unittest.mock import patch

from connectors import opcua_link, opcua_plan
from connectors.opcua import OpcUaSource
from connectors.opcua_resume import ResumingClient
from connectors.opcua_settings import OpcUaDevice
from gateway.session import SourceSession
from gateway.supervisor import Patience, State, Supervisor
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.gaps import Gap
from pipelines.lane_memory import MemoryLane
from pipelines.route import Route
from pipelines.tags import TagTable
from tests.services.asyncua_server import AsyncuaServer
from tests.services.milo import Group, Milo
from tests.services.node_opcua import NodeOpcua
from tests.services.open62541 import Open62541
from tests.services.ports import HOST

CHANNEL_MS: Final = 4_000
"""Asked for; a channel is renewed after three quarters of what the server makes of it."""
SESSION_OUTLIVES_MS: Final = 12_000
"""Longer than what servers make of the subscriptions' lifetime."""
KEEP_ALIVE_NS: Final = 300_000_000
LIFETIME_S: Final = 3.0
COUNT_EVERY_S: Final = 0.03
DEADLINE_S: Final = 60.0
SESSIONS_GONE_S: Final = 60.0
"""A session that was not closed ends by itself after its time-out, which a server may lengthen."""


class Proxy:
    """TCP from a port of its own to a server's; `freeze` keeps every connection, and nothing comes through."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Its port."""
        self._server = await asyncio.start_server(self._relay, HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def freeze(self) -> None:
        """From now on nothing passes, either way, and nothing is said about it."""
        self._open.clear()

    def thaw(self) -> None:
        """What waited passes."""
        self._open.set()

    def reset(self) -> None:
        """Ends every connection at once."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Ends everything."""
        if self._server:
            self._server.close()
        self.reset()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            back, far = await asyncio.open_connection(HOST, self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, far))
                group.create_task(self._copy(back, writer))
        except (asyncio.CancelledError, OSError, ExceptionGroup):
            pass  # asyncio wants no task of its server to end cancelled
        finally:
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionError("closed")


class Machine(Protocol):
    """A server whose one variable counts. What it took is known by its source times, UTC ns."""

    name: str
    node: str
    server: Any
    lifetime_min_s: float
    """It lets no subscription live shorter than that."""
    queue: int
    """Asked for; 1,000 are half a minute."""

    async def begin(self) -> None:
        """Counts from now on."""

    async def pause(self) -> list[int]:
        """Stops counting; the source times since `begin`."""

    async def kill_sessions(self, subscriptions: bool) -> None:
        """At the server, with or without what belongs to them."""

    async def left(self) -> tuple[int, int]:
        """Sessions and subscriptions that the server has."""


class Written:
    """asyncua's server, node-opcua, open62541: each value is written by a command, answered when the server has it."""

    def __init__(self, name: str, server: AsyncuaServer | NodeOpcua | Open62541, node: str) -> None:
        self.name, self.server, self.node = name, server, node
        self.queue = 10_000 if isinstance(server, AsyncuaServer) else 1_000  # its overflows are not flagged
        self.lifetime_min_s = 0.0
        self._counted = 0
        self._times: list[int] = []
        self._enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        self._times = []
        self._enough.clear()
        self._task = asyncio.create_task(self._count())

    async def pause(self) -> list[int]:
        self._enough.set()
        if self._task:
            await self._task
        return self._times

    async def kill_sessions(self, subscriptions: bool) -> None:
        await asyncio.to_thread(self.server.kill_sessions, subscriptions)

    async def left(self) -> tuple[int, int]:
        return await asyncio.to_thread(self.server.sessions_and_subscriptions)

    async def _count(self) -> None:
        clock = SystemClock()
        while not self._enough.is_set():
            self._counted += 1
            now_ms = clock.wall_ns() // 1_000_000
            await asyncio.to_thread(self._write, float(self._counted), now_ms)
            self._times.append(now_ms * 1_000_000)
            try:
                async with asyncio.timeout(COUNT_EVERY_S):
                    await self._enough.wait()
            except TimeoutError:
                pass

    def _write(self, value: float, now_ms: int) -> None:
        if isinstance(self.server, AsyncuaServer):
            self.server.set_value("Double", value, source_ns=now_ms * 1_000_000)
        else:
            self.server.set_value("Double", value, source_ms=now_ms)


class Ticking:
    """Eclipse Milo: it ticks by itself.

    Its sessions are killed with their subscriptions: without, Milo 1.1.2 keeps those past their lifetime, for good.
    """

    name = "milo"
    node = "ns=2;s=v0"
    lifetime_min_s = 10.0
    queue = 1_000

    def __init__(self, server: Milo) -> None:
        self.server = server
        self._group = server.groups[0]

    async def begin(self) -> None:
        started = await asyncio.to_thread(self.server.go, 0)
        self._started = started[self._group.prefix]

    async def pause(self) -> list[int]:
        last = (await asyncio.to_thread(self.server.stop_ticking))[self._group.prefix]
        first = self._started.first_tick
        return [self._started.source_ns(tick, self._group.period_ms) for tick in range(first, last + 1)]

    async def kill_sessions(self, subscriptions: bool) -> None:
        del subscriptions
        await asyncio.to_thread(self.server.kill_sessions, True)

    async def left(self) -> tuple[int, int]:
        return await asyncio.to_thread(self.server.sessions_and_subscriptions)


class Plant:
    """One machine, the proxy before it, and the gateway's source with its supervisor. `endured` runs one."""

    def __init__(self, machine: Machine, folder: Path, lifetime_s: float) -> None:
        self.machine = machine
        self.lifetime_s = max(lifetime_s, machine.lifetime_min_s)
        self.proxy = Proxy(machine.server.port)
        self.gaps: list[Gap] = []
        self._folder = folder
        self._expected: list[int] = []
        self._received: set[int] = set()
        self._newest_ns = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Returns when it collects."""
        port = await self.proxy.start()
        options = {"every": "50ms", "sampling": 0, "queue": self.machine.queue, "timeout": "1s"}
        options |= {"lifetime": f"{self.lifetime_s:g}s"}
        tags = {"counter": self.machine.node}
        device = {"opcua": f"opc.tcp://{HOST}:{port}/", "security": "none", "tags": tags, **options}
        settings = OpcUaDevice.model_validate(device)
        self.source = OpcUaSource("press", 0, settings, TagTable(), SystemClock(), self._folder, self)
        lane = MemoryLane("lane", bytes_max=2**24)
        session = SourceSession(self.source, settings.opcua, [Route("lane", [], lane)], [])
        patience = Patience(first_s=0.2, most_s=1.0)
        self.supervisor = Supervisor(session, SystemClock(), lambda: 1.0, patience)
        self._tasks = [asyncio.create_task(self.supervisor.run()), asyncio.create_task(self._receive(lane))]
        await _until(lambda: self.supervisor.status.state is State.UP, "the first session")

    def note(self, gap: Gap) -> None:
        """It is the ledger, too."""
        self.gaps.append(gap)

    async def endure(self, fault: Fault) -> None:
        """Raises AssertionError where data does not go on, or a value is neither here nor in the ledger."""
        await self.machine.begin()
        await self.hears("before the fault")
        await fault(self)
        await self.hears("after the fault")
        self._expected += await self.machine.pause()
        try:
            await _until(lambda: not self._unaccounted(), "account of every value")
        except AssertionError as error:
            lost = self._unaccounted()
            raise AssertionError(
                f"{len(lost)} of {len(self._expected)} values are neither here nor in the ledger: source times "
                f"{lost[0]} ... {lost[-1]}; gaps {self.gaps}; {dict(self.source.counters.totals)}"
            ) from error
        await _until(lambda: len(self.proxy._tasks) <= 1, "end of the connections before")
        self._expected.clear()
        self._received.clear()
        self.gaps.clear()

    async def restart(self, end: Callable[[], None]) -> None:
        """The server ends, politely or not, and comes back; it counts on."""
        self._expected += await self.machine.pause()
        await asyncio.to_thread(end)
        await asyncio.to_thread(self.machine.server.start)
        await self.machine.begin()

    async def cut(self, seconds: float) -> None:
        """Nothing passes for so long, while the server counts on."""
        self.proxy.freeze()
        await asyncio.sleep(seconds)
        self.proxy.thaw()

    async def forget_channel(self) -> None:
        """The channel is not renewed and expires at the server, whatever that makes of it."""
        client = self.source._link._client
        assert client is not None
        client._renew_channel_task.cancel()
        await asyncio.sleep(client.secure_channel_timeout / 1000 * 1.3)

    async def hears(self, when: str) -> None:
        """Waits for a value that was made after this call."""
        now_ns = SystemClock().wall_ns()
        await _until(lambda: self._newest_ns > now_ns, f"value {when} ({self.supervisor.status})")

    async def stop(self) -> None:
        """The gateway's part ends in order; AssertionError where it leaves a connection."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await _until(lambda: not self.proxy._tasks, "end of every connection")

    async def end(self) -> None:
        """Idempotent; whatever has happened."""
        try:
            await self.machine.pause()
            await self.stop()
        finally:
            await self.proxy.close()

    async def check_server(self) -> None:
        """AssertionError where the server has sessions, subscriptions or connections long after `stop`."""
        deadline_s = time.monotonic() + SESSIONS_GONE_S + self.lifetime_s
        while (left := (*await self.machine.left(), connections(self.machine.server.port))) != (0, 0, 0):
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{self.machine.name}: sessions, subscriptions, connections left: {left}")
            await asyncio.sleep(0.1)

    async def _receive(self, lane: MemoryLane) -> None:
        reader = lane.reader(Part.ALL)
        while True:
            span, batches = await reader.read(10_000)
            for batch in batches:
                self._received.update(batch.ts_ns.tolist())
                self._newest_ns = max(self._newest_ns, int(batch.ts_ns.max()))
            reader.commit(span)

    def _unaccounted(self) -> list[int]:
        return [
            time_ns
            for time_ns in self._expected
            if time_ns not in self._received
            and not any(gap.from_ns <= time_ns <= gap.to_ns for gap in self.gaps if not gap.backfilled)
        ]


Fault = Callable[[Plant], Awaitable[None]]

FAULTS: Final[Mapping[str, Fault]] = {
    "server killed and started": lambda plant: plant.restart(plant.machine.server.kill),
    "server stopped and started": lambda plant: plant.restart(plant.machine.server.stop),
    "session killed": lambda plant: plant.machine.kill_sessions(True),
    "session killed, subscriptions kept": lambda plant: plant.machine.kill_sessions(False),
    "channel expired": Plant.forget_channel,
    "connection reset": lambda plant: _at_once(plant.proxy.reset),
    "network cut for 1 s": lambda plant: plant.cut(1.0),
    "network cut for longer than the keep-alive": lambda plant: plant.cut(4.0),
    "network cut for longer than the subscription lives": lambda plant: plant.cut(plant.lifetime_s + 5.0),
}
REAL_CUTS: Final[Mapping[str, Fault]] = {
    "network cut for 1 s": lambda plant: plant.cut(1.0),
    "network cut for 1 min": lambda plant: plant.cut(60.0),
    "network cut for longer than the subscription lives": lambda plant: plant.cut(plant.lifetime_s + 35.0),
}
"""With the lifetimes that a gateway has; the server's session ends in the last one, too."""
REAL_LIFETIME_S: Final = 90.0


def connections(port: int) -> int:
    """TCP connections at a local port that are not closed (Linux; 01: established, 08: the peer has closed)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(int(each[1].rpartition(":")[2], 16) == port and each[3] in ("01", "08") for each in fields)


def open_files() -> int:
    """Of this process."""
    return len(os.listdir("/proc/self/fd"))


async def _at_once(act: Callable[[], None]) -> None:
    act()


async def _until(done: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not done():  # noqa: ASYNC110  nothing that could be waited for
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"no {what} within {DEADLINE_S:g} s") from None


class _ShortLived(ResumingClient):
    """With a secure channel that does not live long."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.secure_channel_timeout = CHANNEL_MS


@contextmanager
def short_lives() -> Iterator[None]:
    """Whatever expires does so within seconds."""
    with (
        patch.object(opcua_link, "ResumingClient", _ShortLived),
        patch.object(opcua_link, "SESSION_TIMEOUT_MIN_MS", SESSION_OUTLIVES_MS),
        patch.object(opcua_link, "SESSION_OUTLIVES_MS", SESSION_OUTLIVES_MS),
        patch.object(opcua_plan, "KEEP_ALIVE_NS", KEEP_ALIVE_NS),
    ):
        yield


def machines() -> dict[str, Callable[[], Machine]]:
    """By the server's name; each starts a server when it is called."""
    return {
        "asyncua": lambda: Written("asyncua", AsyncuaServer().start(), "ns=2;s=Double"),
        "node-opcua": lambda: Written("node-opcua", NodeOpcua().start(), "ns=1;s=Double"),
        "milo": lambda: Ticking(Milo([Group("v", "double", 1, 30)]).start()),
        "open62541": lambda: Written("open62541", Open62541().start(), "ns=2;s=Double"),
    }


async def endured(
    machine: Machine,
    faults: Iterable[str],
    folder: Path,
    done: Callable[[str], None],
    kinds: Mapping[str, Fault] = FAULTS,
    lifetime_s: float = LIFETIME_S,
) -> None:
    """All these faults in a row; `done` after each. AssertionError says which one was too much."""
    plant = Plant(machine, folder, lifetime_s)
    try:
        await plant.start()
        for fault in faults:
            try:
                await plant.endure(kinds[fault])
            except Exception as error:
                raise AssertionError(f"{machine.name}, {fault}: {error}") from error
            done(fault)
        await plant.stop()
        await plant.check_server()
    finally:
        await plant.end()
