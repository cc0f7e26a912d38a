"""10,000 tags at 10 Hz for minutes, MQTT and Kafka both up: resident memory stays flat and small.

    python -m benchmarks.soak_memory [--seconds 300]

The server is Eclipse Milo. Resident size is read each second; the first minute does not count. The reference is a
Python process that has imported what the gateway imports and does nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Final

from benchmarks.measure import Bar, Figure, in_child, report
from benchmarks.runtime import GatewayProcess, kafka, mqtt, opcua
from benchmarks.subscriber import Subscriber
from tests.services.kafka import Kafka
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto

GROUP: Final = Group("v", "double", 10_000, 100)
TOPIC: Final = "ot.samples"
SMALL_TOPIC: Final = {"retention.bytes": "200000000", "segment.bytes": "50000000"}
WARM_UP_S: Final = 60
MB: Final = 1e6


def main() -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=300)
    seconds: int = parser.parse_args().seconds
    if seconds <= WARM_UP_S:
        parser.error(f"--seconds: the first {WARM_UP_S} do not count")
    options = {"log.retention.check.interval.ms": "2000"}
    with Milo([GROUP]) as server, Mosquitto() as broker, Kafka(options=options) as cluster:
        asyncio.run(cluster.create_topic(TOPIC, config=SMALL_TOPIC))
        server.go()
        device = opcua(server.url, GROUP.node_ids(), GROUP.period_ms)
        targets = {"live": mqtt(broker.url), "history": kafka(cluster.bootstrap, topic=TOPIC)}
        with Subscriber(broker.port, "drain"), GatewayProcess([device], targets) as gateway:
            gateway.wait_delivering(2 * GROUP.count)
            begin = gateway.reading()
            resident = _sampled(gateway, seconds)
            end, metrics = gateway.reading(), gateway.metrics()
    dropped = sum(value for name, value in metrics.items() if name.startswith("gateway_lane_dropped_rows_total"))
    rate = (end.rows - begin.rows) / (end.at_s - begin.at_s)
    return report(f"Memory, {seconds} s", _figures(resident[WARM_UP_S:], rate, dropped, in_child(imported_bytes)))


def imported_bytes() -> int:
    """Resident size of a process with the gateway's modules and libraries."""
    for module in ("gateway.build", "connectors.opcua", "connectors.mqtt", "connectors.kafka"):
        import_module(module)
    return _resident_bytes("self")


def _sampled(gateway: GatewayProcess, seconds: int) -> list[int]:
    resident = []
    for _ in range(seconds):
        time.sleep(1.0)
        resident.append(_resident_bytes(gateway.process.pid))
    return resident


def _resident_bytes(pid: int | str) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def _figures(resident: list[int], rate: float, dropped: float, imported: int) -> list[Figure]:
    growth = (max(resident) / resident[0] - 1) * 100
    spread = (max(resident) - min(resident)) / resident[0] * 100
    return [
        Figure("largest resident size", "MB", [max(resident) / MB], [imported / MB], Bar("at most", 150.0),
               remark="reference: the same modules imported, nothing running"),
        Figure("largest over that after a minute", "%", [growth], (), Bar("at most", 5.0)),
        Figure("largest less smallest", "%", [spread], (), Bar("at most", 5.0)),
        Figure("rows delivered, both sinks", "rows/s", [rate], [2 * GROUP.count * 1000 / GROUP.period_ms],
               Bar("at least", 0.98, "ratio"), True, remark="reference: what the server makes, twice"),
        Figure("rows dropped", "rows", [dropped], (), Bar("at most", 0)),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
