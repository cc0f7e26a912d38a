"""The sink contract on Mosquitto (both versions, both QoS) and on Apache Kafka (both deliveries, both record modes)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import paho.mqtt.client as paho
import pytest
from aiokafka import AIOKafkaConsumer

from connectors.kafka_settings import KafkaTarget
from connectors.mqtt_settings import MqttTarget
from tests.conftest import made
from tests.contract.sink_suite import Broker, Consumer, SinkSuite
from tests.contract.source_suite import settled
from tests.services.kafka import Kafka
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST


class PahoSubscriber:
    """paho's threaded client: another MQTT implementation than the sink's own wire code; reconnects by itself."""

    def __init__(self, server: Mosquitto, topic: str) -> None:
        self.payloads: list[bytes] = []
        self._subscribed = False
        self._port = server.port
        self._topic = topic
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _client, _data, message: self.payloads.append(message.payload)

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed = True

    async def start(self) -> None:
        self._client.connect(HOST, self._port)
        self._client.loop_start()
        await settled(lambda: self._subscribed)

    async def stop(self) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)


class KafkaReader:
    """An aiokafka consumer from the topic's beginning; only started to read back, so that it is no bystander."""

    def __init__(self, server: Kafka, topic: str) -> None:
        self._server = server
        self._topic = topic
        self._found: list[bytes] = []
        self._reading: asyncio.Task[None] | None = None

    @property
    def payloads(self) -> list[bytes]:
        self._reading = self._reading or asyncio.create_task(self._read())
        return self._found

    async def start(self) -> None:
        await self._server.create_topic(self._topic)

    async def stop(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            self._topic,
            bootstrap_servers=self._server.bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
        )
        await consumer.start()
        try:
            async for record in consumer:
                self._found.append(record.value)
        finally:
            await consumer.stop()


def mqtt(**options: object) -> Iterator[Broker]:
    with made(Mosquitto) as server:
        consumer: Callable[[str], Consumer] = lambda topic: PahoSubscriber(server, topic)  # noqa: E731
        yield Broker(
            "mqtt",
            server,
            lambda topic: MqttTarget.model_validate({"mqtt": server.url, "topic": topic, **options}),
            consumer,
        )


def kafka(**options: object) -> Iterator[Broker]:
    with made(Kafka) as server:
        consumer: Callable[[str], Consumer] = lambda topic: KafkaReader(server, topic)  # noqa: E731
        settings = {"kafka": server.bootstrap, "request_timeout": "6s", **options}
        yield Broker(
            "kafka",
            server,
            lambda topic: KafkaTarget.model_validate(settings | {"topic": topic}),
            consumer,
            session=False,
        )


class TestMqtt5Qos1(SinkSuite):
    """The default."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls) -> Iterator[Broker]:
        yield from mqtt()


class TestMqtt311Qos1(SinkSuite):
    """The older protocol."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls) -> Iterator[Broker]:
        yield from mqtt(protocol="3.1.1")


class TestMqtt5Qos0(SinkSuite):
    """Without PUBACKs."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls) -> Iterator[Broker]:
        yield from mqtt(qos=0)


class TestKafkaExactlyOnce(SinkSuite):
    """The default: transactions, one record per batch."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls) -> Iterator[Broker]:
        yield from kafka()


class TestKafkaAtLeastOnce(SinkSuite):
    """One record per row."""

    @pytest.fixture(scope="class")
    @classmethod
    def broker(cls) -> Iterator[Broker]:
        yield from kafka(records="sample", compression="lz4", delivery="at-least-once")
