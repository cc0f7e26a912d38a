"""The whole path OPC UA -> MQTT JSON at QoS 1, in the gateway as users run it.

The server is a foreign one (Eclipse Milo), the broker is Mosquitto with a subscriber that reads everything. Values are
counted by the broker's PUBACKs. The reference, at a rate that it survives, is a script on asyncua's handler and paho.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from benchmarks import stock
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, report
from benchmarks.runtime import PER_DEVICE, PER_TAG, ROUTE, GatewayProcess, mqtt, opcua
from benchmarks.subscriber import Subscriber
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto

FAST: Final = Group("v", "double", 1_000, 20)
MIXED: Final = Group("m", "mixed", 1_900, 100)
SLOW: Final = Group("s", "double", 1_000, 200)
SLOW_MIXED: Final = Group("x", "mixed", 1_900, 400)
SECONDS: Final = 4.0


def main() -> int:
    """Prints the table; the exit code."""
    with Milo([FAST, MIXED, SLOW, SLOW_MIXED]) as server, Mosquitto() as broker, Subscriber(broker.port, "drain"):
        server.go()
        figures = [
            _figure(server, broker, "1,000-value notifications", FAST, SLOW, PER_DEVICE, 2.0, "best peer 21"),
            _figure(server, broker, "one message per tag", FAST, SLOW, PER_TAG, 10.0, "best peer 43"),
            _figure(server, broker, "mixed types", MIXED, SLOW_MIXED, PER_DEVICE, 5.0, "19 types, 100 values each"),
        ]
    return report("OPC UA to MQTT JSON, whole path, QoS 1", figures)


def _figure(
    server: Milo, broker: Mosquitto, name: str, group: Group, slow: Group, topic: str, bar: float, remark: str
) -> Figure:
    rounds, reference = by_turns(ROUNDS, _ours(server, broker, group, topic), _theirs(server, broker, slow, topic))
    return Figure(name, "us/value", rounds, reference, Bar("at most", bar), remark=remark)


def _ours(server: Milo, broker: Mosquitto, group: Group, topic: str) -> Callable[[], float]:
    def measure() -> float:
        device = opcua(server.url, group.node_ids(), group.period_ms)
        with GatewayProcess([device], {ROUTE: mqtt(broker.url, topic=topic)}) as gateway:
            gateway.wait_delivering(group.count)
            return gateway.us_per_row(SECONDS)

    return measure


def _theirs(server: Milo, broker: Mosquitto, group: Group, topic: str) -> Callable[[], float]:
    nodes, every_ms, per_tag = group.node_ids(), group.period_ms, topic == PER_TAG
    return lambda: in_child(stock.opcua_to_mqtt, server.url, nodes, every_ms, broker.port, per_tag, SECONDS)


if __name__ == "__main__":
    sys.exit(main())
