"""PublishResponses of every kind of value, and structures with their definitions: what the decoder's tests feed on."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary

from connectors.opcua_decode import Columns, decode_changes
from connectors.opcua_definitions import standard_structures
from connectors.opcua_response import parse_response
from connectors.opcua_structures import DataType, Field, Form, Structure, Structures
from pipelines.batch import ARRAY, Kind

ARRIVAL_NS: Final = 1_700_000_000_000_000_000
SOURCE: Final = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
RECORDED: Final = Path(__file__).parents[2] / "data" / "opcua_responses.jsonl"
GUID: Final = UUID("72962b91-fa75-4ae6-8d28-b404dc7daf63")
_KIND: Final = ua.VariantType
STATE: Final = DataType(Kind.INT32, labels=((0, "IDLE"), (1, "RUNNING")))
FLAGS: Final = DataType(Kind.BYTE, labels=((0, "MOTOR"), (3, "FAULT")), bits=True)
POINT: Final = DataType(Kind.EXTENSION_OBJECT, "point")


def structures() -> Structures:
    """`Structures` that know every form: ids i=5001 and on in namespace 2."""
    made = standard_structures()
    double, text = DataType(Kind.DOUBLE), DataType(Kind.STRING)
    made.add("point", Structure(Form.PLAIN, (Field("X", double), Field("Y", double))), ["ns=2;i=5001"])
    every = [
        *(Field(f"k{kind}", DataType(kind)) for kind in range(1, 26)),
        *(Field(f"a{kind}", DataType(kind), 1) for kind in range(1, 26)),
        Field("State", STATE),
        Field("States", STATE, 1),
        Field("Flags", FLAGS),
        Field("Point", POINT),
        Field("Points", POINT, 1),
        Field("Matrix", DataType(Kind.INT16), 2),
    ]
    made.add("every", Structure(Form.PLAIN, tuple(every)), ["ns=2;i=5002"])
    optional = (
        Field("Number", DataType(Kind.INT32)),
        Field("Comment", text, 0, True),
        Field("Amount", double, 0, True),
    )
    made.add("optional", Structure(Form.OPTIONAL, optional), ["ns=2;i=5003"])
    union = (Field("Percent", DataType(Kind.FLOAT)), Field("Name", text))
    made.add("union", Structure(Form.UNION, union), ["ns=2;i=5004"])
    endless = (Field("More", DataType(Kind.EXTENSION_OBJECT, "endless"), 1),)
    made.add("endless", Structure(Form.PLAIN, endless), ["ns=2;i=5005"])
    made.add("nothing", Structure(Form.PLAIN, ()), ["ns=2;i=5006"])
    nothings = (Field("All", DataType(Kind.EXTENSION_OBJECT, "nothing"), 1),)
    made.add("nothings", Structure(Form.PLAIN, nothings), ["ns=2;i=5007"])
    nothing = DataType(Kind.EXTENSION_OBJECT, "nothing")
    made.add("wide", Structure(Form.PLAIN, tuple(Field(f"f{i}", nothing) for i in range(30))), ["ns=2;i=5008"])
    return made


def text_bytes(text: str) -> bytes:
    """A String."""
    return struct.pack("<i", len(text.encode())) + text.encode()


def object_bytes(number: int, body: bytes) -> bytes:
    """An ExtensionObject with the type id ns=2;i=<number>."""
    return struct.pack("<BBHBi", 1, 2, number, 1, len(body)) + body


POINT_BYTES: Final = struct.pack("<dd", 1.5, -2.5)
TICKS: Final = 116_444_736_000_000_000 + 1_795_428_000 * 10**7
_SCALARS: Final = [
    b"\1", b"\xff", b"\7", b"\xfe\xff", b"\2\0", b"\xfd\xff\xff\xff", b"\3\0\0\0",
    struct.pack("<q", -(2**60)), struct.pack("<Q", 2**63), struct.pack("<f", 0.5), struct.pack("<d", 0.1),
    text_bytes("größer"), struct.pack("<q", TICKS), GUID.bytes_le, b"\2\0\0\0\0\xff", text_bytes("<a/>"),
    b"\1\2\x2a\0", b"\0\x2a", b"\0\0\x34\x80", b"\2\0" + text_bytes("Name"),
    b"\3" + text_bytes("de") + text_bytes("an"),
    object_bytes(5001, POINT_BYTES), b"\7\x0d" + struct.pack("<qIq", TICKS, 0x40000000, TICKS),
    b"\x0d" + struct.pack("<q", TICKS), b"\x10" + text_bytes("why"),
]  # fmt: skip
"""One value of each built-in type, by its number."""


def every_bytes() -> bytes:
    """A body of the structure `every`."""
    arrays = b"".join(struct.pack("<i", 2) + 2 * each for each in _SCALARS)
    points = struct.pack("<i", 2) + 2 * POINT_BYTES
    states = struct.pack("<iiii", 1, 2, 0, 7)
    matrix = struct.pack("<iii6h", 2, 2, 3, *range(6))
    return b"".join(_SCALARS) + arrays + states + b"\x09" + POINT_BYTES + points + matrix


def objects() -> list[ua.ExtensionObject]:
    """One of each structure, one that nobody knows and one that is cut."""
    bodies = {
        5001: POINT_BYTES,
        5002: every_bytes(),
        5003: struct.pack("<Iid", 2, 7, 2.5),
        5004: struct.pack("<I", 2) + text_bytes("set"),
        5005: struct.pack("<ii", 1, 0),
        5006: b"",
        5099: b"\1\2\3\4",
    }
    made = [ua.ExtensionObject(ua.NodeId(ua.Int32(number), ua.Int16(2)), body) for number, body in bodies.items()]
    return [*made, ua.ExtensionObject(ua.NodeId(ua.Int32(5001), ua.Int16(2)), POINT_BYTES[:-1])]


def values() -> list[ua.Variant]:
    """Every built-in type, arrays, a matrix, structures."""
    scalars: dict[ua.VariantType, Any] = {
        _KIND.Boolean: True, _KIND.SByte: -8, _KIND.Byte: 8, _KIND.Int16: -16, _KIND.UInt16: 16, _KIND.Int32: -32,
        _KIND.UInt32: 32, _KIND.Int64: -(2**62), _KIND.UInt64: 2**63, _KIND.Float: 0.5, _KIND.Double: 0.1,
        _KIND.String: "text µ", _KIND.DateTime: SOURCE, _KIND.Guid: GUID, _KIND.ByteString: b"\0\1\2",
        _KIND.XmlElement: ua.XmlElement("<a/>"), _KIND.NodeId: ua.NodeId("Press", 2),
        _KIND.ExpandedNodeId: ua.ExpandedNodeId("Press", 2), _KIND.StatusCode: ua.StatusCode(0x80340000),
        _KIND.QualifiedName: ua.QualifiedName("Name", 2), _KIND.LocalizedText: ua.LocalizedText("Hallo", "de"),
    }  # fmt: skip
    made = [ua.Variant(value, kind) for kind, value in scalars.items()]
    made += [ua.Variant([value] * 3, kind) for kind, value in scalars.items()]
    made += [ua.Variant(each, _KIND.ExtensionObject) for each in objects()]
    made += [
        ua.Variant(objects(), _KIND.ExtensionObject),
        ua.Variant([[1, 2, 3], [4, 5, 6]], _KIND.Int32),
        ua.Variant(list(range(100)), _KIND.UInt16),
        ua.Variant([ua.Variant(1, _KIND.Int32), ua.Variant(SOURCE, _KIND.DateTime)], _KIND.Variant),
        ua.Variant(None, _KIND.Null),
    ]
    return made


def message(items: list[ua.Variant]) -> bytes:
    """A PublishResponse, item i with client handle i; status and times come and go."""
    notifications = []
    for handle, value in enumerate(items):
        status = ua.StatusCode(0x40000000) if handle % 5 == 4 else None
        data = ua.DataValue(value, status, SourceTimestamp=SOURCE, ServerTimestamp=SOURCE if handle % 7 else None)
        notifications.append(ua.MonitoredItemNotification(ClientHandle=handle, Value=data))
    made = ua.PublishResponse()
    made.Parameters = ua.PublishResult(
        SubscriptionId=3,
        AvailableSequenceNumbers=[6, 7],
        NotificationMessage=ua.NotificationMessage(
            SequenceNumber=7,
            PublishTime=SOURCE,
            NotificationData=[ua.DataChangeNotification(MonitoredItems=notifications)],
        ),
        Results=[ua.StatusCode(0)],
    )
    return bytes(struct_to_binary(made))


def messages() -> list[bytes]:
    """What a decoder meets: all types once, long runs of one type, two types by turns, a keep-alive."""
    every = values()
    runs = [message([each] * 12) for each in every]
    return [
        message(every),
        message(every[10:11] * 40 + every[11:12] * 8),
        message(every[9:13] * 10),
        message([]),
        *runs,
    ]


def recorded() -> list[dict[str, Any]]:
    """What foreign servers really send (tests/integration/opcua_recorder.py): `server`, `what`, `body`, and `fields`,
    those of events, by client handle."""
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for line in lines:
        line["body"] = b64decode(line["body"])
        line["fields"] = {int(handle): names for handle, names in line.get("fields", {}).items()}
    return lines


def seeds() -> list[bytes]:
    """`messages` and `recorded`."""
    return messages() + [line["body"] for line in recorded()]


Row = tuple[int, int, Any, int, int, int]


def rows(body: bytes, rows_max: int = 1000) -> list[Row]:
    """Of all parts. Raises DecodeError."""
    parts = decode_changes(body, parse_response(body), ARRIVAL_NS, rows_max)
    return [row for part in parts for row in rows_of(part)]


def rows_of(part: Columns) -> list[Row]:
    """(handle, ts_ns, value, status, kind, flags) of each row; numbers as repr, so that NaN equals itself."""
    columns = zip(
        part.handle.tolist(), part.ts_ns.tolist(), part.value.tolist(), part.status.tolist(), part.kind.tolist(),
        part.flags.tolist(), strict=True,
    )  # fmt: skip
    extra = part.extra
    return [
        (handle, ts_ns, extra[row] if row in extra else repr(number), status, kind, flags)
        for row, (handle, ts_ns, number, status, kind, flags) in enumerate(columns)
    ]


_INTEGERS: Final = {
    Kind.SBYTE: (-(2**7), 2**7), Kind.BYTE: (0, 2**8), Kind.INT16: (-(2**15), 2**15), Kind.UINT16: (0, 2**16),
    Kind.INT32: (-(2**31), 2**31), Kind.UINT32: (0, 2**32), Kind.INT64: (-(2**63), 2**63), Kind.UINT64: (0, 2**64),
    Kind.STATUS_CODE: (0, 2**32), Kind.BOOLEAN: (0, 2),
}  # fmt: skip
_OTHERS: Final[dict[int, tuple[type, ...]]] = {
    Kind.FLOAT: (float,), Kind.DOUBLE: (float,), Kind.STRING: (str, type(None)), Kind.DATETIME: (int,),
    Kind.GUID: (str,), Kind.BYTESTRING: (bytes, type(None)), Kind.XML_ELEMENT: (str, type(None)), Kind.NODE_ID: (str,),
    Kind.EXPANDED_NODE_ID: (str,), Kind.QUALIFIED_NAME: (str,), Kind.LOCALIZED_TEXT: (str, type(None)),
    Kind.EXTENSION_OBJECT: (dict, type(None)), Kind.DATA_VALUE: (dict,), Kind.DIAGNOSTIC_INFO: (dict,),
}  # fmt: skip


def is_well_typed(kind: int, value: Any) -> bool:
    """A row's value, as `rows` shows it, is one that its kind can have."""
    if kind == Kind.NULL:
        return bool(value == "nan")
    if isinstance(value, str) and (kind in _INTEGERS or kind in (Kind.FLOAT, Kind.DOUBLE)):
        value = float(value)
        if kind in _INTEGERS:
            return bool(value.is_integer()) and _INTEGERS[kind][0] <= value < _INTEGERS[kind][1]
    if kind & ARRAY:
        return isinstance(value, list) and all(_is_element(kind & ~ARRAY, each) for each in value)
    return _is_element(kind, value)


def _is_element(kind: int, value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_element(kind, each) for each in value)
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        return isinstance(value, int) and low <= value < high
    return kind in (Kind.NULL, Kind.VARIANT) or isinstance(value, _OTHERS[kind])
