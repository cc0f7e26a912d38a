"""OPC UA under load: 50,000 monitored items, 100,000 values/s plain and encrypted, 65,000 notifications in a message.

The server is a foreign one (Eclipse Milo). Received means what a gateway does short of a sink: a source, `collect` and
a memory lane that is read and committed, in a process of its own (`bench_opcua_mqtt` has sinks). The longest step is
the CPU time of the loop's own thread from one turn of the loop to the next, on a loop that is never let sleep: nothing
that blocks is missed, and the timer of the measurement is in it; garbage is collected as in the gateway. The 65,000
notifications come over the wire in one message; the gateway itself asks for no more than
`opcua_items.NOTIFICATIONS_MAX`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Final

from asyncua import Client, ua

from benchmarks.measure import ROUNDS, Bar, Figure, in_child, on_loop, report
from connectors import opcua_items
from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from gateway.garbage import collect_between_steps
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.lane_memory import MemoryLane
from pipelines.origin import entries
from pipelines.route import Route, collect
from pipelines.tags import TagTable
from tests.services.milo import Group, Milo

MANY: Final = Group("m", "double", 50_000, 1000)
FAST: Final = Group("v", "double", 10_000, 100)
LARGE: Final = Group("n", "double", 65_000, 2000)
RATE: Final = FAST.count * 1000 / FAST.period_ms
SECONDS: Final = 5.0
SETTLE_S: Final = 2.0
DEADLINE_S: Final = 90.0
HEAP_MB: Final = 2048
ROWS_MAX: Final = 10_000
NOTIFICATIONS_MAX: Final = 65_535


def main() -> int:
    """Prints the table; the exit code."""
    with Milo([MANY], heap_mb=HEAP_MB) as server:
        figures = _plain_and_encrypted(f"{MANY.count:,} items live", "s wall", server, _seconds_until_live, (60, 60))
    with Milo([FAST], heap_mb=HEAP_MB) as server:
        server.go()
        figures += _plain_and_encrypted(f"{RATE:,.0f} values/s", "% of a core", server, _percent_of_a_core, (20, 60))
    with Milo([LARGE], ticks=1, heap_mb=HEAP_MB) as server:
        name = f"longest step, {LARGE.count:,} notifications in a message"
        figures += _plain_and_encrypted(name, "ms CPU", server, _longest_step_ms, (5, 5))
    return report("OPC UA under load", figures)


def _plain_and_encrypted(
    name: str, unit: str, server: Milo, measure: Callable[..., float], limits: tuple[float, float]
) -> list[Figure]:
    """By turns, each round in a process of its own."""
    trusts = ("", server.certificate.thumbprint)
    rounds: dict[str, list[float]] = {trust: [] for trust in trusts}
    for _, trust in product(range(ROUNDS), trusts):
        rounds[trust].append(in_child(measure, server.url, trust))
    return [
        Figure(name + how, unit, rounds[trust], (), Bar("at most", limit))
        for trust, how, limit in zip(trusts, ("", ", SignAndEncrypt"), limits, strict=True)
    ]


def _seconds_until_live(url: str, trust: str) -> float:
    """From connecting to the first value of every item."""

    async def measure() -> float:
        begun_s = time.monotonic()
        async with _received(url, trust, MANY) as received:
            await received.until(lambda rows: rows >= MANY.count)
            return time.monotonic() - begun_s

    return on_loop(measure())


def _percent_of_a_core(url: str, trust: str) -> float:
    """CPU time of the process, all threads. RuntimeError when the values come slower than the server makes them."""

    async def measure() -> float:
        async with _received(url, trust, FAST) as received:
            await received.until(lambda rows: rows >= FAST.count)
            await received.during(SETTLE_S)
            begun_s, cpu_s = time.monotonic(), time.process_time()
            rows = await received.during(SECONDS)
            wall_s, cpu_s = time.monotonic() - begun_s, time.process_time() - cpu_s
        if rows / wall_s < 0.95 * RATE:
            raise RuntimeError(f"{rows / wall_s:,.0f} values/s came where the server makes {RATE:,.0f}")
        return cpu_s / rows * RATE * 100

    return on_loop(measure())


def _longest_step_ms(url: str, trust: str) -> float:
    """While a value of every item arrives. RuntimeError when they come in several messages."""
    opcua_items.NOTIFICATIONS_MAX = NOTIFICATIONS_MAX  # type: ignore[misc]

    async def measure() -> float:
        async with _received(url, trust, LARGE) as received, Client(url) as operator:
            await received.until(lambda rows: rows >= LARGE.count)
            received.messages.clear()
            steps = Steps()
            await operator.get_node(Milo.run_node_id).write_value(ua.Variant(True))
            await received.until(lambda rows: rows >= LARGE.count)
            longest_ms = steps.stop()
        if len(received.messages) > 1:
            raise RuntimeError(f"{LARGE.count:,} notifications came in {len(received.messages)} messages")
        return longest_ms

    return on_loop(measure())


class Steps:
    """Turns the running loop without a pause until `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._longest_ns = 0
        self._before_ns = time.thread_time_ns()
        self._next = self._loop.call_soon(self._turn)

    def stop(self) -> float:
        """The longest turn's CPU ms."""
        self._next.cancel()
        return self._longest_ns / 1e6

    def _turn(self) -> None:
        now_ns = time.thread_time_ns()
        self._longest_ns = max(self._longest_ns, now_ns - self._before_ns)
        self._before_ns = now_ns
        self._next = self._loop.call_soon(self._turn)


class Received:
    """What has come through a memory lane."""

    def __init__(self, lane: MemoryLane) -> None:
        self._reader = lane.reader(Part.ALL)
        self.messages: set[int] = set()
        """Sequence numbers."""

    async def until(self, done: Callable[[int], bool]) -> int:
        """Reads and commits until `done(rows since now)`; the rows."""
        rows = 0
        async with asyncio.timeout(DEADLINE_S):
            while not done(rows):
                span, batches = await self._reader.read(ROWS_MAX)
                rows += sum(map(len, batches))
                self.messages |= {next(entries(batch.origin)).sequence for batch in batches}
                self._reader.commit(span)
        return rows

    async def during(self, seconds: float) -> int:
        """The rows of so long."""
        end_s = time.monotonic() + seconds
        return await self.until(lambda _: time.monotonic() >= end_s)


@asynccontextmanager
async def _received(url: str, trust: str, group: Group) -> AsyncIterator[Received]:
    """Every tag of the group; with SignAndEncrypt where `trust` is the server's thumbprint."""
    device = {
        "opcua": url,
        **({"trust": trust} if trust else {"security": "none"}),
        "every": f"{group.period_ms}ms",
        "sampling": 0,
        "queue": 10,
        "timeout": "60s",
        "tags": {node.partition("s=")[2]: node for node in group.node_ids()},
    }
    collect_between_steps(asyncio.get_running_loop())
    lane = MemoryLane("received", bytes_max=2**30)
    with tempfile.TemporaryDirectory(prefix="mec-bench-") as folder:
        settings = OpcUaDevice.model_validate(device)
        source = OpcUaSource("machine", 0, settings, TagTable(), SystemClock(), Path(folder))
        try:
            await source.connect([])
            collecting = asyncio.create_task(collect(source, [Route(lane.name, [], lane)], []))
            yield Received(lane)
            collecting.cancel()
            await asyncio.wait([collecting])
        finally:
            await source.close()


if __name__ == "__main__":
    sys.exit(main())
