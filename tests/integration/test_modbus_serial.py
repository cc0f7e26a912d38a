"""A serial port of this machine: several units at line speed, misbehaviour, a pulled adapter, who else has the port."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serial import serialposix

from connectors.modbus import ModbusSource
from connectors.modbus_serial import open_port
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_url import SerialFormat
from pipelines.batch import GOOD
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected, Permanent
from pipelines.tags import TagTable
from tests.services import libmodbus
from tests.services.libmodbus import LibmodbusRtuServer
from tests.services.serial_bus import MANNERS, SerialBus, register
from tests.services.serial_line import SerialLine

UNITS = (1, 2, 9)
ADDRESSES = (0, 100, 200)
"""Far apart: three requests of one shape, so that each reply looks like the others'."""
TAGS = {f"r{address}": f"holding {address} uint16" for address in ADDRESSES}
TIMEOUT_S = 0.2
RS485 = (serialposix.TIOCGRS485, serialposix.TIOCSRS485)


def source(port: Path, unit: int, tags: dict[str, str], **keys: Any) -> tuple[ModbusSource, TagTable]:
    table = TagTable()
    options = keys.pop("options", "baud=9600&parity=N")
    settings = ModbusDevice.model_validate({"modbus": f"rtu://{port}?{options}/{unit}", "tags": tags, **keys})
    return ModbusSource(f"unit{unit}", unit, settings, table, SystemClock(), Path()), table


class Reader:
    """Reads a unit for as long as it is let, as the supervisor would; every good value must be the register's own."""

    def __init__(self, port: Path, unit: int, **keys: Any) -> None:
        self.good = self.bad = 0
        self.unit = unit
        self.source, self._tags = source(port, unit, TAGS, **keys)

    async def run(self) -> None:
        while True:
            try:
                await self.source.connect([])
                while True:
                    await self._read()
            except NotConnected:
                await self.source.close()

    async def _read(self) -> None:
        batch = await self.source.read()
        for tag, value, status in zip(batch.tag, batch.values(), batch.status, strict=True):
            if status == GOOD:
                assert value == register(self.unit, int(self._tags[tag].name[1:]))
                self.good += 1
            else:
                self.bad += 1


async def read_until(bus: SerialBus, requests: int, **keys: Any) -> list[Reader]:
    """Every unit is read until the bus has heard so many requests."""
    keys = {"every": "20ms", "timeout": f"{TIMEOUT_S * 1e3:g}ms", **keys}
    readers = [Reader(bus.port, unit, **keys) for unit in UNITS]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        async with asyncio.timeout(120):
            while bus.requests < requests:
                await asyncio.sleep(0.02)
                for task in tasks:
                    if task.done():
                        task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for reader in readers:
            await reader.source.close()
    return readers


def mostly_right(seed: int) -> Callable[[int], str]:
    """Two thirds of the answers are right, the others are wrong in all ways."""
    choose = random.Random(seed)
    return lambda _: "right" if choose.random() < 0.65 else choose.choice(MANNERS)


async def test_no_wrong_value_at_9600_baud_whatever_the_line_does(tmp_path: Path) -> None:
    """Noise, wrong CRCs, echoes, cut replies, late ones, other units' ones; three units on one port."""
    with SerialBus(tmp_path, 9600, 1.2 * TIMEOUT_S, mostly_right(11)) as bus:
        readers = await read_until(bus, 250)
    assert set(bus.seen) == set(MANNERS)
    assert all(reader.good > 0 for reader in readers)
    totals = [reader.source.counters.totals for reader in readers]
    assert sum(total["timeouts"] for total in totals) and sum(total["stale_replies"] for total in totals)


async def test_an_echoing_converter_is_seen_through(tmp_path: Path) -> None:
    with SerialBus(tmp_path, 38_400, TIMEOUT_S, lambda _: "right", echo=True) as bus:
        readers = await read_until(bus, 60, echo=True, timeout="10s", options="baud=38400&parity=N")
    assert all(reader.good and not reader.bad for reader in readers)


async def test_units_of_a_port_take_turns(tmp_path: Path) -> None:
    """None of them waits for ever, and all of them share one open port."""
    with SerialBus(tmp_path, 115_200, TIMEOUT_S, lambda _: "right") as bus:
        readers = await read_until(bus, 150, timeout="10s", every="1ms", options="baud=115200&parity=N")
    assert all(reader.good >= 30 for reader in readers)


async def test_a_pulled_adapter_comes_back(libmodbus_rtu_server: LibmodbusRtuServer) -> None:
    line = libmodbus_rtu_server.line
    machine, _ = source(line.gateway_port, 1, {"a": "holding 1 uint16"}, options="parity=N", every="5ms")
    try:
        await machine.connect([])
        await machine.read()
        await asyncio.to_thread(libmodbus_rtu_server.stop)
        with pytest.raises(NotConnected, match=f"rtu://{line.gateway_port}/1: connection lost"):
            while True:
                await machine.read()
        with pytest.raises(NotConnected, match="there is no such port: is the adapter plugged in"):
            await machine.connect([])
        await asyncio.to_thread(libmodbus_rtu_server.start)
        await machine.connect([])
        assert (await machine.read()).values() == [libmodbus.holding(1)]
    finally:
        await machine.close()
        await asyncio.to_thread(libmodbus_rtu_server.restart)


async def test_a_port_in_use_by_another_program_is_one_clear_line(libmodbus_rtu_server: LibmodbusRtuServer) -> None:
    port = libmodbus_rtu_server.line.gateway_port
    machine, _ = source(port, 1, {"a": "holding 1 uint16"}, options="parity=N")
    other = os.open(port, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(NotConnected, match="the port is in use by another program"):
            await machine.connect([])
    finally:
        os.close(other)
    await machine.connect([])
    await machine.close()


async def test_devices_of_a_port_must_agree_on_its_format(libmodbus_rtu_server: LibmodbusRtuServer) -> None:
    port = libmodbus_rtu_server.line.gateway_port
    first, _ = source(port, 1, {"a": "holding 1 uint16"}, options="baud=19200&parity=N")
    second, _ = source(port, 2, {"a": "holding 1 uint16"}, options="baud=9600&parity=N")
    try:
        await first.connect([])
        with pytest.raises(Permanent, match="has this port open with 19200 8N1, this one wants 9600 8N1"):
            await second.connect([])
    finally:
        await first.close()
        await second.close()


async def test_a_unit_that_is_not_there_is_not_connected(libmodbus_rtu_server: LibmodbusRtuServer) -> None:
    """The port opens anyway: so the unit is asked before it counts as connected."""
    port = libmodbus_rtu_server.line.gateway_port
    machine, _ = source(port, 5, {"a": "holding 1 uint16"}, options="parity=N", timeout="300ms")
    with pytest.raises(NotConnected, match=r"/5: no reply within 0.3 s"):
        await machine.connect([])
    await machine.close()


async def test_an_rs485_line_is_switched_by_the_ports_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear line where it cannot, as a pseudo terminal's; where it can, RTS is on while it sends, off after it."""
    line = SerialLine(tmp_path)
    line.plug()
    try:
        held = line.held_open()
        machine, _ = source(line.gateway_port, 1, {"a": "holding 1 uint16"}, options="parity=N&rs485=1")
        with pytest.raises(Permanent, match="the port's driver has no RS-485 mode: write it without `rs485=1`"):
            await machine.connect([])
        await machine.close()
        assert line.held_open() == held
        told, ioctl = [], fcntl.ioctl

        def of_a_uart(fd: int, request: int, argument: Any = 0, *more: Any) -> Any:
            if request == serialposix.TIOCSRS485:
                told.append(argument[0])
            return 0 if request in RS485 else ioctl(fd, request, argument, *more)

        monkeypatch.setattr(fcntl, "ioctl", of_a_uart)
        open_port(str(line.gateway_port), SerialFormat(parity="N", rs485=True)).close()
        assert told[-1] == serialposix.SER_RS485_ENABLED | serialposix.SER_RS485_RTS_ON_SEND
    finally:
        line.pull()
