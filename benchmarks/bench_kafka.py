"""Kafka, one record per sample: `KafkaSink.write` of 1,000-row batches against aiokafka's `send`; what exactly-once
adds to it, by the records in a transaction; and the whole path.

The broker is Apache Kafka. The whole path is OPC UA -> Kafka in the gateway as users run it, 50,000 values/s from a
foreign server (Eclipse Milo).
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from benchmarks import rows, stock
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from benchmarks.runtime import GATEWAY, ROUTE, SITE, GatewayProcess, kafka, opcua
from connectors.kafka import KafkaSink
from connectors.kafka_settings import KafkaTarget
from connectors.payload import Identity
from pipelines.clock import SystemClock
from tests.services.kafka import Kafka
from tests.services.milo import Group, Milo

GROUP: Final = Group("v", "double", 1_000, 20)
TOPIC: Final = "ot.samples"
SMALL_TOPIC: Final = {"retention.bytes": "100000000", "segment.bytes": "50000000"}
SECONDS: Final = 3.0
BAR: Final = Bar("at least", 100_000)
ADDED_BAR: Final = Bar("at most", 3.0)
LESS_BAR: Final = Bar("at most", 1.0, "ratio")


def main() -> int:
    """Prints the table; the exit code."""
    with Kafka(options={"log.retention.check.interval.ms": "2000"}) as broker, Milo([GROUP]) as server:
        asyncio.run(broker.create_topic(TOPIC, config=SMALL_TOPIC))
        server.go()
        found, reference, added, added_5, whole = by_turns(
            ROUNDS,
            lambda: in_child(ours, broker.bootstrap, SECONDS, "at-least-once", 1),
            lambda: in_child(stock.kafka_records, broker.bootstrap, TOPIC, SECONDS),
            lambda: _added(broker, 1),
            lambda: _added(broker, 5),
            lambda: _whole_path(broker, server),
        )
    remark = "reference: at 1,000"
    figures = [
        Figure("sink alone", "records/CPU s", found, reference, BAR, True, remark="reference: aiokafka, send()"),
        Figure("exactly-once adds at 1,000", "us CPU/record", added, bar=ADDED_BAR, remark="to plain idempotent"),
        Figure("exactly-once adds at 5,000", "us CPU/record", added_5, added, LESS_BAR, remark=remark),
        Figure("whole path from OPC UA", "records/CPU s", whole, reference, BAR, True, remark="the same reference"),
    ]
    return report("Kafka, one record per sample", figures)


def ours(bootstrap: str, seconds: float, delivery: str, batches: int) -> float:
    """Records per CPU second, with so many thousand in a write."""
    keys = {"kafka": bootstrap, "topic": TOPIC, "records": "sample", "delivery": delivery}
    settings = KafkaTarget.model_validate(keys)
    sink = KafkaSink("kafka", settings, Identity(GATEWAY, SITE), rows.tag_table(), SystemClock(), [rows.LANE])
    return on_loop(rows.rows_per_cpu_second(sink, seconds, batches))


def _added(broker: Kafka, batches: int) -> float:
    """CPU us per record that exactly-once takes more than the idempotent producer, one after the other."""
    once = in_child(ours, broker.bootstrap, SECONDS, "exactly-once", batches)
    idempotent = in_child(ours, broker.bootstrap, SECONDS, "at-least-once", batches)
    return (1 / once - 1 / idempotent) * 1e6


def _whole_path(broker: Kafka, server: Milo) -> float:
    device = opcua(server.url, GROUP.node_ids(), GROUP.period_ms)
    with GatewayProcess([device], {ROUTE: kafka(broker.bootstrap, topic=TOPIC, records="sample")}) as gateway:
        gateway.wait_delivering(GROUP.count)
        return 1e6 / gateway.us_per_row(SECONDS)


if __name__ == "__main__":
    sys.exit(main())
