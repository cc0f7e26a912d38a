"""Browse, BrowseNext and TranslateBrowsePathsToNodeIds as bytes (Part 4, 5.8). Pure.

Written out, and read as a stream of references: a server may answer with thousands at once, and the event loop must get
its turn in between. asyncua's own decoder makes about 20 objects of each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.opcua_address import QualifiedName
from connectors.opcua_binary import Cursor, DecodeError
from connectors.opcua_requests import RequestHeader, encode_node_id, expect, response_body

BROWSE: Final = 527
BROWSE_RESPONSE: Final = 530
BROWSE_NEXT: Final = 533
BROWSE_NEXT_RESPONSE: Final = 536
TRANSLATE: Final = 554
TRANSLATE_RESPONSE: Final = 557
"""Numeric identifiers of the binary encodings (Part 6, annex A), namespace 0."""

HIERARCHICAL: Final = "i=33"
HAS_SUBTYPE: Final = "i=45"
HAS_PROPERTY: Final = "i=46"
OBJECT: Final = 1
VARIABLE: Final = 2
TYPES: Final = 8 | 16
"""Node classes (Part 3, 8.29): object type, variable type."""

RESULT_MASK: Final = 1 | 4 | 8 | 32
"""Reference type, node class, browse name, type definition (Part 4, 5.8.2)."""
WHOLE_PATH: Final = 0xFFFF_FFFF
"""RemainingPathIndex of a target to which the whole path leads."""

_View: Final = struct.pack("<BBqI", 0, 0, 0, 0)  # null view, no time, no version
_DescriptionTail: Final = struct.Struct("<?II")  # with subtypes, node classes, what is asked
_Element: Final = struct.Struct("<??H")  # inverse, with subtypes, namespace of the name


@dataclass(frozen=True, slots=True)
class Reference:
    """A node that another one refers to."""

    node: str
    type: str
    """Of the reference."""
    name: QualifiedName
    node_class: int
    type_definition: str


@dataclass(frozen=True, slots=True)
class Page:
    """Stands before the references of one node."""

    index: int
    status: int
    continuation: bytes
    """Empty: there is no more."""


def browse(
    header: RequestHeader, nodes: Sequence[bytes], references_max: int, reference_type: str, node_classes: int
) -> bytes:
    """BrowseRequest, forward, with the subtypes of the reference type; `nodes` are encoded."""
    tail = encode_node_id(reference_type) + _DescriptionTail.pack(True, node_classes, RESULT_MASK)
    parts = [header.encode(BROWSE), _View, struct.pack("<Ii", references_max, len(nodes))]
    for node in nodes:
        parts += (node, struct.pack("<i", 0), tail)
    return b"".join(parts)


def browse_next(header: RequestHeader, points: Sequence[bytes], release: bool = False) -> bytes:
    """BrowseNextRequest for continuation points; `release` gives them back and asks for nothing."""
    parts = [header.encode(BROWSE_NEXT), struct.pack("<?i", release, len(points))]
    for point in points:
        parts += (struct.pack("<i", len(point)), point)
    return b"".join(parts)


def browsed(body: bytes, expected: int, count: int) -> Iterator[Page | Reference]:
    """The results of either: each node's page, then its references. Raises DecodeError, ServiceError."""
    cursor = response_body(body, expected)
    found = cursor.count(12)
    if found != count:
        raise DecodeError(f"{count} results expected, {found} received")
    for index in range(found):
        status, point = cursor.uint32(), cursor.bytestring()
        yield Page(index, status, point or b"")
        for _ in range(cursor.count(10)):
            yield _reference(cursor)


def _reference(cursor: Cursor) -> Reference:
    type_, _forward, node = cursor.node_id(), cursor.byte(), cursor.node_id()
    name = QualifiedName(cursor.uint16(), cursor.text() or "")
    cursor.localized_text()
    return Reference(node, type_, name, cursor.int32(), cursor.node_id())


def translate(header: RequestHeader, paths: Sequence[tuple[bytes, int, str]]) -> bytes:
    """TranslateBrowsePathsToNodeIdsRequest: (encoded starting node, namespace index, name) of one step each."""
    any_hierarchical = struct.pack("<i", 1) + encode_node_id(HIERARCHICAL)
    parts = [header.encode(TRANSLATE), struct.pack("<i", len(paths))]
    for start, namespace, name in paths:
        text = name.encode()
        parts += (start, any_hierarchical, _Element.pack(False, True, namespace), struct.pack("<i", len(text)), text)
    return b"".join(parts)


def translated(body: bytes, count: int) -> list[tuple[int, list[str]]]:
    """(status, the nodes that were found) of each path. Raises DecodeError, ServiceError."""
    cursor = response_body(body, TRANSLATE_RESPONSE)
    results = []
    for _ in range(cursor.count(8)):
        status, found = cursor.uint32(), list[str]()
        for _ in range(cursor.count(6)):
            node = cursor.node_id()
            if cursor.uint32() == WHOLE_PATH:
                found.append(node)
        results.append((status, found))
    return expect(results, count)
