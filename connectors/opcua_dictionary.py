"""Type dictionaries of servers before OPC UA 1.04: OPC Binary schemas -> definitions (Part 5, annex C). Pure.

Of what such a schema could describe, what OPC UA's encoding makes use of: sequences, arrays with a LengthField,
optional fields behind a mask of bits, unions with a SwitchField, enumerations. A type with anything else is left out:
its objects stay as they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from connectors.opcua_binary import DecodeError
from connectors.opcua_definitions import BUILT_IN, labels
from connectors.opcua_structures import DataType, Field, Form, Structure
from pipelines.batch import Kind

BINARY_SCHEMA: Final = "http://opcfoundation.org/BinarySchema/"
UA: Final = "http://opcfoundation.org/UA/"
_SCHEMA_TYPES: Final = {
    "Boolean": 1, "SByte": 2, "Byte": 3, "Int16": 4, "UInt16": 5, "Int32": 6, "UInt32": 7, "Int64": 8, "UInt64": 9,
    "Float": 10, "Double": 11, "String": 12, "CharArray": 12, "DateTime": 13, "Guid": 14, "ByteString": 15,
}  # fmt: skip
_UA_TYPES: Final = {
    "XmlElement": 16, "NodeId": 17, "ExpandedNodeId": 18, "StatusCode": 19, "QualifiedName": 20, "LocalizedText": 21,
    "ExtensionObject": 22, "DataValue": 23, "Variant": 24, "DiagnosticInfo": 25,
}  # fmt: skip
_UA_STRUCTURES: Final = {"Range": "i=884", "EUInformation": "i=887", "EnumValueType": "i=7594", "Argument": "i=296"}
_MASK_BITS: Final = 32
_ENUMERATION_BITS: Final = 32


@dataclass(slots=True)
class _Type:
    """An element of the schema: StructuredType with fields, or EnumeratedType with values."""

    attributes: Mapping[str, str]
    fields: list[Mapping[str, str]] = field(default_factory=list)
    values: list[tuple[int, str]] = field(default_factory=list)


def structures_of(schema: bytes) -> dict[str, tuple[str, Structure]]:
    """Type name -> what stands for it where a data type's node id would, and the structure. Raises DecodeError."""
    document = _Document()
    document.read(schema)
    found = {}
    for name, described in document.structured.items():
        try:
            found[name] = _key(document.target, name), _structure(described, document)
        except DecodeError:
            continue
    return found


class _Document:
    """What stands in the schema, not yet understood."""

    def __init__(self) -> None:
        self.target = ""
        self.structured: dict[str, _Type] = {}
        self.enumerated: dict[str, _Type] = {}
        self._prefixes: dict[str, str] = {}
        self._open: _Type | None = None

    def read(self, schema: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartNamespaceDeclHandler = self._prefix
        parser.StartElementHandler = self._element
        parser.StartDoctypeDeclHandler = _refuse
        try:
            parser.Parse(schema.rstrip(b"\0"), True)
        except expat.ExpatError as error:
            raise DecodeError(f"the type dictionary is no XML: {error}") from error

    def type_of(self, name: str) -> DataType:
        """`opc:Int32`, `tns:Point`, `ua:Range`. Raises DecodeError."""
        prefix, _, local = name.rpartition(":")
        space = self._prefixes.get(prefix, "")
        kind = _SCHEMA_TYPES.get(local) if space in (BINARY_SCHEMA, UA) else None
        kind = _UA_TYPES.get(local) if kind is None and space == UA else kind
        if kind is not None:
            return BUILT_IN[f"i={kind}"]
        if space == UA and local in _UA_STRUCTURES:
            return DataType(Kind.EXTENSION_OBJECT, _UA_STRUCTURES[local])
        if space == self.target and local in self.enumerated:
            return _enumeration(self.enumerated[local])
        if space == self.target and local in self.structured:
            return DataType(Kind.EXTENSION_OBJECT, _key(self.target, local))
        raise DecodeError(f"the type {name} is not known")

    def _prefix(self, prefix: str | None, uri: str | None) -> None:
        self._prefixes[prefix or ""] = uri or ""

    def _element(self, name: str, attributes: dict[str, str]) -> None:
        local = name.rpartition(" ")[2]
        if local == "TypeDictionary":
            self.target = attributes.get("TargetNamespace", "")
        elif local in ("StructuredType", "EnumeratedType"):
            self._open = _Type(attributes)
            kept = self.structured if local == "StructuredType" else self.enumerated
            kept[attributes.get("Name", "")] = self._open
        elif local == "Field" and self._open is not None:
            self._open.fields.append(attributes)
        elif local == "EnumeratedValue" and self._open is not None:
            self._open.values.append((_number(attributes.get("Value", "")), attributes.get("Name", "")))


def _key(target: str, name: str) -> str:
    return f"{target}#{name}"


def _refuse(*_: object) -> None:
    raise DecodeError("a type dictionary has no DOCTYPE")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DecodeError(f"{text!r} is no number") from error


def _enumeration(described: _Type) -> DataType:
    if _number(described.attributes.get("LengthInBits", str(_ENUMERATION_BITS))) != _ENUMERATION_BITS:
        raise DecodeError("an enumeration that is no Int32")
    return DataType(Kind.INT32, labels=labels(described.values))


def _structure(described: _Type, document: _Document) -> Structure:
    """Raises DecodeError."""
    if described.attributes.get("BaseType", "").endswith(":Union") or _is_union(described):
        return _union(described, document)
    fields, mask = list(described.fields), []
    while fields and fields[0].get("TypeName", "").rpartition(":")[2] == "Bit":
        bit = fields.pop(0)
        mask += [bit.get("Name", "")] * min(_number(bit.get("Length", "1")), _MASK_BITS + 1)
    if not mask:
        return Structure(Form.PLAIN, _with_lengths(fields, document, []))
    if len(mask) != _MASK_BITS:
        raise DecodeError("bits that are no mask of optional fields")
    made = _with_lengths(fields, document, mask)
    lengths = {each.get("LengthField") for each in fields}
    switches = [each["SwitchField"] for each in fields if "SwitchField" in each and each.get("Name") not in lengths]
    if [mask.index(switch) for switch in switches] != list(range(len(switches))):
        raise DecodeError("bits in another order than the fields")
    return Structure(Form.OPTIONAL, made)


def _is_union(described: _Type) -> bool:
    first = described.fields[0] if described.fields else {}
    return first.get("TypeName", "").endswith(":UInt32") and all(
        "SwitchValue" in each and each.get("SwitchField") == first.get("Name") for each in described.fields[1:]
    ) and len(described.fields) > 1  # fmt: skip


def _union(described: _Type, document: _Document) -> Structure:
    members = described.fields[1:]
    made = _with_lengths(members, document, [described.fields[0].get("Name", "")])
    lengths = {each.get("LengthField") for each in members}
    values = [_number(each.get("SwitchValue", "")) for each in members if each.get("Name") not in lengths]
    if values != list(range(1, len(made) + 1)):
        raise DecodeError("members of a union that are not numbered 1, 2, 3, ...")
    return Structure(Form.UNION, made)


def _with_lengths(fields: list[Mapping[str, str]], document: _Document, switches: list[str]) -> tuple[Field, ...]:
    """A field that is the length of the next one is a part of that one. Raises DecodeError."""
    lengths = {each["LengthField"] for each in fields if "LengthField" in each}
    made: list[Field] = []
    before = ""
    for each in fields:
        name, length, switch = each.get("Name", ""), each.get("LengthField"), each.get("SwitchField")
        if name in lengths and each.get("TypeName", "").endswith("Int32"):
            before = name
            continue
        if length is not None and length != before:
            raise DecodeError(f"the length of {name} does not stand before it")
        if "Length" in each or "Terminator" in each or (switch is not None and switch not in switches):
            raise DecodeError(f"the field {name} is more than OPC UA's encoding makes use of")
        found = document.type_of(each.get("TypeName", ""))
        made.append(Field(name, found, int(length is not None), switch is not None))
        before = ""
    return tuple(made)
