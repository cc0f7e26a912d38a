"""What the tests of the Kafka sink share: batches that count up, sinks that write them, kcat that reads them back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.kafka import KafkaSink
from connectors.kafka_settings import KafkaTarget
from connectors.payload import Identity
from pipelines.batch import Batch, BatchBuilder, Kind
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected
from pipelines.tags import Tag, TagTable
from tests.services.packages import program

DEADLINE_S = 120.0
LANE = "history"
START_NS = (time.time_ns() // 1_000_000 - 3_600_000) * 1_000_000
"""An hour ago: not in a broker's future, and not so old that it forgets the producer (`producer.id.expiration.ms`)."""


@dataclass(frozen=True)
class Record:
    """What a consumer sees."""

    partition: int
    time_ms: int
    key: str
    headers: str
    payload: bytes


def read_topic(bootstrap: str, topic: str) -> list[Record]:
    """All committed records of a topic, each partition's in its order."""
    form = f"{'<|>'.join(('%p', '%T', '%k', '%h', '%s'))}<end>"
    isolation = ["-X", "isolation.level=read_committed"]
    argv = [program("kcat", "kcat"), "-C", "-b", bootstrap, "-t", topic, "-o", "beginning", "-e", "-q", "-f", form]
    done = subprocess.run([*argv, *isolation], capture_output=True, check=True, timeout=DEADLINE_S)
    rows = [row.split(b"<|>") for row in done.stdout.split(b"<end>")[:-1]]
    return [Record(int(row[0]), int(row[1]), row[2].decode(), row[3].decode(), row[4]) for row in rows]


class Plant:
    """A tag table, and batches with values that count up over all of them."""

    def __init__(self, devices: int = 3, tags: int = 4) -> None:
        self.tags = TagTable()
        self._devices = [
            [self.tags.add(Tag(f"press{device}", f"tag{tag}")) for tag in range(tags)] for device in range(devices)
        ]
        self.rows = 0
        self._batches = 0

    def batch(self, rows: int = 8) -> Batch:
        """One device's rows; the devices take turns."""
        ids = self._devices[self._batches % len(self._devices)]
        builder = BatchBuilder()
        for row in range(rows):
            number = self.rows + row
            builder.add(ids[row % len(ids)], START_NS + number * 1_000_000, number, Kind.INT64)
        self.rows += rows
        self._batches += 1
        return _numbered(builder, self._batches)

    def text(self, *values: str) -> Batch:
        """One batch of texts."""
        builder = BatchBuilder()
        for value in values:
            builder.add(0, START_NS, value, Kind.STRING)
        return _numbered(builder, 0)


def _numbered(builder: BatchBuilder, number: int) -> Batch:
    batch = builder.build(0, number, START_NS + 10**15)
    object.__setattr__(batch, "seq", number)
    return batch


def make_sink(
    plant: Plant, bootstrap: str, topic: str, *, gateway: str = "line1-gw", lanes: Sequence[str] = (LANE,), **keys: Any
) -> KafkaSink:
    """At least once, where `keys` do not say otherwise."""
    usual = {"kafka": bootstrap, "topic": topic, "request_timeout": "20s", "delivery": "at-least-once"}
    target = KafkaTarget.model_validate(usual | keys)
    return KafkaSink("plant-kafka", target, Identity(gateway, "acme/plant1"), plant.tags, SystemClock(), lanes)


async def write(sink: KafkaSink, *batches: Batch) -> None:
    await sink.write(LANE, batches, b"", False)


def numbers(records: Sequence[Record]) -> list[int]:
    """Every value in the records' JSON."""
    return [sample["v"] for record in records for sample in json.loads(record.payload)["samples"]]


async def other_tasks() -> set[asyncio.Task[Any]]:
    """Tasks that do not end by themselves."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=10)
    return left


async def connected(sink: KafkaSink) -> Mapping[str, bytes]:
    """Connects as the supervisor would, again and again."""
    while True:
        try:
            return await sink.connect()
        except NotConnected:
            await asyncio.sleep(0.05)
