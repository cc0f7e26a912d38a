"""Structures by definition: values exact, names of numbers, old type dictionaries; bodies are packed by hand."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import extensionobject_to_binary

from connectors.opcua_binary import Cursor, DecodeError, UnreadObject
from connectors.opcua_definitions import (
    StructureDefinition,
    StructureField,
    bit_labels,
    definition,
    labels_of_strings,
    labels_of_values,
    standard_structures,
    unit_of,
)
from connectors.opcua_dictionary import structures_of
from connectors.opcua_structures import DataType, Field, Form, Structure, Structures
from pipelines.batch import Kind
from tests.unit.connectors.opcua_messages import GUID, STATE, every_bytes, objects, structures, text_bytes

POINT = {"X": 1.5, "Y": -2.5}
TIME = "2026-11-23T10:00:00Z"
SCALARS: list[Any] = [
    True, -1, 7, -2, 2, -3, 3, -(2**60), 2**63, 0.5, 0.1, "größer", TIME, str(GUID), b"\0\xff", "<a/>", "ns=2;i=42",
    "i=42", 0x80340000, "2:Name", "an", POINT, {"v": TIME, "status": 0x40000000, "t": TIME}, TIME,
    {"additionalInfo": "why"},
]  # fmt: skip


def raw(number: int, body: bytes | str | None) -> UnreadObject:
    return UnreadObject(type=f"ns=2;i={number}", body=body)


def test_every_built_in_type_alone_and_as_an_array() -> None:
    """And enumerations, option sets, structures in structures and a matrix, in the order of the definition."""
    expected = {f"k{kind}": value for kind, value in enumerate(SCALARS, 1)}
    expected |= {f"a{kind}": [value, value] for kind, value in enumerate(SCALARS, 1)}
    expected |= {
        "State": 1, "State.name": "RUNNING", "States": [0, 7], "States.name": ["IDLE", None],
        "Flags": 9, "Flags.name": ["MOTOR", "FAULT"], "Point": POINT, "Points": [POINT, POINT],
        "Matrix": [[0, 1, 2], [3, 4, 5]],
    }  # fmt: skip
    read = structures().value(raw(5002, every_bytes()))
    assert read == expected and list(read) == list(expected)


@pytest.mark.parametrize(
    ("number", "body", "value"),
    [
        (5003, struct.pack("<Ii", 0, 7), {"Number": 7}),
        (5003, struct.pack("<Ii", 1, 7) + text_bytes("a"), {"Number": 7, "Comment": "a"}),
        (5003, struct.pack("<Ii", 3, 7) + text_bytes("a") + struct.pack("<d", 1), {
            "Number": 7, "Comment": "a", "Amount": 1.0}),
        (5004, struct.pack("<I", 0), {}),
        (5004, struct.pack("<If", 1, 0.5), {"Percent": 0.5}),
        (5005, struct.pack("<ii", 1, 0), {"More": [{"More": []}]}),
        (5006, b"", {}),
        (5001, "<Point/>", {"type": "ns=2;i=5001", "body": "<Point/>"}),
        (5001, None, {"type": "ns=2;i=5001", "body": None}),
        (5099, b"\1", {"type": "ns=2;i=5099", "body": b"\1"}),
    ],
)  # fmt: skip
def test_forms(number: int, body: Any, value: Any) -> None:
    """Optional fields, unions, recursion, emptiness; XML bodies and unknown types stay as they were sent."""
    assert structures().value(raw(number, body)) == value


def test_a_null_object_is_no_value_and_an_unknown_field_type_is_no_structure() -> None:
    known = structures()
    known.alias("ns=2;i=6000", "never defined")
    assert known.value(UnreadObject(type="i=0", body=None)) is None
    assert known.value(raw(6000, b"")) == {"type": "ns=2;i=6000", "body": b""}
    assert known.unread == {"ns=2;i=6000": 1}


def test_a_matrix_without_elements_and_one_that_cannot_be() -> None:
    known = Structures()
    matrix = StructureDefinition("ns=2;i=1", 0, (StructureField("M", "i=11", 2, False),))
    known.add("m", matrix.structure({"i=11": DataType(Kind.DOUBLE)}), ["ns=2;i=1"])
    for body, value in (
        (struct.pack("<i", 0), {"M": []}),
        (struct.pack("<iii", 2, 0, 5), {"M": []}),
        (struct.pack("<iiid", 2, 1, 1, 0.5), {"M": [[0.5]]}),
    ):
        assert known.value(raw(1, body)) == value
    endless = raw(1, struct.pack("<iii", 2, 2**31 - 1, 2**31 - 1))
    assert known.value(endless) == dict(endless)


def test_a_number_without_a_name_stands_alone() -> None:
    known = Structures()
    known.add("s", Structure(Form.PLAIN, (Field("State", STATE),)), ["ns=2;i=1"])
    assert known.value(raw(1, struct.pack("<i", 7))) == {"State": 7}


def encoded(value: Any) -> UnreadObject:
    """As a server that is asyncua would send it."""
    return Cursor(extensionobject_to_binary(value)).extension_object()


def test_definitions_as_another_implementation_encodes_them() -> None:
    """StructureDefinition and EnumDefinition; a name is what a field is called, else what people are shown."""
    fields = [
        ua.StructureField(Name="A", DataType=ua.NodeId(11), ValueRank=ua.ValueRank(-1), IsOptional=True),
        ua.StructureField(
            Name="B", DataType=ua.NodeId(7, 2), ValueRank=ua.ValueRank(1), ArrayDimensions=[3], IsOptional=False
        ),
    ]
    made = ua.StructureDefinition(
        DefaultEncodingId=ua.NodeId(5001, 2), StructureType=ua.StructureType.StructureWithOptionalFields, Fields=fields
    )
    assert definition(encoded(made)) == StructureDefinition(
        "ns=2;i=5001", 1, (StructureField("A", "i=11", -1, True), StructureField("B", "ns=2;i=7", 1, False))
    )
    names = [ua.EnumField(Value=2, Name="ON"), ua.EnumField(Value=5, DisplayName=ua.LocalizedText("off"))]
    assert definition(encoded(ua.EnumDefinition(Fields=[*names, ua.EnumField(Value=6)]))) == ((2, "ON"), (5, "off"))
    assert definition(encoded(ua.Range(0.0, 1.0))) is None
    assert definition(UnreadObject(type="i=122", body=b"\0")) is None
    assert definition(7) is None and definition(UnreadObject(type="i=122", body=None)) is None


def test_subtyped_fields_say_what_they_are() -> None:
    """Where a field's type may be derived, a structure comes as an object and anything else as a Variant."""
    types = {"i=11": DataType(Kind.DOUBLE), "p": DataType(Kind.EXTENSION_OBJECT, "p")}
    fields = (
        StructureField("P", "p", -1, True),
        StructureField("N", "i=11", 1, True),
        StructureField("D", "i=11", -1, False),
    )
    made = StructureDefinition("", 3, fields).structure(types)
    assert made.form == Form.PLAIN
    assert [field.type for field in made.fields] == [
        DataType(Kind.EXTENSION_OBJECT), DataType(Kind.VARIANT), DataType(Kind.DOUBLE)
    ]  # fmt: skip
    assert StructureDefinition("", 4, fields).structure(types).form == Form.UNION


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        (9, StructureField("A", "i=11", -1, False), "StructureType 9"),
        (0, StructureField("A", "i=12", -1, False), "data type i=12"),
        (0, StructureField("A", "i=11", 0, False), "ValueRank 0"),
    ],
)
def test_definitions_that_are_none(kind: int, field: StructureField, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        StructureDefinition("", kind, (field,)).structure({"i=11": DataType(Kind.DOUBLE)})


def test_units_and_labels_of_properties() -> None:
    known = standard_structures()
    unit = ua.EUInformation("uri", 4408652, ua.LocalizedText("°C"), ua.LocalizedText("degree Celsius"))
    assert unit_of(known.value(encoded(unit))) == "°C"
    assert unit_of(known.value(encoded(ua.EUInformation(Description=ua.LocalizedText("degree"))))) == "degree"
    assert unit_of(None) == unit_of(7) == unit_of({}) == ""
    values = [ua.EnumValueType(Value=4, DisplayName=ua.LocalizedText("four")), ua.EnumValueType(Value=5)]
    assert labels_of_values([known.value(encoded(each)) for each in values]) == ((4, "four"),)
    assert labels_of_values(["four", {"Value": "4"}]) == labels_of_values(4) == ()
    assert labels_of_strings(["off", None, "on"]) == ((0, "off"), (2, "on"))
    assert labels_of_strings("on") == ()
    assert bit_labels(((-1, "a"), (0, "b"), (63, "c"), (64, "d"))) == ((0, "b"), (63, "c"))


SCHEMA = """<?xml version="1.0" encoding="utf-8"?>
<opc:TypeDictionary xmlns:opc="http://opcfoundation.org/BinarySchema/" xmlns:ua="http://opcfoundation.org/UA/"
    xmlns:tns="urn:old" TargetNamespace="urn:old" DefaultByteOrder="LittleEndian">
  <opc:Import Namespace="http://opcfoundation.org/UA/"/>
  <opc:EnumeratedType Name="State" LengthInBits="32">
    <opc:EnumeratedValue Name="IDLE" Value="0"/><opc:EnumeratedValue Name="RUNNING" Value="1"/>
  </opc:EnumeratedType>
  <opc:EnumeratedType Name="Small" LengthInBits="8"/>
  <opc:StructuredType Name="Point" BaseType="ua:ExtensionObject">
    <opc:Field Name="X" TypeName="opc:Double"/><opc:Field Name="Y" TypeName="opc:Double"/>
  </opc:StructuredType>
  <opc:StructuredType Name="Plain" BaseType="ua:ExtensionObject">
    <opc:Field Name="Name" TypeName="opc:CharArray"/><opc:Field Name="State" TypeName="tns:State"/>
    <opc:Field Name="NoOfPath" TypeName="opc:Int32"/>
    <opc:Field Name="Path" TypeName="tns:Point" LengthField="NoOfPath"/>
    <opc:Field Name="Node" TypeName="ua:NodeId"/><opc:Field Name="Span" TypeName="ua:Range"/>
  </opc:StructuredType>
  <opc:StructuredType Name="Optional" BaseType="ua:ExtensionObject">
    <opc:Field Name="ASpecified" TypeName="opc:Bit"/><opc:Field Name="BSpecified" TypeName="opc:Bit"/>
    <opc:Field Name="Reserved1" TypeName="opc:Bit" Length="30"/>
    <opc:Field Name="N" TypeName="opc:Byte"/>
    <opc:Field Name="A" TypeName="opc:Byte" SwitchField="ASpecified"/>
    <opc:Field Name="NoOfB" TypeName="opc:Int32" SwitchField="BSpecified"/>
    <opc:Field Name="B" TypeName="opc:Int16" SwitchField="BSpecified" LengthField="NoOfB"/>
  </opc:StructuredType>
  <opc:StructuredType Name="Choice" BaseType="ua:Union">
    <opc:Field Name="SwitchField" TypeName="opc:UInt32"/>
    <opc:Field Name="A" TypeName="opc:Byte" SwitchField="SwitchField" SwitchValue="1"/>
    <opc:Field Name="B" TypeName="opc:Double" SwitchField="SwitchField" SwitchValue="2"/>
  </opc:StructuredType>
  %s
</opc:TypeDictionary>
"""


def of_schema(more: str = "") -> dict[str, Any]:
    return structures_of((SCHEMA % more).encode())


@pytest.mark.parametrize(
    ("name", "body", "value"),
    [
        ("Plain",
         text_bytes("a") + struct.pack("<ii", 1, 1) + struct.pack("<dd", 1, 2) + b"\0\x2a" + struct.pack("<dd", 0, 9),
         {"Name": "a", "State": 1, "State.name": "RUNNING", "Path": [{"X": 1.0, "Y": 2.0}], "Node": "i=42",
          "Span": {"Low": 0.0, "High": 9.0}}),
        ("Optional", b"\2\0\0\0\7" + struct.pack("<ihh", 2, 5, 6), {"N": 7, "B": [5, 6]}),
        ("Optional", b"\1\0\0\0\7\x08", {"N": 7, "A": 8}),
        ("Choice", b"\2\0\0\0" + struct.pack("<d", 0.5), {"B": 0.5}),
    ],
)  # fmt: skip
def test_type_dictionaries(name: str, body: bytes, value: Any) -> None:
    """Lengths, masks of bits, unions, enumerations and types of the standard, as old servers describe them."""
    known = standard_structures()
    for key, structure in of_schema().values():
        known.add(key, structure, [])
    known.alias("ns=2;i=1", f"urn:old#{name}")
    assert known.value(raw(1, body)) == value


@pytest.mark.parametrize(
    "fields",
    [
        '<opc:Field Name="A" TypeName="tns:Nothing"/>',
        '<opc:Field Name="A" TypeName="tns:Small"/>',
        '<opc:Field Name="A" TypeName="opc:Byte" Length="4"/>',
        '<opc:Field Name="A" TypeName="opc:Bit"/><opc:Field Name="B" TypeName="opc:Byte" SwitchField="A"/>',
        '<opc:Field Name="A" TypeName="opc:Bit" Length="1000000000"/>',
        '<opc:Field Name="A" TypeName="opc:Bit" Length="x"/>',
        '<opc:Field Name="A" TypeName="opc:Byte" LengthField="B"/><opc:Field Name="B" TypeName="opc:Int32"/>',
        '<opc:Field Name="A" TypeName="opc:Bit"/><opc:Field Name="B" TypeName="opc:Bit"/>'
        '<opc:Field Name="R" TypeName="opc:Bit" Length="30"/><opc:Field Name="X" TypeName="opc:Byte" SwitchField="B"/>'
        '<opc:Field Name="Y" TypeName="opc:Byte" SwitchField="A"/>',
        '<opc:Field Name="S" TypeName="opc:UInt32"/>'
        '<opc:Field Name="A" TypeName="opc:Byte" SwitchField="S" SwitchValue="5"/>',
    ],
)
def test_what_a_type_dictionary_cannot_say_is_left_out(fields: str) -> None:
    """One type that is not understood costs the others nothing."""
    found = of_schema(f'<opc:StructuredType Name="Odd">{fields}</opc:StructuredType>')
    assert "Odd" not in found and len(found) == 4


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (b"no xml", "no XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "DOCTYPE"),
        (
            b'<t xmlns="u"><EnumeratedType Name="E"><EnumeratedValue Name="A" Value="x"/></EnumeratedType></t>',
            "no number",
        ),
    ],
)
def test_type_dictionaries_that_are_none(schema: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        structures_of(schema)


def test_fields_outside_of_a_type_are_passed_over() -> None:
    assert structures_of(b'<t><Field Name="A"/><EnumeratedValue Name="A"/><StructuredType Name="S"/></t>').keys() == {
        "S"
    }


def test_objects_of_another_implementation() -> None:
    """An array of objects, as asyncua encodes it."""
    found = [structures().value(encoded(each)) for each in objects()]
    assert found[0] == POINT and found[-2] == {"type": "ns=2;i=5099", "body": b"\1\2\3\4"}
