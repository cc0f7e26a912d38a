"""The disk lane beside the memory lane, in batches of 1,000 rows: what `append` costs, and how fast a backlog is read.

Append: CPU of the appending thread per batch (the loop's share; the sync is in a thread), the memory lane as reference.
Append and read back: wall time, values a second, everything read from disk (no batch is kept in memory).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.contracts import Lane, Part
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane
from pipelines.tags import Tag, TagTable

ROWS: Final = 1_000
BATCHES: Final = 3_000
ROWS_PER_READ: Final = 10_000


def main() -> int:
    """Prints the table; the exit code."""
    cost = by_turns(ROUNDS, lambda: in_child(append_us, True), lambda: in_child(append_us, False))
    there_and_back = [in_child(values_per_s) for _ in range(ROUNDS)]
    figures = [
        Figure("append, CPU on the loop per batch of 1,000", "us", *cost, remark="reference: memory lane; bar: +30 us"),
        Figure(
            "append + read back from disk",
            "values/s",
            there_and_back,
            bar=Bar("at least", 5e6),
            more_is_better=True,
        ),
    ]
    return report("Disk lane", figures)


def append_us(disk: bool) -> float:
    """CPU of this thread for one append, in us; what it appended is read and committed outside of the measure."""

    async def measure() -> float:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            lane: Lane = disk_lane(folder, 64 * 2**20) if disk else MemoryLane("x", bytes_max=2**30)
            reader, batches, spent_ns = lane.reader(Part.ALL), [make(number) for number in range(100)], 0
            for number in range(BATCHES):
                batch = batches[number % 100]
                began_ns = time.thread_time_ns()
                await lane.append(batch)
                spent_ns += time.thread_time_ns() - began_ns
                if number % 10 == 9:
                    span, _ = await reader.read(ROWS_PER_READ)
                    reader.commit(span)
                    await asyncio.sleep(0)
            await lane.close()
            return spent_ns / BATCHES / 1e3

    return on_loop(measure())


def values_per_s() -> float:
    """Everything is appended and synced, then read and committed."""

    async def measure() -> float:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            lane, batches = disk_lane(folder, 0), [make(number) for number in range(100)]
            began_s = time.monotonic()
            for number in range(BATCHES):
                await lane.append(batches[number % 100])
            await lane.sync()
            reader, read = lane.reader(Part.ALL), 0
            while read < BATCHES:
                span, found = await reader.read(ROWS_PER_READ)
                read += len(found)
                reader.commit(span)
            took_s = time.monotonic() - began_s
            await lane.close()
            return BATCHES * ROWS / took_s

    return on_loop(measure())


def disk_lane(folder: str, memory_bytes: int) -> DiskLane:
    tags = TagTable()
    for number in range(ROWS):
        tags.add(Tag("press4", f"t{number}"))
    limits = Limits(2**31, memory_bytes=memory_bytes)
    return DiskLane("history", Path(folder) / "lane", SystemClock(), limits, tags=tags, sources=["press4"])


def make(number: int) -> Batch:
    """1,000 doubles, good."""
    now = time.time_ns()
    return Batch(
        source_id=0,
        number=number,
        origin=number.to_bytes(8, "little"),
        received_ns=now,
        tag=np.arange(ROWS, dtype=np.uint32),
        ts_ns=np.full(ROWS, now, dtype=np.int64),
        value=np.random.default_rng(number).random(ROWS),
        status=np.zeros(ROWS, dtype=np.uint32),
        kind=np.full(ROWS, 11, dtype=np.uint8),
        flags=np.zeros(ROWS, dtype=np.uint8),
    )


if __name__ == "__main__":
    sys.exit(main())
