"""The disk lane beside the memory lane, and beside a plain file.

The whole way of a batch (append, sync, read, commit): CPU of the process, all threads, in batches of 1,000 rows and of
one row. Append and read back: wall time of everything synced and read from disk again (no batch is kept in memory),
beside the same bytes written to a plain file, synced and read.
"""

from __future__ import annotations

import asyncio
import os
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
from pipelines.frame import encode_batch
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane
from pipelines.tags import Tag, TagTable

ROWS: Final = 1_000
BATCHES: Final = 3_000
ROWS_PER_READ: Final = 10_000


def main() -> int:
    """Prints the table; the exit code."""
    whole = by_turns(ROUNDS, lambda: in_child(batch_us, True, ROWS), lambda: in_child(batch_us, False, ROWS))
    small = by_turns(ROUNDS, lambda: in_child(batch_us, True, 1), lambda: in_child(batch_us, False, 1))
    back = by_turns(ROUNDS, lambda: in_child(values_per_s), lambda: in_child(plain_file_values_per_s))
    added = [(ours - reference) / ROWS for ours, reference in zip(*whole, strict=True)]
    added_small = [ours - reference for ours, reference in zip(*small, strict=True)]
    figures = [
        Figure("append, sync, read, commit; per batch of 1,000", "us CPU", *whole, remark="reference: memory lane"),
        Figure("  what the disk adds, per value", "us CPU", added, bar=Bar("at most", 0.5)),
        Figure("append, sync, read, commit; per batch of one row", "us CPU", *small, remark="reference: memory lane"),
        Figure("  what the disk adds, per batch", "us CPU", added_small, bar=Bar("at most", 30)),
        Figure(
            "append + read back from disk",
            "values/s",
            *back,
            bar=Bar("at least", 5e6),
            more_is_better=True,
            remark="reference: the same bytes in a plain file, written, synced, read",
        ),
    ]
    return report("Disk lane", figures)


def batch_us(disk: bool, rows: int) -> float:
    """CPU of the process for the whole way of one batch, in us; ten batches a read, a sync for every hundred."""

    async def measure() -> float:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            lane: Lane = disk_lane(folder, 64 * 2**20) if disk else MemoryLane("x", bytes_max=2**30)
            reader, batches = lane.reader(Part.ALL), [make(number, rows) for number in range(100)]
            began_s = time.process_time()
            for number in range(BATCHES):
                await lane.append(batches[number % 100])
                if number % 100 == 99:
                    await lane.sync()  # before the delivery: what is delivered is in no hurry
                if number % 10 == 9:
                    span, _ = await reader.read(ROWS_PER_READ)
                    reader.commit(span)
                    await asyncio.sleep(0)
            spent_s = time.process_time() - began_s
            await lane.close()
            return spent_s / BATCHES * 1e6

    return on_loop(measure())


def values_per_s() -> float:
    """Everything is appended and synced, then read and committed."""

    async def measure() -> float:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            lane, batches = disk_lane(folder, 0), [make(number, ROWS) for number in range(100)]
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


def plain_file_values_per_s() -> float:
    """As many bytes, in the same pieces, without checksums, names and numbers."""
    piece = bytes(len(encode_batch(make(0, ROWS), 0)))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "plain"
        began_s = time.monotonic()
        with path.open("wb", buffering=0) as file:
            for _ in range(BATCHES):
                file.write(piece)
            os.fsync(file.fileno())
        with path.open("rb", buffering=0) as file:
            while file.read(2**20):
                pass
        return BATCHES * ROWS / (time.monotonic() - began_s)


def disk_lane(folder: str, memory_bytes: int) -> DiskLane:
    tags = TagTable()
    for number in range(ROWS):
        tags.add(Tag("press4", f"t{number}"))
    limits = Limits(2**31, memory_bytes=memory_bytes)
    return DiskLane("history", Path(folder) / "lane", SystemClock(), limits, tags=tags, sources=["press4"])


def make(number: int, rows: int) -> Batch:
    """Doubles, good."""
    now = time.time_ns()
    return Batch(
        source_id=0,
        number=number,
        origin=number.to_bytes(8, "little"),
        received_ns=now,
        tag=np.arange(rows, dtype=np.uint32),
        ts_ns=np.full(rows, now, dtype=np.int64),
        value=np.random.default_rng(number).random(rows),
        status=np.zeros(rows, dtype=np.uint32),
        kind=np.full(rows, 11, dtype=np.uint8),
        flags=np.zeros(rows, dtype=np.uint8),
    )


if __name__ == "__main__":
    sys.exit(main())
