"""The servers that tests stand on: each really starts and answers a client that is not ours."""

import asyncio
import queue
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.helpers import create_ssl_context
from asyncua import Client, ua
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography.x509.oid import ExtendedKeyUsageOID
from pymodbus import FramerType
from pymodbus.client import AsyncModbusTcpClient

from tests.services import libmodbus
from tests.services.asyncua_server import VARIABLES
from tests.services.kafka import Kafka
from tests.services.milo import KINDS, Group, expected_value
from tests.services.mosquitto import Mosquitto
from tests.services.node_opcua import NodeOpcua
from tests.services.process import ServiceFailed
from tests.services.pymodbus_server import Image
from tests.services.tls import Certificates


def _mqtt_round_trip(port: int, topic: str, prepare: Any = None) -> bytes:
    """Publishes one message at QoS 1 and receives it again."""
    received: queue.Queue[bytes] = queue.Queue()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe(topic, 1)
    client.on_subscribe = lambda *_: client.publish(topic, b"hello", 1)
    client.on_message = lambda _client, _data, message: received.put(message.payload)
    if prepare:
        prepare(client)
    client.connect("localhost", port)
    client.loop_start()
    try:
        return received.get(timeout=60)
    finally:
        client.disconnect()
        client.loop_stop()


def test_mosquitto_carries_a_message(mosquitto: Mosquitto) -> None:
    """The plain listener."""
    assert _mqtt_round_trip(mosquitto.port, "services/plain") == b"hello"


def test_mosquitto_with_users_and_mutual_tls(mosquitto_factory: Any, certificates: Certificates) -> None:
    """Password file, TLS and a required client certificate; then the same ports after a crash."""
    broker = mosquitto_factory(users={"collector": "secret"}, tls=certificates, require_certificate=True)

    def prepare(client: paho.Client) -> None:
        client.username_pw_set("collector", "secret")
        client.tls_set(str(certificates.ca), str(certificates.client), str(certificates.client_key))

    assert _mqtt_round_trip(broker.tls_port, "services/tls", prepare) == b"hello"
    broker.kill()
    assert not broker.process.running
    broker.start()
    assert _mqtt_round_trip(broker.tls_port, "services/tls", prepare) == b"hello"


async def _kafka_round_trip(topic: str, **connection: Any) -> bytes:
    """Produces one record and consumes it again."""
    async with AIOKafkaProducer(**connection) as producer:
        await producer.send_and_wait(topic, b"hello")
    async with AIOKafkaConsumer(topic, auto_offset_reset="earliest", **connection) as consumer:
        record = await asyncio.wait_for(consumer.getone(), 60)
    value: bytes = record.value
    return value


async def test_kafka_carries_a_record(kafka: Kafka) -> None:
    """The plain listener."""
    await kafka.create_topic("services-plain", partitions=2)
    assert await _kafka_round_trip("services-plain", bootstrap_servers=kafka.bootstrap) == b"hello"


async def test_kafka_with_sasl_and_tls(kafka_factory: Any, certificates: Certificates) -> None:
    """PLAIN, SCRAM and mutual TLS; then, after a crash, the topic and the users are still there."""
    broker: Kafka = await asyncio.to_thread(
        kafka_factory, users={"collector": "secret"}, tls=certificates, require_certificate=True
    )
    await broker.create_topic("services-secured")
    sasl = {"security_protocol": "SASL_PLAINTEXT", "bootstrap_servers": broker.sasl_bootstrap}
    user = {"sasl_plain_username": "collector", "sasl_plain_password": "secret"}
    for mechanism in ("PLAIN", "SCRAM-SHA-512"):
        assert await _kafka_round_trip("services-secured", **sasl, **user, sasl_mechanism=mechanism) == b"hello"
    context = create_ssl_context(
        cafile=str(certificates.ca), certfile=str(certificates.client), keyfile=str(certificates.client_key)
    )
    tls = {"security_protocol": "SSL", "bootstrap_servers": broker.ssl_bootstrap, "ssl_context": context}
    assert await _kafka_round_trip("services-secured", **tls) == b"hello"
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    assert await _kafka_round_trip("services-secured", **sasl, **user, sasl_mechanism="SCRAM-SHA-512") == b"hello"


class _Record:
    """asyncua subscription handler: every value and source time by variable; `complete` when `total` have come."""

    def __init__(self, total: int) -> None:
        self.seen: dict[str, list[tuple[Any, int]]] = {}
        self.complete = asyncio.Event()
        self._missing = total

    def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
        source = data.monitored_item.Value.SourceTimestamp
        self.seen.setdefault(node.nodeid.Identifier, []).append((value, round(source.timestamp() * 1e6) * 1_000))
        self._missing -= 1
        if self._missing == 0:
            self.complete.set()


async def test_milo_produces_the_values_it_promises(milo: Any) -> None:
    """Every type, every tick: the value and the source time that expected_value and Started foretell."""
    group = Group("m", "mixed", 2 * len(KINDS), 20)
    server = await asyncio.to_thread(milo, [group], ticks=10)
    record = _Record(total=11 * group.count)
    async with Client(server.url) as client:
        subscription = await client.create_subscription(50, record)
        await subscription.subscribe_data_change([client.get_node(node) for node in group.node_ids()], queuesize=100)
        await client.get_node(server.run_node_id).write_value(True)
        started = server.started()[group.prefix]
        assert await asyncio.to_thread(server.wait_finished, 60) == {"m": 10}
        await asyncio.wait_for(record.complete.wait(), 60)
    for i in range(group.count):
        seen = record.seen[f"m{i}"]
        assert [value for value, _ in seen] == [expected_value(i, k) for k in range(11)]
        assert [ns for _, ns in seen[1:]] == [started.source_ns(k, group.period_ms) for k in range(1, 11)]


async def test_node_opcua_answers_signed_and_encrypted(node_opcua: NodeOpcua, tmp_path: Path) -> None:
    """SignAndEncrypt with a user, and a value set from the outside with its time and status."""
    uri, key, certificate = "urn:mec:tests", tmp_path / "key.pem", tmp_path / "certificate.der"
    await setup_self_signed_certificate(key, certificate, uri, "localhost", [ExtendedKeyUsageOID.CLIENT_AUTH], {})
    client = Client(node_opcua.url)
    client.application_uri = uri
    client.set_user("operator")
    client.set_password("secret")
    await client.set_security(SecurityPolicyBasic256Sha256, str(certificate), str(key))
    async with client:
        node_opcua.set_value("Int64", "-9007199254740993", source_ms=1_600_000_000_123, status=0x40000000)
        data = await client.get_node("ns=1;s=Int64").read_data_value(raise_on_bad_status=False)
    assert data.Value is not None
    assert data.Value.Value == -9007199254740993
    assert data.StatusCode == ua.StatusCode(0x40000000)


async def test_asyncua_server_comes_back_on_its_port(asyncua_server: Any) -> None:
    """Every variable reads; a value can be set; after a crash the same address serves again."""
    server = await asyncio.to_thread(asyncua_server, doubles=3)
    async with Client(server.url) as client:
        server.set_value("UInt64", 2**64 - 1)
        assert await client.get_node("ns=2;s=UInt64").read_value() == 2**64 - 1
        assert len([await client.get_node(f"ns=2;s={name}").read_value() for name in VARIABLES]) == len(VARIABLES)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    async with Client(server.url) as client:
        assert await client.get_node("ns=2;s=v2").read_value() == 0.0


async def _check_image(client: AsyncModbusTcpClient) -> None:
    """All four reads of the image that both Modbus servers have, and exception 2 beyond its end."""
    async with client:
        for unit in (1, 17):
            holding = await client.read_holding_registers(100, count=100, device_id=unit)
            assert holding.registers == [libmodbus.holding(r) for r in range(100, 200)]
        inputs = await client.read_input_registers(5, count=3)
        assert inputs.registers == [libmodbus.input_register(r) for r in range(5, 8)]
        coils = await client.read_coils(7, count=20)
        assert coils.bits[:20] == [libmodbus.coil(c) for c in range(7, 27)]
        discrete = await client.read_discrete_inputs(33, count=20)
        assert discrete.bits[:20] == [libmodbus.discrete_input(d) for d in range(33, 53)]
        beyond = await client.read_holding_registers(libmodbus.LIMIT - 1, count=2)
        assert beyond.isError() and beyond.exception_code == 2


async def test_libmodbus_server_serves_its_image(libmodbus_server: libmodbus.LibmodbusServer) -> None:
    """Two clients at once."""
    clients = [AsyncModbusTcpClient("127.0.0.1", port=libmodbus_server.port) for _ in range(2)]
    await asyncio.gather(*map(_check_image, clients))


@pytest.mark.parametrize("framer", ["socket", "rtu"])
async def test_pymodbus_server_serves_its_image(pymodbus_server: Any, framer: str) -> None:
    """Modbus TCP and RTU over TCP; values can be changed."""
    server = await asyncio.to_thread(pymodbus_server, framer=framer)
    client = AsyncModbusTcpClient("127.0.0.1", port=server.port, framer=FramerType(framer))
    await _check_image(client)
    server.set_values("holding", 3, [7, 8])
    server.set_values("discrete", 18, [1, 0, 1])
    async with client:
        assert (await client.read_holding_registers(2, count=3)).registers == [libmodbus.holding(2), 7, 8]
        assert (await client.read_discrete_inputs(17, count=4)).bits[:4] == [False, True, False, True]


async def test_pymodbus_server_may_be_sparse_silent_or_late(pymodbus_server: Any) -> None:
    """An image of one block; a silent server accepts and times out; then it answers late."""
    image: Image = {"holding": {100: [1, 2]}}
    server = await asyncio.to_thread(pymodbus_server, image=image, silent=True)
    async with AsyncModbusTcpClient("127.0.0.1", port=server.port, timeout=0.2, retries=0) as client:
        with pytest.raises(Exception, match="No response"):
            await client.read_holding_registers(100, count=2)
    server.set_silent(False)
    server.set_delay(20)
    async with AsyncModbusTcpClient("127.0.0.1", port=server.port) as client:
        begun_s = asyncio.get_running_loop().time()
        assert (await client.read_holding_registers(100, count=2)).registers == [1, 2]
        assert asyncio.get_running_loop().time() - begun_s > 0.0185  # both loops have ticks of 1 ms
        assert (await client.read_holding_registers(99, count=2)).exception_code == 2
        assert (await client.read_coils(0, count=1)).exception_code == 2


def test_a_server_that_cannot_start_shows_its_log(mosquitto: Mosquitto) -> None:
    """The error names the server and ends with what it said."""
    broker = Mosquitto(options=["no_such_option 1"])
    with pytest.raises(ServiceFailed, match=r"mosquitto ended .*\n.*[Uu]nknown configuration variable"):
        broker.start()
    broker.close()
