"""The sink against a scripted broker: what a well-behaved one never does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from pipelines.batch import Batch, Kind
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected, Permanent, Rejected, Transient
from pipelines.tags import Tag, TagTable

DEADLINE_S = 60.0
ACCEPTED = bytes.fromhex("20 03 00 00 00")
ACCEPTED_311 = bytes.fromhex("20 02 00 00")
PINGRESP = b"\xd0\x00"


class Broker:
    """One connection of a scripted broker: whole packets in, any bytes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def packet(self) -> bytes:
        """The next packet (of less than 16,384 bytes)."""
        head = await self._reader.readexactly(2)
        length = head[1] & 127
        if head[1] & 128:
            more = await self._reader.readexactly(1)
            head, length = head + more, length + (more[0] << 7)
        return head + await self._reader.readexactly(length)

    def send(self, data: bytes) -> None:
        """At once."""
        self._writer.write(data)

    async def gone(self) -> None:
        """Waits until the client closes."""
        while await self._reader.read(1000):
            continue


Script = Callable[[Broker], Awaitable[None]]


@asynccontextmanager
async def broker(script: Script, **settings: Any) -> AsyncIterator[MqttSink]:
    """A sink without status message, to a broker that plays `script` for each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Broker(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            print("client went away:", error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    target = {"mqtt": url, "topic": "{device}/{tag}", "format": "value", "status_topic": None, **settings}
    tags = TagTable()
    for number in range(100):
        tags.add(Tag("d", str(number)))
    sink = MqttSink("plant", MqttTarget.model_validate(target), Identity("gw"), tags, SystemClock())
    async with server, asyncio.timeout(DEADLINE_S):
        yield sink
        await sink.close()


def rows(count: int) -> Batch:
    """A batch of that many rows."""
    zeros = np.zeros(count)
    tag = np.arange(count, dtype=np.uint32)
    kind = np.full(count, Kind.DOUBLE, np.uint8)
    return Batch(
        0, 1, None, 0, tag, zeros.astype(np.int64), zeros, zeros.astype(np.uint32), kind, zeros.astype(np.uint8), seq=1
    )


async def write(sink: MqttSink, count: int) -> None:
    """A write of one batch."""
    await sink.write("lane", [rows(count)], b"", False)


@pytest.mark.parametrize(
    ("protocol", "connack", "kind", "text"),
    [
        ("5", "20 02 00 01", Permanent, "protocol: 3.1.1"),
        ("5", "20 03 00 84 00", Permanent, "protocol: 3.1.1"),
        ("5", "20 03 00 88 00", NotConnected, "Server unavailable"),
        ("5", "20 05 00 00 02 24 00", Permanent, "set qos: 0"),
        ("5", "20 05 00 00 02 25 00", Permanent, "set retain: false"),
        ("3.1.1", "20 02 00 01", Permanent, 'protocol: "5"'),
        ("3.1.1", "20 02 00 03", NotConnected, "not available now"),
        ("3.1.1", "20 02 00 05", Permanent, "check auth"),
        ("5", "20 01 00", NotConnected, "not MQTT"),
        ("5", b"HTTP/1.1 400 Bad Request\r\n".hex() + 80 * "20", NotConnected, "not MQTT"),
        ("5", "ff ff ff ff ff ff", NotConnected, "not MQTT"),
        ("5", "", NotConnected, "write mqtts://"),
    ],
)
async def test_refused_session(protocol: str, connack: str, kind: type[Exception], text: str) -> None:
    """Each refusal is the right kind of error with the way out; nothing stays open."""

    async def script(client: Broker) -> None:
        await client.packet()
        client.send(bytes.fromhex(connack))
        if connack:
            await client.gone()

    async with broker(script, protocol=protocol, retain=True) as sink:
        with pytest.raises(kind, match=text):
            await sink.connect()
        with pytest.raises(NotConnected):
            await write(sink, 1)


@pytest.mark.parametrize(
    ("reason", "kind", "text"),
    [
        (0x97, Transient, "Quota exceeded"),
        (0x99, Rejected, "Payload format invalid"),
        (0x90, Rejected, "Topic name invalid"),
    ],
)
async def test_refused_message(reason: int, kind: type[Exception], text: str) -> None:
    """A reason code that passes is Transient, any other rejects the message; the session goes on."""

    async def script(client: Broker) -> None:
        await client.packet()
        client.send(ACCEPTED)
        for reason_code in (0x10, reason, 0, 0):
            publish = await client.packet()
            packet_id = publish[2 + 2 + publish[3] :][:2]
            client.send(b"\x40\x03" + packet_id + bytes([reason_code]))
        await client.gone()

    async with broker(script) as sink:
        await sink.connect()
        with pytest.raises(kind, match=text) as caught:
            await write(sink, 3)
        if isinstance(caught.value, Rejected):
            assert caught.value.rows == [(0, 1)]
        await write(sink, 1)


async def test_disconnect_packet_gives_its_reason() -> None:
    """MQTT 5 section 3.14: the reason code and the broker's own words; the pending write gets them too."""

    async def script(client: Broker) -> None:
        await client.packet()
        client.send(ACCEPTED)
        await client.packet()
        client.send(bytes.fromhex("e0 0a 8b 08 1f 00 05") + b"sleep")

    async with broker(script) as sink:
        await sink.connect()
        with pytest.raises(NotConnected, match="Server shutting down: sleep"):
            await write(sink, 1)
        with pytest.raises(NotConnected, match="Server shutting down"):
            await sink.wait_closed()


async def test_one_lost_puback_is_noticed() -> None:
    """Others keep coming: the oldest message still ends the session after ack_timeout."""

    async def script(client: Broker) -> None:
        await client.packet()
        client.send(ACCEPTED_311)
        await client.packet()
        while True:
            publish = await client.packet()
            client.send(b"\x40\x02" + publish[2 + 2 + publish[3] :][:2])

    async with broker(script, protocol="3.1.1", ack_timeout="200ms") as sink:
        await sink.connect()
        lost = asyncio.ensure_future(write(sink, 1))
        await asyncio.sleep(0)
        with pytest.raises(NotConnected, match="ack_timeout"):
            while True:
                await write(sink, 10)
        with pytest.raises(NotConnected, match="ack_timeout"):
            await lost


async def test_qos_0_is_delivered_when_a_ping_sent_behind_it_is_answered() -> None:
    """Not when it was sent; a PINGRESP without a PINGREQ confirms nothing."""
    answer = asyncio.Event()
    asked = asyncio.Event()

    async def script(client: Broker) -> None:
        await client.packet()
        client.send(ACCEPTED + PINGRESP)
        for expected in (0x30, 0x30, 0x30, 0xC0):
            assert (await client.packet())[0] == expected
        asked.set()
        await answer.wait()
        client.send(PINGRESP)
        await client.gone()

    async with broker(script, qos=0) as sink:
        await sink.connect()
        pending = asyncio.ensure_future(write(sink, 3))
        await asked.wait()
        assert not pending.done() and sink.counters.totals["rows"] == 0
        answer.set()
        await pending
        assert sink.counters.totals["rows"] == 3


async def test_receive_maximum_of_one_and_pubacks_in_any_order() -> None:
    """The smallest window there is: never two messages in flight."""

    async def script(client: Broker) -> None:
        await client.packet()
        client.send(bytes.fromhex("20 06 00 00 03 21 00 01"))
        for _ in range(50):
            publish = await client.packet()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002):
                    await client.packet()
            client.send(b"\x40\x02" + publish[2 + 2 + publish[3] :][:2])
        await client.gone()

    async with broker(script) as sink:
        await sink.connect()
        await write(sink, 50)
        assert sink.counters.totals["messages"] == 50


async def test_garbage_ends_the_session() -> None:
    """Whatever arrives, it is NotConnected, never a crash of the loop."""
    for garbage in (b"\x40\x01\x00", b"\x00\x00", b"\xe0\x05\xff", b"\x20\x03\x00\x00\x00", b"\x30\x00", b"\xf0\x00"):

        async def script(client: Broker, garbage: bytes = garbage) -> None:
            await client.packet()
            client.send(ACCEPTED)
            await client.packet()
            client.send(garbage)

        async with broker(script) as sink:
            await sink.connect()
            with pytest.raises(NotConnected):
                await write(sink, 1)
