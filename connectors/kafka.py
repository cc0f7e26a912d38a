"""Kafka sink: `write` returns after all in-sync replicas have every record.

One write's rows become record batches (kafka_batches.py), one per partition in the usual case, and travel through an
idempotent producer (kafka_session.py). Two writes may be outstanding: the second is encoded while the first is on its
way. Order per key holds: writes are submitted one after the other, the producer sends one record batch per partition at
a time, and after a failed one the brokers refuse what follows in its partition; the session ends, the lane sends again.

Exactly-once comes with the disk lane: it needs a transaction around `submit` and `acknowledged` and `connect` to return
the committed positions; `delivery` is there, and `position` is passed in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from connectors.kafka_batches import HEADER_BYTES, Assembly, Part, Recorder, Topic, seal_all
from connectors.kafka_errors import BatchTooLarge
from connectors.kafka_session import Session, connection_options
from connectors.kafka_settings import KafkaTarget, topic_name
from connectors.payload import Identity, make_format
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected, Rejected
from pipelines.tags import TagTable

IN_FLIGHT_MAX = 2
ROWS_PER_STEP = 500
"""After so many rows the event loop gets its turn: 1 ms or less."""
COMPRESS_IN_THREAD_BYTES = 16 * 1024


class KafkaSink:
    """A `pipelines.contracts.Sink` to one Kafka cluster."""

    def __init__(
        self,
        name: str,
        settings: KafkaTarget,
        identity: Identity,
        tags: TagTable,
        clock: Clock,
        lanes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._lanes = lanes
        self.in_flight_max = IN_FLIGHT_MAX
        self.keeps_positions = False
        self.counters = Counters("sink", name)
        self._target = settings
        self._identity = identity
        self._clock = clock
        self._recorder = Recorder(make_format(settings.format, identity, tags), tags, settings.records)
        self._batch_bytes_max: dict[str, int] = {}
        self._order = asyncio.Lock()
        self._session: Session | None = None
        self._ended = asyncio.Event()
        self._ended.set()
        self._end_reason: GatewayError | None = None

    async def connect(self) -> Mapping[str, bytes]:
        """At least once: no positions. The topic is looked up at once where its name does not depend on the rows."""
        await self.close()
        self._session = await self._open()
        self._end_reason = None
        self._ended.clear()
        return {}

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        """As the contract says; any error but Rejected ends the session."""
        session = self._session
        start_ns = self._clock.mono_ns()
        try:
            async with self._order:
                session = await self._fresh_session()
                assembly = await self._assemble(session, lane, batches, historical)
                parts = assembly.parts()
                acks = await session.submit(parts)
            await session.acknowledged(parts, acks)
        except GatewayError as error:
            await self._end(session, error)
            raise
        self._count(parts, start_ns)
        if assembly.rejected:
            raise Rejected(assembly.rejected, f"Kafka: {assembly.reason}")

    async def wait_closed(self) -> None:
        """Kafka has no session that could break while nothing is written: ends with `close` or a failed write."""
        await self._ended.wait()
        if isinstance(self._end_reason, NotConnected):
            raise NotConnected(str(self._end_reason))

    async def close(self) -> None:
        """At most 2 s; what is not acknowledged by then is not delivered."""
        session, self._session = self._session, None
        self._ended.set()
        if session is not None:
            await session.abort()

    async def _open(self) -> Session:
        tls = await asyncio.to_thread(self._target.tls.context) if self._target.tls else None
        options = connection_options(self._target, self._target.client_id or self._identity.gateway, tls)
        session = Session(self._target, options)
        try:
            await session.start()
            if "{device}" not in self._target.topic and "{route}" not in self._target.topic:
                await session.find_topic(self._topic_name("", ""))
        except BaseException:
            await session.abort()
            raise
        self.counters.add("sessions")
        return session

    async def _fresh_session(self) -> Session:
        """The session, or a new one in its place before a partition's sequence number runs out."""
        session = self._session
        if session is None:
            raise NotConnected(f"Kafka at {self._target.servers}: not connected")
        if not session.worn:
            return session
        await session.drained()
        self._session = await self._open()
        await session.abort()
        return self._session

    async def _assemble(self, session: Session, lane: str, batches: Sequence[Batch], historical: bool) -> Assembly:
        assembly = Assembly(self._target.compression)
        topics: dict[str, Topic] = {}
        rows = 0
        for index, batch in enumerate(batches):
            device = self._recorder.device(batch)
            topic = topics.get(device)
            if topic is None:
                topic = topics[device] = await self._topic(session, lane, device)
            self._recorder.add(assembly, topic, index, lane, batch, historical)
            rows += len(batch)
            if rows >= ROWS_PER_STEP:
                rows = 0
                await asyncio.sleep(0)
        if self._target.compression != "none":
            await _compress(assembly.parts())
        return assembly

    async def _topic(self, session: Session, lane: str, device: str) -> Topic:
        name = self._topic_name(lane, device)
        if not session.partitions(name):
            await session.find_topic(name)
        limit = self._batch_bytes_max.get(name, self._target.batch_size)
        return Topic(name, session.partitions(name), limit)

    def _topic_name(self, lane: str, device: str) -> str:
        site, gateway = self._identity.site, self._identity.gateway
        route = lane.partition("@")[0]
        return topic_name(self._target.topic, gateway=gateway, site=site, device=device, route=route)

    async def _end(self, session: Session | None, error: GatewayError) -> None:
        if isinstance(error, BatchTooLarge):
            self._learn_limit(error)
        if session is None or session is not self._session:
            return
        self._session = None
        self._end_reason = error
        await session.abort(str(error))
        self._ended.set()

    def _learn_limit(self, refused: BatchTooLarge) -> None:
        """Halves the topic's record batches; a single record that was refused shows the limit for records."""
        limit = refused.batch_bytes - 1 if refused.records == 1 else refused.batch_bytes // 2
        known = self._batch_bytes_max.get(refused.topic, self._target.batch_size)
        self._batch_bytes_max[refused.topic] = max(min(known, limit), HEADER_BYTES)

    def _count(self, parts: Sequence[Part], start_ns: int) -> None:
        self.counters.add("records", sum(part.batch.record_count() for part in parts))
        self.counters.add("sent_bytes", sum(part.batch.size() for part in parts))
        self.counters.add("record_batches", len(parts))
        self.counters.histograms["write_to_ack"].observe(self._clock.mono_ns() - start_ns)


async def _compress(parts: Sequence[Part]) -> None:
    if sum(part.batch.bytes for part in parts) > COMPRESS_IN_THREAD_BYTES:
        await asyncio.to_thread(seal_all, parts)
    else:
        seal_all(parts)
