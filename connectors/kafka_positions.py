"""Each route's position in a compacted topic, written in the transaction of the rows that it speaks of.

Design note. Key `gateway/lane`, value the lane's position; partition 0 only, so that a partition added later hides
nothing. A record rather than a consumer group's offset: those expire (`offsets.retention.minutes`, 7 days).

Who reads asks first that its own producer is started: that ends what a predecessor left open, so every record of ours
is decided. Those of other gateways need not be, and a consumer with read_committed would see nothing behind the first
open one, a position of ours that is older than the newest: rows twice. So the log is read as it is, and decided here.
Every transaction of ours writes one record here, and its marker follows in the same partition:

- COMMIT makes the newest undecided record of that producer id a position, ABORT drops it;
- an undecided record that a newer one of the same producer follows was committed: the log cleaner removes markers a
  day later (`delete.retention.ms`), but those of an aborted record not before the record itself;
- for the same reason what has no marker and lies below the last stable offset is committed.

The newest records come first: the last `TAIL_OFFSETS`, then `WIDER` times as many until every key is found. What the
broker cleans is bounded by the topic's `segment.bytes`: the active segment is never cleaned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import (
    LeaderNotAvailableError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.control_record import COMMIT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from connectors.kafka_batches import Part, RecordBatch
from connectors.kafka_session import RETRY_BACKOFF_MS, Session
from pipelines.errors import NotConnected, Permanent

PARTITION = 0
TAIL_OFFSETS = 64
"""Offsets looked at first: a transaction takes two, its record and its marker."""
WIDER = 16
FETCH_BYTES = 2**20
SEGMENT_BYTES = 16 * 2**20
_EARLIEST, _LATEST = -2, -1
_FETCH_WAIT_MS = 10
_READ_UNCOMMITTED = 0
_CLUSTER_DEFAULT = -1


@dataclass(frozen=True, slots=True)
class _Found:
    """A record of the topic; of every producer id, because the next one of that id decides it."""

    offset: int
    key: bytes
    position: bytes


def position_part(topic: str, key: bytes, position: bytes, time_ms: int) -> Part:
    """The record to send in the same transaction as its rows."""
    batch = RecordBatch(0, transactional=True)  # takes one record of any size
    batch.extend(0, [time_ms], [key], [position], [])
    return Part(topic, PARTITION, 0, batch)


async def find_position_topic(session: Session, topic: str) -> None:
    """Makes the topic, compacted, where it is absent. Permanent where it is and the user may not make it.

    Asked in a way that lets no broker make one by itself: that would not be compacted.
    """
    async with session.bounded():
        client = session.client
        asked = MetadataRequest([topic], allow_auto_topic_creation=False)
        answer = await client.send(client.get_random_node(), asked)
        error = for_code(answer.topics[0][0])
        if error is UnknownTopicOrPartitionError:
            await _make(session, topic)
        elif error not in (NoError, LeaderNotAvailableError):
            raise error(topic)
    await session.find_topic(topic)


async def read_positions(session: Session, topic: str, keys: Collection[bytes]) -> dict[bytes, bytes]:
    """Key -> the newest committed position, of those that there are. NotConnected where it takes too long."""
    async with session.bounded():
        first, end = await _offset(session, topic, _EARLIEST), await _offset(session, topic, _LATEST)
        wanted, tail = set(keys), TAIL_OFFSETS
        while True:
            start = max(first, end - tail)
            found = await _scan(session, topic, start, end, wanted)
            if len(found) == len(wanted) or start == first:
                return found
            tail *= WIDER


async def _make(session: Session, topic: str) -> None:
    client = session.client
    config = [("cleanup.policy", "compact"), ("segment.bytes", str(SEGMENT_BYTES))]
    wanted: tuple[Any, ...] = (topic, PARTITION + 1, _CLUSTER_DEFAULT, [], config)
    node = client.cluster.controller.nodeId if client.cluster.controller else client.get_random_node()
    answer = await client.send(node, CreateTopicsRequest([wanted], client._request_timeout_ms, False))
    code, message = answer.topic_errors[0][1], (*answer.topic_errors[0], None)[2]
    error = for_code(code)
    if error not in (NoError, TopicAlreadyExistsError):
        how = f"--partitions 1 --config cleanup.policy=compact --config segment.bytes={SEGMENT_BYTES}"
        raise Permanent(
            f"Kafka at {session.servers}: position_topic {topic} is not there and cannot be made "
            f"({message or error()}): create it (kafka-topics.sh --create --topic {topic} {how})"
        )


async def _scan(session: Session, topic: str, start: int, end: int, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The newest position of each key between two offsets."""
    positions: dict[bytes, _Found] = {}
    undecided: dict[int, _Found] = {}

    def commit(found: _Found | None) -> None:
        if found and found.key in wanted and (found.key not in positions or positions[found.key].offset < found.offset):
            positions[found.key] = found

    while True:  # also where nothing is there: a user that may not read learns it now
        asked = [(topic, [(PARTITION, start, FETCH_BYTES)])]
        request = FetchRequest(_FETCH_WAIT_MS, 1, FETCH_BYTES, _READ_UNCOMMITTED, asked)
        answer = await _ask_leader(session, topic, request)
        stable = answer[3]
        for batch in _batches(answer[-1]):
            producer = batch.producer_id
            if batch.is_control_batch:
                found = undecided.pop(producer, None)
                if ControlRecord.parse(next(batch).key) == COMMIT_MARKER:
                    commit(found)
            else:
                for record in batch:
                    commit(undecided.pop(producer, None))
                    undecided[producer] = _Found(record.offset, record.key or b"", record.value or b"")
            start = batch.next_offset
        if start >= end:
            break
        await asyncio.sleep(0)
    for found in undecided.values():
        if found.offset < stable:
            commit(found)
        elif found.key in wanted:
            raise NotConnected(
                f"Kafka at {session.servers}: {topic} holds an open transaction of {found.key.decode()}: does another "
                "gateway run with the same gateway.id?"
            )
    return {key: found.position for key, found in positions.items()}


def _batches(data: bytes) -> Iterator[Any]:
    records = MemoryRecords(data or b"")
    while records.has_next():
        yield records.next_batch()


async def _offset(session: Session, topic: str, which: int) -> int:
    """The first offset of the log, or the one behind the last that all replicas have."""
    asked = [(topic, [(PARTITION, which)])]
    answer = await _ask_leader(session, topic, OffsetRequest(-1, _READ_UNCOMMITTED, asked))
    offset: int = answer[3]
    return offset


async def _ask_leader(session: Session, topic: str, request: Any) -> Any:
    """The answer about the one partition. KafkaError where waiting for a leader does not help."""
    client = session.client
    while True:
        leader = client.cluster.leader_for_partition(TopicPartition(topic, PARTITION))
        if leader is not None and leader >= 0:
            answer = (await client.send(leader, request)).topics[0][1][0]
            error = for_code(answer[1])
            if error is NoError:
                return answer
            if error is TopicAuthorizationFailedError or not error.retriable:
                raise error(topic)
        await client.force_metadata_update()
        await asyncio.sleep(RETRY_BACKOFF_MS / 1000)
