"""The MQTT sink against Mosquitto, a foreign subscriber beside it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest

from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from pipelines.batch import Batch, Kind
from pipelines.clock import SystemClock
from pipelines.errors import GatewayError, NotConnected, Permanent, Rejected
from pipelines.tags import Tag, TagTable
from tests.services.mosquitto import Mosquitto
from tests.services.ports import connections, free_port
from tests.services.tls import Certificates, make_certificates

DEADLINE_S = 60.0
IDENTITY = Identity("line1-gw", "acme")
PER_TAG = "{site}/{device}/{tag}"
Brokers = Callable[..., Mosquitto]


@pytest.fixture
def tags() -> TagTable:
    """1000 tags of one device."""
    table = TagTable()
    for number in range(1000):
        table.add(Tag("press4", f"tag{number}"))
    return table


@pytest.fixture
async def sinks(tags: TagTable) -> AsyncIterator[Callable[..., MqttSink]]:
    """Makes sinks from a URL and settings; all of them are closed at the end."""
    made: list[MqttSink] = []

    def make(url: str, **settings: Any) -> MqttSink:
        target = MqttTarget.model_validate({"mqtt": url, **settings})
        made.append(MqttSink(f"plant{len(made)}", target, IDENTITY, tags, SystemClock()))
        return made[-1]

    yield make
    for sink in made:
        await sink.close()


def doubles(rows: int, seq: int, first_tag: int = 0) -> Batch:
    """Row i is tag first_tag + i with value seq + i / 1000."""
    return Batch(
        source_id=0,
        number=seq,
        origin=None,
        received_ns=0,
        tag=np.arange(first_tag, first_tag + rows, dtype=np.uint32),
        ts_ns=np.full(rows, 1_795_343_713_695_123_000, dtype=np.int64),
        value=seq + np.arange(rows) / 1000,
        status=np.zeros(rows, np.uint32),
        kind=np.full(rows, Kind.DOUBLE, np.uint8),
        flags=np.zeros(rows, np.uint8),
        seq=seq,
    )


class Listener:
    """A foreign subscriber: paho's own client in its own thread."""

    def __init__(self, broker: Mosquitto, topic: str, **auth: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self.messages: asyncio.Queue[paho.MQTTMessage] = asyncio.Queue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        if auth:
            self._client.username_pw_set(auth["user"], auth["password"])
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._loop.call_soon_threadsafe(self._ready.set)
        self._client.on_message = lambda _c, _u, m: self._loop.call_soon_threadsafe(self.messages.put_nowait, m)
        self._client.connect("127.0.0.1", broker.port)

    async def __aenter__(self) -> "Listener":
        self._client.loop_start()
        async with asyncio.timeout(DEADLINE_S):
            await self._ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    async def take(self, count: int) -> list[paho.MQTTMessage]:
        """The next messages, or a time-out when none comes any more."""
        return [await asyncio.wait_for(self.messages.get(), DEADLINE_S) for _ in range(count)]


async def write(sink: MqttSink, *batches: Batch) -> None:
    """One write, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        await sink.write("history", batches, b"", historical=False)


async def wait_closed(sink: MqttSink) -> None:
    """The session's end, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        await sink.wait_closed()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Returns when it is true; fails at the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.001)


async def test_no_name_of_a_tag_ends_the_session(mosquitto: Mosquitto, sinks: Any, tags: TagTable) -> None:
    """What no topic can hold (MQTT 5 section 1.5.4) becomes `_`: Mosquitto hangs up because of such a topic, each time
    that it is sent again; so nothing of any route would arrive any more."""
    names = ["+", "Line\tA", "\x7f", "\u0085", "\ufdd0", "\U0001ffff", "/", "\ud800", "x" + "ä" * 40_000]
    first, *_ = [tags.add(Tag("odd", name)) for name in names]
    sink = sinks(mosquitto.url, topic="{tag}", format="value", status_topic=None)
    await sink.connect()
    async with Listener(mosquitto, "+") as listener:
        await write(sink, doubles(len(names), 1, first))
        topics = [message.topic for message in await listener.take(len(names))]
    assert topics == ["_", "Line_A", "_", "_", "_", "_", "_", "_", "x" + "ä" * 32_767]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1])
async def test_every_message_in_order(mosquitto: Mosquitto, sinks: Any, protocol: str, qos: int) -> None:
    """One message per tag and one per batch; concurrent writes keep their order; counters agree."""
    async with Listener(mosquitto, f"{protocol}/{qos}/#") as listener:
        sink = sinks(mosquitto.url, topic=f"{protocol}/{qos}/{PER_TAG}", format="value", protocol=protocol, qos=qos)
        await sink.connect()
        async with asyncio.TaskGroup() as group:
            for seq in range(0, 30, 2):
                group.create_task(write(sink, doubles(100, seq), doubles(100, seq + 1)))
        messages = await listener.take(3000)
        assert [(m.topic, float(m.payload)) for m in messages] == [
            (f"{protocol}/{qos}/acme/press4/tag{row}", seq + row / 1000) for seq in range(30) for row in range(100)
        ]
        batchwise = sinks(mosquitto.url, topic=f"{protocol}/{qos}/" + "{route}/{device}", protocol=protocol, qos=qos)
        await batchwise.connect()
        await write(batchwise, doubles(1000, 7))
        (message,) = await listener.take(1)
        assert message.topic == f"{protocol}/{qos}/history/press4"
        assert json.loads(message.payload)["samples"][999]["v"] == 7.999
        assert getattr(message.properties, "ContentType", None) == ("application/json" if protocol == "5" else None)
    totals = sink.counters.totals
    assert (totals["rows"], totals["messages"], totals["pubacks"]) == (3000, 3000, 3000 * qos)
    assert totals["bytes_sent"] > 3000 * 20 and sink.counters.gauges["in_flight"] == 0


async def test_receive_maximum_is_kept(mosquitto_factory: Brokers, sinks: Any) -> None:
    """A window of a few messages: everything arrives in slices, and the broker never complains."""
    broker = mosquitto_factory(max_inflight_messages=5)
    async with Listener(broker, "acme/#") as listener:
        sink = sinks(broker.url, topic=PER_TAG, format="value")
        await sink.connect()
        await asyncio.gather(*(write(sink, doubles(100, seq)) for seq in range(5)))
        messages = await listener.take(500)
    assert [float(m.payload) for m in messages] == [seq + row / 1000 for seq in range(5) for row in range(100)]


async def test_live_data_goes_between_the_slices_of_a_backlog(mosquitto_factory: Brokers, sinks: Any) -> None:
    """A small window and thousands of messages: a live write that starts later is through long before."""
    broker = mosquitto_factory(max_inflight_messages=20)
    sink = sinks(broker.url, topic=PER_TAG)
    await sink.connect()
    async with Listener(broker, "acme/press4/#") as listener:
        backlog = asyncio.create_task(
            sink.write("history", [doubles(1000, seq) for seq in range(3)], b"", historical=True)
        )
        await until(lambda: sink.counters.totals["pubacks"] > 0, "the backlog has begun")
        await write(sink, doubles(5, 9))
        assert not backlog.done()
        async with asyncio.timeout(DEADLINE_S):
            await backlog
        values = [json.loads(message.payload)["samples"][0]["v"] for message in await listener.take(3005)]
    first = [value for value in values if value < 9]
    assert first == sorted(first) and len(first) == 3000
    assert [value for value in values if value >= 9] == (9 + np.arange(5) / 1000).tolist()
    assert values.index(9.0) < 2000


async def test_status_is_retained_and_closing_says_offline(mosquitto_factory: Brokers, sinks: Any) -> None:
    """Online from connect on, for late subscribers too; offline after a clean close, without the will."""
    broker = mosquitto_factory()
    sink = sinks(broker.url)
    await sink.connect()
    async with Listener(broker, "gateway/line1-gw/status") as listener:
        (online,) = await listener.take(1)
        status = json.loads(online.payload)
        assert online.retain and (status["gateway"], status["online"]) == ("line1-gw", True)
        assert abs(status["t"] - time.time_ns() // 1000) < 3600 * 10**6
        await sink.close()
        (offline,) = await listener.take(1)
        assert json.loads(offline.payload)["online"] is False
    async with Listener(broker, "gateway/line1-gw/status") as late:
        (offline,) = await late.take(1)
        assert offline.retain and json.loads(offline.payload)["online"] is False
        assert late.messages.empty()


async def test_will_and_takeover(mosquitto_factory: Brokers, sinks: Any) -> None:
    """A second client with the same id ends the session: NotConnected, and the broker sends the will."""
    broker = mosquitto_factory()
    async with Listener(broker, "gateway/line1-gw/status") as listener:
        first = sinks(broker.url, client_id="same")
        await first.connect()
        second = sinks(broker.url, client_id="same", status_topic=None)
        await second.connect()
        with pytest.raises(NotConnected):
            await wait_closed(first)
        with pytest.raises(NotConnected):
            await write(first, doubles(1, 1))
        messages = await listener.take(2)
        assert [json.loads(m.payload)["online"] for m in messages] == [True, False]


async def test_tls(mosquitto_factory: Brokers, sinks: Any, certificates: Certificates) -> None:
    """With the right authority; a certificate of the gateway's where the broker demands one."""
    broker = mosquitto_factory(tls=certificates)
    sink = sinks(broker.tls_url, tls={"ca": certificates.ca})
    await sink.connect()
    await write(sink, doubles(1000, 1), doubles(1000, 2))
    mutual = mosquitto_factory(tls=certificates, require_certificate=True)
    files = {"ca": certificates.ca, "cert": certificates.client, "key": certificates.client_key}
    sink = sinks(mutual.tls_url, tls=files, protocol="3.1.1")
    await sink.connect()
    await write(sink, doubles(1, 1))


async def test_tls_failures_are_one_clear_line(
    mosquitto_factory: Brokers, sinks: Any, certificates: Certificates, tmp_path: Path
) -> None:
    """Untrusted authority, no client certificate, a foreign one, TLS where there is none and the reverse."""
    broker = mosquitto_factory(tls=certificates, require_certificate=True)
    foreign = make_certificates(tmp_path / "foreign")
    cases: list[tuple[str, dict[str, Any] | None, type[GatewayError], str]] = [
        (broker.tls_url, None, Permanent, "is not trusted: .*set tls: {ca: FILE}"),
        (broker.tls_url, {"ca": foreign.ca}, Permanent, "is not trusted"),
        (f"mqtts://127.0.0.2:{broker.tls_port}", {"ca": certificates.ca}, NotConnected, "127.0.0.2:.*cannot connect"),
        (broker.tls_url, {"ca": certificates.ca}, Permanent, "demands a client certificate: set tls: {cert"),
        (
            broker.tls_url,
            {"ca": certificates.ca, "cert": foreign.client, "key": foreign.client_key},
            Permanent,
            "does not accept the gateway's certificate",
        ),
        (f"mqtts://127.0.0.1:{broker.port}", {"ca": certificates.ca}, (Permanent, NotConnected), "TLS"),
        (f"mqtt://127.0.0.1:{broker.tls_port}", None, NotConnected, "write mqtts://"),
        (broker.tls_url, {"ca": tmp_path / "none.pem"}, Permanent, "none.pem"),
    ]  # fmt: skip
    for url, tls, kind, text in cases:
        sink = sinks(url, tls=tls)
        with pytest.raises(kind, match=text) as caught:
            async with asyncio.timeout(DEADLINE_S):
                await sink.connect()
        assert "\n" not in str(caught.value)
    await until(lambda: connections(broker.port, broker.tls_port) == 0, "sockets left open")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_wrong_password(mosquitto_factory: Brokers, sinks: Any, protocol: str) -> None:
    """Permanent, without the password in the text; the right one works."""
    broker = mosquitto_factory(users={"gateway": "right"})
    sink = sinks(broker.url, auth={"user": "gateway", "password": "wrong-secret"}, protocol=protocol)
    with pytest.raises(Permanent, match="check auth") as caught:
        await sink.connect()
    assert "wrong-secret" not in str(caught.value)
    sink = sinks(broker.url, auth={"user": "gateway", "password": "right"}, protocol=protocol)
    await sink.connect()
    await write(sink, doubles(1, 1))


async def test_unauthorised_topic_rejects_its_rows_only(mosquitto_factory: Brokers, sinks: Any, tmp_path: Path) -> None:
    """MQTT 5: the broker's reason, each row named, all the others delivered, the session unharmed."""
    acl = tmp_path / "acl"
    acl.write_text("user gateway\ntopic write acme/press4/tag1\ntopic write gateway/#\ntopic read #\n")
    acl.chmod(0o600)
    broker = mosquitto_factory(users={"gateway": "right"}, options=[f"acl_file {acl}"], max_queued_messages=1000)
    auth = {"user": "gateway", "password": "right"}
    async with Listener(broker, "acme/#", **auth) as listener:
        sink = sinks(broker.url, topic=PER_TAG, format="value", auth=auth)
        await sink.connect()
        with pytest.raises(Rejected, match=r"Not authorized \(0x87\)") as caught:
            await write(sink, doubles(2, 1), doubles(3, 2))
        assert caught.value.rows == [(0, 0), (1, 0), (1, 2)]
        assert [float(m.payload) for m in await listener.take(2)] == [1.001, 2.001]
        await write(sink, doubles(1, 3, first_tag=1))
    assert (sink.counters.totals["rows"], sink.counters.totals["rejected"]) == (3, 3)


@pytest.mark.parametrize("qos", [0, 1])
async def test_too_large_message_is_rejected_not_sent(mosquitto_factory: Brokers, sinks: Any, qos: int) -> None:
    """The broker's Maximum Packet Size: the rows are rejected, what fits is delivered, the session goes on."""
    broker = mosquitto_factory(options=["max_packet_size 2000"])
    async with Listener(broker, "acme/#") as listener:
        sink = sinks(broker.url, qos=qos)
        await sink.connect()
        with pytest.raises(Rejected, match="Packet too large") as caught:
            await write(sink, doubles(1, 1), doubles(100, 2), doubles(2, 3))
        assert caught.value.rows == [(1, row) for row in range(100)]
        assert [json.loads(m.payload)["seq"] for m in await listener.take(2)] == [1, 3]
        with pytest.raises(Rejected):
            await write(sink, doubles(100, 4))
        await write(sink, doubles(1, 5))


@pytest.mark.parametrize("qos", [0, 1])
async def test_broker_killed_in_the_middle(mosquitto_factory: Brokers, sinks: Any, qos: int) -> None:
    """What had no acknowledgement raises NotConnected and is not counted; after a restart the sink connects again."""
    broker = mosquitto_factory()
    sink = sinks(broker.url, topic=PER_TAG, format="value", qos=qos)
    await sink.connect()
    await write(sink, doubles(100, 1))
    broker.process.pause()
    writes = [asyncio.ensure_future(write(sink, doubles(1000, seq))) for seq in range(2, 12)]
    closed = asyncio.ensure_future(wait_closed(sink))
    await until(lambda: sink.counters.gauges["in_flight"] > 0, "nothing in flight")
    broker.kill()
    results = await asyncio.gather(closed, *writes, return_exceptions=True)
    assert [type(result) for result in results] == [NotConnected] * 11
    assert sink.counters.totals["rows"] == 100
    with pytest.raises(NotConnected):
        await write(sink, doubles(1, 20))
    await sink.close()
    with pytest.raises(NotConnected, match=f"127.0.0.1:{broker.port}"):
        await sink.connect()
    await asyncio.to_thread(broker.restart)
    await sink.connect()
    await write(sink, doubles(100, 21))
    assert sink.counters.totals["rows"] == 200
    assert sink.counters.totals["reconnects"] == 1


@pytest.mark.parametrize("qos", [0, 1])
async def test_half_open_connection(mosquitto_factory: Brokers, sinks: Any, qos: int) -> None:
    """A broker that no longer answers: a write ends after ack_timeout, and `close` does not wait for an answer."""
    broker = mosquitto_factory()
    sink, idle = sinks(broker.url, qos=qos, ack_timeout="1s"), sinks(broker.url, qos=qos)
    await sink.connect()
    await idle.connect()
    broker.process.pause()
    with pytest.raises(NotConnected, match="ack_timeout"):
        await write(sink, doubles(10, 1))
    with pytest.raises(NotConnected, match="ack_timeout"):
        await wait_closed(sink)
    async with asyncio.timeout(10):
        await idle.close()
        await sink.close()


async def test_keep_alive_finds_a_dead_idle_connection(mosquitto_factory: Brokers, sinks: Any) -> None:
    """No data, no acknowledgement to miss: paho's ping gets no answer."""
    broker = mosquitto_factory()
    sink = sinks(broker.url, keep_alive="1s")
    await sink.connect()
    broker.process.pause()
    with pytest.raises(NotConnected):
        await wait_closed(sink)


async def test_keep_alive_keeps_an_idle_connection(mosquitto_factory: Brokers, sinks: Any) -> None:
    """The broker hears pings: it would end the session after 1.5 times the keep-alive otherwise."""
    broker = mosquitto_factory(options=["log_dest stderr", "log_type all"])
    sink = sinks(broker.url, keep_alive="2s", qos=0)
    await sink.connect()
    mark = broker.process.mark()
    for _ in range(2):
        await asyncio.to_thread(broker.process.wait_line, "Received PINGREQ", DEADLINE_S, mark)
        mark = broker.process.mark()
    await write(sink, doubles(10, 1))


@pytest.mark.parametrize("qos", [0, 1])
async def test_slow_broker_slows_writers(mosquitto_factory: Brokers, sinks: Any, qos: int) -> None:
    """With a broker that reads nothing, senders wait for the connection instead of filling memory."""
    broker = mosquitto_factory()
    sink = sinks(broker.url, topic=PER_TAG, qos=qos, ack_timeout="1m")
    await sink.connect()
    broker.process.pause()
    writes = [asyncio.ensure_future(write(sink, *(doubles(1000, seq) for _ in range(10)))) for seq in range(16)]
    total_bytes = 16 * 10 * 1000 * 200
    sent = -1
    while sent != sink.counters.totals["bytes_sent"]:
        sent = sink.counters.totals["bytes_sent"]
        await asyncio.sleep(0.1)
    assert sent < total_bytes / 2
    broker.process.resume()
    await asyncio.gather(*writes)
    assert sink.counters.totals["messages"] == 160_000


async def test_cancelled_connect_leaves_no_socket(
    mosquitto_factory: Brokers, sinks: Any, certificates: Certificates
) -> None:
    """At any step of it, plain and TLS, with a broker that answers; then with one that does not."""
    broker = mosquitto_factory(tls=certificates)
    targets = [(broker.url, None), (broker.tls_url, {"ca": certificates.ca})]
    ports = (broker.port, broker.tls_port)
    for url, tls in targets:
        for steps in range(0, 60, 3):
            sink = sinks(url, tls=tls)
            task = asyncio.ensure_future(sink.connect())
            for _ in range(steps):
                await asyncio.sleep(0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await sink.close()
    await until(lambda: connections(*ports) == 0, "sockets left open")
    broker.process.pause()
    for url, tls in targets:
        sink = sinks(url, tls=tls)
        task = asyncio.ensure_future(sink.connect())
        await until(lambda: connections(*ports), "no connection")
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        await until(lambda: connections(*ports) == 0, "sockets left open")
    await until(lambda: len(asyncio.all_tasks()) == 1, "tasks left running")


async def test_cancelled_write_harms_no_other(mosquitto: Mosquitto, sinks: Any) -> None:
    """Its messages may arrive or not; the session and later writes go on."""
    sink = sinks(mosquitto.url, topic="cancelled/" + PER_TAG, format="value")
    await sink.connect()
    for steps in range(20):
        task = asyncio.ensure_future(write(sink, doubles(1000, steps), doubles(1000, steps)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await write(sink, doubles(10, steps))
    assert sink.counters.gauges["in_flight"] >= 0


async def test_close_is_idempotent_and_legal_before_connect(mosquitto: Mosquitto, sinks: Any) -> None:
    """And everything without a session is NotConnected; an empty write is delivered at once."""
    sink = sinks(mosquitto.url)
    await sink.close()
    for call in (write(sink, doubles(1, 1)), wait_closed(sink)):
        with pytest.raises(NotConnected):
            await call
    await sink.connect()
    await write(sink)
    closed = asyncio.ensure_future(wait_closed(sink))
    await asyncio.sleep(0)
    await sink.close()
    await sink.close()
    with pytest.raises(NotConnected):
        await closed
    await sink.connect()
    await write(sink, doubles(1, 1))


async def test_nobody_listens(sinks: Any) -> None:
    """NotConnected with host and port."""
    port = free_port()
    with pytest.raises(NotConnected, match=f"127.0.0.1:{port}.*cannot connect"):
        await sinks(f"mqtt://127.0.0.1:{port}").connect()
