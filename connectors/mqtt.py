"""MQTT sink: `write` returns after the broker has every message.

One broker of several is used (`network_choice`). Going back to a better one is the only change that the sink makes by
itself: no write begins meanwhile, those under way are acknowledged first.

At QoS 1 that is a PUBACK for each. At QoS 0 MQTT has no acknowledgement, so a ping follows the data: its answer says
that the broker has read all of it (`mqtt_window.PingBarrier`); what it then does with a message it cannot say.

All messages of a batch are joined into one write to the connection; a write larger than the broker's window goes out in
slices as PUBACKs come. Live writes are sent in the order in which they were started, and so are historical ones, which
let live ones in between their slices. A message that the broker refuses is
Rejected with the reason that it gives (MQTT 5; an MQTT 3.1.1 broker can only drop it silently), one that is larger than
the broker's Maximum Packet Size is not sent at all and Rejected too.

MQTT 5 messages with all rows of a batch carry their content type; one-row messages go without, to stay small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

from connectors.mqtt_errors import PACKET_TOO_LARGE, QUOTA_EXCEEDED, opening_error, place, reason_name
from connectors.mqtt_link import reach
from connectors.mqtt_session import Session, open_session
from connectors.mqtt_settings import MqttTarget
from connectors.mqtt_status import Status
from connectors.mqtt_topic import Topics
from connectors.mqtt_window import Delivery
from connectors.mqtt_wire import PINGREQ, PublishEncoder, content_type_property
from connectors.network_choice import Choice
from connectors.network_paths import PROBE_EVERY_S
from connectors.payload import Identity, make_format
from pipelines.batch import Batch, rows_of
from pipelines.clock import Clock
from pipelines.contracts import Acknowledged
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Rejected, Transient
from pipelines.few import first_tag
from pipelines.route import BATCH_IN_ROWS
from pipelines.tags import TagTable

IN_FLIGHT_MAX = 2
"""Writes outstanding: the second is encoded while the first is on its way; what arrives meanwhile is one write more."""
ROWS_PER_STEP = 1000
"""After so many rows the event loop gets its turn."""
MESSAGES_AT_ONCE = 16
BYTES_AT_ONCE = 64 * 1024
"""Of one message. More takes longer than a step may."""
SENT_MAX = 64
"""Batches of fast routes on their way: 500 a second over a link with a round trip of 128 ms."""
QUOTA_RETRY_S = 1.0
DRAIN_LOOK_S = 0.01
"""How often going back to a better broker looks whether everything is acknowledged."""

Turn = AbstractAsyncContextManager[None]
"""Whose it is to send: one write's at a time, or one slice's."""


class MqttSink:
    """A `pipelines.contracts.Sink`, `Announcer`, `OverPaths` and `CutThroughSink` to one MQTT broker at a time."""

    def __init__(
        self,
        name: str,
        settings: MqttTarget,
        identity: Identity,
        tags: TagTable,
        clock: Clock,
        lanes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.in_flight_max = IN_FLIGHT_MAX
        self.sent_max = SENT_MAX
        self.keeps_positions = False
        self.counters = Counters("sink", name)
        self._clock = clock
        own_id = settings.client_id or f"mec-gateway-{identity.gateway}-{name}"
        self._client_id = f"{own_id}-{identity.worker}" if identity.worker else own_id
        self._status = Status(settings.status_topic, identity, self.counters) if settings.status_topic else None
        self._choice = Choice(name, settings, settings.servers, self._open, self._probe, clock, self.counters)
        self._writer = _Writer(settings, identity, tags)
        self._session: Session | None = None
        self._turn = asyncio.Lock()
        self._replay = asyncio.Lock()

    @property
    def server(self) -> str:
        return self._choice.used.way if self._session else ""

    @property
    def faults(self) -> Mapping[str, str]:
        return self._choice.faults if self._session else {}

    @property
    def info(self) -> str:
        return self._choice.info

    @property
    def path_counters(self) -> Sequence[Counters]:
        return [path.counters for path in self._choice.paths.values()]

    async def connect(self) -> Mapping[str, bytes]:
        """Empty: a broker keeps no positions."""
        await self.close()
        self._session = await self._choice.open()
        if self.counters.totals["sessions"]:
            self.counters.add("reconnects")
        self.counters.add("sessions")
        return {}

    async def write(self, lane: str, batches: Sequence[Batch], position: bytes, historical: bool) -> None:
        """As the contract says. Raises Transient where the broker's quota is exceeded."""
        delivery = Delivery()
        whole, sliced = (self._replay, self._turn) if historical else (self._turn, nullcontext())
        async with whole:
            session = self._connected()
            messages = await self._writer.send(session, delivery, lane, batches, historical, sliced)
            self.counters.set("in_flight", session.in_flight)
        await self._acknowledged(session, delivery, batches, messages)

    def send(self, lane: str, batch: Batch) -> Acknowledged | None:
        """As `contracts.CutThroughSink` says: not while a write has its turn, nor what does not fit at once."""
        session = self._session
        if session is None or self._turn.locked() or not session.ready:
            return None
        delivery = Delivery()
        messages = self._writer.send_now(session, delivery, lane, batch)
        if not messages:
            return None
        return partial(self._acknowledged, session, delivery, [batch], messages)

    async def wait_closed(self) -> None:
        """Raises NotConnected when the session ends, and at once where there is none.

        Meanwhile it goes back to a better broker when there is one, and publishes what is announced.
        """
        while True:
            session = self._connected()
            better = await self._choice.keep(session.watched, session.announce())
            session.check()
            if better is not None:
                await self._move(better)

    def announce(self, kind: str, message: Mapping[str, Any]) -> None:
        """As `contracts.Announcer` says; to nobody where there is no status topic."""
        if self._status:
            self._status.announce(kind, message)

    async def close(self) -> None:
        """Publishes the offline status where it can; bounded by 2 s."""
        session, self._session = self._session, None
        if session is not None:
            if session.error:
                self._choice.lost(session.error)
            await session.close()
            self.counters.set("in_flight", 0)

    async def _open(self, target: MqttTarget, last: bool) -> Session:
        opening = open_session(target, self._status, self._client_id, self._clock, self.counters)
        return await (opening if last else _soon(target, opening))

    async def _probe(self, target: MqttTarget, preferred: bool) -> None:
        """One that may be gone back to with a session of its own client id, another with no more than a connection."""
        if preferred:
            uncounted = Counters("probe", self.name)
            session = await _soon(
                target, open_session(target, None, f"{self._client_id}-probe", self._clock, uncounted)
            )
            await session.close()
        else:
            await reach(target, PROBE_EVERY_S)

    async def _move(self, server: int) -> None:
        """Goes to that broker, or to another that works. Raises NotConnected or Permanent."""
        async with self._replay, self._turn:
            session = self._connected()
            while session.in_flight:
                await self._clock.sleep(DRAIN_LOOK_S)
            session.check()
            await self.close()
            self._session = await self._choice.open(server)

    def _connected(self) -> Session:
        """Raises NotConnected where no session works."""
        if self._session is None:
            raise NotConnected(f"{place(self._choice.used)}: not connected")
        self._session.check()
        return self._session

    async def _acknowledged(
        self, session: Session, delivery: Delivery, batches: Sequence[Batch], messages: int
    ) -> None:
        """So many messages were sent; what `write` says then."""
        try:
            await delivery.settled()
        finally:
            self.counters.set("in_flight", session.in_flight)
        self.counters.add("messages", messages - len(delivery.refused))
        self._settle(delivery, batches)

    def _settle(self, delivery: Delivery, batches: Sequence[Batch]) -> None:
        """Counts, and raises what the broker's refusals amount to."""
        rows = [row for message, _ in delivery.refused for row in self._writer.rows_of(batches, message)]
        codes = sorted({code for _, code in delivery.refused})
        reasons = ", ".join(reason_name(code) for code in codes)
        if QUOTA_EXCEEDED in codes:
            raise Transient(f"{place(self._choice.used)}: {reasons}", QUOTA_RETRY_S)
        self.counters.add("rows", rows_of(batches) - len(rows))
        if rows:
            self.counters.add("rejected", len(rows))
            raise Rejected(sorted(rows), f"{place(self._choice.used)}: {reasons}")


async def _soon(target: MqttTarget, opening: Coroutine[Any, Any, Session]) -> Session:
    """In the little time that a broker has while there are others. Raises NotConnected or Permanent."""
    try:
        async with asyncio.timeout(max(1.0, 2 * target.ack_timeout / 1e9)):
            return await opening
    except TimeoutError as error:
        raise opening_error(target, error) from error


class _Messages(NamedTuple):
    """The messages of a batch; topics have their length before them."""

    topics: list[bytes]
    payloads: list[bytes]


class _Writer:
    """Batches -> PUBLISH packets in a session, without waiting for what it answers."""

    def __init__(self, settings: MqttTarget, identity: Identity, tags: TagTable) -> None:
        self._format = make_format(settings.format, identity, tags)
        self._per_tag = settings.per_tag
        content_type = None if self._per_tag else self._format.content_type
        properties = content_type_property(content_type) if settings.protocol == "5" else None
        self._encoder = PublishEncoder(settings.qos, settings.retain, properties)
        self._new_topics = partial(Topics, settings.topic, identity, tags)
        self._topics: dict[str, Topics] = {}

    async def send(
        self, session: Session, delivery: Delivery, lane: str, batches: Sequence[Batch], historical: bool, turn: Turn
    ) -> int:
        """Returned: everything is on its way; the number of messages. Takes `turn` for each slice. Raises
        NotConnected."""
        first = rows = 0
        last = b""
        for batch in batches:
            if rows >= ROWS_PER_STEP:
                rows = 0
                await asyncio.sleep(0)
            rows += BATCH_IN_ROWS + len(batch)
            messages = self._messages(lane, batch, historical) if len(batch) else _Messages([], [])
            runs = self._sendable(session.packet_bytes_max, delivery, first, messages)
            if self._encoder.qos:
                await self._at_least_once(session, delivery, first, messages, runs, turn)
            else:
                if last:
                    await session.writable()
                    session.send(last)
                last = b"".join(self._encode(messages, start, end, range(0)) for start, end in runs)
            first += len(messages.payloads)
        if not self._encoder.qos:
            await session.writable()
            session.send(last + PINGREQ if session.barrier.join(delivery) else last)
        return first

    def send_now(self, session: Session, delivery: Delivery, lane: str, batch: Batch) -> int:
        """How many messages are on their way: all; or 0, they are too many or too large for the moment."""
        encoder, window = self._encoder, session.window
        if (len(batch) if self._per_tag else 1) > (min(window.free, MESSAGES_AT_ONCE) if encoder.qos else 1):
            return 0
        topics, payloads = self._messages(lane, batch, False)
        bytes_max = max(map(len, topics)) + max(map(len, payloads)) + encoder.beside_bytes_max
        if bytes_max > BYTES_AT_ONCE or bytes_max > session.packet_bytes_max:
            return 0
        if encoder.qos:
            packets = b""
            for number, payload in enumerate(payloads):
                packets += encoder.one(topics[number], payload, window.take_one(delivery, number))
            session.send(packets)
        else:
            ping = PINGREQ if session.barrier.join(delivery) else b""
            session.send(encoder.one(topics[0], payloads[0], 0) + ping)
        return len(payloads)

    def rows_of(self, batches: Sequence[Batch], message: int) -> Iterable[tuple[int, int]]:
        """(batch, row) of each row that was in that message of a write."""
        for index, batch in enumerate(batches):
            messages = len(batch) if self._per_tag else min(len(batch), 1)
            if message < messages:
                return [(index, message)] if self._per_tag else [(index, row) for row in range(len(batch))]
            message -= messages
        raise IndexError(f"a write of {len(batches)} batches has no message {message} behind its last")

    def _messages(self, lane: str, batch: Batch, historical: bool) -> _Messages:
        topics = self._topics.get(lane)
        if topics is None:
            topics = self._topics[lane] = self._new_topics(lane)
        if self._per_tag:
            return _Messages([topics[tag] for tag in batch.tag.tolist()], self._format.rows(lane, batch, historical))
        return _Messages([topics[first_tag(batch)]], [self._format.message(lane, batch, historical)])

    def _encode(self, messages: _Messages, start: int, end: int, packet_ids: range) -> bytes:
        return self._encoder.encode(messages.topics[start:end], messages.payloads[start:end], packet_ids)

    async def _at_least_once(
        self,
        session: Session,
        delivery: Delivery,
        first: int,
        messages: _Messages,
        runs: Iterable[tuple[int, int]],
        turn: Turn,
    ) -> None:
        """QoS 1: in slices, as the window has room."""
        for start, end in runs:
            at = start
            while at < end:
                async with turn:
                    await session.window.room(end - at)
                    await session.writable()
                    ids = session.window.take(delivery, first + at, end - at)
                    session.send(self._encode(messages, at, at + len(ids), ids))
                at += len(ids)

    def _sendable(
        self, bytes_max: int, delivery: Delivery, first: int, messages: _Messages
    ) -> Iterator[tuple[int, int]]:
        """Runs of messages, start and end, that the broker takes by their size; the others are refused at once."""
        start = 0
        if messages.payloads and self._encoder.size(*(max(column, key=len) for column in messages)) > bytes_max:
            for at, (topic, payload) in enumerate(zip(*messages, strict=True)):
                if self._encoder.size(topic, payload) > bytes_max:
                    delivery.refused.append((first + at, PACKET_TOO_LARGE))
                    yield start, at
                    start = at + 1
        yield start, len(messages.payloads)
