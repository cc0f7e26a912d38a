"""Structures: the bytes of an ExtensionObject -> a dict, by definitions that a server gives. Pure.

Part 6, 5.2.6 to 5.2.8. What comes out is what JSON has words for: fields by name, in order; DateTime as text; an
optional field that is not there has no key; of a union the one member that is set, `{}` for none; an enumeration stays
a number, and `<field>.name` beside it says what it means. A definition becomes a list of steps once; neighbouring
numbers are read in one step.

Neither bytes nor definitions are trusted: depth, lengths and the number of structures within one object are bounded,
and the body has to be used up to its last byte. An object that does not fit, or whose type is not known, stays as it
was sent: type id and body. Nothing raises, nothing is lost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

from connectors.opcua_binary import (
    DEPTH_MAX,
    EPOCH_TICKS,
    FIXED,
    VARIABLE,
    Cursor,
    DecodeError,
    UnreadObject,
    nested_lists,
)
from pipelines.batch import Kind
from pipelines.rfc3339 import rfc3339
from pipelines.tags import name_of

Labels: TypeAlias = tuple[tuple[int, str], ...]
"""(value, name) of an enumeration, (bit, name) of an option set."""

NAME: Final = ".name"
"""Behind a field's name: the key of the name of its value."""
UNKNOWN_MAX: Final = 1000
"""Type ids that are kept in mind although nothing is known of them: a server may send any."""


class Form(IntEnum):
    """StructureType (Part 3, 8.48), without the forms that differ in their fields only."""

    PLAIN = 0
    OPTIONAL = 1
    UNION = 2


@dataclass(frozen=True, slots=True)
class DataType:
    """What lies on the wire for a data type, and what its numbers mean."""

    kind: int
    """The built-in type; EXTENSION_OBJECT with a `structure` is that structure without anything around it."""
    structure: str = ""
    """Node id of the data type."""
    labels: Labels = ()
    bits: bool = False
    """An option set: `labels` name bits."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a structure. rank: 0 for a scalar, 1 for an array, more for a matrix."""

    name: str
    type: DataType
    rank: int = 0
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Structure:
    """A structured data type."""

    form: Form
    fields: tuple[Field, ...]


class Structures:
    """The structures that are known, by data type and by encoding, and which objects could not be read."""

    def __init__(self) -> None:
        self._readers: dict[str, _Reader] = {}
        self._encodings: dict[str, str] = {}
        self.unread: dict[str, int] = {}
        """Encoding -> objects of it that were left as they are."""

    def add(self, data_type: str, structure: Structure, encodings: Iterable[str]) -> None:
        """A definition; `encodings` are the type ids that stand before a body. A former one is replaced."""
        self._readers[data_type] = _reader(structure)
        for encoding in encodings:
            self._encodings[encoding] = data_type

    def alias(self, encoding: str, data_type: str) -> None:
        """One more type id for what was added as `data_type`."""
        self._encodings[encoding] = data_type

    def value(self, value: Any, depth: int = 0) -> Any:
        """`value` with every ExtensionObject in it read, where that can be."""
        if type(value) is UnreadObject:
            return self._object(value, depth)
        if type(value) is list:
            return [self.value(each, depth) for each in value]
        if type(value) is dict:
            return {key: self.value(each, depth) for key, each in value.items()}
        return value

    def structure(self, data_type: str, cursor: Cursor) -> dict[str, Any]:
        """The structure at the cursor. Raises DecodeError, struct.error."""
        assert isinstance(cursor, _Cursor)
        cursor.structures_left -= 1
        if cursor.structures_left < 0:
            raise DecodeError("more structures than the bytes of an object can hold")
        reader = self._readers.get(data_type)
        if reader is None:
            raise DecodeError(f"structure {data_type} is not defined")
        read: dict[str, Any] = cursor.nested(reader)
        return read

    def _object(self, found: UnreadObject, depth: int) -> Any:
        type_id, body = found["type"], found["body"]
        if body is None and type_id == "i=0":
            return None
        data_type = self._encodings.get(type_id)
        if data_type is not None and isinstance(body, bytes):
            cursor = _Cursor(body, self, depth)
            try:
                read = self.structure(data_type, cursor)
                if cursor.at == cursor.end:
                    return read
            except (DecodeError, struct.error):
                pass  # counted below
        if type_id in self.unread or len(self.unread) < UNKNOWN_MAX:
            self.unread[type_id] = self.unread.get(type_id, 0) + 1
        return {**found}


class _Cursor(Cursor):
    """In the body of one object; what lies within it may be an object again."""

    __slots__ = ("structures", "structures_left")

    def __init__(self, body: bytes, structures: Structures, depth: int) -> None:
        super().__init__(body)
        self.depth = depth
        self.structures = structures
        self.structures_left = DEPTH_MAX * (len(body) + 1)


_Reader: TypeAlias = Callable[[_Cursor], Any]
_Step: TypeAlias = Callable[[_Cursor, dict[str, Any]], None]


def _reader(structure: Structure) -> _Reader:
    if structure.form == Form.UNION:
        return _union([_step([field]) for field in structure.fields])
    if structure.form == Form.OPTIONAL:
        return _with_optional([(field.is_optional, _step([field])) for field in structure.fields])
    runs: list[list[Field]] = []
    for field in structure.fields:
        if runs and _is_number(field) and _is_number(runs[-1][-1]):
            runs[-1].append(field)
        else:
            runs.append([field])
    return _sequence([_step(run) for run in runs])


def _sequence(steps: Sequence[_Step]) -> _Reader:
    """Part 6, 5.2.6."""

    def read(cursor: _Cursor) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for step in steps:
            step(cursor, fields)
        return fields

    return read


def _with_optional(steps: Sequence[tuple[bool, _Step]]) -> _Reader:
    """Part 6, 5.2.7: a mask with a bit for each optional field comes first."""
    optional = sum(is_optional for is_optional, _ in steps)

    def read(cursor: _Cursor) -> dict[str, Any]:
        mask = cursor.uint32()
        if mask >> optional:
            raise DecodeError(f"the mask {mask:#x} names fields that the structure does not have")
        fields: dict[str, Any] = {}
        for is_optional, step in steps:
            if is_optional:
                mask, is_there = mask >> 1, mask & 1
                if not is_there:
                    continue
            step(cursor, fields)
        return fields

    return read


def _union(steps: Sequence[_Step]) -> _Reader:
    """Part 6, 5.2.8: the number of the member that follows, from 1 on."""

    def read(cursor: _Cursor) -> dict[str, Any]:
        chosen = cursor.uint32()
        if chosen > len(steps):
            raise DecodeError(f"the union has no member {chosen}")
        fields: dict[str, Any] = {}
        if chosen:
            steps[chosen - 1](cursor, fields)
        return fields

    return read


def _is_number(field: Field) -> bool:
    return field.type.kind in FIXED and not field.type.labels and not field.rank


def _step(fields: Sequence[Field]) -> _Step:
    """Reads one field, or several numbers in a row."""
    first = fields[0]
    if _is_number(first):
        names = [field.name for field in fields]
        layout = struct.Struct("<" + "".join(FIXED[field.type.kind].char for field in fields))

        def numbers(cursor: _Cursor, into: dict[str, Any]) -> None:
            into.update(zip(names, cursor.unpack(layout), strict=True))

        return numbers
    name, read = first.name, _ranked(_scalar(first.type), first)
    if not first.type.labels:

        def one(cursor: _Cursor, into: dict[str, Any]) -> None:
            into[name] = read(cursor)

        return one
    key, labels, bits = name + NAME, dict(first.type.labels), first.type.bits

    def labelled(cursor: _Cursor, into: dict[str, Any]) -> None:
        value = into[name] = read(cursor)
        named = name_of(value, labels, bits)
        if named is not None:
            into[key] = named

    return labelled


def _scalar(data_type: DataType) -> _Reader:
    kind, structure = data_type.kind, data_type.structure
    if structure:
        return lambda cursor: cursor.structures.structure(structure, cursor)
    if kind == Kind.DATETIME:
        return lambda cursor: rfc3339((cursor.int64() - EPOCH_TICKS) * 100)
    if kind in (Kind.EXTENSION_OBJECT, Kind.DATA_VALUE, Kind.VARIANT):
        read = VARIABLE[kind]
        return lambda cursor: cursor.structures.value(read(cursor), cursor.depth + 1)
    return lambda cursor: cursor.scalar(kind)


def _ranked(scalar: _Reader, field: Field) -> _Reader:
    """Part 6, 5.2.5: an array has its length before it, a matrix all its lengths and then the elements."""
    kind = field.type.kind
    if not field.rank:
        return scalar
    if field.rank == 1:
        if kind in FIXED:
            return lambda cursor: cursor.array(kind)
        return lambda cursor: [scalar(cursor) for _ in range(cursor.count())]

    def matrix(cursor: _Cursor) -> list[Any]:
        dimensions = cursor.dimensions()
        total = 1 if dimensions else 0
        for size in dimensions:
            total *= max(size, 0)
        if total > cursor.end - cursor.at:
            raise DecodeError(f"a matrix of {total} elements at offset {cursor.at} cannot fit into its field")
        return nested_lists([scalar(cursor) for _ in range(total)], dimensions)

    return matrix
