"""One aiokafka producer from its making to its throwing away: what the sink needs around aiokafka 0.14.

Design note. aiokafka's own `start` and `stop` are not used, for what they do when things go wrong (0.14.0's source):
- `start` logs why a broker did not let it in (refused, wrong password, bad certificate) and raises only "Unable to
  bootstrap"; cancelled after connecting it leaks the connection; it waits for a producer id without a bound. `start`
  here asks each server itself, within `request_timeout` shared among them, and then does the same two steps.
- `stop` flushes first, which never ends while the broker is away. `abort` here cancels every task that the producer
  started (one sender, its produce requests, one metadata task) and closes the connections, within `CLOSE_S_MAX`.
- an idempotent producer retries for ever. `acknowledged` here waits `request_timeout`: aiokafka's retries bridge what
  is shorter, under the same sequence numbers, so without duplicates; after it the producer is thrown away and the lane
  sends again. (A broker that restarts seems to forget producers whose newest record is older, by the record's own
  time, than `producer.id.expiration.ms`, one day: a batch of such old rows may then be there twice. Seen in 3 of 40
  restarts with rows of two years ago, in none of 75 with rows of an hour ago; Kafka 4.2.2.)
- every retry is a log line. `_OneLine` keeps the newest of this session as the reason in our own error instead, and
  lets only tracebacks (aiokafka's "unexpected" ones) through; its debug lines would show passwords.
- the sequence number of a partition wraps at 2^31 records, which brokers refuse, and they forget a transactional id or
  a producer id that is not used (7 days, 1 day): `worn` says when a new one is due.
- `commit_transaction` succeeds although a record batch failed, and commits the rest. `transact` here commits only after
  every acknowledgement; after any failure the producer is not used again, and its successor's `start` aborts what it
  left open. A transaction takes `request_timeout` at most and the broker's time-out is longer: what is fenced was
  fenced by another gateway.
- its sockets have no keep-alive: `_watch_links` sets it on each connection that the client makes, and the TCP time-out
  of one (ETIMEDOUT: a half-open link) ends the session, where aiokafka would try again in silence.
The private names used are those of aiokafka 0.14, to which pyproject.toml holds it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from socket import socket
from typing import Any
from weakref import WeakSet

from aiokafka import AIOKafkaProducer
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from connectors.kafka_batches import Part
from connectors.kafka_errors import TOO_LARGE, BatchTooLarge, greeting_failed, mapped
from connectors.kafka_settings import KafkaTarget
from connectors.network import knock, over
from connectors.network_paths import PathSuspected
from connectors.tcp import notice_dead_peer
from pipelines.errors import GatewayError, NotConnected, Permanent

CLOSE_S_MAX = 2.0
CLOSE_STEP_S = CLOSE_S_MAX / 4
"""Of each of three: an open transaction, the tasks, the connections."""
RETRY_BACKOFF_MS = 20
TOPIC_WAIT_S_MAX = 5.0
"""How long a topic may take to appear (brokers that create topics by themselves need some 100 ms)."""
RECORDS_PER_PARTITION_MAX = 2**30
IDLE_S_MAX = 3600.0
TRANSACTION_MARGIN_MS = 5000

Ack = asyncio.Future[Any]


class _Tail:
    """The newest line that aiokafka logged for one session."""

    text = ""


_TAIL: ContextVar[_Tail | None] = ContextVar("kafka_session_tail", default=None)


class _OneLine(logging.Filter):
    """Keeps a session's log lines for its own error text; tracebacks pass. Other users of aiokafka are untouched."""

    def filter(self, record: logging.LogRecord) -> bool:
        tail = _TAIL.get()
        if tail is None:
            return True
        if record.levelno >= logging.WARNING:
            tail.text = " ".join(record.getMessage().split())
        return bool(record.exc_info)


for _module in ("", ".conn", ".cluster", ".producer.sender", ".producer.producer"):
    logging.getLogger(f"aiokafka{_module}").addFilter(_OneLine())


def connection_options(target: KafkaTarget, client_id: str, tls: ssl.SSLContext | None) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer and its `create_conn` share."""
    auth = target.auth
    transport = "SSL" if tls else "PLAINTEXT"
    return {
        "client_id": client_id,
        "request_timeout_ms": target.request_timeout // 1_000_000,
        "security_protocol": f"SASL_{transport}" if auth else transport,
        "ssl_context": tls,
        "sasl_mechanism": auth.mechanism if auth else "PLAIN",
        "sasl_plain_username": auth.user if auth else None,
        "sasl_plain_password": auth.password.get_secret_value() if auth else None,
    }


async def reach(target: KafkaTarget, timeout_s: float) -> None:
    """Whether some bootstrap server's system takes a TCP connection; nothing is said. Raises NotConnected."""
    hosts = collect_hosts(list(target.kafka))
    failures: list[str] = []
    for host, port, _ in hosts:
        try:
            async with asyncio.timeout(timeout_s / len(hosts)):
                await knock(target.network.network, host, port)
            return
        except OSError as error:
            failures.append(str(mapped(error, f"{host}:{port} by {target.path}")))
    raise NotConnected("; ".join(failures))


async def _answered(answer: Awaitable[Any]) -> None:
    """Whatever it is."""
    with suppress(KafkaError, TimeoutError):
        await answer


class Session:
    """A producer and all that it has running. Made inside a running loop; ends with `abort`, also if never started.

    `transactional_id`: writes are transactions of that id, else they are idempotent. `on_lost` is told when
    the session ends by itself, and why.
    """

    def __init__(
        self,
        target: KafkaTarget,
        options: Mapping[str, Any],
        on_lost: Callable[[Session, GatewayError], None],
        transactional_id: str | None = None,
    ) -> None:
        self._target = target
        self._options = options
        self._on_lost = on_lost
        self._producer: Any = AIOKafkaProducer(
            bootstrap_servers=list(target.kafka),
            enable_idempotence=True,
            acks="all",
            retry_backoff_ms=RETRY_BACKOFF_MS,
            max_batch_size=target.batch_size,
            transactional_id=transactional_id,
            transaction_timeout_ms=target.request_timeout // 1_000_000 + TRANSACTION_MARGIN_MS,
            **options,
        )
        self._tail = _Tail()
        self._requests: set[asyncio.Task[Any]] = set()
        self._acks: set[Ack] = set()
        self._waits: set[asyncio.Timeout] = set()
        self._links: WeakSet[Any] = WeakSet()
        self._end: GatewayError | None = None
        self._sent: Counter[tuple[str, int]] = Counter()
        self._used_s = self._now_s()
        self.in_transaction = False
        """A transaction was begun, and how it ended is not known."""
        self._track_requests()
        self._watch_links()

    @property
    def client(self) -> Any:
        """aiokafka's client, for what a producer has no call for; call it within `bounded`."""
        return self._producer.client

    @property
    def servers(self) -> str:
        """For messages."""
        return self._target.servers

    async def start(self) -> None:
        """Connected, authenticated, with a producer id; bounded by `request_timeout`. NotConnected or Permanent.

        With a transactional id, whoever had it before can write no more, and its transaction has ended.
        """
        token = _TAIL.set(self._tail)
        try:
            async with asyncio.timeout(self._target.request_timeout_s):
                await self._bootstrap()
                client = self._producer.client
                client._sync_task = asyncio.create_task(client._md_synchronizer())
                await self._producer._sender.start()
        except TimeoutError as error:
            raise NotConnected(self._nobody_answers()) from error
        except (KafkaError, OSError) as error:
            raise mapped(error, self._target.servers) from error
        finally:
            _TAIL.reset(token)

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has, as far as known now; 0 when it is not known."""
        return len(self._producer.client.cluster.partitions_for_topic(topic) or ())

    async def find_topic(self, topic: str) -> None:
        """Returns when the topic is known. Permanent when the brokers do not have it or the user may not see it."""
        client, servers = self._producer.client, self._target.servers
        reached = False
        try:
            async with asyncio.timeout(min(self._target.request_timeout_s, TOPIC_WAIT_S_MAX)):
                await client.add_topic(topic)
                while not self.partitions(topic):
                    if topic in client.cluster.unauthorized_topics:
                        raise Permanent(f"Kafka at {servers}: the user may not write to topic {topic} (ACL)")
                    reached = await client.force_metadata_update()
                    await asyncio.sleep(RETRY_BACKOFF_MS / 1000)
        except TimeoutError as error:
            if not reached:
                raise NotConnected(self._nobody_answers()) from error
            raise Permanent(
                f"Kafka at {servers}: topic {topic} does not exist and the brokers do not create topics by themselves: "
                f"create it (kafka-topics.sh --create --topic {topic} --partitions N)"
            ) from error

    @property
    def worn(self) -> bool:
        """A partition's sequence number nears its end, or brokers may soon forget the producer: a new one is due, once
        `drained`."""
        idle_s = self._now_s() - self._used_s
        return idle_s > IDLE_S_MAX or max(self._sent.values(), default=0) >= RECORDS_PER_PARTITION_MAX

    async def drained(self) -> None:
        """Returns when every submitted record batch is acknowledged or failed; at most `request_timeout`."""
        if self._acks:
            await asyncio.wait(self._acks, timeout=self._target.request_timeout_s)

    @asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """At most `request_timeout`, no longer than the session; aiokafka's errors become NotConnected or Permanent."""
        token = _TAIL.set(self._tail)
        try:
            async with asyncio.timeout(self._target.request_timeout_s) as waiting:
                self._waits.add(waiting)
                try:
                    yield
                finally:
                    self._waits.discard(waiting)
        except (KafkaError, TimeoutError, AssertionError) as error:  # AssertionError: fenced, or the partition is gone
            raise self._failed(error) from error
        finally:
            _TAIL.reset(token)

    async def submit(self, parts: Sequence[Part]) -> list[Ack]:
        """Queues the parts in order and returns their acknowledgements to come. NotConnected or Permanent.

        One call at a time: the sink holds its order lock around it.
        """
        acks: list[Ack] = []
        async with self.bounded():
            for part in parts:
                ack = await self._producer.send_batch(part.batch, part.topic, partition=part.partition)
                self._acks.add(ack)
                ack.add_done_callback(self._settled)
                self._sent[part.topic, part.partition] += part.batch.record_count()
                acks.append(ack)
        self._used_s = self._now_s()
        return acks

    async def acknowledged(self, parts: Sequence[Part], acks: Sequence[Ack]) -> None:
        """Returns when the brokers have all of them. BatchTooLarge, NotConnected or Permanent."""
        async with self.bounded():
            try:
                await asyncio.gather(*acks)
            except TOO_LARGE as error:
                raise self._too_large(parts, acks) from error

    async def transact(self, parts: Sequence[Part]) -> None:
        """Returned: all parts are there for who reads committed records. One call at a time.

        Raises BatchTooLarge: none of them is or will be, once a successor has started; NotConnected or Permanent: all
        or none are, and the position tells which. After an error or a cancellation the session is of no more use.
        """
        self.in_transaction = True
        async with self.bounded():
            await self._producer.begin_transaction()
            await self.acknowledged(parts, await self.submit(parts))
            await self._producer.commit_transaction()
        self.in_transaction = False

    def waiting(self) -> dict[socket, object | None]:
        """Its connections, each with the request that waits longest there for its answer, or None."""
        links = [link for link in self._links if link._writer]
        oldest = [link._requests[0][2] if link._requests else None for link in links]
        return {link._writer.get_extra_info("socket"): one for link, one in zip(links, oldest, strict=True)}

    def ping(self) -> bool:
        """Asks for metadata of no topic on a connection that it has: the smallest request that any user may make, and
        answered from memory. False: it has none."""
        link = next((link for link in self._links if link._writer), None)
        if link is not None:
            self._track(asyncio.ensure_future(_answered(link.send(MetadataRequest([])))))
        return link is not None

    def end(self, reason: GatewayError) -> None:
        """Who waits for something of this session learns that it is of no more use; `abort` is still due."""
        self._end = self._end or reason
        for waiting in self._waits:
            waiting.reschedule(0)
        for ack in list(self._acks):
            if not ack.done():
                ack.set_exception(KafkaConnectionError("the session was closed"))

    async def close(self) -> None:
        """As `abort`, but a transaction that was not committed is ended before: until the broker's time-out it would
        hide what others write from consumers of committed records."""
        manager = self._producer._txn_manager
        if self._end is None and manager.is_in_transaction():
            with suppress(KafkaError, TimeoutError, AssertionError):  # then the successor does it, or the time-out
                async with asyncio.timeout(CLOSE_STEP_S):
                    await self._producer.abort_transaction()
        await self.abort()

    async def abort(self, reason: str = "") -> None:
        """Ends at once: what is not acknowledged fails, for `reason`. Idempotent; at most CLOSE_S_MAX."""
        self.end(NotConnected(reason or f"Kafka at {self.servers}: the session was closed"))
        producer = self._producer
        producer._closed = True  # else its finalizer warns that `stop` was not called
        tasks = {task for task in (producer._sender.sender_task, producer.client._sync_task, *self._requests) if task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_STEP_S)
        producer.client._sync_task = None
        self._look_at_what_failed()
        await self._close_connections()

    def _look_at_what_failed(self) -> None:
        """Futures that aiokafka fails and nobody waits for; asyncio would log each, with its traceback."""
        producer = self._producer
        unsent = (batch._drain_waiter for queue in producer._message_accumulator._batches.values() for batch in queue)
        for future in (producer._txn_manager._transaction_waiter, *unsent):
            if future is not None and future.done() and not future.cancelled():
                future.exception()

    def _track_requests(self) -> None:
        """The sender keeps its requests in local variables; `abort` has to reach them."""
        sender = self._producer._sender
        send, transactional = sender._send_produce_req, sender._maybe_do_transactional_request

        async def tracked_send(node_id: Any, batches: Any) -> None:
            self._track(asyncio.current_task())
            await send(node_id, batches)

        def tracked_transactional() -> asyncio.Task[Any] | None:
            task: asyncio.Task[Any] | None = transactional()
            self._track(task)
            return task

        sender._send_produce_req = tracked_send
        sender._maybe_do_transactional_request = tracked_transactional

    def _track(self, task: asyncio.Task[Any] | None) -> None:
        if task is not None:
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    def _watch_links(self) -> None:
        """The client makes its connections in `_get_conn` and asks it for one before each request."""
        client = self._producer.client
        connect = client._get_conn

        async def watched(node_id: Any, **options: Any) -> Any:
            with over(self._target.network.network):
                link = await connect(node_id, **options)
            if link is not None and link not in self._links and link._writer is not None:
                self._links.add(link)
                self._watch(link)
            return link

        client._get_conn = watched

    def _watch(self, link: Any) -> None:
        notice_dead_peer(link._writer.get_extra_info("socket"), self._target.ack_timeout)
        reader, where = link._reader, f"{link.host}:{link.port}"
        link._closed_fut.add_done_callback(lambda _: self._link_lost(where, reader.exception()))

    def _link_lost(self, where: str, error: BaseException | None) -> None:
        if isinstance(error, TimeoutError) and self._end is None:  # ETIMEDOUT
            seconds = self._target.ack_timeout_s
            lost = NotConnected(f"Kafka at {where}: acknowledges nothing for {seconds:g} s: the link is half-open")
            self.end(lost)
            self._on_lost(self, lost)

    async def _close_connections(self) -> None:
        client = self._producer.client
        transports = [connection._writer.transport for connection in client._conns.values() if connection._writer]
        if isinstance(self._end, PathSuspected):  # nothing arrives there: no farewell either
            for transport in transports:
                transport.abort()
        try:
            async with asyncio.timeout(CLOSE_STEP_S):
                await client.close()
        except TimeoutError:
            for transport in transports:  # a dead peer never answers TLS's farewell
                transport.abort()

    async def _bootstrap(self) -> None:
        """The cluster's brokers from the first server that answers. Raises the most telling error when none does."""
        hosts = collect_hosts(list(self._target.kafka))
        failures: list[GatewayError] = []
        for host, port, _ in hosts:
            try:
                async with asyncio.timeout(self._target.request_timeout_s / (len(hosts) + 1)):
                    await self._first_metadata(host, port)
                return
            except (OSError, KafkaError) as error:
                failures.append(greeting_failed(error, f"{host}:{port}"))
        for failure in failures:
            if isinstance(failure, Permanent):
                raise failure
        raise NotConnected("; ".join(map(str, failures)))

    async def _first_metadata(self, host: str, port: int) -> None:
        with over(self._target.network.network):
            connection = await create_conn(host, port, **self._options)
        notice_dead_peer(connection._writer.get_extra_info("socket"), self._target.ack_timeout)
        try:
            metadata = await connection.send(MetadataRequest([]))
        finally:
            await asyncio.wait([connection.close()], timeout=CLOSE_STEP_S)
        self._producer.client.cluster.update_metadata(metadata)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _settled(self, ack: Ack) -> None:
        self._acks.discard(ack)
        if not ack.cancelled():
            ack.exception()  # a write that was cancelled does not look at it any more

    def _failed(self, error: BaseException) -> GatewayError:
        if self._end is not None:
            return NotConnected(str(self._end))
        if isinstance(error, TimeoutError):
            seconds = self._target.request_timeout_s
            reason = f": {self._tail.text}" if self._tail.text else ""
            return NotConnected(f"Kafka at {self._target.servers}: no acknowledgement within {seconds:g} s{reason}")
        return mapped(error, self._target.servers)

    def _too_large(self, parts: Sequence[Part], acks: Sequence[Ack]) -> BatchTooLarge:
        refused = [
            part
            for part, ack in zip(parts, acks, strict=True)
            if ack.done() and not ack.cancelled() and isinstance(ack.exception(), TOO_LARGE)
        ]
        part = min(refused, key=lambda part: part.batch.bytes)
        records, size = part.batch.record_count(), part.batch.bytes
        text = f"topic {part.topic} refuses a record batch of {size} B with {records} records: smaller ones from now on"
        return BatchTooLarge(f"Kafka at {self._target.servers}: {text}", part.topic, records, size)

    def _nobody_answers(self) -> str:
        brokers = self._producer.client.cluster.brokers()
        known = ", ".join(sorted(f"{broker.host}:{broker.port}" for broker in brokers)) or "none"
        seconds = self._target.request_timeout_s
        return f"Kafka at {self._target.servers}: no answer within {seconds:g} s (brokers as advertised: {known})"
