"""The part of MQTT that is fast because it is ours: PUBLISH packets of a batch as one run of bytes, and PUBACKs by the
run. Pure, no I/O; everything rare (CONNECT, CONNACK, status, SUBSCRIBE, ...) is paho's.

PUBLISH (MQTT 5 section 3.3):   0x30 | qos << 1 | retain, remaining length, topic, [packet id], [properties], payload
PUBACK  (MQTT 5 section 3.4):   0x40, remaining length, packet id, [reason code, [properties]]

A remaining length is a variable byte integer: 7 bits a byte, low first, 4 bytes at most (MQTT 5 section 1.5.5). A
PUBACK of remaining length 2 means reason 0, success. MQTT 3.1.1 has no properties and no reason codes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import add

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
CONNACK_TYPE, PUBACK_TYPE, PINGRESP_TYPE = 0x20, 0x40, 0xD0
REMAINING_LENGTH_MAX = 268_435_455
RECEIVED_PACKET_BYTES_MAX = 1 << 20
"""A larger packet than this from a broker is a protocol error: nothing that is asked for is as large."""
REASON_FAILURE = 0x80
"""Reason codes from here on say that the packet was refused (MQTT 5 section 2.4)."""
_FIXED_HEADER_BYTES_MAX = 5
_TWO_BYTE_INTEGER = struct.Struct(">H")


class MalformedPacket(Exception):
    """The broker sent what is no MQTT packet."""


def variable_byte_integer(number: int) -> bytes:
    """MQTT 5 section 1.5.5; `number` is at most REMAINING_LENGTH_MAX."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class PublishEncoder:
    """Builds PUBLISH packets that differ only in topic, packet id and payload."""

    def __init__(self, qos: int, retain: bool, properties: bytes | None) -> None:
        """`properties` are those of MQTT 5 without their length (b"" for none); None for MQTT 3.1.1."""
        self._properties = b"" if properties is None else variable_byte_integer(len(properties)) + properties
        self._headers = _FixedHeaders(0x30 | qos << 1 | retain, len(self._properties) + 2 * qos)
        self.qos = qos
        self.beside_bytes_max = _FIXED_HEADER_BYTES_MAX + self._headers.constant_bytes
        """Of a packet: all but topic and payload."""

    def size(self, topic: bytes, payload: bytes) -> int:
        """Bytes of the packet; `topic` with its length before it."""
        return len(self._headers[len(topic) + len(payload)]) + len(topic) + len(payload) + self._headers.constant_bytes

    def encode(self, topics: Sequence[bytes], payloads: Sequence[bytes], packet_ids: range) -> bytes:
        """One packet per payload, back to back; `packet_ids` is as long as `payloads` at QoS 1 and not used at QoS 0.

        `topics` have their length before them. No packet may be larger than REMAINING_LENGTH_MAX.
        """
        sizes = map(add, map(len, topics), map(len, payloads))
        parts = [self._properties] * (5 * len(payloads))
        parts[0::5] = map(self._headers.__getitem__, sizes)
        parts[1::5] = topics
        parts[2::5] = map(_TWO_BYTE_INTEGER.pack, packet_ids) if self.qos else [b""] * len(payloads)
        parts[4::5] = payloads
        return b"".join(parts)

    def one(self, topic: bytes, payload: bytes, packet_id: int) -> bytes:
        """`encode` of a single packet."""
        header = self._headers[len(topic) + len(payload)]
        between = _TWO_BYTE_INTEGER.pack(packet_id) + self._properties if self.qos else self._properties
        return b"%b%b%b%b" % (header, topic, between, payload)


class _FixedHeaders(dict[int, bytes]):
    """Bytes of topic and payload -> first byte and remaining length of such a packet."""

    def __init__(self, first_byte: int, constant_bytes: int) -> None:
        super().__init__()
        self._first = bytes((first_byte,))
        self.constant_bytes = constant_bytes
        """What every packet has between and besides topic and payload."""

    def __missing__(self, size: int) -> bytes:
        if len(self) >= _HEADERS_MAX:
            self.clear()
        header = self[size] = self._first + variable_byte_integer(size + self.constant_bytes)
        return header


_HEADERS_MAX = 20_000
"""Lengths remembered; a fixed header is made again when it is forgotten."""


@dataclass(slots=True)
class Received:
    """What one chunk of bytes brought, sorted."""

    acknowledged: list[int] = field(default_factory=list)
    """Packet ids of ours, in order."""
    refused: list[tuple[int, int]] = field(default_factory=list)
    """(packet id of ours, reason code)."""
    pings: int = 0
    """PINGRESP packets."""
    others: list[bytes] = field(default_factory=list)
    """Whole packets for paho: everything else, and PUBACKs of packet ids that are paho's."""


class Splitter:
    """Cuts a stream of bytes into packets."""

    def __init__(self, packet_id_max: int) -> None:
        """PUBACKs above `packet_id_max` are not ours."""
        self._packet_id_max = packet_id_max
        self._rest = b""

    def feed(self, data: bytes) -> Received:
        """Takes what arrived; an incomplete packet waits for the next call. Raises MalformedPacket."""
        received = Received()
        data = self._rest + data if self._rest else data
        at = self._runs(data, received)
        while at < len(data) and (packet := _packet_at(data, at)):
            self._sort(packet, received)
            at += len(packet)
        self._rest = data[at:]
        return received

    def _runs(self, data: bytes, received: Received) -> int:
        """Takes all of `data` that is one run of equally long PUBACKs; returns where the rest starts."""
        if len(data) >= 4 and data[:2] == b"\x40\x02":
            count = len(data) // 4
            words = struct.unpack_from(f">{2 * count}H", data)
            heads, packet_ids, reasons = words[0::2], words[1::2], (0,)
            whole = heads.count(0x4002) == count
        elif len(data) >= 5 and data[:2] == b"\x40\x03":
            count = len(data) // 5
            fields = struct.unpack_from(">" + "HHB" * count, data)
            heads, packet_ids, reasons = fields[0::3], fields[1::3], fields[2::3]
            whole = heads.count(0x4003) == count
        else:
            return 0
        if not whole or max(reasons) >= REASON_FAILURE or max(packet_ids) > self._packet_id_max:
            return 0
        received.acknowledged.extend(packet_ids)
        return count * (2 + data[1])

    def _sort(self, packet: bytes, received: Received) -> None:
        kind = packet[0]
        if kind == PUBACK_TYPE:
            packet_id, reason = _puback(packet)
            if packet_id > self._packet_id_max:
                received.others.append(packet)
            elif reason >= REASON_FAILURE:
                received.refused.append((packet_id, reason))
            else:
                received.acknowledged.append(packet_id)
        elif kind == PINGRESP_TYPE:
            received.pings += 1
        else:
            received.others.append(packet)


def _packet_at(data: bytes, at: int) -> bytes | None:
    """The whole packet that starts there, or None where its end has not arrived."""
    remaining = shift = 0
    for place in range(at + 1, min(at + _FIXED_HEADER_BYTES_MAX, len(data))):
        byte = data[place]
        remaining |= (byte & 127) << shift
        if byte < 128:
            if remaining > RECEIVED_PACKET_BYTES_MAX:
                raise MalformedPacket(f"a packet of {remaining} bytes")
            end = place + 1 + remaining
            return data[at:end] if end <= len(data) else None
        shift += 7
    if len(data) - at >= _FIXED_HEADER_BYTES_MAX:
        raise MalformedPacket("a remaining length of more than four bytes")
    return None


def _puback(packet: bytes) -> tuple[int, int]:
    """(packet id, reason code) of a PUBACK."""
    if len(packet) < 4:
        raise MalformedPacket("a PUBACK without packet id")
    return packet[2] << 8 | packet[3], packet[4] if len(packet) > 4 else 0


def connack_code(packet: bytes) -> int:
    """The return or reason code of a CONNACK (MQTT 5 section 3.2.2.2; the same place in MQTT 3.1.1)."""
    if len(packet) < 4:
        raise MalformedPacket("a CONNACK without reason code")
    return packet[3]


def content_type_property(content_type: str | None) -> bytes:
    """PUBLISH properties that name the payload's MIME type (MQTT 5 section 3.3.2.3.9); b"" for None."""
    if content_type is None:
        return b""
    text = content_type.encode()
    return b"\x03" + _TWO_BYTE_INTEGER.pack(len(text)) + text
