"""Exactly-once to a real broker: whatever dies, a consumer of committed records (kcat) sees every row once, in order.

The lane outlives the sink, as a disk lane outlives the gateway: what was written and not committed is read again, but
for what `connect` says was delivered.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import CreateAclsRequest

from connectors import kafka_positions, kafka_session
from connectors.kafka import KafkaSink
from connectors.kafka_session import Session
from pipelines.contracts import Part
from pipelines.errors import Corrupt, GatewayError, NotConnected, Permanent, Rejected
from pipelines.lane_memory import MemoryLane, WhenFull
from tests.integration.kafka_plant import (
    DEADLINE_S,
    LANE,
    Plant,
    connected,
    make_sink,
    numbers,
    other_tasks,
    read_topic,
)
from tests.services.kafka import Kafka
from tests.services.ports import HOST

ROWS_MAX = 400
BATCHES = 500
LIVES = 3
TOPIC, TRANSACTIONAL_ID = 2, 5
LITERAL, PREFIXED = 3, 4
READ, WRITE, CREATE = 3, 4, 5
ALLOW = 3
"""Numbers of Kafka's protocol: ResourceType, PatternType, AclOperation, AclPermissionType."""
Brokers = Callable[..., Kafka]
exactly_once = partial(make_sink, delivery="exactly-once")


class Died(Exception):
    """The process is gone: nobody closes, aborts or answers."""


@dataclass
class Delivery:
    """A lane, and the movements of a pump that writes one span after the other."""

    plant: Plant = field(default_factory=Plant)
    name: str = LANE

    def __post_init__(self) -> None:
        self.lane = MemoryLane(self.name, bytes_max=2**30, when_full=WhenFull.DROP_NEWEST, instance=1)
        self.reader = self.lane.reader(Part.ALL)

    async def fill(self, batches: int, rows: int = 50) -> None:
        for _ in range(batches):
            await self.lane.append(self.plant.batch(rows))

    def restore(self, positions: Mapping[str, bytes]) -> None:
        if self.name in positions:
            self.lane.restore(positions[self.name])
        self.reader.rewind()

    async def write(self, sink: KafkaSink, rows_max: int = ROWS_MAX) -> None:
        async with asyncio.timeout(DEADLINE_S):
            span, batches = await self.reader.read(rows_max)
        with suppress(Rejected):
            await sink.write(self.name, batches, self.lane.position(span), False)
        self.reader.commit(span)

    async def drain(self, sink: KafkaSink) -> None:
        while self.lane.pending_rows:
            await self.write(sink)


async def once_and_in_order(kafka: Kafka, topic: str, plant: Plant) -> None:
    """Every row there, none twice, each device's in its order."""
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, topic)
    assert sorted(numbers(seen)) == list(range(plant.rows))
    for key in {record.key for record in seen}:
        values = numbers([record for record in seen if record.key == key])
        assert values == sorted(values)


@pytest.fixture
async def topic(kafka: Kafka, request: pytest.FixtureRequest) -> str:
    """A topic with three partitions, named like the test."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    await kafka.create_topic(name, partitions=3)
    return name


def transactional(topic: str) -> dict[str, Any]:
    """A position topic of the test's own."""
    return {"position_topic": f"{topic}.positions"}


# --- the producer dies -------------------------------------------------------------------------------------------


async def _after_begin(session: Session, parts: Any) -> None:
    await session._producer.begin_transaction()


async def _while_sending(session: Session, parts: Any) -> None:
    await session._producer.begin_transaction()
    await session.submit(parts)


async def _before_commit(session: Session, parts: Any) -> None:
    await _while_sending(session, parts)
    await asyncio.gather(*session._acks)


async def _while_committing(session: Session, parts: Any) -> None:
    await _before_commit(session, parts)
    session._producer._txn_manager.committing_transaction()
    await asyncio.sleep(0)  # the sender has its turn: the request is on its way


async def _after_commit(session: Session, parts: Any) -> None:
    await _before_commit(session, parts)
    await session._producer.commit_transaction()


@pytest.mark.parametrize("until", [_after_begin, _while_sending, _before_commit, _while_committing, _after_commit])
async def test_a_producer_that_dies(
    kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch, until: Callable[[Session, Any], Awaitable[None]]
) -> None:
    """In each step of a transaction, also when it was committed and nobody was told: the successor goes on exactly."""
    delivery = Delivery()
    await delivery.fill(80)
    for _ in range(4):
        sink = exactly_once(delivery.plant, kafka.bootstrap, topic, **transactional(topic))
        delivery.restore(await sink.connect())
        await delivery.write(sink)

        async def die(session: Session, parts: Any) -> None:
            await until(session, parts)
            raise Died

        with monkeypatch.context() as patched:
            patched.setattr(Session, "transact", die)
            with pytest.raises(Died):
                await delivery.write(sink)
        await sink._channels[LANE].session.abort()  # the kernel closes its sockets
    sink = exactly_once(delivery.plant, kafka.bootstrap, topic, **transactional(topic))
    delivery.restore(await sink.connect())
    await delivery.drain(sink)
    await sink.close()
    await once_and_in_order(kafka, topic, delivery.plant)
    assert await other_tasks() == set()


def _write_until_killed(bootstrap: str, topic: str, pipe: Any) -> None:
    """A process: says what it was told of the position, then writes until it is killed."""

    async def main() -> None:
        delivery = Delivery()
        await delivery.fill(BATCHES, 20)
        sink = exactly_once(delivery.plant, bootstrap, topic, **transactional(topic))
        positions = await connected(sink)
        if positions:  # the lane of a former process has another UUID: this one is the same lane
            _, end, pending = msgpack.unpackb(positions[LANE])
            delivery.lane.restore(msgpack.packb([delivery.lane._uuid, end, pending]))
        delivery.reader.rewind()
        pipe.send(delivery.lane.pending_rows)
        await delivery.drain(sink)

    asyncio.run(main())


async def test_a_process_that_is_killed(kafka: Kafka, topic: str) -> None:
    """kill -9 at any moment; the next process makes the same rows and sends what was not committed."""
    context = multiprocessing.get_context("spawn")
    left = [BATCHES * 20]
    for life in range(LIVES):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_write_until_killed, args=(kafka.bootstrap, topic, theirs), daemon=True)
        process.start()
        assert await asyncio.to_thread(ours.poll, DEADLINE_S)
        left.append(ours.recv())
        if life < LIVES - 1:
            await asyncio.to_thread(process.join, 0.05 + 0.1 * life)
            process.kill()
        await asyncio.to_thread(process.join, DEADLINE_S)
        assert process.exitcode is not None
    assert left == sorted(left, reverse=True)
    plant = Plant()
    plant.rows = BATCHES * 20
    await once_and_in_order(kafka, topic, plant)


async def test_a_cancelled_write_ends_the_session(kafka: Kafka, topic: str) -> None:
    """How its transaction ended only the next `connect` can tell; until then nothing is written."""
    delivery = Delivery()
    await delivery.fill(60, 10)
    sink = exactly_once(delivery.plant, kafka.bootstrap, topic, **transactional(topic))
    delivery.restore(await sink.connect())
    for turns in range(1, 40, 3):
        writing = asyncio.create_task(delivery.write(sink, 20))
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        [outcome] = await asyncio.gather(writing, return_exceptions=True)
        if outcome is not None and sink._channels[LANE].session.in_transaction:
            with pytest.raises(NotConnected, match="cancelled"):
                await sink.wait_closed()
            with pytest.raises(NotConnected, match="not connected"):
                await sink.write(LANE, [delivery.plant.batch(0)], b"", False)
        delivery.restore(await sink.connect())
    await delivery.drain(sink)
    await sink.close()
    await once_and_in_order(kafka, topic, delivery.plant)
    assert await other_tasks() == set()


async def test_a_stop_in_a_transaction_hides_nothing(kafka: Kafka, topic: str) -> None:
    """close() ends an open transaction at the broker: what others write is seen at once, not after its time-out."""
    mine, other = Delivery(), Delivery(name="other")
    await mine.fill(1)
    await other.fill(1)
    sink = exactly_once(mine.plant, kafka.bootstrap, topic, lanes=[LANE, "other"], **transactional(topic))
    await sink.connect()
    session = sink._channels[LANE].session
    sent = kafka_positions.position_part(topic, b"key", b"never seen", 0)
    await _before_commit(session, [sent])
    await other.write(sink)
    await sink.close()
    await once_and_in_order(kafka, topic, other.plant)


# --- the broker dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_timeout", ["40s", "300ms"])
async def test_a_broker_that_restarts_in_a_transaction(
    kafka_factory: Brokers, monkeypatch: pytest.MonkeyPatch, request_timeout: str
) -> None:
    """Killed between acknowledgement and commit: one session bridges it, or several do."""
    broker = await asyncio.to_thread(kafka_factory)
    await broker.create_topic("outage", partitions=3)
    delivery = Delivery()
    await delivery.fill(100)
    sink = exactly_once(delivery.plant, broker.bootstrap, "outage", request_timeout=request_timeout)
    delivery.restore(await connected(sink))
    acknowledged, writes = Session.acknowledged, 0

    async def killed(session: Session, parts: Any, acks: Any) -> None:
        nonlocal writes
        await acknowledged(session, parts, acks)
        writes += 1
        if writes == 2:
            await asyncio.to_thread(broker.kill)
            starting.append(asyncio.create_task(asyncio.to_thread(broker.start)))

    starting: list[asyncio.Task[None]] = []
    monkeypatch.setattr(Session, "acknowledged", killed)
    async with asyncio.timeout(DEADLINE_S):
        while delivery.lane.pending_rows:
            try:
                await delivery.write(sink)
            except NotConnected:
                await asyncio.gather(*starting)
                delivery.restore(await connected(sink))
            await asyncio.gather(*starting)
    await sink.close()
    assert starting
    if request_timeout == "40s":
        assert sink.counters.totals["sessions"] == 1
    await once_and_in_order(broker, "outage", delivery.plant)
    assert await other_tasks() == set()


# --- two of them -------------------------------------------------------------------------------------------------


async def test_two_gateways_with_one_id(kafka: Kafka, topic: str) -> None:
    """The one that came first is fenced, in words that say what to do; nothing that it writes is seen."""
    first, second = Delivery(), Delivery()
    await first.fill(2)
    await second.fill(2)
    one = exactly_once(first.plant, kafka.bootstrap, topic, **transactional(topic))
    two = exactly_once(second.plant, kafka.bootstrap, topic, **transactional(topic))
    await one.connect()
    positions = await two.connect()
    assert positions == {}
    await second.drain(two)
    with pytest.raises(Permanent, match=r"another gateway with the same gateway\.id.*id of its own"):
        await first.write(one)
    await one.wait_closed()
    with pytest.raises(NotConnected, match="not connected"):
        await one.write(LANE, [first.plant.batch(0)], b"", False)
    with pytest.raises(Corrupt):
        first.restore(await one.connect())  # the other one's position is not believed
    await one.close()
    await two.close()
    await once_and_in_order(kafka, topic, second.plant)
    assert await other_tasks() == set()


async def test_lanes_write_beside_each_other(kafka: Kafka, topic: str) -> None:
    """A transaction of one lane does not wait for another's; each has its position."""
    held, free = Delivery(Plant(devices=1)), Delivery(name="history@2")
    await held.fill(4)
    await free.fill(20)
    sink = exactly_once(free.plant, kafka.bootstrap, topic, lanes=[held.name, free.name], **transactional(topic))
    assert await sink.connect() == {}
    await _before_commit(sink._channels[held.name].session, [kafka_positions.position_part(topic, b"key", b"no", 0)])
    await free.drain(sink)
    await sink.close()
    sink = exactly_once(free.plant, kafka.bootstrap, topic, lanes=[held.name, free.name], **transactional(topic))
    positions = await sink.connect()
    assert positions == {free.name: free.lane.position()}
    await sink.close()
    await once_and_in_order(kafka, topic, free.plant)


async def test_another_gateways_open_transaction_hides_no_position(kafka: Kafka, topic: str) -> None:
    """They share the position topic; a consumer with read_committed would be shown an old position of ours."""
    mine = Delivery()
    await mine.fill(20)
    other = exactly_once(Plant(), kafka.bootstrap, topic, gateway="line2-gw", **transactional(topic))
    sink = exactly_once(mine.plant, kafka.bootstrap, topic, **transactional(topic))
    await other.connect()
    await sink.connect()
    await mine.write(sink)
    place = kafka_positions.position_part(f"{topic}.positions", b"line2-gw/history", b"theirs", 0)
    await _before_commit(other._channels[LANE].session, [place])
    await mine.write(sink)
    await sink._channels[LANE].session.abort()
    assert await sink.connect() == {LANE: mine.lane.position()}
    await mine.drain(sink)
    await sink.close()
    await other.close()
    await once_and_in_order(kafka, topic, mine.plant)


# --- positions ---------------------------------------------------------------------------------------------------


async def test_a_position_far_behind_the_tail(kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wrote much since: the search widens until it finds it, or has seen everything."""
    monkeypatch.setattr(kafka_positions, "TAIL_OFFSETS", 2)
    monkeypatch.setattr(kafka_positions, "WIDER", 2)
    quiet, busy = Delivery(name="quiet"), Delivery(name="busy")
    await quiet.fill(1)
    await busy.fill(25)
    keys = {"lanes": ["quiet", "busy"], **transactional(topic)}
    sink = exactly_once(busy.plant, kafka.bootstrap, topic, **keys)
    await sink.connect()
    await quiet.write(sink)
    while busy.lane.pending_rows:
        await busy.write(sink, 1)
    assert await sink.connect() == {"quiet": quiet.lane.position(), "busy": busy.lane.position()}
    await sink.close()


async def test_what_the_log_cleaner_leaves(kafka_factory: Brokers) -> None:
    """The newest position is found when older ones and their markers are gone."""
    cleaning = {"log.cleaner.backoff.ms": "100", "log.cleaner.min.cleanable.ratio": "0.01"}
    broker = await asyncio.to_thread(kafka_factory, options=cleaning)
    compacting = {"cleanup.policy": "compact", "segment.ms": "100", "delete.retention.ms": "0"}
    await broker.create_topic("mec-gateway.positions", config=compacting)
    delivery = Delivery(Plant(devices=1))
    await delivery.fill(1000, 1)
    sink = exactly_once(delivery.plant, broker.bootstrap, "rows")
    await sink.connect()
    written, left = 0, 0
    async with asyncio.timeout(DEADLINE_S):
        while left >= written // 2:
            for _ in range(20):
                await delivery.write(sink, 1)
            written += 20
            left = len(await asyncio.to_thread(read_topic, broker.bootstrap, "mec-gateway.positions"))
    assert await sink.connect() == {LANE: delivery.lane.position()}
    await sink.close()


async def test_the_position_topic_is_made_compacted(kafka: Kafka, topic: str) -> None:
    """With one partition, also where brokers would make topics by themselves."""
    sink = exactly_once(Plant(), kafka.bootstrap, topic, **transactional(topic))
    await sink.connect()
    [channel] = sink._channels.values()
    assert channel.session.partitions(f"{topic}.positions") == 1
    await sink.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, f"{topic}.positions")])
    finally:
        await admin.close()
    config = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert config["cleanup.policy"] == "compact"
    assert int(config["segment.bytes"]) == kafka_positions.SEGMENT_BYTES


async def test_the_position_topic_cannot_be_made(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permanent, with the command that makes it."""
    monkeypatch.setattr(kafka_positions, "SEGMENT_BYTES", -1)
    sink = exactly_once(Plant(), kafka.bootstrap, "rows", position_topic="refused")
    with pytest.raises(Permanent, match=r"position_topic refused.*kafka-topics\.sh --create.*cleanup\.policy=compact"):
        await sink.connect()
    assert await other_tasks() == set()


class _Allow(CreateAclsRequest):  # type: ignore[misc]  # aiokafka has no types
    """Allows User:gateway operations on one resource; aiokafka's own takes one at a time and cannot be sent."""

    def __init__(self, resource: int, name: str, pattern: int, operations: Sequence[int]) -> None:
        self._rules = [(resource, name, pattern, "User:gateway", "*", operation, ALLOW) for operation in operations]

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._rules)


async def test_the_access_rights_that_it_needs(kafka_factory: Brokers) -> None:
    """Exactly those of docs/kafka.md; without one of them Permanent, naming it, at the first connect."""
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    options = {"authorizer.class.name": authorizer, "super.users": "User:ANONYMOUS"}
    broker = await asyncio.to_thread(kafka_factory, users={"gateway": "secret"}, options=options)
    await broker.create_topic("rows")
    auth = {"mechanism": "SCRAM-SHA-512", "user": "gateway", "password": "secret"}
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    positions = "mec-gateway.positions"
    steps = [
        ("transactional id", _Allow(TRANSACTIONAL_ID, "line1-gw/", PREFIXED, [WRITE])),
        (positions, _Allow(TOPIC, positions, LITERAL, [WRITE])),
        ("kafka-topics.sh --create", _Allow(TOPIC, positions, LITERAL, [CREATE])),
        ("topic rows", _Allow(TOPIC, "rows", LITERAL, [WRITE])),
        (positions, _Allow(TOPIC, positions, LITERAL, [READ])),
    ]
    delivery = Delivery()
    await delivery.fill(1)
    sink = exactly_once(delivery.plant, broker.sasl_bootstrap, "rows", auth=auth, request_timeout="10s")
    try:
        for named, rule in steps:
            async with asyncio.timeout(DEADLINE_S):
                while True:  # the rule before may take a moment
                    with pytest.raises(Permanent) as caught:
                        await sink.connect()
                    if named in str(caught.value):
                        break
            answer = await admin._send_to_controller(rule)
            assert [creation[0] for creation in answer.creation_responses] == [0] * len(rule._rules)
        async with asyncio.timeout(DEADLINE_S):
            while sink._ended.is_set():
                with suppress(Permanent):
                    await sink.connect()
        await delivery.drain(sink)
    finally:
        await admin.close()
        await sink.close()
    await once_and_in_order(broker, "rows", delivery.plant)


# --- single rows, long lives -------------------------------------------------------------------------------------


async def test_a_row_too_large_for_the_topic(kafka: Kafka) -> None:
    """The broker's limit is learned within one write: the transaction is made again without the row, once each."""
    await kafka.create_topic("eo-small", config={"max.message.bytes": "5000"})
    delivery = Delivery(Plant(devices=1))
    sink = exactly_once(
        delivery.plant, kafka.bootstrap, "eo-small", records="sample", position_topic="eo-small.positions"
    )
    await sink.connect()
    await delivery.fill(1, 200)
    await delivery.lane.append(delivery.plant.text("x" * 6000))
    span, batches = await delivery.reader.read(ROWS_MAX)
    with pytest.raises(Rejected) as caught:
        await sink.write(LANE, batches, delivery.lane.position(span), False)
    assert caught.value.rows == [(1, 0)]
    delivery.reader.commit(span)
    await delivery.fill(1, 10)
    await delivery.drain(sink)
    assert await sink.connect() == {LANE: delivery.lane.position()}
    await sink.close()
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, "eo-small")
    assert numbers(seen) == list(range(210))


async def test_only_rejected_rows(kafka: Kafka, topic: str) -> None:
    """Nothing to send: the position is committed all the same."""
    delivery = Delivery()
    sink = exactly_once(delivery.plant, kafka.bootstrap, topic, batch_size="1KiB", **transactional(topic))
    await sink.connect()
    await delivery.lane.append(delivery.plant.text("x" * 2000))
    await delivery.drain(sink)
    assert await sink.connect() == {LANE: delivery.lane.position()}
    await sink.close()


@pytest.mark.parametrize(("limit", "value"), [("RECORDS_PER_PARTITION_MAX", 100), ("IDLE_S_MAX", 0.0)])
async def test_a_worn_producer_is_replaced_between_transactions(
    kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    """Before its sequence numbers wrap, or the brokers forget it."""
    monkeypatch.setattr(kafka_session, limit, value)
    delivery = Delivery()
    await delivery.fill(20)
    sink = exactly_once(delivery.plant, kafka.bootstrap, topic, records="sample", **transactional(topic))
    await sink.connect()
    await delivery.drain(sink)
    assert sink.counters.totals["sessions"] > 2
    await sink.close()
    await once_and_in_order(kafka, topic, delivery.plant)
    assert await other_tasks() == set()


# --- half-open links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
async def test_a_link_whose_other_side_went_silent(kafka: Kafka, topic: str, delivery: str) -> None:
    """TCP's own time-out is set on every connection; when it fires, idle or not, the session ends and says why."""
    sink = make_sink(Plant(), kafka.bootstrap, topic, delivery=delivery, ack_timeout="3s", **transactional(topic))
    await sink.connect()
    [channel] = sink._channels.values()
    links = list(channel.session.client._conns.values())
    assert links
    for link in links:
        sock = link._writer.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
    waiting = asyncio.create_task(sink.wait_closed())
    links[0]._reader.set_exception(TimeoutError(110, "Connection timed out"))  # as the transport does
    links[0]._writer.transport.abort()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(NotConnected, match=rf"{HOST}:\d+: acknowledges nothing for 3 s.*half-open"):
            await waiting
    with pytest.raises(GatewayError):
        await sink.write(LANE, [Plant().batch()], b"", False)
    await sink.close()
    del links, link, channel
    assert await other_tasks() == set()
