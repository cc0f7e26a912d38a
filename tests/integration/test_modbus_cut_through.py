"""A fast route from a foreign Modbus server (libmodbus) to Mosquitto: nothing lies between a reply and its message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors.modbus import ModbusSource
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_wire_tcp import TcpWire
from connectors.mqtt import MqttSink
from connectors.mqtt_session import Session
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump, Route, collect
from pipelines.tags import TagTable
from tests.services.libmodbus import LibmodbusServer
from tests.services.mosquitto import Mosquitto

DEADLINE_S = 60.0
ASK, PUBLISH = "ask", "publish"
CYCLES = 10


@pytest.mark.parametrize(
    "tags",
    [
        {"pressure": "holding 10 uint16"},
        {f"r{at}": f"holding {at} uint16" for at in range(20)},
        {"interlock": "coil 3", "pressure": "holding 10 uint16", "text": "input 5 string 4"},
    ],
)
async def test_a_reply_is_published_before_the_next_request(
    libmodbus_server: LibmodbusServer,
    mosquitto: Mosquitto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tags: dict[str, str],
) -> None:
    """One block or several, few rows or many: what is written goes request, message, request, message."""
    written = _recorded(monkeypatch)
    async with _running(libmodbus_server, mosquitto, tmp_path, tags) as (source, lane):
        blocks = len(source._schedule.polls[0].blocks)
        await _until(lambda: len(written) >= 2 * CYCLES * blocks)
        assert written[: 2 * CYCLES * blocks] == [ASK, PUBLISH] * CYCLES * blocks
        await _until(lambda: not lane.pending_rows)  # the broker has them


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to the machine and to the broker, in order."""
    written: list[str] = []
    write, send = TcpWire._write, Session.send

    def asked(self: TcpWire, *arguments: Any) -> int:
        written.append(ASK)
        return write(self, *arguments)

    def published(self: Session, data: bytes) -> None:
        written.append(PUBLISH)
        send(self, data)

    monkeypatch.setattr(TcpWire, "_write", asked)
    monkeypatch.setattr(Session, "send", published)
    return written


@asynccontextmanager
async def _running(
    server: LibmodbusServer, broker: Mosquitto, folder: Path, tags: dict[str, str]
) -> AsyncIterator[tuple[ModbusSource, MemoryLane]]:
    """A source, a fast route and a pump, once the broker is connected."""
    table, clock = TagTable(), SystemClock()
    device = ModbusDevice.model_validate({"modbus": server.url + "/1", "every": "20ms", "timeout": "60s", "tags": tags})
    source = ModbusSource("m", 0, device, table, clock, folder)
    lane = MemoryLane("fast", bytes_max=2**20)
    target = MqttTarget.model_validate({"mqtt": broker.url, "status_topic": None})
    sink = MqttSink("plant", target, Identity("gw", "site"), table, clock)
    pump = Pump(lane, lane.reader(Part.ALL), sink, clock, _no_letters, rows_max=1000)
    await sink.connect()
    await source.connect([])
    tasks = [asyncio.create_task(pump.run()), asyncio.create_task(sink.wait_closed())]
    await asyncio.sleep(0)  # the pump waits
    tasks.append(asyncio.create_task(collect(source, [Route("fast", [], lane)], [])))
    try:
        yield source, lane
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await source.close()
        await sink.close()


async def _no_letters(lane: str, refused: Sequence[tuple[Batch, Sequence[int]]], reason: str) -> None:
    raise AssertionError(reason)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (what is waited for is a counter, not an event)
            await asyncio.sleep(0.001)
