"""Modbus, blocks of 100 registers: request to columns against bare pymodbus, and the whole path to MQTT JSON.

The server is a foreign one (libmodbus, C). Request to columns is a request on the link and the decoding of its reply,
back to back; `read()` is the source's whole poll cycle around it. The whole path is the gateway as users run it, 50,000
registers/s at QoS 1: a device of ten blocks every 20 ms, which the bar is for, one request at a time and with four
outstanding; and a device of one block every 2 ms, where nothing is shared between blocks: each is a poll cycle, an MQTT
message and five wake-ups of its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import stock
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from benchmarks.runtime import ROUTE, GatewayProcess, modbus, mqtt
from benchmarks.subscriber import Subscriber
from connectors.modbus import ModbusSource
from connectors.modbus_decode import Layout
from connectors.modbus_frames import query
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import plan
from connectors.modbus_settings import ModbusDevice
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from pipelines.tags import TagTable
from tests.services.libmodbus import LibmodbusServer
from tests.services.mosquitto import Mosquitto

REGISTERS: Final = 100
SECONDS: Final = 3.0
SHORT_ROUNDS: Final = 10
SHORT_S: Final = 1.0
"""An exchange is two wake-ups and little else: which cores the two processes have decides as much as their code, and
changes from round to round."""
BLOCK_BAR: Final = Bar("at most", 0.6, "ratio")
REGISTER_BAR: Final = Bar("at most", 2.0)


def main() -> int:
    """Prints the table; the exit code."""
    with LibmodbusServer() as server, Mosquitto() as broker, Subscriber(broker.port, "drain"):
        rounds, reference = by_turns(
            SHORT_ROUNDS,
            lambda: in_child(ours, server.url, SHORT_S),
            lambda: in_child(stock.modbus_blocks, server.port, REGISTERS, SHORT_S),
        )
        [whole] = by_turns(SHORT_ROUNDS, lambda: in_child(cycles, server.url, SHORT_S))
        figures = [
            Figure("request to columns", "us/block", rounds, reference, BLOCK_BAR, remark="reference: bare pymodbus"),
            Figure("read(): a poll cycle", "us/block", whole, reference),
            _whole_path(server, broker, blocks=10, every_ms=20, bar=REGISTER_BAR),
            _whole_path(server, broker, blocks=10, every_ms=20, bar=REGISTER_BAR, pipeline=4),
            _whole_path(server, broker, blocks=1, every_ms=2, bar=None),
        ]
    return report("Modbus, blocks of 100 registers", figures)


def ours(url: str, seconds: float) -> float:
    """CPU us per block, as columns."""
    return on_loop(_requests(_settings(url), seconds))


def cycles(url: str, seconds: float) -> float:
    """CPU us per block, as batches. The period is shorter than an exchange, so that nothing waits."""
    with tempfile.TemporaryDirectory(prefix="mec-bench-") as folder:
        source = ModbusSource("machine", 0, _settings(url), TagTable(), SystemClock(), Path(folder))
        return on_loop(_read(source, seconds))


def _settings(url: str) -> ModbusDevice:
    tags = {f"r{register}": f"holding {register} int16" for register in range(REGISTERS)}
    return ModbusDevice.model_validate({"modbus": f"{url}/1", "every": "1us", "tags": tags})


async def _requests(settings: ModbusDevice, seconds: float) -> float:
    [points] = settings.points().values()
    blocks = plan(points, settings.max_gap, settings.max_block)
    layout, requests = Layout(blocks), [query(settings.url, block) for block in blocks]
    link = ModbusLink(settings.url, settings.timeout, SystemClock(), Counters("source", "machine"))
    await link.connect()
    done, cpu_s, deadline_s = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        [reply] = await link.read(requests)
        values = layout.decode([reply.data]).value
        assert len(values) == REGISTERS
        done += 1
    cpu_s = time.process_time() - cpu_s
    await link.close()
    return cpu_s / done * 1e6


async def _read(source: ModbusSource, seconds: float) -> float:
    await source.connect([])
    done, cpu_s, deadline_s = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        batch = await source.read()
        assert len(batch) == REGISTERS
        assert not source.faults
        source.commit(batch.number)
        done += 1
    cpu_s = time.process_time() - cpu_s
    await source.close()
    return cpu_s / done * 1e6


def _whole_path(
    server: LibmodbusServer, broker: Mosquitto, *, blocks: int, every_ms: int, bar: Bar | None, pipeline: int = 1
) -> Figure:
    rounds, reference = by_turns(
        ROUNDS,
        _gateway(server, broker, blocks, every_ms, pipeline),
        lambda: in_child(stock.modbus_to_mqtt, server.port, REGISTERS, 2, broker.port, SECONDS),
    )
    name = f"to MQTT JSON, {blocks} blocks every {every_ms} ms" + (f", pipeline {pipeline}" if pipeline > 1 else "")
    return Figure(name, "us/register", rounds, reference, bar, remark="best peer 7; reference: pymodbus, paho")


def _gateway(
    server: LibmodbusServer, broker: Mosquitto, blocks: int, every_ms: int, pipeline: int
) -> Callable[[], float]:
    def measure() -> float:
        machine = modbus(server.url, every_ms, blocks * REGISTERS, pipeline=pipeline)
        with GatewayProcess([machine], {ROUTE: mqtt(broker.url)}) as gateway:
            gateway.wait_delivering(blocks * REGISTERS)
            return gateway.us_per_row(SECONDS)

    return measure


if __name__ == "__main__":
    sys.exit(main())
