"""A server's data types: read when they are needed, kept while the server runs.

By the DataTypeDefinition attribute where there is one; of older servers enumerations by the properties of their data
type, structures by the type dictionary that the encoding's description points into (Part 3, 5.8.3; Part 5, annex D).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from asyncua import ua

from connectors import opcua_references, opcua_requests
from connectors.opcua_binary import DecodeError
from connectors.opcua_definitions import (
    BUILT_IN,
    ENUMERATION,
    NULL_ID,
    STANDARD,
    STRUCTURE,
    StructureDefinition,
    bit_labels,
    definition,
    labels_of_strings,
    labels_of_values,
    standard_structures,
)
from connectors.opcua_dictionary import structures_of
from connectors.opcua_references import Reference
from connectors.opcua_requests import ServiceError, Session
from connectors.opcua_resume import Log
from connectors.opcua_structures import DataType, Labels
from pipelines.batch import Kind

PER_CALL: Final = 500
"""Nodes per Read or Browse; less where the server refuses so many."""
TYPES_MAX: Final = 5000
"""Data types that are asked for; a server that names new ones without end is not followed."""
PAGES_MAX: Final = 100
"""BrowseNext calls for one node."""
ATTRIBUTE_DATA_TYPE_DEFINITION: Final = 23
BINARY_ENCODING: Final = "Default Binary"

PROPERTIES: Final = frozenset(
    ("EngineeringUnits", "EnumStrings", "EnumValues", "OptionSetValues", "TrueState", "FalseState")
)
"""What the properties of a variable or a data type are asked for."""
ANCESTORS_MAX: Final = 100

_T = TypeVar("_T")


@dataclass(slots=True)
class _Described:
    """A data type as the server describes it."""

    parent: str = NULL_ID
    definition: StructureDefinition | Labels | None = None
    encodings: list[str] = field(default_factory=list)


class Types:
    """All data types of one life of a server."""

    def __init__(self, log: Log) -> None:
        self.structures = standard_structures()
        self._log = log
        self._described: dict[str, _Described] = {}
        self._known: dict[str, DataType] = dict(BUILT_IN)
        self._asked: set[str] = set()
        self._dictionaries: dict[str, Mapping[str, str]] = {}  # node -> type name -> key of the structure

    def of(self, data_type: str) -> DataType | None:
        """What lies on the wire for it; None where it is not known."""
        return self._known.get(data_type)

    async def learn(self, session: Session, data_types: Iterable[str]) -> None:
        """Asks for what is not known of these types and all that they are made of.

        Raises NotConnected, TimeoutError, DecodeError.
        """
        wanted, new = set(data_types), dict[str, _Described]()
        while asked := self._unknown(wanted - new.keys(), TYPES_MAX - len(self._described) - len(new)):
            found = await self._describe(session, asked)
            new.update(found)
            wanted = {each for described in found.values() for each in _made_of(described)}
        self._described.update(new)
        self._known.update({data_type: self._resolved(data_type) for data_type in new})
        for data_type, described in new.items():
            if self._known[data_type].structure and not isinstance(described.definition, StructureDefinition):
                await self._from_dictionary(session, data_type, described)
        for data_type, described in new.items():
            if self._known[data_type].structure and isinstance(described.definition, StructureDefinition):
                self._define(data_type, described.definition, described.encodings)

    async def learn_encodings(self, session: Session, encodings: Iterable[str]) -> bool:
        """Asks once for the data types behind type ids that came with a value; whether there was one to ask for."""
        new = [each for each in encodings if each not in self._asked]
        if not new:
            return False
        self._asked.update(new)
        found = await references(session, new, opcua_references.HAS_ENCODING, inverse=True)
        await self.learn(session, [each.node for targets in found for each in targets])
        return True

    def _unknown(self, data_types: Collection[str], room: int) -> list[str]:
        """Those to be asked for, at most `room`."""
        new = [each for each in data_types if each not in self._known and each != NULL_ID]
        return sorted(new)[: max(room, 0)]

    async def _describe(self, session: Session, data_types: Sequence[str]) -> dict[str, _Described]:
        definitions = await attributes(session, data_types, ATTRIBUTE_DATA_TYPE_DEFINITION)
        parents = await references(session, data_types, opcua_references.HAS_SUBTYPE, inverse=True)
        encodings = await references(session, data_types, opcua_references.HAS_ENCODING)
        found = {}
        for data_type, value, parent, encoding in zip(data_types, definitions, parents, encodings, strict=True):
            described = found[data_type] = _Described(parent[0].node if parent else NULL_ID, definition(value))
            described.encodings = [each.node for each in encoding if each.name == BINARY_ENCODING]
            if isinstance(described.definition, StructureDefinition):
                described.encodings.append(described.definition.encoding)
        bare = [data_type for data_type, described in found.items() if described.definition is None]
        for data_type, named in (await self._labels(session, bare)).items():
            found[data_type].definition = named
        return found

    async def _labels(self, session: Session, data_types: Sequence[str]) -> dict[str, Labels]:
        """Of data types that have them as properties."""
        found = {}
        for data_type, properties in zip(data_types, await self.properties(session, data_types), strict=True):
            if named := labels_of(properties):
                found[data_type] = named
        return found

    async def properties(self, session: Session, nodes: Sequence[str] | Sequence[bytes]) -> list[dict[str, Any]]:
        """Of each node those properties that say what its numbers mean: name -> value."""
        targets = await references(session, nodes, opcua_references.HAS_PROPERTY)
        wanted = [(index, each) for index, found in enumerate(targets) for each in found if each.name in PROPERTIES]
        values = await attributes(session, [each.node for _, each in wanted], opcua_requests.ATTRIBUTE_VALUE)
        properties: list[dict[str, Any]] = [{} for _ in nodes]
        for (index, each), value in zip(wanted, values, strict=True):
            properties[index][each.name] = self.structures.value(value)
        return properties

    def _resolved(self, data_type: str) -> DataType:
        """By what it is derived from."""
        chain, at = [data_type], data_type
        while at not in BUILT_IN and at in self._described and len(chain) < ANCESTORS_MAX:
            at = self._described[at].parent
            chain.append(at)
        base, own = BUILT_IN.get(at), self._described[data_type].definition
        if isinstance(own, StructureDefinition) or at == STRUCTURE:
            return DataType(Kind.EXTENSION_OBJECT, data_type)
        if base is None:
            return DataType(Kind.EXTENSION_OBJECT)  # an object says itself what it is
        defined = (self._described[each].definition for each in chain if each in self._described)
        named = next((each for each in defined if isinstance(each, tuple)), ())
        if at == ENUMERATION:
            return DataType(base.kind, labels=named)
        whole = Kind.SBYTE <= base.kind <= Kind.UINT64
        return DataType(base.kind, labels=bit_labels(named), bits=True) if named and whole else base

    def _define(self, data_type: str, definition: StructureDefinition, encodings: Collection[str]) -> None:
        try:
            structure = definition.structure(self._known)
        except DecodeError as error:
            self._log.warning("structures of data type %s are delivered as they come: %s", data_type, error)
        else:
            self.structures.add(data_type, structure, _real(encodings))

    async def _from_dictionary(self, session: Session, data_type: str, described: _Described) -> None:
        """An abstract type has neither; a field of its kind holds an object of one that is derived from it."""
        for encoding in _real(described.encodings):
            for name, names in await self._description(session, encoding):
                if name in names:
                    self._known[data_type] = DataType(Kind.EXTENSION_OBJECT, names[name])
                    self.structures.alias(encoding, names[name])
                    return
        if data_type not in {standard for standard, _, _ in STANDARD}:
            self._known[data_type] = DataType(Kind.EXTENSION_OBJECT)

    async def _description(self, session: Session, encoding: str) -> list[tuple[str, Mapping[str, str]]]:
        """The name of an encoding's type in its dictionary, and what that one holds."""
        [described] = await references(session, [encoding], opcua_references.HAS_DESCRIPTION)
        nodes = [each.node for each in described]
        names = await attributes(session, nodes, opcua_requests.ATTRIBUTE_VALUE)
        owners = await references(session, nodes, opcua_references.HAS_COMPONENT, inverse=True)
        return [
            (str(name).rpartition(":")[2], await self._dictionary(session, owner[0].node))
            for name, owner in zip(names, owners, strict=True)
            if owner
        ]

    async def _dictionary(self, session: Session, node: str) -> Mapping[str, str]:
        """Type name -> what its structure is known by."""
        known = self._dictionaries.get(node)
        if known is not None:
            return known
        [schema] = await attributes(session, [node], opcua_requests.ATTRIBUTE_VALUE)
        names = self._dictionaries[node] = {}
        if not isinstance(schema, bytes):
            return names
        try:
            found = await asyncio.to_thread(structures_of, schema)
        except DecodeError as error:
            self._log.warning("type dictionary %s is of no use: %s", node, error)
            return names
        for name, (key, structure) in found.items():
            self.structures.add(key, structure, [])
            names[name] = key
        return names


def labels_of(properties: Mapping[str, Any]) -> Labels:
    """What the properties of a variable or a data type say of its numbers."""
    if "TrueState" in properties or "FalseState" in properties:
        states = [properties.get("FalseState"), properties.get("TrueState")]
        return labels_of_strings(states)
    by_value = labels_of_values(properties.get("EnumValues"))
    return by_value or labels_of_strings(properties.get("EnumStrings") or properties.get("OptionSetValues"))


def _made_of(described: _Described) -> list[str]:
    fields = described.definition.fields if isinstance(described.definition, StructureDefinition) else ()
    return [described.parent, *(each.data_type for each in fields)]


def _real(encodings: Collection[str]) -> list[str]:
    return [each for each in encodings if each != NULL_ID]


async def attributes(session: Session, nodes: Sequence[str] | Sequence[bytes], attribute: int) -> list[Any]:
    """One attribute of each node, None where it has none; node ids as text or encoded.

    Raises NotConnected, TimeoutError, DecodeError.
    """

    async def read(part: Sequence[bytes]) -> list[Any]:
        body = await session.request(partial(opcua_requests.read, nodes=part, attribute=attribute))
        return opcua_requests.read_values(body, len(part))

    return await _in_parts(nodes, read, None)


async def references(
    session: Session, nodes: Sequence[str] | Sequence[bytes], reference: int, inverse: bool = False
) -> list[list[Reference]]:
    """Where the references of one type lead from each node. Raises NotConnected, TimeoutError, DecodeError."""

    async def browse(part: Sequence[bytes]) -> list[list[Reference]]:
        request = partial(opcua_references.browse, nodes=part, reference=reference, inverse=inverse)
        pages = opcua_references.browsed(await session.request(request), len(part))
        return [page.found + await _further(session, page.continuation) for page in pages]

    return await _in_parts(nodes, browse, [])


async def _further(session: Session, continuation: bytes) -> list[Reference]:
    """The references of one node that did not fit into the first answer."""
    found = list[Reference]()
    for _ in range(PAGES_MAX):
        if not continuation:
            break
        body = await session.request(partial(opcua_references.browse_next, continuation=continuation))
        [page] = opcua_references.browsed(body, 1, opcua_references.BROWSE_NEXT_RESPONSE)
        found += page.found
        continuation = page.continuation
    return found


async def _in_parts(
    nodes: Sequence[str] | Sequence[bytes], call: Callable[[Sequence[bytes]], Awaitable[list[_T]]], nothing: _T
) -> list[_T]:
    """`call` for all nodes, as many at a time as the server takes; `nothing` for what it takes not even alone."""
    encoded = [_encoded(node) for node in nodes]
    found: list[_T] = []
    size = PER_CALL
    while len(found) < len(encoded):
        part = encoded[len(found) : len(found) + size]
        try:
            found += await call(part)
        except ServiceError:
            if len(part) == 1:
                found.append(nothing)
            size = max(1, len(part) // 4)
    return found


def _encoded(node: str | bytes) -> bytes:
    """A null id, of which a server knows nothing, where the text is none of a node of this server."""
    if isinstance(node, bytes):
        return node
    try:
        return opcua_requests.encode_node_id(node)
    except (ValueError, ua.UaError):
        return b"\0\0"
