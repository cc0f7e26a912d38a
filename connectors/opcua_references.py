"""Browse of single kinds of references: requests to bytes, responses to references (Part 4, 5.8.2 and 5.8.3). Pure.

asyncua's generic encoder takes 150 us and more for a node, and the properties of every tag are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from connectors.opcua_binary import Cursor
from connectors.opcua_requests import FourByteId, RequestHeader, expect, response_body

BROWSE: Final = 527
BROWSE_RESPONSE: Final = 530
BROWSE_NEXT: Final = 533
BROWSE_NEXT_RESPONSE: Final = 536
"""Numeric identifiers of the binary encodings (Part 6, annex A), namespace 0."""

HAS_ENCODING: Final = 38
HAS_DESCRIPTION: Final = 39
HAS_SUBTYPE: Final = 45
HAS_PROPERTY: Final = 46
HAS_COMPONENT: Final = 47

_ANY_CLASS: Final = 0
_BROWSE_NAMES: Final = 0x08
"""ResultMask (Part 4, 5.8.2.2): of a target nothing but its browse name."""
_View = struct.Struct("<2sqII")  # the whole address space: null id, no time, no version; references for each node
_Tail = struct.Struct("<?II")  # subtypes of the reference, node classes, result mask


@dataclass(frozen=True, slots=True)
class Reference:
    """To or from a node."""

    node: str
    name: str


@dataclass(frozen=True, slots=True)
class References:
    """Of one node; more of them come with `browse_next` where there is a `continuation`."""

    found: list[Reference]
    continuation: bytes


def browse(header: RequestHeader, nodes: Sequence[bytes], reference: int, inverse: bool = False) -> bytes:
    """BrowseRequest for one type of reference; `nodes` are encoded node ids."""
    kind = FourByteId.pack(1, 0, reference)
    middle = struct.pack("<i", int(inverse)) + kind + _Tail.pack(True, _ANY_CLASS, _BROWSE_NAMES)
    head = _View.pack(b"\0\0", 0, 0, 0) + struct.pack("<i", len(nodes))
    return b"".join([header.encode(BROWSE), head, *(part for node in nodes for part in (node, middle))])


def browse_next(header: RequestHeader, continuation: bytes) -> bytes:
    """BrowseNextRequest for one continuation point."""
    return header.encode(BROWSE_NEXT) + struct.pack("<?ii", False, 1, len(continuation)) + continuation


def browsed(body: bytes, count: int, response: int = BROWSE_RESPONSE) -> list[References]:
    """BrowseResponse or BrowseNextResponse -> what each node has, nothing where it is bad.

    Raises DecodeError, ServiceError.
    """
    cursor = response_body(body, response)
    return expect([_references(cursor) for _ in range(cursor.count(12))], count)


def _references(cursor: Cursor) -> References:
    cursor.skip(4)  # a bad status comes without references
    continuation = cursor.bytestring() or b""
    return References([_reference(cursor) for _ in range(cursor.count(12))], continuation)


def _reference(cursor: Cursor) -> Reference:
    """Part 4, 7.30."""
    cursor.node_id()
    cursor.skip(1)
    node, name = cursor.node_id(), cursor.qualified_name()
    cursor.localized_text()
    cursor.skip(4)
    cursor.node_id()
    return Reference(node, name)
