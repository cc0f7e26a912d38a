"""The source's cycle: schedule, failures as rows, faults, refused blocks; against a device in the test's own loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from connectors.modbus import ModbusSource
from connectors.modbus_breaker import SILENT_CYCLES_MAX
from connectors.modbus_frames import BAD_CONNECTION_CLOSED
from connectors.modbus_settings import ModbusDevice
from pipelines.batch import BAD_TIMEOUT, GOOD, Batch, Flag, Kind
from pipelines.clock import ClockState
from pipelines.errors import NotConnected
from pipelines.stage_scale import TagScaleStage
from pipelines.tags import TagTable
from tests.unit.connectors.modbus_device import Answer, Device, Image, set_timeout, until, within

SECOND = 10**9
ILLEGAL = 0x8034_0000


class StoppedClock:
    """Time goes on only by `sleep`, which returns at once, and by hand."""

    state = ClockState("ptp", 100)

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND
        self.sleeps_s: list[float] = []

    def wall_ns(self) -> int:
        return self.now_ns

    def mono_ns(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.sleeps_s.append(seconds)
        self.now_ns += round(seconds * 1e9)


class Setup:
    def __init__(self, device: Device, settings: dict[str, Any], folder: Path) -> None:
        self.device = device
        self.tags = TagTable()
        self.clock = StoppedClock()
        apart: list[str] = settings.pop("apart", [])
        model = ModbusDevice.model_validate({"modbus": device.url, "timeout": "60s", **settings}).with_apart(apart)
        self.source = ModbusSource("m", 0, model, self.tags, self.clock, folder)

    def rows(self, batch: Batch) -> dict[str, tuple[Any, int]]:
        """Tag name -> value, status."""
        names = [self.tags[tag].name for tag in batch.tag]
        return dict(zip(names, zip(batch.values(), batch.status.tolist(), strict=True), strict=True))


@asynccontextmanager
async def started(answer: Answer, folder: Path | None = None, **settings: Any) -> AsyncIterator[Setup]:
    with TemporaryDirectory() as own:
        async with Device(answer) as device:
            setup = Setup(device, settings, folder or Path(own))
            try:
                await setup.source.connect([])
                yield setup
            finally:
                await setup.source.close()


def words(*addresses: int) -> dict[str, str]:
    return {f"h{address}": f"holding {address} uint16" for address in addresses}


async def test_a_cycle_is_one_batch_with_every_tag() -> None:
    tags: dict[str, Any] = words(1, 2, 90) | {"scaled": {"register": "holding 3 uint16", "scale": 0.5, "unit": "bar"}}
    async with started(Image(), tags=tags) as setup:
        first, second = await setup.source.read(), await setup.source.read()
        assert setup.rows(first) == {f"h{at}": (at, GOOD) for at in (1, 2, 90)} | {"scaled": (3, GOOD)}
        assert (first.source_id, first.number, second.number) == (0, 0, 1)
        assert first.clock == setup.clock.state
        assert first.flags.tolist() == [Flag.ARRIVAL_TIME] * 4
        assert first.ts_ns.tolist() == [1_000 * SECOND] * 4
        assert second.received_ns == 1_001 * SECOND
        assert setup.source.counters.snapshot()["requests"] == 4
        scaled = TagScaleStage(setup.tags).process(first)
        assert scaled is not None
        assert setup.rows(scaled)["scaled"] == (1.5, GOOD)
        assert setup.tags[3].unit == "bar"


async def test_shared_columns_cannot_be_written() -> None:
    async with started(Image(), tags=words(1)) as setup:
        batch = await setup.source.read()
        for column in (batch.tag, batch.status, batch.kind, batch.flags):
            assert not column.flags.writeable


async def test_the_schedule_is_absolute_and_counts_what_it_missed() -> None:
    async with started(Image(), tags=words(1)) as setup:
        await setup.source.read()
        setup.clock.now_ns += SECOND // 4  # the lanes took their time
        await setup.source.read()
        assert setup.clock.sleeps_s == [0.75]
        setup.clock.now_ns += 3 * SECOND + SECOND // 2
        await setup.source.read()
        assert setup.source.counters.totals["overruns"] == 2
        await setup.source.read()
        assert setup.clock.sleeps_s == [0.75, 0.5]
        assert setup.clock.now_ns == 1_005 * SECOND


async def test_each_poll_period_has_its_own_batches() -> None:
    tags = words(1) | {"slow": {"register": "input 2 uint16", "every": "2500ms"}}
    async with started(Image(), tags=tags) as setup:
        seen = []
        for _ in range(7):
            names = list(setup.rows(await setup.source.read()))
            seen.append((names, round((setup.clock.now_ns - 1_000 * SECOND) / SECOND, 2)))
        assert seen == [
            (["h1"], 0),
            (["slow"], 0),
            (["h1"], 1),
            (["h1"], 2),
            (["h1"], 3),
            (["slow"], 3.12),  # its grid is moved by a part of the shortest period
            (["h1"], 4),
        ]


async def test_one_wrong_register_fails_alone_and_the_cut_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    image = Image(holes=[6])
    caplog.set_level(logging.INFO, "connectors.modbus")
    async with started(image, tags=words(*range(10))) as setup:
        for _ in range(3):
            rows = setup.rows(await setup.source.read())
            assert rows == {f"h{at}": (at, GOOD) if at != 6 else (None, ILLEGAL) for at in range(10)}
        assert image.reads[0] == (0, 10)
        assert image.reads.count((0, 10)) == 1
        assert setup.source.faults == {
            "h6": "holding 6: illegal data address (exception 2): the device has no such register; check the address"
        }
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "holding 6: illegal data address (exception 2)" in caplog.text
        assert [record.subject for record in caplog.records] == ["source m"]  # type: ignore[attr-defined]

        image.reads.clear()
        await setup.source.connect([])
        await setup.source.read()
        assert image.reads == [(0, 6), (7, 3)]


async def test_a_hole_in_a_bridged_gap_costs_no_tag() -> None:
    image = Image(holes=[3])
    async with started(image, tags=words(0, 1, 5, 6)) as setup:
        assert set(setup.rows(await setup.source.read()).values()) == {(at, GOOD) for at in (0, 1, 5, 6)}
        assert image.reads == [(0, 7), (0, 2), (5, 2)]
        assert not setup.source.faults


async def test_bits_of_one_refused_register_cost_one_request() -> None:
    image = Image(holes=[3])
    async with started(image, tags={f"b{bit}": f"holding 3.{bit}" for bit in range(16)}) as setup:
        rows = setup.rows(await setup.source.read())
        assert set(rows.values()) == {(None, ILLEGAL)}
        assert image.reads == [(3, 1)]


async def test_a_silent_block_gives_bad_timeout_rows_and_the_others_values() -> None:
    image = Image()

    def deaf_at_100(request: bytes) -> bytes:
        if request[8:10] == b"\0\x64":
            return b""
        set_timeout(setup.source._link, 0.05)  # for the next request, the one at 100
        return image(request)

    tags = words(1, 100) | {"text": "holding 102 string 4"}
    async with started(deaf_at_100, tags=tags) as setup:
        batch = await setup.source.read()
        assert setup.rows(batch) == {"h1": (1, GOOD), "h100": (None, BAD_TIMEOUT), "text": (None, BAD_TIMEOUT)}
        assert batch.kind.tolist().count(Kind.NULL) == 2
        assert batch.extra is None
        assert setup.source.faults["h100"] == "holding 100-103: no reply within 0.05 s"
        assert setup.source.counters.totals["timeouts"] == 1


async def test_a_silent_device_is_given_up_after_its_rows_were_delivered(caplog: pytest.LogCaptureFixture) -> None:
    image = Image()
    async with started(image, tags=words(1)) as setup:
        image.silent = True
        with within(setup.source._link, 0.05):
            for _ in range(SILENT_CYCLES_MAX):
                assert setup.rows(await setup.source.read()) == {"h1": (None, BAD_TIMEOUT)}
        with pytest.raises(NotConnected, match="no reply in 3 poll cycles"):
            await setup.source.read()
        assert len(caplog.records) == 1
        image.silent = False
        await setup.source.connect([])
        batch = await setup.source.read()
        assert setup.rows(batch) == {"h1": (1, GOOD)}
        assert batch.number == SILENT_CYCLES_MAX
        assert not setup.source.faults


async def test_what_was_read_before_the_connection_broke_is_delivered() -> None:
    image = Image()

    def cut_at_100(request: bytes) -> bytes | None:
        return None if request[8:10] == b"\0\x64" else image(request)

    async with started(cut_at_100, tags=words(1, 100, 200)) as setup:
        lost = (None, BAD_CONNECTION_CLOSED)
        assert setup.rows(await setup.source.read()) == {"h1": (1, GOOD), "h100": lost, "h200": lost}
        assert not setup.source.faults
        with pytest.raises(NotConnected, match="connection closed"):
            await setup.source.read()


async def test_a_connection_that_broke_meanwhile_is_not_connected() -> None:
    async with started(lambda request: None, tags=words(1, 100)) as setup:
        for _ in range(2):
            with pytest.raises(NotConnected, match=r"modbus tcp://127.0.0.1:\d+/7: connection closed"):
                await setup.source.read()


async def test_close_is_allowed_before_connect_and_twice(tmp_path: Path) -> None:
    async with Device(Image()) as device:
        source = Setup(device, {"tags": words(1)}, tmp_path).source
        await source.close()
        await source.connect([])
        source.commit(3)
        await source.close()
        await source.close()
        with pytest.raises(NotConnected, match="not connected"):
            await source.read()


async def test_a_cancelled_read_leaves_the_source_usable() -> None:
    image = Image()
    async with started(image, tags=words(1)) as setup:
        image.silent = True
        reading = asyncio.create_task(setup.source.read())
        await until(lambda: bool(image.reads))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        image.silent = False
        assert setup.rows(await setup.source.read()) == {"h1": (1, GOOD)}
