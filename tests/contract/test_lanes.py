"""The lane contract over every lane."""

from pathlib import Path

import pytest

from pipelines.contracts import Lane
from pipelines.lane_memory import MemoryLane
from tests.contract.lane_suite import Implementation, LaneSuite, Options


def memory_lane(folder: Path, options: Options) -> Lane:
    return MemoryLane("history", bytes_max=options.bytes_max, when_full=options.when_full, instance=options.instance)


LANES = {
    "memory": Implementation(memory_lane, lambda lane: lane.pending_bytes),
}


@pytest.fixture(scope="module", params=list(LANES.values()), ids=list(LANES))
def kind(request: pytest.FixtureRequest) -> Implementation:
    implementation: Implementation = request.param
    return implementation


class TestLanes(LaneSuite):
    """Every test of the suite, over each of `LANES`."""
