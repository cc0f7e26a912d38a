"""The lane contract over every lane."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.clock import SystemClock
from pipelines.contracts import Lane
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane
from tests.contract.lane_suite import Implementation, LaneSuite, Options

DISK_PER_MEMORY = 2.1
"""A segment with one batch takes about this many times the bytes that the batch takes in memory."""


def memory_lane(folder: Path, options: Options) -> Lane:
    return MemoryLane(
        "history",
        bytes_max=options.bytes_max,
        sources=options.sources,
        when_full=options.when_full,
        instance=options.instance,
        ledger=options.ledger,
    )


async def at_once(work: Callable[[], Any]) -> Any:
    """No thread: the suite's random scenarios take thousands of turns."""
    return work()


def disk_lane(
    folder: Path,
    options: Options,
    *,
    memory_bytes: int,
    segment_bytes: int,
    offload: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
) -> Lane:
    """`segment_bytes=1`: each batch has a segment of its own, so that a full lane drops exactly one."""
    limits = Limits(
        int(options.bytes_max * DISK_PER_MEMORY),
        memory_bytes=memory_bytes,
        fsync_every_ns=1_000_000,
        segment_bytes=segment_bytes,
    )
    return DiskLane(
        "history",
        folder,
        SystemClock(),
        limits,
        when_full=options.when_full,
        sources=options.sources,
        instance=options.instance,
        ledger=options.ledger,
        offload=offload,
    )


def disk_bytes(lane: Any) -> int:
    return int(lane.pending_bytes / DISK_PER_MEMORY)


LANES = {
    "memory": Implementation(memory_lane, lambda lane: lane.pending_bytes),
    "disk": Implementation(partial(disk_lane, memory_bytes=2**20, segment_bytes=1), disk_bytes),
    "disk-nothing-in-memory": Implementation(
        partial(disk_lane, memory_bytes=0, segment_bytes=1, offload=at_once), disk_bytes
    ),
}


@pytest.fixture(scope="module", params=list(LANES.values()), ids=list(LANES))
def kind(request: pytest.FixtureRequest) -> Implementation:
    implementation: Implementation = request.param
    return implementation


class TestLanes(LaneSuite):
    """Every test of the suite, over each of `LANES`."""
