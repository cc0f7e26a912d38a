"""OPC UA receive path at 50,000 values/s: `OpcUaSource.read` against asyncua's own subscription handler.

The server is a foreign one (Eclipse Milo), 5,000 Doubles every 100 ms. asyncua saturates below that rate and loses
values; its figure is per value that it received.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import stock
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import SystemClock
from pipelines.tags import TagTable
from tests.services.milo import Group, Milo

GROUP: Final = Group("v", "double", 5_000, 100)
RATE: Final = GROUP.count * 1000 / GROUP.period_ms
SECONDS: Final = 4.0
SETTLE_S: Final = 1.5
BAR: Final = Bar("at most", 1 / 30, "ratio")


def main() -> int:
    """Prints the table; the exit code."""
    with Milo([GROUP]) as server:
        server.go()
        rounds, reference = by_turns(
            ROUNDS,
            lambda: in_child(ours, server.url, SECONDS),
            lambda: in_child(stock.opcua_handler, server.url, GROUP.node_ids(), GROUP.period_ms, SECONDS),
        )
    figure = Figure("OPC UA to columns", "us/value", rounds, reference, BAR, remark="reference: asyncua's handler")
    return report("OPC UA receive path at 50,000 values/s", [figure])


def ours(url: str, seconds: float) -> float:
    """CPU us per value. RuntimeError when the values come slower than the server makes them."""
    device = {
        "opcua": url,
        "security": "none",
        "every": f"{GROUP.period_ms}ms",
        "sampling": 0,
        "tags": {node.partition("s=")[2]: node for node in GROUP.node_ids()},
    }
    with tempfile.TemporaryDirectory(prefix="mec-bench-") as folder:
        settings = OpcUaDevice.model_validate(device)
        source = OpcUaSource("machine", 0, settings, TagTable(), SystemClock(), Path(folder))
        return on_loop(_receive(source, seconds))


async def _receive(source: OpcUaSource, seconds: float) -> float:
    await source.connect([])
    await _rows(source, SETTLE_S)
    cpu_s = time.process_time()
    rows = await _rows(source, seconds)
    cpu_s = time.process_time() - cpu_s
    await source.close()
    if rows < 0.9 * seconds * RATE:
        raise RuntimeError(f"{rows / seconds:,.0f} values/s came where the server makes {RATE:,.0f}")
    return cpu_s / rows * 1e6


async def _rows(source: OpcUaSource, seconds: float) -> int:
    """Reads and acknowledges for so long; the number of values."""
    rows = 0
    async with asyncio.timeout(seconds + 10):
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            batch = await source.read()
            rows += len(batch)
            source.commit(batch.number)
    return rows


if __name__ == "__main__":
    sys.exit(main())
