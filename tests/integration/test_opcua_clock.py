"""A machine whose clock is wrong: measured, shown, and what the policy says is done to the times of its values."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from connectors import opcua_skew
from pipelines.batch import Flag
from tests.conftest import made
from tests.contract.source_suite import within
from tests.integration.opcua_plant import Make, rows
from tests.services.milo import Group, Milo
from tests.services.node_opcua import NodeOpcua

AHEAD_S = 3600
TAGS = {"x": "ns=1;s=Double"}


@pytest.fixture(scope="module")
def wrong() -> Iterator[NodeOpcua]:
    """Its clock is an hour ahead."""
    with made(lambda: NodeOpcua(clock_offset_ms=AHEAD_S * 1000)) as server:
        yield server


async def test_times_are_flagged_by_default(wrong: NodeOpcua, source: Make) -> None:
    """Source times stay as they are; health, log and metric say by how much the clock is off."""
    wrong.set_value("Double", 1.0)
    press = source(wrong.url, TAGS)
    await within(press.connect([]))
    [batch] = await rows(press, 1)
    assert batch.flags.tolist() == [Flag.MACHINE_CLOCK_SUSPECT]
    assert batch.ts_ns[0] > time.time_ns() + 1800 * 10**9
    assert abs(press.counters.gauges["clock_skew_seconds"] - AHEAD_S) < 5
    assert "s ahead" in press.info and "more than clock_tolerance" in press.info


async def test_times_are_kept_or_replaced_where_the_file_says_so(wrong: NodeOpcua, source: Make) -> None:
    """replace: the time of arrival, flagged as such. keep: nothing is flagged, health says it all the same."""
    press = source(wrong.url, TAGS, clock="replace")
    await within(press.connect([]))
    [batch] = await rows(press, 1)
    assert batch.flags.tolist() == [Flag.ARRIVAL_TIME] and batch.ts_ns.tolist() == [batch.received_ns]
    kept = source(wrong.url, TAGS, clock="keep")
    await within(kept.connect([]))
    [batch] = await rows(kept, 1)
    assert not batch.flags.any() and "more than clock_tolerance" in kept.info


async def test_a_clock_that_is_right_costs_nothing(
    source: Make, milo: type[Milo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milo on this host: nothing is flagged, whatever the policy; it is measured again while values come."""
    monkeypatch.setattr(opcua_skew, "EVERY_S", 0.05)
    server = milo([Group("v", "double", 5, 50)])
    press = source(server.url, {f"v{i}": f"ns=2;s=v{i}" for i in range(5)}, clock="replace")
    await within(press.connect([]))
    server.go()
    batches = await rows(press, 50)
    assert not any(batch.flags.any() for batch in batches)
    assert abs(press.counters.gauges["clock_skew_seconds"]) < 5 and "machine clock" in press.info
