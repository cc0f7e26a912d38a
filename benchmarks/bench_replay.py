"""Catch-up after an outage: how fast a backlog drains, and what that does to live data meanwhile. Disk lane -> MQTT.

10,000 live values a second (100 rows every 10 ms) go through a disk lane to Mosquitto with a subscriber that reads
everything: first alone, then with a backlog behind them that is read from disk. Latency is from arrival to the
broker's acknowledgement. The reference for the drain is the same backlog with nothing else to do and no rate.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from benchmarks.rows import LANE, batch, tag_table
from benchmarks.runtime import GATEWAY, PER_DEVICE, SITE
from benchmarks.subscriber import Subscriber
from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from gateway.app import THREAD_TURN_S
from gateway.build import ROWS_PER_REPLAY_WRITE, ROWS_PER_WRITE_MAX
from gateway.settings import Route
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.lane_disk import DiskLane, Limits
from pipelines.route import Pump, Replay
from tests.services.mosquitto import Mosquitto

BACKLOG_ROWS: Final = 2_000_000
NORMAL_S: Final = 5.0
LIVE_ROWS, LIVE_EVERY_S = 100, 0.01
MEMORY_BYTES: Final = 4 * 2**20
"""So little that the backlog is on disk only."""
REPLAY_RATE: Final = Route.model_fields["replay_rate"].default


def main() -> int:
    """Prints the table; the exit code."""
    with Mosquitto() as broker, Subscriber(broker.port, "drain"):
        both, alone = by_turns(ROUNDS, lambda: in_child(caught_up, broker.url), lambda: in_child(drained, broker.url))
    rates, replaying, normal = zip(*both, strict=True)
    figures = [
        Figure("backlog, live beside it", "values/s", rates, alone, Bar("at least", 100_000), more_is_better=True),
        Figure("live p99 during replay", "ms", replaying, normal, Bar("at most", 2.0, "ratio")),
    ]
    return report(f"Catch-up: {BACKLOG_ROWS:,} rows of backlog, at most {REPLAY_RATE:,} rows/s", figures)


def caught_up(url: str) -> tuple[float, float, float]:
    """Backlog values per second; p99 of live data in ms meanwhile, and without a backlog."""

    async def measure() -> tuple[float, float, float]:
        sys.setswitchinterval(THREAD_TURN_S)  # as `gateway run` does
        async with parts(url) as (lane, sink):
            replay = Replay(lane.reader(Part.BACKLOG), ROWS_PER_REPLAY_WRITE, ROWS_PER_WRITE_MAX, REPLAY_RATE)
            pump = Pump(
                lane,
                lane.reader(Part.LIVE),
                sink,
                SystemClock(),
                no_letters,
                rows_max=ROWS_PER_WRITE_MAX,
                replay=replay,
            )
            async with running(pump, lane):
                await asyncio.sleep(NORMAL_S)
            normal, sink.waited_ns = sink.p99_ms(), []
            await fill(lane)
            async with running(pump, lane):
                began_s = time.monotonic()
                await until_delivered(pump, lane)
                took_s = time.monotonic() - began_s
            return BACKLOG_ROWS / took_s, sink.p99_ms(), normal

    return on_loop(measure())


def drained(url: str) -> float:
    """Values per second of the backlog alone, as fast as it goes."""

    async def measure() -> float:
        async with parts(url) as (lane, sink):
            await fill(lane)
            pump = Pump(lane, lane.reader(Part.ALL), sink, SystemClock(), no_letters, rows_max=ROWS_PER_WRITE_MAX)
            began_s = time.monotonic()
            task = asyncio.create_task(pump.run())
            while lane.pending_rows:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            return BACKLOG_ROWS / (time.monotonic() - began_s)

    return on_loop(measure())


class Timed:
    """The MQTT sink, and how long live batches took from arrival to acknowledgement."""

    def __init__(self, sink: MqttSink) -> None:
        self.name, self.in_flight_max, self.counters = sink.name, sink.in_flight_max, sink.counters
        self.keeps_positions = sink.keeps_positions
        self.connect, self.close, self.wait_closed = sink.connect, sink.close, sink.wait_closed
        self.waited_ns: list[int] = []
        self._sink = sink

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        await self._sink.write(lane, batches, position, historical)
        if not historical:
            now = time.time_ns()
            self.waited_ns += [now - each.received_ns for each in batches]

    def p99_ms(self) -> float:
        return float(np.percentile(self.waited_ns, 99)) / 1e6


@asynccontextmanager
async def parts(url: str) -> AsyncIterator[tuple[DiskLane, Timed]]:
    """An empty lane, and a sink that is connected."""
    settings, tags = MqttTarget.model_validate({"mqtt": url, "topic": PER_DEVICE}), tag_table()
    sink = Timed(MqttSink("broker", settings, Identity(GATEWAY, SITE), tags, SystemClock()))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        limits = Limits(2**31, memory_bytes=MEMORY_BYTES)
        lane = DiskLane(LANE, Path(folder) / "lane", SystemClock(), limits, tags=tags, sources=["machine"])
        await sink.connect()
        yield lane, sink
        await sink.close()
        await lane.close()


@asynccontextmanager
async def running(pump: Pump, lane: DiskLane) -> AsyncIterator[None]:
    """The pump, and live data every LIVE_EVERY_S."""
    tasks = [asyncio.create_task(pump.run()), asyncio.create_task(_live(lane))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def fill(lane: DiskLane) -> None:
    """The backlog; what is on its way when it ends is part of it."""
    whole = batch(0)
    for number in range(BACKLOG_ROWS // len(whole)):
        await lane.append(replace(whole, number=number, received_ns=time.time_ns() - 600 * 10**9))
        await asyncio.sleep(0)
    await lane.sync()


async def until_delivered(pump: Pump, lane: DiskLane) -> None:
    """Returns when the whole backlog is with the broker."""
    wanted = pump.counters.totals["historical_rows"] + BACKLOG_ROWS
    while pump.counters.totals["historical_rows"] < wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def no_letters(*rejected: object) -> None:
    raise AssertionError(f"nothing is rejected here: {rejected}")


async def _live(lane: DiskLane) -> None:
    rows = batch(0).take(slice(0, LIVE_ROWS))
    due_s = time.monotonic()
    while True:
        due_s += LIVE_EVERY_S
        await asyncio.sleep(max(due_s - time.monotonic(), 0))
        now = time.time_ns()
        await lane.append(replace(rows, received_ns=now, ts_ns=np.full(LIVE_ROWS, now, dtype=np.int64)))


if __name__ == "__main__":
    sys.exit(main())
