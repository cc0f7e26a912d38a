"""What an asyncua server can hold beyond plain values: structures with DataTypeDefinitions and others with a type
dictionary of old, enumerations, units. EXPECTED says what a JSON consumer is to get of each variable ns=2;s=<name>."""

import struct
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from asyncua import Server, ua
from asyncua.common.structures104 import new_enum, new_struct, new_struct_field
from asyncua.common.type_dictionary_builder import DataTypeDictionaryBuilder

_LOADED: Any = ua
"""asyncua puts a class for each type that it loads into this module."""
STARTED = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
GUID = UUID("72962b91-fa75-4ae6-8d28-b404dc7daf63")
_POINT = {"X": 1.5, "Y": -2.5}
_MOTOR = {
    "Name": "spindle µ",
    "Speed": 0.5,
    "State": 2,
    "State.name": "FAULT",
    "Flags": [True, False],
    "Position": _POINT,
    "Path": [_POINT, {"X": 0.0, "Y": 0.25}],
    "Counts": [1, -2, 2**62],
    "Started": "2026-11-23T10:00:00.123456Z",
    "Id": str(GUID),
    "Note": "warm",
    "Raw": "AP8=",
    "Any": [1, 2, 3],
    "When": "2026-11-23T10:00:00.123456Z",
    "Modes": [0, 1],
    "Modes.name": ["IDLE", "RUNNING"],
}
EXPECTED: dict[str, Any] = {
    "Point": _POINT,
    "Points": [_POINT, {"X": 3.0, "Y": 4.0}],
    "Motor": _MOTOR,
    "Recipe": {"Number": 7, "Amount": 2.5},
    "Limit": {"Absolute": 2**40},
    "OldPoint": {"A": 1, "B": 0.5, "Samples": [1, 2, 3]},
    "OldLine": {"From": {"A": 1, "B": 0.5, "Samples": []}, "Name": "old"},
    "Range": {"Low": -1.0, "High": 1.0},
    "Matrix": [[1, 2, 3], [4, 5, 6]],
    "State": 1,
    "Temperature": 21.5,
    "Mode": 1,
    "Valve": True,
    "Unknown": {"type": "ns=2;i=99999", "body": "AQIDBA=="},
}
NAMES = {"State": "RUNNING", "Mode": "auto", "Valve": "open"}
"""What stands beside the value."""


async def add_types(server: Server, index: int) -> None:
    """The data types, and a variable for each entry of EXPECTED below Objects/Types."""
    holder = await server.nodes.objects.add_object(ua.NodeId(ua.String("Types"), ua.Int16(index)), f"{index}:Types")
    types = await _data_types(server, index)
    for name, (value, data_type) in _values(types).items():
        node = ua.NodeId(ua.String(name), ua.Int16(index))
        added = await holder.add_variable(node, f"{index}:{name}", value, datatype=data_type)
        for key, told in _PROPERTIES.get(name, {}).items():
            await added.add_property(ua.NodeId(ua.String(f"{name}.{key}"), ua.Int16(index)), f"0:{key}", told)


_PROPERTIES: dict[str, dict[str, Any]] = {
    "Temperature": {
        "EngineeringUnits": ua.EUInformation(
            "http://www.opcfoundation.org/UA/units/un/cefact",
            4408652,
            ua.LocalizedText("°C"),
            ua.LocalizedText("degree"),
        ),
        "EURange": ua.Range(-50.0, 150.0),
    },
    "Mode": {"EnumStrings": [ua.LocalizedText("manual"), ua.LocalizedText("auto")]},
    "Valve": {"TrueState": ua.LocalizedText("open"), "FalseState": ua.LocalizedText("shut")},
}


async def _data_types(server: Server, index: int) -> dict[str, ua.NodeId]:
    kind, field = ua.VariantType, new_struct_field
    state = await new_enum(server, index, "StateType", ["IDLE", "RUNNING", "FAULT"])
    point, _ = await new_struct(server, index, "PointType", [field("X", kind.Double), field("Y", kind.Double)])
    motor = [
        field("Name", kind.String),
        field("Speed", kind.Float),
        field("State", state),
        field("Flags", kind.Boolean, array=True),
        field("Position", point),
        field("Path", point, array=True),
        field("Counts", kind.Int64, array=True),
        field("Started", kind.DateTime),
        field("Id", kind.Guid),
        field("Note", kind.LocalizedText),
        field("Raw", kind.ByteString),
        field("Any", kind.Variant),
        field("When", kind.Variant),
        field("Modes", state, array=True),
    ]
    made = {"State": state, "Point": point}
    made["Motor"], _ = await new_struct(server, index, "MotorType", motor)
    recipe = [field("Number", kind.Int32), field("Comment", kind.String, optional=True)]
    recipe.append(field("Amount", kind.Double, optional=True))
    made["Recipe"], _ = await new_struct(server, index, "RecipeType", recipe)
    limit = [field("Percent", kind.Float), field("Absolute", kind.Int64)]
    made["Limit"], _ = await new_struct(server, index, "LimitType", limit, is_union=True)
    await server.load_data_type_definitions()
    return {name: node.nodeid for name, node in made.items()} | await _old_types(server, index)


async def _old_types(server: Server, index: int) -> dict[str, ua.NodeId]:
    """Described by a type dictionary only."""
    builder = DataTypeDictionaryBuilder(server, index, "urn:mec:old", "OldTypes")
    await builder.init()
    point = await builder.create_data_type("OldPoint")
    point.add_field("A", ua.VariantType.Int32.name)
    point.add_field("B", ua.VariantType.Double.name)
    point.add_field("Samples", ua.VariantType.UInt16.name, is_array=True)
    line = await builder.create_data_type("OldLine")
    line.add_field("From", point)
    line.add_field("Name", ua.VariantType.String.name)
    await builder.set_dict_byte_string()
    return {"OldPoint": point.data_type, "OldLine": line.data_type} | {
        "OldPoint.encoding": point.node_ids[-1],
        "OldLine.encoding": line.node_ids[-1],
    }


def _values(types: dict[str, ua.NodeId]) -> dict[str, tuple[Any, ua.NodeId]]:
    """Name -> value and data type of each variable."""
    point, kind = _LOADED.PointType(1.5, -2.5), ua.VariantType
    motor = _LOADED.MotorType(
        Name="spindle µ",
        Speed=0.5,
        State=_LOADED.StateType.FAULT,
        Flags=[True, False],
        Position=point,
        Path=[point, _LOADED.PointType(0.0, 0.25)],
        Counts=[1, -2, 2**62],
        Started=STARTED,
        Id=GUID,
        Note=ua.LocalizedText("warm", "en"),
        Raw=b"\0\xff",
        Any=ua.Variant([1, 2, 3], kind.Int32),
        When=ua.Variant(STARTED, kind.DateTime),
        Modes=[_LOADED.StateType.IDLE, _LOADED.StateType.RUNNING],
    )
    limit = _LOADED.LimitType()
    limit.Absolute = 2**40
    old = struct.pack("<idi3H", 1, 0.5, 3, 1, 2, 3)
    line = struct.pack("<idi", 1, 0.5, 0) + struct.pack("<i", 3) + b"old"
    unknown = _LOADED.ExtensionObject(ua.NodeId(ua.Int32(99999), ua.Int16(2)), b"\1\2\3\4")
    structure = ua.NodeId(ua.Int32(ua.ObjectIds.Structure))
    of = {each: ua.NodeId(ua.Int32(each.value)) for each in kind}
    return {
        "Point": (point, types["Point"]),
        "Points": ([point, _LOADED.PointType(3.0, 4.0)], types["Point"]),
        "Motor": (motor, types["Motor"]),
        "Recipe": (_LOADED.RecipeType(Number=7, Comment=None, Amount=2.5), types["Recipe"]),
        "Limit": (limit, types["Limit"]),
        "OldPoint": (_LOADED.ExtensionObject(types["OldPoint.encoding"], old), types["OldPoint"]),
        "OldLine": (_LOADED.ExtensionObject(types["OldLine.encoding"], line), types["OldLine"]),
        "Range": (ua.Range(-1.0, 1.0), ua.NodeId(ua.Int32(ua.ObjectIds.Range))),
        "Matrix": (ua.Variant([[1, 2, 3], [4, 5, 6]], kind.Int32), of[kind.Int32]),
        "State": (ua.Variant(1, kind.Int32), types["State"]),
        "Temperature": (21.5, of[kind.Double]),
        "Mode": (ua.Variant(1, kind.UInt32), of[kind.UInt32]),
        "Valve": (True, of[kind.Boolean]),
        "Unknown": (unknown, structure),
    }
