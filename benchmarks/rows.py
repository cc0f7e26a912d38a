"""Batches for the benchmarks of sinks, and the loop that writes them as a pump does."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import numpy as np

from pipelines.batch import Batch, Kind
from pipelines.contracts import Sink
from pipelines.tags import Tag, TagTable

ROWS: Final = 1_000
LANE: Final = "all"
POSITION: Final = bytes(40)
"""As long as that of a lane with one interval pending."""


def tag_table() -> TagTable:
    """`machine/v0` ... `machine/v999`."""
    tags = TagTable()
    for row in range(ROWS):
        tags.add(Tag("machine", f"v{row}"))
    return tags


def batch(number: int) -> Batch:
    """1,000 Doubles of different tags with one source time."""
    return Batch(
        source_id=0,
        number=number,
        origin=None,
        received_ns=time.time_ns(),
        tag=np.arange(ROWS, dtype=np.uint32),
        ts_ns=np.full(ROWS, time.time_ns(), dtype=np.int64),
        value=(np.arange(ROWS) * 7919 + number) / 8.0,
        status=np.zeros(ROWS, dtype=np.uint32),
        kind=np.full(ROWS, Kind.DOUBLE, dtype=np.uint8),
        flags=np.zeros(ROWS, dtype=np.uint8),
        seq=number,
    )


async def rows_per_cpu_second(sink: Sink, seconds: float, batches: int = 1) -> float:
    """Rows that the broker acknowledged for each CPU second of this process; `in_flight_max` writes at a time, of so
    many batches each.
    """
    await sink.connect()
    await _write(sink, 0.5, batches)
    cpu_s = time.process_time()
    rows = await _write(sink, seconds, batches)
    cpu_s = time.process_time() - cpu_s
    await sink.close()
    return rows / cpu_s


async def _write(sink: Sink, seconds: float, batches: int) -> int:
    written = 0
    deadline_s = time.monotonic() + seconds

    async def one_after_the_other() -> None:
        nonlocal written
        while time.monotonic() < deadline_s:
            first, written = written, written + batches
            await sink.write(LANE, [batch(number) for number in range(first, written)], POSITION, False)

    async with asyncio.TaskGroup() as group:
        for _ in range(sink.in_flight_max):
            group.create_task(one_after_the_other())
    return written * ROWS
