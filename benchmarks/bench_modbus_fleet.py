"""200 Modbus devices, 100 registers each every 100 ms, in one process: CPU and how regular the polls are.

The devices are one raw server in a process of its own (`fleet_server`), which measures how regularly requests come. The
reference is pymodbus' own client, one a device, on absolute schedules as well. Twenty dead devices accept their
connection and never answer; what counts then are the others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from benchmarks.fleet_server import DEAD_FROM, PERIOD_S, REGISTERS
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from connectors.modbus import ModbusSource
from connectors.modbus_settings import ModbusDevice
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected
from pipelines.tags import TagTable
from tests.services.ports import HOST, free_port
from tests.services.process import ServerProcess

DEVICES: Final = 200
DEAD: Final = 20
SECONDS: Final = 5.0
SETTLE_S: Final = 3.0
BACK_OFF_S: Final = 5.0
CPU_BAR: Final = Bar("at most", 40.0)
JITTER_BAR: Final = Bar("at most", 5.0)


def main() -> int:
    """Prints the table; the exit code."""
    with Fleet() as fleet:
        alive, stock, with_dead = by_turns(
            ROUNDS,
            lambda: fleet.measure(ours, DEVICES, 0),
            lambda: fleet.measure(reference, DEVICES, 0),
            lambda: fleet.measure(ours, DEVICES - DEAD, DEAD),
        )
    name = f"{DEVICES} devices"
    figures = [
        Figure(
            f"{name}: CPU",
            "% of a core",
            [round_["cpu"] for round_ in alive],
            [round_["cpu"] for round_ in stock],
            CPU_BAR,
            remark=_remark(alive),
        ),
        Figure(
            f"{name}: poll jitter p99",
            "ms",
            [round_["jitter_ms"] for round_ in alive],
            [round_["jitter_ms"] for round_ in stock],
            JITTER_BAR,
            remark="reference: " + _remark(stock),
        ),
        Figure(
            f"{DEAD} of them dead: CPU",
            "% of a core",
            [round_["cpu"] for round_ in with_dead],
            [round_["cpu"] for round_ in alive],
            remark="reference: none dead; " + _remark(with_dead),
        ),
        Figure(
            f"{DEAD} of them dead: poll jitter p99",
            "ms",
            [round_["jitter_ms"] for round_ in with_dead],
            [round_["jitter_ms"] for round_ in alive],
            JITTER_BAR,
        ),
    ]
    return report(f"Modbus, {DEVICES} devices of {REGISTERS} registers every {PERIOD_S * 1e3:g} ms", figures)


def _remark(rounds: list[dict[str, float]]) -> str:
    asked = ", ".join(f"{found['requests']:,.0f}" for found in rounds)
    return f"{asked} requests/s came, {', '.join(str(found['missed']) for found in rounds)} polls did not"


class Fleet:
    """The server; `with Fleet() as fleet:`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mec-bench-")
        self._port = free_port()
        argv = [sys.executable, "-m", "benchmarks.fleet_server", str(self._port)]
        self._process = ServerProcess("fleet", argv, Path(self._folder.name) / "log", {"PYTHONPATH": str(Path.cwd())})

    def __enter__(self) -> Self:
        self._process.start()
        self._process.wait_line("^ready$", 30.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop()
        self._folder.cleanup()

    def measure(self, poll: Callable[[int, int, int, float], float], alive: int, dead: int) -> dict[str, float]:
        """CPU in % of a core, and what the server saw."""
        cpu = in_child(poll, self._port, alive, dead, SECONDS)
        seen = self._process.ask(str(SECONDS), r"^\{.*\}$", 30.0)
        found: dict[str, float] = json.loads(seen[0])
        return found | {"cpu": cpu}


def ours(port: int, alive: int, dead: int, seconds: float) -> float:
    """The sources, read as the gateway does, and connected again after a while where that ends."""
    tags = {f"r{register}": f"holding {register} int16" for register in range(REGISTERS)}
    table = TagTable()

    def source(number: int, unit: int) -> ModbusSource:
        settings = ModbusDevice.model_validate(
            {"modbus": f"tcp://{HOST}:{port}/{unit}", "every": "100ms", "tags": tags}
        )
        return ModbusSource(f"d{number}", number, settings, table, SystemClock(), Path(tempfile.gettempdir()))

    async def poll(source: ModbusSource) -> None:
        try:
            while True:
                try:
                    await source.connect([])
                    while True:
                        source.commit((await source.read()).number)
                except NotConnected:
                    await source.close()
                    await asyncio.sleep(BACK_OFF_S)
        finally:
            await source.close()

    logging.disable(logging.WARNING)  # the dead say so
    sources = [source(number, unit) for number, unit in enumerate(_units(alive, dead))]
    return on_loop(_measured([poll(source) for source in sources], seconds))


def reference(port: int, alive: int, dead: int, seconds: float) -> float:
    """pymodbus as its manual shows it. It takes a cancellation for a failed request, so it ends by the clock."""

    async def poll(unit: int) -> None:
        client = AsyncModbusTcpClient(HOST, port=port)
        await client.connect()
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        end_s = due_s + SETTLE_S + seconds
        while due_s < end_s:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            due_s += PERIOD_S
            try:
                found = await client.read_holding_registers(0, count=REGISTERS, device_id=unit)
            except ModbusException:
                continue
            assert found.isError() or len(found.registers) == REGISTERS
        client.close()

    logging.disable(logging.CRITICAL)
    return on_loop(_measured([poll(unit) for unit in _units(alive, dead)], seconds))


def _units(alive: int, dead: int) -> list[int]:
    return [1 + number % (DEAD_FROM - 1) for number in range(alive)] + [DEAD_FROM] * dead


async def _measured(polls: list[Coroutine[Any, Any, None]], seconds: float) -> float:
    """CPU in % of a core while they run, after a time to settle."""
    tasks: list[Awaitable[None]] = [asyncio.ensure_future(poll) for poll in polls]
    await asyncio.sleep(SETTLE_S)
    cpu_s, begun_s = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu = (time.process_time() - cpu_s) / (time.monotonic() - begun_s) * 100
    for task in tasks:
        task.cancel()  # type: ignore[attr-defined]
    await asyncio.gather(*tasks, return_exceptions=True)
    return cpu


if __name__ == "__main__":
    sys.exit(main())
