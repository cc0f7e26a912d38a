"""Poll classes: which reads they share, how far apart the others lie, and that nobody is late for long."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from connectors.modbus import ModbusSource
from connectors.modbus_settings import ModbusDevice
from pipelines.tags import TagTable
from tests.unit.connectors.modbus_device import Image
from tests.unit.connectors.test_modbus_source import StoppedClock, started, words

SECOND = 10**9


def every(period: str, *addresses: int) -> dict[str, Any]:
    return {f"h{at}": {"register": f"holding {at} uint16", "every": period} for at in addresses}


async def test_neighbours_of_several_periods_come_in_one_read() -> None:
    image = Image()
    tags = words(*range(0, 20, 2)) | every("5s", *range(1, 20, 2))
    async with started(image, tags=tags) as setup:
        rows = []
        for _ in range(11):
            rows.append(len(setup.rows(await setup.source.read())))
        assert rows == [20, 10, 10, 10, 10, 20, 10, 10, 10, 10, 20]
        assert setup.clock.now_ns == 1_010 * SECOND
        assert len(image.reads) == 11
        assert setup.source.counters.totals["overruns"] == 0


async def test_what_shares_nothing_does_not_come_at_once() -> None:
    tags = words(0) | every("2s", 1000) | every("4s", 2000) | every("8s", 3000)
    async with started(Image(), tags=tags) as setup:
        for _ in range(4):
            await setup.source.read()
        at_ns = []
        for _ in range(30):
            await setup.source.read()
            at_ns.append(setup.clock.now_ns)
        assert len(set(at_ns)) == 30


async def test_every_class_keeps_its_grid_when_others_are_slow() -> None:
    """A cycle that takes 0.7 s delays the others by no more; nothing is skipped and nothing drifts."""
    tags = words(0) | every("3s", 1000)
    async with started(Image(), tags=tags) as setup:
        seen: dict[str, list[int]] = {"h0": [], "h1000": []}
        for _ in range(80):
            [name] = setup.rows(await setup.source.read())
            seen[name].append(setup.clock.now_ns - 1_000 * SECOND)
            if name == "h1000":
                setup.clock.now_ns += 7 * SECOND // 10
        assert all(0 <= at_ns - number * SECOND <= 0.7 * SECOND for number, at_ns in enumerate(seen["h0"]))
        grid = seen["h1000"][1]
        assert all(abs(at_ns - grid - number * 3 * SECOND) == 0 for number, at_ns in enumerate(seen["h1000"][1:]))
        assert setup.source.counters.totals["overruns"] == 0


async def test_periods_that_went_by_are_counted_for_each_class() -> None:
    tags = words(0) | every("2s", 1)
    async with started(Image(), tags=tags) as setup:
        await setup.source.read()
        setup.clock.now_ns += 10 * SECOND + SECOND // 2
        await setup.source.read()
        assert setup.source.counters.totals["overruns"] == 9 + 4


@pytest.mark.parametrize("devices", [3, 200])
def test_devices_lie_apart(devices: int, tmp_path: Path) -> None:
    """200 devices of one period: never two within a tenth of their share of it."""
    tags, clock = TagTable(), StoppedClock()
    model = ModbusDevice.model_validate({"modbus": "tcp://127.0.0.1", "tags": words(0)})
    second_ns = []
    for number in range(devices):
        source = ModbusSource(f"m{number}", number, model, tags, clock, tmp_path)
        source._schedule.restart(0, number)
        poll, _ = source._schedule.take(0)
        second_ns.append(poll.due_ns - SECOND)
    ordered = sorted(second_ns)
    assert min(after - before for before, after in pairwise(ordered)) > SECOND / devices / 10
    assert 0 <= ordered[0] < ordered[-1] < SECOND


async def test_what_is_apart_is_read_first_and_alone() -> None:
    """Its neighbours would come in the same request: they come in one of their own, behind it; each keeps its grid."""
    image = Image()
    async with started(image, tags=words(*range(20)), apart=["h7"]) as setup:
        cycles = [sorted(setup.rows(await setup.source.read())) for _ in range(8)]
        others = sorted(f"h{at}" for at in range(20) if at != 7)
        assert cycles[:2] == [["h7"], others]
        assert cycles.count(["h7"]) == cycles.count(others) == 4
        assert setup.source.counters.totals["overruns"] == 0


@pytest.mark.parametrize("apart", [False, True])
async def test_a_device_too_slow_for_one_period_is_asked_for_the_others_all_the_same(apart: bool) -> None:
    """A class that is due again whenever its cycle ends, of a fast route or not, keeps no other from being read."""
    tags = words(0) | every("10s", 1000) | every("1h", 2000)
    async with started(Image(), tags=tags, apart=["h0"] if apart else []) as setup:
        seen: list[str] = []
        for _ in range(60):
            seen += setup.rows(await setup.source.read())
            setup.clock.now_ns += 2 * SECOND
        assert set(seen[:4]) == {"h0", "h1000", "h2000"}
        assert seen.count("h1000") == 12
        assert seen.count("h2000") == 1
