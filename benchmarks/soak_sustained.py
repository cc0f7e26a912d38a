"""100,000 values/s from a foreign OPC UA server to MQTT JSON, for minutes: everything delivered, and in time.

    python -m benchmarks.soak_sustained [--seconds 300]

Eclipse Milo, 10,000 Doubles every 100 ms; Mosquitto, QoS 1; server, broker, gateway and subscriber share the machine.
Delivered means: the subscriber has 10,000 samples of every tick that the server made, and no message twice. Latency is
source time to subscriber. The reference is the server's own share: a tick waits up to a publishing interval for the
next publishing, so half of the values wait longer than half of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from benchmarks.measure import Bar, Figure, report
from benchmarks.runtime import ROUTE, GatewayProcess, Reading, mqtt, opcua
from benchmarks.subscriber import Seen, Subscriber
from tests.services.milo import Group, Milo, Started
from tests.services.mosquitto import Mosquitto

GROUP: Final = Group("v", "double", 10_000, 100)
DRAIN_S: Final = 20.0
LATENCY_BAR: Final = Bar("at most", 2.0 * GROUP.period_ms)
NOTHING: Final = Bar("at most", 0)


def main() -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=300)
    seconds: int = parser.parse_args().seconds
    ticks = seconds * 1000 // GROUP.period_ms
    with Milo([GROUP], ticks=ticks) as server, Mosquitto() as broker, Subscriber(broker.port, "check") as subscriber:
        device = opcua(server.url, GROUP.node_ids(), GROUP.period_ms)
        with GatewayProcess([device], {ROUTE: mqtt(broker.url)}) as gateway:
            gateway.wait_delivering(GROUP.count)
            begin = gateway.reading()
            started = server.go()[GROUP.prefix]
            server.wait_finished(seconds * 2.0)
            _drained(gateway, (ticks + 1) * GROUP.count)
            end, metrics = gateway.reading(), gateway.metrics()
        figures = _figures(subscriber.seen(), started, ticks, begin, end)
    figures.append(Figure("of it in the gateway and to the PUBACK, p99", "ms", [_received_to_ack_ms(metrics, 0.99)]))
    for name, value in sorted(metrics.items()):
        if any(word in name for word in ("overflow", "dropped", "missed", "undecodable")):
            print(f"  {name} {value:g}")
    return report(f"100,000 values/s for {seconds} s", figures)


def _drained(gateway: GatewayProcess, rows: int) -> None:
    """Returns when everything is delivered, or after a while in which it should have been."""
    deadline_s = time.monotonic() + DRAIN_S
    while gateway.reading().rows < rows and time.monotonic() < deadline_s:
        time.sleep(0.5)


def _received_to_ack_ms(metrics: dict[str, float], quantile: float) -> float:
    """Upper bound of the histogram's bucket that holds the quantile of all batches."""
    bucket = "gateway_pump_received_to_ack_seconds_bucket"
    found = {float(name.split('le="')[1].split('"')[0]): n for name, n in metrics.items() if name.startswith(bucket)}
    return min(le for le, batches in found.items() if batches >= quantile * max(found.values())) * 1e3


def _figures(seen: Seen, started: Started, ticks: int, begin: Reading, end: Reading) -> list[Figure]:
    """`seen` also holds the values of tick 0, which are older than the run: they are not late."""
    due = [started.source_ns(started.first_tick + tick, GROUP.period_ms) // 1000 for tick in range(ticks)]
    short = sum(max(GROUP.count - seen.times.get(t_us, 0), 0) for t_us in due)
    twice = sum(max(seen.times.get(t_us, 0) - GROUP.count, 0) for t_us in due)
    us_per_row = (end.cpu_s - begin.cpu_s) / (end.rows - begin.rows) * 1e6
    return [
        Figure("values missing", "values", [short], (), NOTHING, remark=f"of {ticks * GROUP.count:,}"),
        Figure("values twice", "values", [twice], (), NOTHING),
        Figure("messages missing or twice", "messages", [seen.missing_messages + seen.repeated_messages], (), NOTHING),
        Figure("latency p99", "ms", [seen.latency_ms(0.99)], (), LATENCY_BAR),
        Figure(
            "latency p50", "ms", [seen.latency_ms(0.5)], [GROUP.period_ms / 2], remark="reference: the server's wait"
        ),
        Figure("CPU of the gateway", "us/value", [us_per_row]),
    ]


if __name__ == "__main__":
    sys.exit(main())
