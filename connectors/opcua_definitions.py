"""What a server says of its data types -> definitions of structures, names of numbers. Pure.

The DataTypeDefinition attribute (Part 3, 8.47 to 8.52) and, of older servers, the properties EnumStrings, EnumValues
and OptionSetValues (Part 3, 5.8.3). What a few standard types look like is known without asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from connectors.opcua_binary import Cursor, DecodeError, UnreadObject
from connectors.opcua_structures import DataType, Field, Form, Labels, Structure, Structures
from pipelines.batch import Kind

STRUCTURE_DEFINITION: Final = "i=122"
ENUM_DEFINITION: Final = "i=123"
"""Binary encodings (Part 6, annex A)."""

LABELS_MAX: Final = 4096
NULL_ID: Final = "i=0"
STRUCTURE: Final = "i=22"
ENUMERATION: Final = "i=29"
_SUBTYPED: Final = 3
"""From this StructureType on IsOptional says that a field's value may be of a subtype (Part 3, 8.48 and 8.51)."""
_FORMS: Final = {0: Form.PLAIN, 1: Form.OPTIONAL, 2: Form.UNION, 3: Form.PLAIN, 4: Form.UNION}

ABSTRACT: Final = {"i=26": Kind.VARIANT, "i=27": Kind.VARIANT, "i=28": Kind.VARIANT, "i=29": Kind.INT32}
"""Number, Integer, UInteger, Enumeration: what lies on the wire for them."""
BUILT_IN: Final = {f"i={kind}": DataType(kind) for kind in range(Kind.BOOLEAN, Kind.DIAGNOSTIC_INFO + 1)} | {
    node: DataType(kind) for node, kind in ABSTRACT.items()
}


@dataclass(frozen=True, slots=True)
class StructureField:
    """A field as the server names it; `data_type` is a node id."""

    name: str
    data_type: str
    rank: int
    is_optional: bool


@dataclass(frozen=True, slots=True)
class StructureDefinition:
    """The attribute of a structured data type."""

    encoding: str
    type: int
    fields: tuple[StructureField, ...]

    def structure(self, types: Mapping[str, DataType]) -> Structure:
        """With the types of its fields. Raises DecodeError where one is not known or cannot be."""
        form = _FORMS.get(self.type)
        if form is None:
            raise DecodeError(f"its StructureType {self.type} is unknown")
        return Structure(form, tuple(self._field(field, types) for field in self.fields))

    def _field(self, field: StructureField, types: Mapping[str, DataType]) -> Field:
        found = types.get(field.data_type)
        if found is None:
            raise DecodeError(f"the data type {field.data_type} of its field {field.name} is unknown")
        if field.rank != -1 and field.rank < 1:
            raise DecodeError(f"its field {field.name} has ValueRank {field.rank}")
        if self.type >= _SUBTYPED and field.is_optional:
            found = DataType(Kind.EXTENSION_OBJECT if found.kind == Kind.EXTENSION_OBJECT else Kind.VARIANT)
        return Field(field.name, found, max(field.rank, 0), field.is_optional)


def definition(value: Any) -> StructureDefinition | Labels | None:
    """The value of a DataTypeDefinition attribute; None where it is anything else."""
    if not isinstance(value, UnreadObject) or not isinstance(value["body"], bytes):
        return None
    cursor = Cursor(value["body"])
    try:
        if value["type"] == STRUCTURE_DEFINITION:
            return _structure_definition(cursor)
        return _enum_definition(cursor) if value["type"] == ENUM_DEFINITION else None
    except DecodeError:
        return None


def _structure_definition(cursor: Cursor) -> StructureDefinition:
    """Part 3, 8.48 and 8.51."""
    encoding = cursor.node_id()
    cursor.node_id()  # the type that it is derived from: its fields are among these
    kind = cursor.int32()
    fields = []
    for _ in range(cursor.count(20)):
        name = cursor.text() or ""
        cursor.localized_text()
        data_type, rank = cursor.node_id(), cursor.int32()
        cursor.skip(4 * cursor.count(4) + 4)  # lengths of arrays, of texts
        fields.append(StructureField(name, data_type, rank, cursor.byte() != 0))
    return StructureDefinition(encoding, kind, tuple(fields))


def _enum_definition(cursor: Cursor) -> Labels:
    """Part 3, 8.50 and 8.52; a field without a name is called what people are shown."""
    found = []
    for _ in range(cursor.count(14)):
        value, shown = cursor.int64(), cursor.localized_text()
        cursor.localized_text()
        found.append((value, cursor.text() or shown or ""))
    return labels(found)


def labels(found: list[tuple[int, str]]) -> Labels:
    """Those that have a name."""
    return tuple((value, name) for value, name in found[:LABELS_MAX] if name)


def bit_labels(found: Labels) -> Labels:
    """Those that can name a bit."""
    return tuple((bit, name) for bit, name in found if 0 <= bit < 64)


def labels_of_strings(value: Any) -> Labels:
    """EnumStrings or OptionSetValues, texts by number."""
    if not isinstance(value, list):
        return ()
    return labels([(number, text) for number, text in enumerate(value) if isinstance(text, str)])


def labels_of_values(value: Any) -> Labels:
    """EnumValues, read by a `Structures` that knows STANDARD."""
    objects = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
    found = [(each.get("Value"), each.get("DisplayName")) for each in objects]
    return labels([(number, name) for number, name in found if isinstance(number, int) and isinstance(name, str)])


def unit_of(value: Any) -> str:
    """EUInformation (Part 8, 5.6.3), read by a `Structures` that knows STANDARD: what people call the unit."""
    if not isinstance(value, dict):
        return ""
    return str(value.get("DisplayName") or value.get("Description") or "")


def _fields(text: str) -> tuple[Field, ...]:
    """`Low:11 High:11`: names and built-in types; `Steps:11[]` is an array, `EURange:i=884` a structure."""
    fields = []
    for name, _, kind in (each.partition(":") for each in text.split()):
        scalar = kind.removesuffix("[]")
        found = DataType(Kind.EXTENSION_OBJECT, scalar) if scalar.startswith("i=") else DataType(int(scalar))
        fields.append(Field(name, found, int(kind != scalar)))
    return tuple(fields)


STANDARD: Final = (
    ("i=884", "i=886", "Low:11 High:11"),  # Range
    ("i=887", "i=889", "NamespaceUri:12 UnitId:6 DisplayName:21 Description:21"),  # EUInformation
    ("i=7594", "i=8251", "Value:8 DisplayName:21 Description:21"),  # EnumValueType
    ("i=8912", "i=8917", "Offset:4 DaylightSavingInOffset:1"),  # TimeZoneDataType
    ("i=296", "i=298", "Name:12 DataType:17 ValueRank:6 ArrayDimensions:7[] Description:21"),  # Argument
    ("i=12171", "i=12181", "Real:10 Imaginary:10"),  # ComplexNumberType
    ("i=12172", "i=12182", "Real:11 Imaginary:11"),  # DoubleComplexNumberType
    ("i=12080", "i=12090", "X:11 Value:10"),  # XVType
    ("i=12079", "i=12089", "EngineeringUnits:i=887 EURange:i=884 Title:21 AxisScaleType:6 AxisSteps:11[]"),
)
"""Data type, binary encoding and fields of what Part 8 puts beside values (the last is AxisInformation)."""


def standard_structures() -> Structures:
    """All of STANDARD."""
    structures = Structures()
    for data_type, encoding, fields in STANDARD:
        structures.add(data_type, Structure(Form.PLAIN, _fields(fields)), [encoding])
    return structures
