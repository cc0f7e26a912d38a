"""The requests of which a gateway sends thousands, encoded straight to OPC UA Binary, and their responses. Pure.

asyncua's generic encoder needs about 250 us for a PublishRequest and 150 us for a monitored item; these need 2-3 us.
Every other service call goes through asyncua as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from asyncua import ua
from asyncua.ua.ua_binary import nodeid_to_binary

from connectors.opcua_binary import EPOCH_TICKS, Cursor, DecodeError
from connectors.opcua_response import SERVICE_FAULT, response_header

PUBLISH: Final = 826
REPUBLISH: Final = 832
CREATE_MONITORED_ITEMS: Final = 751
CREATE_MONITORED_ITEMS_RESPONSE: Final = 754
READ: Final = 631
READ_RESPONSE: Final = 634
"""Numeric identifiers of the binary encodings (Part 6, annex A), namespace 0."""

ATTRIBUTE_VALUE: Final = 13
ATTRIBUTE_DATA_TYPE: Final = 14
ATTRIBUTE_VALUE_RANK: Final = 15
MODE_SAMPLING: Final = 1
MODE_REPORTING: Final = 2
TIMESTAMPS_SOURCE: Final = 0
TIMESTAMPS_NEITHER: Final = 3

FourByteId = struct.Struct("<BBH")
_Header = struct.Struct("<qIIiI3s")
_Ack = struct.Struct("<II")
_ReadValueIdTail = struct.Struct("<IiHi")  # attribute, index range (null), data encoding: namespace 0, null name
_ItemHead = struct.Struct("<IId")  # mode, client handle, sampling interval ms; then the filter
_ItemTail = struct.Struct("<I?")  # queue size, discard oldest
TOO_MANY_PUBLISH_REQUESTS: Final = 0x8078_0000
NO_FILTER: Final = b"\0\0\0"
"""A null ExtensionObject."""
_ItemResult = struct.Struct("<IIdI")


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """What every request begins with (Part 4, 7.32): token is the encoded authentication token, times in ns."""

    token: bytes
    handle: int
    now_ns: int
    timeout_ms: int = 0

    def encode(self, type_id: int) -> bytes:
        ticks = self.now_ns // 100 + EPOCH_TICKS
        return b"".join(
            (
                FourByteId.pack(1, 0, type_id),
                self.token,
                _Header.pack(ticks, self.handle, 0, -1, self.timeout_ms, b"\0\0\0"),
            )
        )


class Session(Protocol):
    """What is asked of a session by whoever sends requests of his own."""

    async def request(self, encode: Callable[[RequestHeader], bytes]) -> bytes:
        """Sends an encoded request and returns the response's bytes."""


Request: TypeAlias = Callable[[Callable[[RequestHeader], bytes]], Awaitable[bytes]]
"""`Session.request`."""


def encode_node_id(text: str) -> bytes:
    """`ns=2;s=Name` -> NodeId bytes. Raises ValueError where the text is no node id."""
    encoded: bytes = nodeid_to_binary(ua.NodeId.from_string(text))
    return encoded


def publish(header: RequestHeader, acks: Sequence[tuple[int, int]]) -> bytes:
    """PublishRequest with (subscription id, sequence number) pairs to acknowledge (Part 4, 5.13.5)."""
    pairs = b"".join(_Ack.pack(*pair) for pair in acks)
    return header.encode(PUBLISH) + struct.pack("<i", len(acks)) + pairs


def republish(header: RequestHeader, subscription_id: int, number: int) -> bytes:
    """RepublishRequest for one sequence number (Part 4, 5.13.6)."""
    return header.encode(REPUBLISH) + _Ack.pack(subscription_id, number)


@dataclass(frozen=True, slots=True)
class Item:
    """One monitored item to create; `node` is the encoded NodeId."""

    node: bytes
    client_handle: int
    sampling_ms: float
    queue: int
    filter: bytes = NO_FILTER
    """An encoded ExtensionObject."""
    discard_oldest: bool = True
    mode: int = MODE_REPORTING


def create_monitored_items(header: RequestHeader, subscription_id: int, items: Sequence[Item]) -> bytes:
    """CreateMonitoredItemsRequest for values, source timestamps (Part 4, 5.12.2)."""
    value = _ReadValueIdTail.pack(ATTRIBUTE_VALUE, -1, 0, -1)
    parts = [
        header.encode(CREATE_MONITORED_ITEMS),
        struct.pack("<IIi", subscription_id, TIMESTAMPS_SOURCE, len(items)),
    ]
    for item in items:
        parts += (
            item.node,
            value,
            _ItemHead.pack(item.mode, item.client_handle, item.sampling_ms),
            item.filter,
            _ItemTail.pack(item.queue, item.discard_oldest),
        )
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What the server made of one item."""

    status: int
    item_id: int
    sampling_ms: float
    queue: int


def created_items(body: bytes, count: int) -> list[ItemResult]:
    """CreateMonitoredItemsResponse -> one result per item, in order. Raises DecodeError, ServiceError."""
    cursor = response_body(body, CREATE_MONITORED_ITEMS_RESPONSE)
    results = []
    for _ in range(cursor.count(_ItemResult.size)):
        results.append(ItemResult(*cursor.unpack(_ItemResult)))
        cursor.extension_object()
    return expect(results, count)


def read(header: RequestHeader, nodes: Sequence[bytes], attribute: int, timestamps: int = TIMESTAMPS_NEITHER) -> bytes:
    """ReadRequest of one attribute of many nodes, from the machine itself: age 0 (Part 4, 5.10.2)."""
    tail = _ReadValueIdTail.pack(attribute, -1, 0, -1)
    head = struct.pack("<dIi", 0.0, timestamps, len(nodes))
    return b"".join([header.encode(READ), head, *(part for node in nodes for part in (node, tail))])


def read_values(body: bytes, count: int) -> list[Any]:
    """ReadResponse -> values in order, None where a node has none. Raises DecodeError, ServiceError."""
    cursor = response_body(body, READ_RESPONSE)
    return expect([cursor.data_value() for _ in range(cursor.count(1))], count)


class ServiceError(Exception):
    """The server refused the whole request."""

    def __init__(self, status: int) -> None:
        super().__init__(status_name(status))
        self.status = status


def status_name(status: int) -> str:
    """`BadNodeIdUnknown` for 0x80340000; the hexadecimal number for what the standard does not name."""
    name: str = ua.StatusCode(ua.UInt32(status & 0xFFFF_0000)).name
    return name if name and not name.startswith("Unknown") else f"{status:#010x}"


def response_body(body: bytes, expected: int) -> Cursor:
    cursor = Cursor(body)
    encoding = cursor.node_id()
    result = response_header(cursor)
    if encoding == f"i={SERVICE_FAULT}" or result & 0x8000_0000:
        raise ServiceError(result)
    if encoding != f"i={expected}":
        raise DecodeError(f"expected the response of type {expected}, received {encoding}")
    return cursor


def expect(results: list[Any], count: int) -> list[Any]:
    if len(results) != count:
        raise DecodeError(f"{count} results expected, {len(results)} received")
    return results
