"""The Kafka sink against a real broker; what arrived is read by kcat (librdkafka), which shares no code with it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connectors import kafka_session
from connectors.kafka import KafkaSink
from connectors.kafka_batches import key_hash
from pipelines.batch import Batch
from pipelines.errors import NotConnected, Permanent, Rejected
from tests.integration.kafka_plant import (
    DEADLINE_S,
    Plant,
    connected,
    make_sink,
    numbers,
    other_tasks,
    read_topic,
    write,
)
from tests.services.kafka import Kafka
from tests.services.ports import HOST, free_port
from tests.services.tls import Certificates, make_certificates

Brokers = Callable[..., Kafka]


async def pump(sink: KafkaSink, writes: Sequence[Sequence[Batch]]) -> None:
    """As the gateway's pump: `in_flight_max` writes at a time, started in order."""
    slots = asyncio.Semaphore(sink.in_flight_max)

    async def deliver(batches: Sequence[Batch]) -> None:
        await write(sink, *batches)
        slots.release()

    async with asyncio.TaskGroup() as group:
        for batches in writes:
            await slots.acquire()
            group.create_task(deliver(batches))


@pytest.fixture
async def topic(kafka: Kafka, request: pytest.FixtureRequest) -> str:
    """A topic with three partitions, named like the test."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    await kafka.create_topic(name, partitions=3)
    return name


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "zstd"])
@pytest.mark.parametrize("records", ["batch", "sample"])
async def test_a_foreign_consumer_reads_every_row(kafka: Kafka, topic: str, records: str, compression: str) -> None:
    """Both record modes, every compression: keys, partitions, times, headers and values; in order per key."""
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, topic, records=records, compression=compression)
    await sink.connect()
    await pump(sink, [[plant.batch(), plant.batch(50)] for _ in range(60)])
    await sink.close()
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, topic)
    assert sorted(numbers(seen)) == list(range(plant.rows))
    per_key: defaultdict[str, list[int]] = defaultdict(list)
    for record in seen:
        assert record.partition == key_hash(record.key.encode()) % 3
        message = json.loads(record.payload)
        newest = message["samples"][-1]
        assert record.time_ms == newest["t"] // 1000
        assert record.key == (f"{message['device']}/{newest['tag']}" if records == "sample" else message["device"])
        assert record.headers == ("" if records == "sample" else "content-type=application/json")
        per_key[record.key] += numbers([record])
    assert all(values == sorted(values) for values in per_key.values())
    assert len(per_key) == (12 if records == "sample" else 3)
    assert sink.counters.totals["records"] == len(seen)


@pytest.mark.parametrize("format_", ["json", "json-columns", "msgpack", "value"])
async def test_every_format_goes_one_record_a_row(kafka: Kafka, topic: str, format_: str) -> None:
    """The payload is the format's `rows`; a value is bare."""
    plant = Plant(devices=1)
    sink = make_sink(plant, kafka.bootstrap, topic, records="sample", format=format_)
    await sink.connect()
    await write(sink, plant.batch(20))
    await sink.close()
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, topic)
    assert len(seen) == 20
    if format_ == "value":
        assert sorted(int(record.payload) for record in seen) == list(range(20))


async def test_topics_by_placeholder(kafka: Kafka) -> None:
    """{site} made legal, {device} by the rows, {route} without its worker; the broker makes the topics by itself."""
    plant = Plant(devices=2)
    sink = make_sink(plant, kafka.bootstrap, "{gateway}.{site}.{device}.{route}")
    await sink.connect()
    await sink.write("history@2", [plant.batch(), plant.batch()], b"", False)
    await sink.close()
    for device in ("press0", "press1"):
        seen = await asyncio.to_thread(read_topic, kafka.bootstrap, f"line1-gw.acme.plant1.{device}.history")
        assert [record.key for record in seen] == [device]


async def test_rows_too_large_are_rejected_and_the_others_arrive(kafka: Kafka, topic: str) -> None:
    """`Rejected` names them by batch and row, after all else is acknowledged; the session goes on."""
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, topic, records="sample", batch_size="10KiB")
    await sink.connect()
    with pytest.raises(Rejected) as caught:
        await write(sink, plant.batch(5), plant.text("a", "x" * 20_000, "b"))
    assert caught.value.rows == [(1, 1)]
    await write(sink, plant.batch(5))
    await sink.close()
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, topic)
    assert sorted(map(str, numbers(seen))) == sorted([*map(str, range(10)), "a", "b"])


async def test_a_topic_with_a_smaller_limit_than_ours_is_learned(kafka: Kafka) -> None:
    """max.message.bytes of the topic: smaller record batches after a few sessions; what never fits is rejected."""
    await kafka.create_topic("small", config={"max.message.bytes": "5000"})
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, "small", records="sample")
    batches = [plant.batch(200), plant.text("x" * 6000)]
    for _ in range(30):
        await sink.connect()
        try:
            await write(sink, *batches)
        except NotConnected as error:
            assert "smaller" in str(error)
        except Rejected as rejected:
            assert rejected.rows == [(1, 0)]
            break
    else:
        pytest.fail("never learned")
    await sink.close()
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, "small")
    assert set(numbers(seen)) == set(range(200))


async def test_record_times_that_the_topic_refuses_are_permanent(kafka: Kafka) -> None:
    """Nothing is lost or skipped: the operator changes the topic."""
    await kafka.create_topic("strict-times", config={"message.timestamp.before.max.ms": "1000"})
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, "strict-times")
    await sink.connect()
    with pytest.raises(Permanent, match=r"message\.timestamp"):
        await write(sink, plant.batch())
    await sink.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_sasl(kafka_factory: Brokers, mechanism: str) -> None:
    """The right password writes; a wrong one is Permanent, in one line without the password."""
    broker = await asyncio.to_thread(kafka_factory, users={"collector": "secret"})
    await broker.create_topic("sasl")
    plant = Plant()
    auth = {"mechanism": mechanism, "user": "collector", "password": "secret", "insecure": True}
    sink = make_sink(plant, broker.sasl_bootstrap, "sasl", auth=auth)
    await sink.connect()
    await write(sink, plant.batch())
    await sink.close()
    assert numbers(await asyncio.to_thread(read_topic, broker.bootstrap, "sasl")) == list(range(8))
    wrong = make_sink(plant, broker.sasl_bootstrap, "sasl", auth=auth | {"password": "guessed"})
    with pytest.raises(Permanent, match="user or password refused") as caught:
        await wrong.connect()
    assert broker.sasl_bootstrap in str(caught.value)
    assert "guessed" not in str(caught.value)
    anonymous = make_sink(plant, broker.sasl_bootstrap, "sasl", request_timeout="2s")
    with pytest.raises(NotConnected, match="`tls` and `auth`") as caught_anonymous:
        await anonymous.connect()
    assert broker.sasl_bootstrap in str(caught_anonymous.value)
    not_offered = make_sink(plant, broker.sasl_bootstrap, "sasl", auth=auth | {"mechanism": "SCRAM-SHA-256"})
    with pytest.raises(Permanent, match=r"does not offer this auth\.mechanism$"):
        await not_offered.connect()


async def test_tls_and_mutual_tls(kafka_factory: Brokers, certificates: Certificates, tmp_path: Path) -> None:
    """With the client's certificate it writes; without it, with an unknown CA, or without TLS: one clear line."""
    broker = await asyncio.to_thread(kafka_factory, tls=certificates, require_certificate=True)
    await broker.create_topic("tls")
    plant = Plant()
    ours = {"ca": certificates.ca, "cert": certificates.client, "key": certificates.client_key}
    sink = make_sink(plant, broker.ssl_bootstrap, "tls", tls=ours)
    await sink.connect()
    await write(sink, plant.batch())
    await sink.close()
    assert numbers(await asyncio.to_thread(read_topic, broker.bootstrap, "tls")) == list(range(8))
    with pytest.raises(Permanent, match="TLS"):
        await make_sink(plant, broker.ssl_bootstrap, "tls", tls={"ca": certificates.ca}).connect()
    stranger = make_certificates(tmp_path)
    with pytest.raises(Permanent, match="not trusted"):
        await make_sink(plant, broker.ssl_bootstrap, "tls", tls=ours | {"ca": stranger.ca}).connect()
    with pytest.raises(NotConnected, match="`tls` and `auth`"):
        await make_sink(plant, broker.bootstrap, "tls", tls=ours).connect()
    with pytest.raises(NotConnected, match="`tls` and `auth`"):
        await make_sink(plant, broker.ssl_bootstrap, "tls").connect()


@pytest.mark.parametrize(("request_timeout", "how"), [("60s", "stop"), ("60s", "kill"), ("1s", "kill")])
async def test_a_broker_that_restarts_loses_nothing(
    kafka_factory: Brokers, caplog: pytest.LogCaptureFixture, request_timeout: str, how: str
) -> None:
    """A write that raised is written again. One session bridges outages shorter than `request_timeout`, and then
    nothing is there twice either.
    """
    broker = await asyncio.to_thread(kafka_factory)
    await broker.create_topic("outage", partitions=3)
    plant = Plant()
    sink = make_sink(plant, broker.bootstrap, "outage", records="sample", request_timeout=request_timeout)
    await connected(sink)
    half = asyncio.Event()

    async def run() -> None:
        for written in range(400):
            batches = [plant.batch(25)]
            while True:
                try:
                    await write(sink, *batches)
                    break
                except NotConnected as error:
                    assert broker.bootstrap in str(error)
                    await connected(sink)
            if written == 100:
                half.set()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(run())
        await half.wait()
        await asyncio.to_thread(getattr(broker, how))
        await asyncio.to_thread(broker.start)
    await sink.close()
    seen = numbers(await asyncio.to_thread(read_topic, broker.bootstrap, "outage"))
    assert set(seen) == set(range(plant.rows))
    if request_timeout == "60s":
        assert len(seen) == plant.rows
        assert sink.counters.totals["sessions"] == 1
    assert not [record for record in caplog.records if record.name.startswith("aiokafka")]


async def test_nobody_there_is_not_connected(caplog: pytest.LogCaptureFixture) -> None:
    """At once when connections are refused; each server is named with its reason; no line in the log."""
    servers = [f"{HOST}:{free_port()}", f"{HOST}:{free_port()}", "no-such-host.invalid:9092"]
    sink = make_sink(Plant(), ",".join(servers), "t", request_timeout="5s")
    with pytest.raises(NotConnected) as caught:
        await sink.connect()
    assert all(server in str(caught.value) for server in servers)
    assert "refused" in str(caught.value)
    assert caplog.records == []
    assert await other_tasks() == set()


async def test_the_second_server_is_asked_when_the_first_is_silent(kafka: Kafka, topic: str) -> None:
    """A black hole in front takes only its share of `request_timeout`."""
    async with silent_server() as hole:
        plant = Plant()
        sink = make_sink(plant, f"{hole},{kafka.bootstrap}", topic, request_timeout="9s")
        await sink.connect()
        await write(sink, plant.batch())
        await sink.close()


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """A listener that takes everything and says nothing. At the end it waits until every client has closed."""
    handlers: set[asyncio.Task[Any]] = set()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(swallow, HOST, 0) as server:
        yield f"{HOST}:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*handlers)


async def test_an_unknown_topic_is_permanent_within_the_bound(kafka_factory: Brokers) -> None:
    """Where the brokers create no topics: at connect for a fixed name, at the write for one that depends on rows."""
    broker = await asyncio.to_thread(kafka_factory, options={"auto.create.topics.enable": "false"})
    plant = Plant()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Permanent, match=r"topic absent does not exist.*create it"):
            await make_sink(plant, broker.bootstrap, "absent", request_timeout="3s").connect()
        sink = make_sink(plant, broker.bootstrap, "of.{device}", request_timeout="3s")
        await sink.connect()
        with pytest.raises(Permanent, match=r"topic of\.press0 does not exist"):
            await write(sink, plant.batch())
        await sink.close()
    assert await other_tasks() == set()


async def test_a_stopped_broker_ends_the_write_in_time(kafka_factory: Brokers) -> None:
    """Half-open: connections stay, nothing answers. `write` raises, `wait_closed` too, `close` is bounded."""
    broker = await asyncio.to_thread(kafka_factory)
    plant = Plant()
    await broker.create_topic("frozen")
    sink = make_sink(plant, broker.bootstrap, "frozen", request_timeout="3s")
    await sink.connect()
    await write(sink, plant.batch())
    broker.process.pause()
    try:
        waiter = asyncio.create_task(sink.wait_closed())
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(NotConnected, match=r"no acknowledgement within 3 s"):
                await write(sink, plant.batch())
            with pytest.raises(NotConnected):
                await waiter
            with pytest.raises(NotConnected, match="not connected"):
                await write(sink, plant.batch())
            with pytest.raises(NotConnected):
                await sink.connect()
            await sink.close()
    finally:
        broker.process.resume()
    assert await other_tasks() == set()


async def test_close_ends_a_write_and_is_bounded(kafka_factory: Brokers) -> None:
    """Also while the broker is half-open; the write raises NotConnected; nothing is left running."""
    broker = await asyncio.to_thread(kafka_factory)
    plant = Plant()
    sink = make_sink(plant, broker.bootstrap, "frozen", request_timeout="10m")
    await sink.connect()
    await write(sink, plant.batch())
    broker.process.pause()
    try:
        writes = [asyncio.create_task(write(sink, plant.batch())) for _ in range(2)]
        await asyncio.sleep(0)
        async with asyncio.timeout(10 * kafka_session.CLOSE_S_MAX):
            await sink.close()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(result, NotConnected) for result in results)
        await sink.wait_closed()
        await sink.close()
    finally:
        broker.process.resume()
    assert await other_tasks() == set()


async def test_close_before_connect_and_twice() -> None:
    """Legal, and leaves nothing."""
    sink = make_sink(Plant(), f"{HOST}:{free_port()}", "t")
    await sink.close()
    await sink.close()
    await sink.wait_closed()
    with pytest.raises(NotConnected):
        await write(sink, Plant().batch())


async def test_connect_can_be_cancelled_anywhere(kafka: Kafka, topic: str) -> None:
    """No task, no connection, no producer stays behind (their finalizers warn, and warnings are errors)."""
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, topic)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await sink.connect()
    whole_s = loop.time() - start
    await sink.close()
    for part in range(40):
        connecting = asyncio.create_task(sink.connect())
        await asyncio.wait([connecting], timeout=whole_s * 1.2 * part / 40)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        if not connecting.cancelled():
            await sink.close()
        del connecting
        assert await other_tasks() == set()
        gc.collect()
    await sink.connect()
    await write(sink, plant.batch())
    await sink.close()


async def test_connect_to_a_silent_server_can_be_cancelled() -> None:
    """In the middle of the first request."""
    async with silent_server() as hole:
        sink = make_sink(Plant(), hole, "t")
        connecting = asyncio.create_task(sink.connect())
        await asyncio.wait([connecting], timeout=0.1)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        assert connecting.cancelled()
        with pytest.raises(NotConnected, match="no answer"):
            await make_sink(Plant(), hole, "t", request_timeout="200ms").connect()
    gc.collect()


async def test_a_cancelled_write_leaves_the_session_usable(kafka: Kafka, topic: str) -> None:
    """The pump may be stopped and started again without a reconnect."""
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, topic, records="sample")
    await sink.connect()
    for turns in range(30):
        cancelled = asyncio.create_task(write(sink, plant.batch(100)))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await write(sink, plant.batch(3))
    await sink.close()
    assert await other_tasks() == set()


async def test_a_worn_producer_is_replaced_between_writes(
    kafka: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a partition's sequence number wraps: nothing lost, nothing twice, order per key kept, no error."""
    monkeypatch.setattr(kafka_session, "RECORDS_PER_PARTITION_MAX", 200)
    plant = Plant()
    sink = make_sink(plant, kafka.bootstrap, topic, records="sample")
    await sink.connect()
    await pump(sink, [[plant.batch(50)] for _ in range(60)])
    await sink.close()
    seen = await asyncio.to_thread(read_topic, kafka.bootstrap, topic)
    assert sorted(numbers(seen)) == list(range(plant.rows))
    assert sink.counters.totals["sessions"] > 3
    assert await other_tasks() == set()


async def test_other_users_of_aiokafka_keep_their_log(caplog: pytest.LogCaptureFixture) -> None:
    """Only our sessions' lines become error texts."""
    logging.getLogger("aiokafka").warning("somebody else's")
    assert [record.getMessage() for record in caplog.records] == ["somebody else's"]
