"""A destination with two brokers: which one is used, that nothing is lost on the way, and what is said about it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import paho.mqtt.client as paho
import pytest

from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from gateway.health import Health
from gateway.session import SinkSession
from gateway.status import Destination, StatusReporter
from gateway.supervisor import Supervisor
from pipelines.batch import Batch, BatchBuilder, Kind
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.errors import NotConnected, Permanent
from pipelines.gaps import Gap, Reason
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump
from pipelines.tags import Tag, TagTable
from tests.services.far import FarMosquitto
from tests.services.mosquitto import Mosquitto
from tests.services.ports import free_port

DEADLINE_S = 30.0
"""Generous: the figures are the benchmark's, here it is that it happens at all."""
EVERY_S = 0.01
TOPIC = "acme/press4"
STATUS = "gateway/line1-gw/status"
Brokers = Callable[..., Mosquitto]


class Record:
    """What a foreign subscriber has received: paho's own client in its own thread; connects again by itself."""

    def __init__(self, broker: Mosquitto, host: str = "127.0.0.1", **auth: str) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.subscribed = False
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(1, 1)
        if auth:
            self._client.username_pw_set(auth["user"], auth["password"])
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _c, _u, m: self.messages.append((m.topic, json.loads(m.payload)))
        self._client.connect(host, broker.port)
        self._client.loop_start()

    def seqs(self) -> list[int]:
        """In the order of arrival."""
        return [message["seq"] for topic, message in self.messages if topic == TOPIC]

    def statuses(self) -> list[dict[str, Any]]:
        """The status messages."""
        return [message for topic, message in self.messages if topic == STATUS]

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_subscribe(self, *_: object) -> None:
        self.subscribed = True


@contextmanager
def recorded(*brokers: Mosquitto) -> Iterator[list[Record]]:
    """A subscriber at each broker."""
    records = [Record(broker, getattr(broker, "address", "127.0.0.1")) for broker in brokers]
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not all(record.subscribed for record in records):
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        yield records
    finally:
        for record in records:
            record.stop()


class Uplink:
    """A route's lane, the sink and its supervisor, as the gateway runs them."""

    def __init__(self, *urls: str, **settings: Any) -> None:
        self.clock, tags = SystemClock(), TagTable()
        tags.add(Tag("press4", "count"))
        target = MqttTarget.model_validate({"mqtt": list(urls), "hold": "500ms", **settings})
        self.sink = MqttSink("plant", target, Identity("line1-gw", "acme"), tags, self.clock)
        self.lane = MemoryLane("history", bytes_max=2**24)
        pump = Pump(self.lane, self.lane.reader(Part.ALL), self.sink, self.clock, _none_rejected, rows_max=1000)
        session = SinkSession(self.sink, ",".join(urls), [self.lane], [pump])
        self.supervisor = Supervisor(session, self.clock, lambda: 0.5)
        self.reporter = StatusReporter([Destination(self.supervisor, session)], self.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(task) for task in (self.supervisor.run(), self.reporter.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @asynccontextmanager
    async def fed(self) -> AsyncIterator[None]:
        """A batch every 10 ms; on the way out all of it is delivered."""
        feeding = asyncio.create_task(self._feed())
        yield
        feeding.cancel()
        await until(lambda: not self.lane.pending_rows, "everything delivered")

    def on(self, url: str) -> Callable[[], bool]:
        return lambda: self.sink.server == url

    async def _feed(self) -> None:
        for number in range(10**9):
            await self.lane.append(_batch(number))
            await asyncio.sleep(EVERY_S)


def _batch(number: int) -> Batch:
    builder = BatchBuilder()
    builder.add(0, time.time_ns(), float(number), Kind.DOUBLE)
    return builder.build(source_id=0, number=number, received_ns=time.time_ns())


async def _none_rejected(*_: object) -> None:
    raise AssertionError("nothing is rejected here")


async def until(condition: Callable[[], object], what: str) -> None:
    """Returns when it holds; fails at the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.005)


async def received(uplink: Uplink, records: list[Record]) -> None:
    """Every batch that was ever appended has arrived at one of the brokers: the (stream, seq) have no hole."""
    wanted = set(range(uplink.lane.counters.totals["rows"]))
    await until(lambda: {seq for record in records for seq in record.seqs()} >= wanted, "every seq")


@pytest.mark.parametrize("qos", [0, 1])
async def test_killed(mosquitto_factory: Brokers, qos: int, caplog: pytest.LogCaptureFixture) -> None:
    """kill -9 of the first broker under load: the second one gets the rest, nothing is missing, and it is said."""
    first, second = mosquitto_factory(), mosquitto_factory()
    uplink = Uplink(first.url, second.url, qos=qos, hold="1h")
    with recorded(first, second) as records:
        async with uplink.running():
            async with uplink.fed():
                await until(lambda: len(records[0].seqs()) > 20, "delivery to the first")
                assert (uplink.sink.server, uplink.sink.faults) == (first.url, {})
                await asyncio.to_thread(first.kill)
                await until(lambda: len(records[1].seqs()) > 20, "delivery to the second")
            if qos:  # at QoS 0 the answer to a ping says that the broker read it, and the dead one may have
                await received(uplink, records)
            assert uplink.sink.server == second.url
            assert list(uplink.sink.faults) == [first.url]
            health = Health("line1-gw", uplink.clock, [uplink.supervisor], [uplink.lane]).report()
            assert health["components"][0]["state"] == "degraded"
            assert health["components"][0]["server"] == second.url
            assert health["components"][0]["reason"] == "1 preferred server cannot be used"
    assert uplink.sink.counters.totals["failovers"] == 1
    assert uplink.sink.counters.gauges["server_number"] == 2
    said = [record.getMessage() for record in caplog.records if "is used now" in record.getMessage()]
    assert len(said) == 1 and second.url in said[0]


async def test_silent_and_back(mosquitto_factory: Brokers) -> None:
    """A first broker that answers nothing and sends no reset; when it has been healthy for `hold` it is used again.

    Going back is a planned move: writes wait, those under way are acknowledged, and none is sent twice for it.
    """
    first, second = mosquitto_factory(), mosquitto_factory()
    uplink = Uplink(first.url, second.url, ack_timeout="500ms")
    with recorded(first, second) as records:
        async with uplink.running():
            async with uplink.fed():
                await until(lambda: len(records[0].seqs()) > 20, "delivery to the first")
                first.process.pause()
                await until(lambda: len(records[1].seqs()) > 20, "delivery to the second")
                moved = uplink.lane.counters.totals["rows"]
                first.process.resume()
                await until(uplink.on(first.url), "going back")
                await until(lambda: max(records[0].seqs()) > moved, "delivery to the first again")
            await received(uplink, records)
            await until(lambda: records[1].statuses()[-1]["online"] is False, "a farewell")
    totals = uplink.sink.counters.totals
    assert (totals["failovers"], totals["failbacks"], uplink.sink.faults) == (1, 1, {})
    twice = [seq for seq, times in Counter(records[0].seqs() + records[1].seqs()).items() if times > 1]
    assert all(seq < moved for seq in twice), "only what was in flight when the first broker fell silent"
    assert records[1].seqs() == sorted(records[1].seqs())


async def test_link_cut(far_mosquitto: FarMosquitto, mosquitto_factory: Brokers) -> None:
    """The link to the first broker loses everything, then works again."""
    second = mosquitto_factory()
    uplink = Uplink(far_mosquitto.url, second.url)
    with recorded(far_mosquitto, second) as records:
        async with uplink.running():
            async with uplink.fed():
                await until(lambda: len(records[0].seqs()) > 20, "delivery to the first")
                far_mosquitto.link.cut()
                began_s = time.monotonic()
                await until(records[1].seqs, "delivery to the second")
                print(f"failover after {time.monotonic() - began_s:.2f} s")
                await until(lambda: len(records[1].seqs()) > 20, "delivery to the second")
                far_mosquitto.link.mend()
                await until(uplink.on(far_mosquitto.url), "going back")
            await received(uplink, records)


async def test_link_cut_while_idle(far_mosquitto: FarMosquitto, mosquitto_factory: Brokers) -> None:
    """Nothing is in flight: a ping finds out, long before the keep-alive would."""
    second = mosquitto_factory()
    uplink = Uplink(far_mosquitto.url, second.url, hold="1h", keep_alive="1h")
    async with uplink.running():
        await until(uplink.on(far_mosquitto.url), "the first")
        far_mosquitto.link.cut()
        await until(uplink.on(second.url), "the second")


async def test_refused_by_the_first(mosquitto_factory: Brokers) -> None:
    """Wrong credentials at one broker do not hide that another one works; refused by all is Permanent."""
    first, second = mosquitto_factory(users={"gateway": "other"}), mosquitto_factory(users={"gateway": "right"})
    auth = {"user": "gateway", "password": "right"}
    sink = Uplink(first.url, second.url, auth=auth).sink
    await sink.connect()
    assert sink.server == second.url and "check auth" in sink.faults[first.url]
    await sink.write("history", [_batch(0)], b"", historical=False)
    await sink.close()
    assert (sink.server, sink.faults) == ("", {})
    nobody = Uplink(first.url, second.url).sink
    with pytest.raises(Permanent, match=rf"{first.port}: .*; .*{second.port}: "):
        await nobody.connect()
    mixed = Uplink(f"mqtt://127.0.0.1:{free_port()}", second.url).sink
    with pytest.raises(NotConnected, match=r"cannot connect.*; .*check auth"):
        await mixed.connect()


async def test_first_one_is_down_at_the_start(mosquitto_factory: Brokers) -> None:
    """A connection attempt that is never answered does not keep the gateway from the second broker."""
    first, second = mosquitto_factory(), mosquitto_factory()
    first.process.pause()
    uplink = Uplink(first.url, second.url, ack_timeout="500ms")
    async with uplink.running(), uplink.fed():
        await until(uplink.on(second.url), "the second")
        first.process.resume()
        await until(uplink.on(first.url), "the first, after hold")


async def test_what_the_status_says(mosquitto_factory: Brokers) -> None:
    """Which server since when and what is pending, anew when it changes; a gap is a notice."""
    first, second = mosquitto_factory(), mosquitto_factory()
    uplink = Uplink(first.url, second.url, hold="1h")
    gap = Gap(Reason.LANE_FULL, "press4", "history", ("count",), 1_000_000, 2_000_000, 7)
    before_us = time.time_ns() // 1000
    with recorded(first, second) as records:
        uplink.reporter.note(gap)
        async with uplink.running():
            await until(lambda: any("destinations" in status for status in records[0].statuses()), "a status")
            await until(lambda: records[0].statuses()[-1]["destinations"][0]["server"] == first.url, "the server")
            await asyncio.to_thread(first.kill)
            await until(records[1].statuses, "a status")
            await until(lambda: records[1].statuses()[-1]["destinations"][0]["server"] == second.url, "the server")
    online, offline = records[1].statuses()[-2:]
    [destination] = online.pop("destinations")
    assert before_us < destination.pop("since") <= online.pop("t") <= time.time_ns() // 1000
    assert online == {"gateway": "line1-gw", "online": True}
    assert destination == {
        "name": "plant",
        "state": "degraded",
        "server": second.url,
        "pending": {"history": {"rows": 0, "seconds": 0.0}},
    }
    assert offline["online"] is False and set(offline) == {"gateway", "online", "t"}
    [notice] = [message for topic, message in records[0].messages if topic == f"{STATUS}/gap"]
    assert (notice["gateway"], notice["reason"], notice["rows"]) == ("line1-gw", "buffer full", 7)
