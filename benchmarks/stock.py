"""The references: what a careful programmer writes with asyncua, pymodbus, paho and aiokafka as their manuals show it.

Each function runs for some seconds in a process of its own (`measure.in_child`), on uvloop as the gateway does, and
returns CPU us per value.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import paho.mqtt.client as paho
from asyncua import Client, Node
from asyncua.common.subscription import Subscription
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.measure import in_child, on_loop
from tests.services.ports import HOST

OnValue = Callable[[Node, Any, Any], None]
SETTLE_S = 1.5
IN_FLIGHT_MAX = 2_000
NOTICES_S_MAX = 60.0


class Counting:
    """An asyncua subscription handler that counts, and gives each value to `then`."""

    def __init__(self, then: OnValue | None = None) -> None:
        self.values = 0
        self._then = then

    def status_change_notification(self, status: Any) -> None:
        """asyncua wants it to be there."""

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        """asyncua calls this for every value."""
        self.values += 1
        if self._then:
            self._then(node, value, data)


def opcua_handler(url: str, node_ids: list[str], every_ms: int, seconds: float) -> float:
    """Receives and counts."""
    return on_loop(_subscribed(url, node_ids, every_ms, seconds, Counting()))


def opcua_to_mqtt(url: str, node_ids: list[str], every_ms: int, port: int, per_tag: bool, seconds: float) -> float:
    """Publishes what a notification brought as one JSON message of rows, or each value as its own message; QoS 1."""

    async def run() -> float:
        with _paho(port) as client:
            sender = _Sender(client, {f"{node}": node.partition("s=")[2] for node in node_ids}, per_tag)
            return await _subscribed(url, node_ids, every_ms, seconds, Counting(sender.add))

    return on_loop(run())


def opcua_to_mqtt_for_ever(url: str, nodes: dict[str, str], every_ms: int, port: int, topic: str) -> None:
    """As `opcua_to_mqtt`, with what paho offers against an outage: it reconnects, and queues at QoS 1 meanwhile.

    nodes: node id -> tag. The messages have the gateway's shape, so that one subscriber can compare both.
    """

    async def run() -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="script", protocol=paho.MQTTv5)
        client.connect_async(HOST, port)
        client.loop_start()
        rows: list[dict[str, Any]] = []

        def flush() -> None:
            client.publish(topic, orjson.dumps({"device": "press", "samples": rows}), 1)
            rows.clear()

        def add(node: Node, value: Any, data: Any) -> None:
            if not rows:
                asyncio.get_running_loop().call_soon(flush)
            rows.append({"tag": nodes[node.nodeid.to_string()], "v": value})

        async with Client(url, timeout=30) as machine:
            await _subscribe(machine, await machine.create_subscription(every_ms, Counting(add)), list(nodes))
            await asyncio.Event().wait()

    on_loop(run())


def seconds_until_live(url: str, node_ids: list[str]) -> float:
    """Wall time from starting a Python process to the first value of each node at asyncua's handler."""
    spawned_s = time.time()
    return in_child(_live_at_s, url, node_ids) - spawned_s


def _live_at_s(url: str, node_ids: list[str]) -> float:
    async def run() -> float:
        seen: set[Node] = set()
        live = asyncio.Event()

        def note(node: Node, *_: Any) -> None:
            seen.add(node)
            if len(seen) == len(node_ids):
                live.set()

        async with Client(url, timeout=30) as client:
            await _subscribe(client, await client.create_subscription(100, Counting(note)), node_ids)
            await live.wait()
            return time.time()

    return on_loop(run())


def modbus_blocks(port: int, count: int, seconds: float) -> float:
    """Reads blocks of holding registers one after the other; us per block."""
    from pymodbus.client import AsyncModbusTcpClient

    async def run() -> float:
        client = AsyncModbusTcpClient(HOST, port=port)
        await client.connect()
        blocks, cpu_s, deadline_s = 0, time.process_time(), time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            answer = await client.read_holding_registers(0, count=count)
            assert len(answer.registers) == count
            blocks += 1
        cpu_s = time.process_time() - cpu_s
        client.close()
        return cpu_s / blocks * 1e6

    return on_loop(run())


def modbus_to_mqtt(port: int, count: int, every_ms: int, broker: int, seconds: float) -> float:
    """Polls a block and publishes it as one JSON message of rows, QoS 1; us per register."""
    from pymodbus.client import AsyncModbusTcpClient

    async def run() -> float:
        client = AsyncModbusTcpClient(HOST, port=port)
        await client.connect()
        loop, blocks = asyncio.get_running_loop(), 0
        with _paho(broker) as publisher:
            cpu_s, begun_s = time.process_time(), loop.time()
            while loop.time() < begun_s + seconds:
                await asyncio.sleep(begun_s + blocks * every_ms / 1000 - loop.time())
                answer = await client.read_holding_registers(0, count=count)
                t_us = time.time_ns() // 1000
                rows = [{"tag": f"r{at}", "t": t_us, "v": v} for at, v in enumerate(answer.registers)]
                publisher.publish("bench/reference", orjson.dumps(rows), 1)
                blocks += 1
            cpu_s = time.process_time() - cpu_s
        client.close()
        return cpu_s / (blocks * count) * 1e6

    return on_loop(run())


def mqtt_messages(port: int, qos: int, seconds: float) -> float:
    """Publishes one row a message, each on its tag's topic; messages per CPU second, counted when acknowledged."""
    acknowledged = 0

    def on_publish(*_: Any) -> None:
        nonlocal acknowledged
        acknowledged += 1

    with _paho(port) as client:
        client.on_publish = on_publish
        sent, cpu_s, deadline_s = 0, time.process_time(), time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            t_us = time.time_ns() // 1000
            for tag in range(1000):
                row = {"tag": f"v{tag}", "t": t_us, "v": sent / 8, "q": "good"}
                client.publish(f"bench/reference/v{tag}", orjson.dumps(row), qos)
                sent += 1
            while sent - acknowledged > IN_FLIGHT_MAX:
                time.sleep(0.0005)
        while acknowledged < sent:
            time.sleep(0.0005)
        return sent / (time.process_time() - cpu_s)


def mqtt_notices_s(host: str, port: int, cut: Callable[[], None], every_s: float) -> float:
    """Not CPU: seconds from `cut` until `on_disconnect`, keep-alive 10 s, a message of QoS 1 every so often; 60 s at
    most."""
    connected, lost = threading.Event(), threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: connected.set()
    client.on_disconnect = lambda *_: lost.set()
    client.connect(host, port, keepalive=10)
    client.loop_start()
    connected.wait(NOTICES_S_MAX)
    cut()
    began_s = time.monotonic()
    while not lost.wait(every_s) and time.monotonic() < began_s + NOTICES_S_MAX:
        client.publish("x", b"x", qos=1)
    return time.monotonic() - began_s


def kafka_records(bootstrap: str, topic: str, seconds: float) -> float:
    """`send()` per row; records per CPU second, counted when acknowledged."""
    from aiokafka import AIOKafkaProducer

    async def run() -> float:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=900 * 1024)
        await producer.start()
        sent, cpu_s, deadline_s = 0, time.process_time(), time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            t_us = time.time_ns() // 1000
            waiting = []
            for tag in range(1000):
                row = {"tag": f"v{tag}", "t": t_us, "v": sent / 8, "q": "good"}
                waiting.append(await producer.send(topic, orjson.dumps(row), f"machine/v{tag}".encode()))
                sent += 1
            await asyncio.gather(*waiting)
        cpu_s = time.process_time() - cpu_s
        await producer.stop()
        return sent / cpu_s

    return on_loop(run())


class _Sender:
    """Rows of one notification, or each value, to paho."""

    def __init__(self, client: paho.Client, names: dict[str, str], per_tag: bool) -> None:
        self._client = client
        self._names = names
        self._per_tag = per_tag
        self._rows: list[dict[str, Any]] = []

    def add(self, node: Node, value: Any, data: Any) -> None:
        """asyncua calls handlers for all values of a notification in one step of the loop."""
        found = data.monitored_item.Value
        name = self._names[node.nodeid.to_string()]
        t_us = int(found.SourceTimestamp.timestamp() * 1e6)
        row = {"tag": name, "t": t_us, "v": value, "q": "good" if found.StatusCode.is_good() else "bad"}
        if self._per_tag:
            self._client.publish(f"bench/reference/{name}", orjson.dumps(row, default=str), 1)
            return
        if not self._rows:
            asyncio.get_running_loop().call_soon(self._flush)
        self._rows.append(row)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._client.publish("bench/reference", orjson.dumps(rows, default=str), 1)


async def _subscribed(url: str, node_ids: list[str], every_ms: int, seconds: float, handler: Counting) -> float:
    async with Client(url, timeout=30) as client:
        subscription = await client.create_subscription(every_ms, handler)
        await _subscribe(client, subscription, node_ids)
        await asyncio.sleep(SETTLE_S)
        values, cpu_s = handler.values, time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - cpu_s) / (handler.values - values) * 1e6


async def _subscribe(client: Client, subscription: Subscription, node_ids: list[str]) -> None:
    nodes = [client.get_node(node) for node in node_ids]
    await subscription.subscribe_data_change(nodes, queuesize=100, sampling_interval=0)  # type: ignore[call-overload]


class _paho:
    """A connected client with its thread."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.max_inflight_messages_set(
            0
        )  # no limit: with one, every PUBACK walks through all messages in flight
        self._client.connect(HOST, port)

    def __enter__(self) -> paho.Client:
        self._client.loop_start()
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
