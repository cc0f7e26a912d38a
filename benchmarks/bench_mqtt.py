"""MQTT, one topic per tag: `MqttSink.write` of 1,000-row batches in the default JSON, against paho's `publish`.

The broker is Mosquitto with a subscriber that reads everything. QoS 1 counts by PUBACKs, QoS 0 by the broker's answer
to a ping behind the messages (ours) or by paho's word that it has sent them.
"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks import rows, stock
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from benchmarks.runtime import GATEWAY, PER_TAG, SITE
from benchmarks.subscriber import Subscriber
from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from pipelines.clock import SystemClock
from tests.services.mosquitto import Mosquitto

SECONDS: Final = 3.0
BARS: Final = {0: Bar("at least", 100_000), 1: Bar("at least", 25_000)}


def main() -> int:
    """Prints the table; the exit code."""
    with Mosquitto() as broker, Subscriber(broker.port, "drain"):
        figures = [_figure(broker, qos, bar) for qos, bar in BARS.items()]
    return report("MQTT, one topic per tag", figures)


def ours(url: str, qos: int, seconds: float) -> float:
    """Messages per CPU second."""
    settings = MqttTarget.model_validate({"mqtt": url, "topic": PER_TAG, "qos": qos})
    sink = MqttSink("broker", settings, Identity(GATEWAY, SITE), rows.tag_table(), SystemClock())
    return on_loop(rows.rows_per_cpu_second(sink, seconds))


def _figure(broker: Mosquitto, qos: int, bar: Bar) -> Figure:
    found, reference = by_turns(
        ROUNDS,
        lambda: in_child(ours, broker.url, qos, SECONDS),
        lambda: in_child(stock.mqtt_messages, broker.port, qos, SECONDS),
    )
    return Figure(f"QoS {qos}", "messages/CPU s", found, reference, bar, True, remark="reference: paho, loop_start")


if __name__ == "__main__":
    sys.exit(main())
