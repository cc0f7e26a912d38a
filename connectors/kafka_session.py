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
- the sequence number of a partition wraps at 2^31 records, which brokers refuse: `worn` says when a new one is due.
The private names used are those of aiokafka 0.14, to which pyproject.toml holds it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from connectors.kafka_batches import Part
from connectors.kafka_errors import TOO_LARGE, BatchTooLarge, greeting_failed, mapped
from connectors.kafka_settings import KafkaTarget
from pipelines.errors import GatewayError, NotConnected, Permanent

CLOSE_S_MAX = 2.0
RETRY_BACKOFF_MS = 20
TOPIC_WAIT_S_MAX = 5.0
"""How long a topic may take to appear (brokers that create topics by themselves need some 100 ms)."""
RECORDS_PER_PARTITION_MAX = 2**30

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


class Session:
    """A producer and all that it has running. Made inside a running loop; ends with `abort`, also if never started."""

    def __init__(self, target: KafkaTarget, options: Mapping[str, Any]) -> None:
        self._target = target
        self._options = options
        self._producer: Any = AIOKafkaProducer(
            bootstrap_servers=list(target.kafka),
            enable_idempotence=True,
            acks="all",
            retry_backoff_ms=RETRY_BACKOFF_MS,
            max_batch_size=target.batch_size,
            **options,
        )
        self._tail = _Tail()
        self._requests: set[asyncio.Task[Any]] = set()
        self._acks: set[Ack] = set()
        self._submitting: asyncio.Timeout | None = None
        self._aborted = False
        self._abort_reason = ""
        self._sent: Counter[tuple[str, int]] = Counter()
        self._track_requests()

    async def start(self) -> None:
        """Connected, authenticated, with a producer id; bounded by `request_timeout`. NotConnected or Permanent."""
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
        """A partition's sequence number nears its end: a new producer is due, once `drained`."""
        return max(self._sent.values(), default=0) >= RECORDS_PER_PARTITION_MAX

    async def drained(self) -> None:
        """Returns when every submitted record batch is acknowledged or failed; at most `request_timeout`."""
        if self._acks:
            await asyncio.wait(self._acks, timeout=self._target.request_timeout_s)

    async def submit(self, parts: Sequence[Part]) -> list[Ack]:
        """Queues the parts in order and returns their acknowledgements to come. NotConnected or Permanent.

        One call at a time: the sink holds its order lock around it.
        """
        acks: list[Ack] = []
        try:
            async with asyncio.timeout(self._target.request_timeout_s) as self._submitting:
                for part in parts:
                    ack = await self._producer.send_batch(part.batch, part.topic, partition=part.partition)
                    self._acks.add(ack)
                    ack.add_done_callback(self._settled)
                    self._sent[part.topic, part.partition] += part.batch.record_count()
                    acks.append(ack)
        except (KafkaError, TimeoutError, AssertionError) as error:  # AssertionError: the partition is gone
            raise self._failed(error) from error
        finally:
            self._submitting = None
        return acks

    async def acknowledged(self, parts: Sequence[Part], acks: Sequence[Ack]) -> None:
        """Returns when the brokers have all of them. BatchTooLarge, NotConnected or Permanent."""
        try:
            async with asyncio.timeout(self._target.request_timeout_s):
                await asyncio.gather(*acks)
        except TOO_LARGE as error:
            raise self._too_large(parts, acks) from error
        except (KafkaError, TimeoutError) as error:
            raise self._failed(error) from error

    async def abort(self, reason: str = "") -> None:
        """Ends at once: what is not acknowledged fails, for `reason`. Idempotent; at most CLOSE_S_MAX."""
        self._aborted = True
        self._abort_reason = self._abort_reason or reason
        if self._submitting is not None:
            self._submitting.reschedule(0)  # it waits for a sender that ends now
        producer = self._producer
        producer._closed = True  # else its finalizer warns that `stop` was not called
        tasks = {task for task in (producer._sender.sender_task, producer.client._sync_task, *self._requests) if task}
        for task in tasks:
            task.cancel()
        for ack in list(self._acks):
            if not ack.done():
                ack.set_exception(KafkaConnectionError("the session was closed"))
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S_MAX / 2)
        producer.client._sync_task = None
        await self._close_connections()

    def _track_requests(self) -> None:
        """The sender keeps its produce requests in a local variable; `abort` has to reach them."""
        sender = self._producer._sender
        send = sender._send_produce_req

        async def tracked(node_id: Any, batches: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            await send(node_id, batches)

        sender._send_produce_req = tracked

    async def _close_connections(self) -> None:
        client = self._producer.client
        transports = [connection._writer.transport for connection in client._conns.values() if connection._writer]
        try:
            async with asyncio.timeout(CLOSE_S_MAX / 2):
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
        connection = await create_conn(host, port, **self._options)
        try:
            metadata = await connection.send(MetadataRequest([]))
        finally:
            await asyncio.wait([connection.close()], timeout=CLOSE_S_MAX / 2)
        self._producer.client.cluster.update_metadata(metadata)

    def _settled(self, ack: Ack) -> None:
        self._acks.discard(ack)
        if not ack.cancelled():
            ack.exception()  # a write that was cancelled does not look at it any more

    def _failed(self, error: BaseException) -> GatewayError:
        if self._aborted:
            return NotConnected(self._abort_reason or f"Kafka at {self._target.servers}: the session was closed")
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
