"""PUBLISH packets and PUBACKs against the specification, by a parser that shares nothing with the code under test."""

import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.mqtt_wire import (
    PINGRESP,
    MalformedPacket,
    PublishEncoder,
    Splitter,
    content_type_property,
    variable_byte_integer,
)

PAYLOADS = st.lists(st.binary(max_size=300) | st.integers(0, 20_000).map(lambda size: b"x" * size), max_size=12)


class Publish(NamedTuple):
    """A PUBLISH packet, parsed."""

    qos: int
    retain: bool
    dup: bool
    topic: str
    packet_id: int | None
    properties: bytes | None
    payload: bytes


def read_integer(data: bytes) -> tuple[int, bytes]:
    """A variable byte integer (MQTT 5 section 1.5.5, the algorithm as printed) and what follows."""
    multiplier, value, at = 1, 0, 0
    while True:
        value += (data[at] & 127) * multiplier
        multiplier *= 128
        at += 1
        if not data[at - 1] & 128:
            return value, data[at:]


def parse(data: bytes, version: int) -> list[Publish]:
    """All packets of a run."""
    found = []
    while data:
        first, (remaining, data) = data[0], read_integer(data[1:])
        body, data = data[:remaining], data[remaining:]
        assert first >> 4 == 3 and len(body) == remaining
        qos = first >> 1 & 3
        (length,) = struct.unpack(">H", body[:2])
        topic, body = body[2 : 2 + length].decode(), body[2 + length :]
        packet_id = struct.unpack(">H", body[:2])[0] if qos else None
        body = body[2:] if qos else body
        properties = None
        if version == 5:
            size, body = read_integer(body)
            properties, body = body[:size], body[size:]
        found.append(Publish(qos, bool(first & 1), bool(first & 8), topic, packet_id, properties, body))
    return found


@given(PAYLOADS, st.integers(0, 1), st.booleans(), st.sampled_from([3, 5]), st.sampled_from([None, "application/json"]))
def test_publish_round_trip(payloads: list[bytes], qos: int, retain: bool, version: int, mime: str | None) -> None:
    """What is encoded is what a parser of the specification reads, and `size` tells it beforehand."""
    properties = content_type_property(mime) if version == 5 else None
    encoder = PublishEncoder(qos, retain, properties)
    topics = [struct.pack(">H", len(text)) + text for text in (f"acme/d{at}/ü".encode() for at in range(len(payloads)))]
    packet_ids = range(1000, 1000 + len(payloads))
    data = encoder.encode(topics, payloads, packet_ids)
    expected = [
        Publish(qos, retain, False, f"acme/d{at}/ü", 1000 + at if qos else None, properties, payload)
        for at, payload in enumerate(payloads)
    ]
    assert parse(data, version) == expected
    assert len(data) == sum(encoder.size(topic, payload) for topic, payload in zip(topics, payloads, strict=True))


@given(st.integers(0, 268_435_455))
def test_variable_byte_integer(number: int) -> None:
    """Read back by the specification's own algorithm, in the shortest form."""
    encoded = variable_byte_integer(number)
    assert read_integer(encoded) == (number, b"")
    assert len(encoded) == 1 + (number > 127) + (number > 16_383) + (number > 2_097_151)


PACKETS = st.lists(
    st.one_of(
        st.integers(1, 65_535).map(lambda packet_id: struct.pack(">BBH", 0x40, 2, packet_id)),
        st.tuples(st.integers(1, 65_535), st.sampled_from([0, 0x10, 0x87, 0x97])).map(
            lambda pair: struct.pack(">BBHB", 0x40, 3, *pair)
        ),
        st.tuples(st.integers(1, 65_535), st.binary(max_size=200)).map(
            lambda pair: b"\x40" + variable_byte_integer(4 + len(pair[1])) + struct.pack(">HB", pair[0], 0x87)
            + b"\x00" + pair[1]
        ),
        st.just(PINGRESP),
        st.binary(max_size=300).map(lambda body: b"\xe0" + variable_byte_integer(len(body)) + body),
    ),
    max_size=40,
)  # fmt: skip


@given(
    PACKETS | st.lists(st.integers(1, 65_000).map(lambda i: struct.pack(">BBH", 0x40, 2, i)), max_size=60), st.data()
)
def test_any_chunks(packets: list[bytes], data: st.DataObject) -> None:
    """However TCP cuts the stream, each packet is seen once, in order, and sorted by whose it is."""
    splitter = Splitter(65_000)
    stream = b"".join(packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    acknowledged, refused, others, pings = [], [], [], 0
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received = splitter.feed(stream[start:end])
        acknowledged += received.acknowledged
        refused += received.refused
        others += received.others
        pings += received.pings
    mine = [read_puback(p) for p in packets if p[0] == 0x40]
    assert acknowledged == [i for i, reason in mine if i <= 65_000 and reason < 0x80]
    assert refused == [(i, reason) for i, reason in mine if i <= 65_000 and reason >= 0x80]
    assert pings == packets.count(PINGRESP)
    assert others == [p for p in packets if p[0] == 0xE0 or (p[0] == 0x40 and read_puback(p)[0] > 65_000)]


def read_puback(packet: bytes) -> tuple[int, int]:
    """(packet id, reason code)."""
    _, body = read_integer(packet[1:])
    return struct.unpack(">H", body[:2])[0], body[2] if len(body) > 2 else 0


@pytest.mark.parametrize("data", [b"\x40\xff\xff\xff\xff\x01", b"\x40\x01\x05", b"\xe0\xff\xff\xff\x7f"])
def test_malformed(data: bytes) -> None:
    """A remaining length of five bytes, a PUBACK without id, and a packet of 256 MiB end the session."""
    with pytest.raises(MalformedPacket):
        Splitter(65_000).feed(data)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("properties", [None, b"", content_type_property("application/json")])
@given(payload=st.binary(max_size=300))
def test_one_packet_is_as_of_many(qos: int, properties: bytes | None, payload: bytes) -> None:
    """`one` makes what `encode` does."""
    encoder, topic = PublishEncoder(qos, False, properties), b"\0\3a/b"
    packet = encoder.encode([topic], [payload], range(7, 8))
    assert encoder.one(topic, payload, 7) == packet
    assert len(packet) <= len(topic) + len(payload) + encoder.beside_bytes_max
