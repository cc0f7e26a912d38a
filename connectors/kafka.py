"""Kafka sink: `write` returns after all in-sync replicas have every record, once.

One write's rows become record batches (kafka_batches.py), one per partition in the usual case, and travel through a
producer (kafka_session.py). Order per key holds: writes are submitted one after the other, the producer sends one
record batch per partition at a time, and after a failed one the brokers refuse what follows in its partition.

- exactly-once: each lane has a producer of its own, transactional id `gateway/lane`. A write is a transaction of its
  record batches and the lane's position (kafka_positions.py), one at a time, so that the position is exact. `connect`
  starts the producers, which ends what predecessors left open, *then* reads the positions. Where a transaction's end is
  not known (an error, a cancelled write), the session ends: only the next `connect` can say what was delivered.
- at-least-once: one idempotent producer for all lanes. Two writes may be outstanding: the second is encoded while the
  first is on its way.

All producers take the same path, where there are several (`network_choice`). Going back to a better one is the only
change that the sink makes by itself: no write begins meanwhile, those under way are acknowledged first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from socket import socket
from typing import NamedTuple

from connectors.kafka_batches import HEADER_BYTES, Assembly, Part, Recorder, Topic, seal_all
from connectors.kafka_errors import BatchTooLarge, Spent
from connectors.kafka_positions import find_position_topic, position_part, read_positions
from connectors.kafka_session import Session, connection_options, reach
from connectors.kafka_settings import KafkaTarget, topic_name
from connectors.network_choice import Choice
from connectors.network_paths import PROBE_EVERY_S, Watched
from connectors.payload import Identity, make_format
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected, Permanent, Rejected
from pipelines.tags import TagTable

IN_FLIGHT_MAX = 2
ROWS_PER_STEP = 500
"""After so many rows the event loop gets its turn: 1 ms or less."""
COMPRESS_IN_THREAD_BYTES = 16 * 1024
SHARED = ""
"""The one producer of all lanes, at-least-once."""


@dataclass(eq=False)
class _Channel:
    """A producer, replaced before it wears out, and whose turn it is to write to it."""

    session: Session
    order: asyncio.Lock = field(default_factory=asyncio.Lock)


class _Opened(NamedTuple):
    """What `KafkaSink.connect` gets by one path."""

    sessions: Mapping[str, Session]
    """By producer."""
    positions: Mapping[str, bytes]


class KafkaSink:
    """A `pipelines.contracts.Sink` and `OverPaths` to one Kafka cluster. `lanes`: names of those that write to it."""

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
        self.in_flight_max = 1 if settings.exactly_once else IN_FLIGHT_MAX
        self.keeps_positions = settings.exactly_once
        self.counters = Counters("sink", name)
        self._target = settings
        self._identity = identity
        self._clock = clock
        self._recorder = Recorder(make_format(settings.format, identity, tags), tags, settings.records)
        self._batch_bytes_max: dict[str, int] = {}
        self._producers = [*lanes] if settings.exactly_once else [SHARED]
        self._choice = Choice(name, settings, settings.candidates, self._open_all, _probe, clock, self.counters)
        self._channels: dict[str, _Channel] = {}
        self._ended = asyncio.Event()
        self._ended.set()
        self._end_reason: GatewayError | None = None

    @property
    def server(self) -> str:
        """None without paths: the cluster itself decides which of its brokers is used."""
        return self._choice.used.way if self._channels else ""

    @property
    def faults(self) -> Mapping[str, str]:
        return self._choice.faults if self._channels else {}

    @property
    def info(self) -> str:
        return self._choice.info

    @property
    def path_counters(self) -> Sequence[Counters]:
        return [path.counters for path in self._choice.paths.values()]

    async def connect(self) -> Mapping[str, bytes]:
        """The lanes' committed positions with exactly-once, else none. The topic is looked up at once where its name
        does not depend on the rows.
        """
        await self.close()
        opened = await self._choice.open()
        self._channels = {producer: _Channel(session) for producer, session in opened.sessions.items()}
        self._end_reason = None
        self._ended.clear()
        return opened.positions

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        """As the contract says; any error but Rejected ends the session."""
        start_ns = self._clock.mono_ns()
        channel = self._channel(lane)
        try:
            if self._target.exactly_once:
                assembly = await self._transact(channel, lane, batches, position, historical)
            else:
                assembly = await self._send(channel, lane, batches, historical)
        except GatewayError as error:
            await self._end(channel, error)
            raise
        self._count(assembly.parts(), start_ns)
        if assembly.rejected:
            raise Rejected(assembly.rejected, f"Kafka: {assembly.reason}")

    async def wait_closed(self) -> None:
        """Kafka has no session: ends with `close`, a failed write, or a link on which the broker's host went silent.

        Meanwhile it goes back to a better path when there is one.
        """
        watched = Watched(self._waiting, self._ping, self._give_up, self._ended)
        while not self._ended.is_set():
            better = await self._choice.keep(watched)
            if better is not None:
                await self._move(better)
        if isinstance(self._end_reason, NotConnected):
            raise NotConnected(str(self._end_reason))

    async def close(self) -> None:
        """At most 2 s; what is not acknowledged by then is not delivered."""
        channels, self._channels = self._channels, {}
        self._ended.set()
        await asyncio.gather(*(channel.session.close() for channel in channels.values()))

    def _channel(self, lane: str) -> _Channel:
        if self._ended.is_set():
            raise self._not_connected()
        return self._channels[lane if self._target.exactly_once else SHARED]

    async def _open_all(self, target: KafkaTarget, _: bool) -> _Opened:
        """`target`: with the path that is to be taken. The brokers have as long as the settings say."""
        sessions: dict[str, Session] = {}
        try:
            for producer in self._producers:
                sessions[producer] = await self._open(target, producer)
            return _Opened(sessions, await self._positions([*sessions.values()]))
        except BaseException:
            await _abort(sessions.values())
            raise

    async def _move(self, number: int) -> None:
        """Goes to that path, or to another that works. Raises NotConnected or Permanent."""
        channels = self._channels
        async with AsyncExitStack() as turns:
            for channel in channels.values():
                await turns.enter_async_context(channel.order)
            await asyncio.gather(*(channel.session.drained() for channel in channels.values()))
            if self._channels is not channels or self._ended.is_set():
                return
            await asyncio.gather(*(channel.session.close() for channel in channels.values()))
            try:
                opened = await self._choice.open(number)
            except GatewayError as error:
                self._end_reason = error
                self._ended.set()
                raise
            if self._channels is not channels:  # a write was not acknowledged in time
                await _abort(opened.sessions.values())
                return
            for producer, session in opened.sessions.items():
                channels[producer].session = session

    def _waiting(self) -> dict[socket, object | None]:
        each = (channel.session.waiting() for channel in self._channels.values())
        return {sock: oldest for connections in each for sock, oldest in connections.items()}

    def _ping(self) -> None:
        for channel in self._channels.values():
            if channel.session.ping():
                return

    def _give_up(self, reason: GatewayError) -> None:
        for channel in self._channels.values():
            channel.session.end(reason)
        self._over(reason)

    async def _open(self, target: KafkaTarget, producer: str) -> Session:
        tls = await asyncio.to_thread(self._target.tls.context) if self._target.tls else None
        options = connection_options(target, target.client_id or self._identity.gateway, tls)
        session = Session(target, options, self._lost, self._id(producer) if self._target.exactly_once else None)
        try:
            await session.start()
            if self._target.exactly_once:
                await find_position_topic(session, self._target.position_topic)
            if "{device}" not in self._target.topic and "{route}" not in self._target.topic:
                await session.find_topic(self._topic_name("", ""))
        except BaseException:
            await session.abort()
            raise
        self.counters.add("sessions")
        return session

    async def _positions(self, sessions: Sequence[Session]) -> dict[str, bytes]:
        if not self._target.exactly_once or not sessions:
            return {}
        lanes = {self._id(lane).encode(): lane for lane in self._producers}
        found = await read_positions(sessions[0], self._target.position_topic, lanes)
        return {lanes[key]: position for key, position in found.items()}

    def _id(self, lane: str) -> str:
        """The lane's transactional id and its position's key."""
        return f"{self._identity.gateway}/{lane}"

    async def _send(self, channel: _Channel, lane: str, batches: Sequence[Batch], historical: bool) -> Assembly:
        async with channel.order:
            session = await self._unworn(channel, SHARED)
            assembly = await self._assemble(session, lane, batches, historical)
            parts = assembly.parts()
            acks = await session.submit(parts)
        await session.acknowledged(parts, acks)
        return assembly

    async def _transact(
        self, channel: _Channel, lane: str, batches: Sequence[Batch], position: bytes, historical: bool
    ) -> Assembly:
        """One transaction; where a topic takes smaller record batches only, another in its place."""
        async with channel.order:
            while True:
                session = await self._unworn(channel, lane)
                assembly = await self._assemble(session, lane, batches, historical)
                time_ms = self._clock.wall_ns() // 1_000_000
                place = position_part(self._target.position_topic, self._id(lane).encode(), position, time_ms)
                try:
                    await session.transact([*assembly.parts(), place])
                    return assembly
                except BatchTooLarge as refused:
                    if refused.topic == self._target.position_topic:
                        raise Permanent(str(refused)) from refused
                    self._learn_limit(refused)
                    await self._replace(channel, lane)
                except asyncio.CancelledError:
                    self._lost(session, Spent(f"Kafka: a write of {lane} was cancelled within its transaction"))
                    raise

    async def _unworn(self, channel: _Channel, producer: str) -> Session:
        """The session, or a new one in its place before brokers refuse or forget its producer."""
        if self._ended.is_set():
            raise self._not_connected()
        if channel.session.worn:
            await channel.session.drained()
            await self._replace(channel, producer)
        return channel.session

    async def _replace(self, channel: _Channel, producer: str) -> None:
        session = await self._open(self._choice.used, producer)
        former, channel.session = channel.session, session
        await former.abort()
        if channel not in self._channels.values():  # closed meanwhile
            await session.abort()
            raise self._not_connected()

    def _not_connected(self) -> NotConnected:
        return NotConnected(f"Kafka at {self._choice.used.servers}: not connected")

    async def _assemble(self, session: Session, lane: str, batches: Sequence[Batch], historical: bool) -> Assembly:
        assembly = Assembly(self._target.compression, transactional=self._target.exactly_once)
        topics: dict[str, Topic] = {}
        rows = 0
        for index, batch in enumerate(batches):
            if not len(batch):  # nobody knows its tags any more (`pipelines.translation`)
                continue
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

    def _lost(self, session: Session, reason: GatewayError) -> None:
        """The session is of no more use: no write goes there, and `wait_closed` says why."""
        if any(channel.session is session for channel in self._channels.values()) and not self._ended.is_set():
            self._over(reason)

    async def _end(self, channel: _Channel, error: GatewayError) -> None:
        if isinstance(error, BatchTooLarge):
            self._learn_limit(error)
        if channel in self._channels.values():
            channels, self._channels = self._channels, {}
            await _abort([channel.session for channel in channels.values()], str(error))
            self._over(error)

    def _over(self, reason: GatewayError) -> None:
        self._end_reason = reason
        if isinstance(reason, NotConnected) and not isinstance(reason, Spent):
            self._choice.lost(reason)
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


async def _probe(target: KafkaTarget, _: bool) -> None:
    """With no more than a connection: a producer would take the transactional ids away."""
    await reach(target, PROBE_EVERY_S)


async def _abort(sessions: Iterable[Session], reason: str = "") -> None:
    await asyncio.gather(*(session.abort(reason) for session in sessions))
