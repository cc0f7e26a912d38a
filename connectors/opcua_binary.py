"""OPC UA Binary, one value at a time: a cursor over received bytes (Part 6, section 5.2). Pure.

Every read is checked against the end of the field that it lies in; what does not fit raises DecodeError. Values come
out as the `extra` of a batch holds them: DateTime as int UTC ns, Guid and node ids as text, LocalizedText as its text.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pipelines.batch import ARRAY, GOOD, Kind
from pipelines.rfc3339 import rfc3339

EPOCH_TICKS: Final = 116_444_736_000_000_000
"""1970-01-01 in 100 ns ticks since 1601-01-01 (Part 6, 5.2.2.5)."""
DEPTH_MAX: Final = 24
"""Nesting of Variants, DataValues, DiagnosticInfos and structures that is accepted."""
DIMENSIONS_MAX: Final = 6
"""Of a matrix: each is one more list within a list. What has more comes as one flat list."""

FIXED: Final[dict[int, np.dtype[Any]]] = {
    Kind.BOOLEAN: np.dtype("?"),
    Kind.SBYTE: np.dtype("i1"),
    Kind.BYTE: np.dtype("u1"),
    Kind.INT16: np.dtype("<i2"),
    Kind.UINT16: np.dtype("<u2"),
    Kind.INT32: np.dtype("<i4"),
    Kind.UINT32: np.dtype("<u4"),
    Kind.INT64: np.dtype("<q"),
    Kind.UINT64: np.dtype("<Q"),
    Kind.FLOAT: np.dtype("<f4"),
    Kind.DOUBLE: np.dtype("<f8"),
    Kind.STATUS_CODE: np.dtype("<u4"),
}
"""Numbers: the built-in types whose values are a fixed number of bytes and fit a column."""

_Length: Final = struct.Struct("<i")
_Guid: Final = struct.Struct("<IHH8s")
SHORT_ARRAY: Final = 32
"""Up to this length an array costs less without numpy."""
SHORT_ARRAYS: Final = {
    kind: [struct.Struct(f"<{count}{dtype.char}") for count in range(SHORT_ARRAY + 1)] for kind, dtype in FIXED.items()
}
_NUMBER: Final = {kind: struct.Struct(f"<{dtype.char}") for kind, dtype in FIXED.items()}


_GUID_ORDER: Final = np.array([3, 2, 1, 0, 5, 4, 7, 6, *range(8, 16)])
"""A Guid's bytes in the order of its text: the first three fields are little-endian (Part 6, 5.2.2.6)."""


def guid_text(raw: bytes) -> str:
    """16 bytes of a Guid as text (Part 6, 5.2.2.6)."""
    first, second, third, rest = _Guid.unpack(raw)
    digits: str = rest.hex()
    return f"{first:08x}-{second:04x}-{third:04x}-{digits[:4]}-{digits[4:]}"


def guid_texts(raw: bytes) -> list[str]:
    """`guid_text` of every 16 bytes."""
    digits = np.frombuffer(raw, np.uint8).reshape(-1, 16)[:, _GUID_ORDER].tobytes().hex()
    return [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-{digits[at + 12 : at + 16]}"
        f"-{digits[at + 16 : at + 20]}-{digits[at + 20 : at + 32]}"
        for at in range(0, len(digits), 32)
    ]


class DecodeError(ValueError):
    """The bytes are not what OPC UA Part 6 allows here."""


class UnreadObject(dict[str, Any]):
    """An ExtensionObject as it was sent: `type`, its encoding's node id, and `body`: bytes, text (XML) or None."""


class Cursor:
    """Reads forward from `at`, never beyond `end` (default: the end of `body`)."""

    __slots__ = ("at", "body", "depth", "end")

    def __init__(self, body: bytes, at: int = 0, end: int | None = None) -> None:
        self.body = body
        self.at = at
        self.end = len(body) if end is None else end
        self.depth = 0

    def skip(self, size: int) -> int:
        """The offset before the step; raises DecodeError where `size` is negative or leads beyond the end."""
        start = self.at
        if size < 0 or start + size > self.end:
            raise DecodeError(f"{size} bytes at offset {start} go beyond the end of the field at {self.end}")
        self.at = start + size
        return start

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The fields of `layout`."""
        return layout.unpack_from(self.body, self.skip(layout.size))

    def byte(self) -> int:
        return self.body[self.skip(1)]

    def uint16(self) -> int:
        return int.from_bytes(self.body[self.skip(2) : self.at], "little")

    def uint32(self) -> int:
        return int.from_bytes(self.body[self.skip(4) : self.at], "little")

    def int32(self) -> int:
        return int.from_bytes(self.body[self.skip(4) : self.at], "little", signed=True)

    def int64(self) -> int:
        return int.from_bytes(self.body[self.skip(8) : self.at], "little", signed=True)

    def count(self, bytes_each_min: int = 1) -> int:
        """An array's length; null arrays (-1) count as empty. Refused where its elements cannot be in the field."""
        count = max(self.int32(), 0)
        if count * bytes_each_min > self.end - self.at:
            raise DecodeError(f"an array of {count} elements at offset {self.at} cannot fit into its field")
        return count

    def bytestring(self) -> bytes | None:
        start = self.skip(4) + 4  # written out: text is what slow rows are made of
        size: int = _Length.unpack_from(self.body, start - 4)[0]
        if size < 0:
            return None
        stop = self.at = start + size
        if stop > self.end:
            raise DecodeError(f"{size} bytes at offset {start} go beyond the end of the field at {self.end}")
        return self.body[start:stop]

    def text(self) -> str | None:
        start = self.skip(4) + 4  # as `bytestring`
        size: int = _Length.unpack_from(self.body, start - 4)[0]
        if size < 0:
            return None
        stop = self.at = start + size
        if stop > self.end:
            raise DecodeError(f"{size} bytes at offset {start} go beyond the end of the field at {self.end}")
        return str(self.body[start:stop], "utf-8", "replace")

    def guid(self) -> str:
        return guid_text(self.body[self.skip(16) : self.at])

    def datetime(self) -> int:
        """UTC ns since 1970."""
        return (self.int64() - EPOCH_TICKS) * 100

    def node_id(self) -> str:
        """Text form of a NodeId or ExpandedNodeId (Part 6, 5.2.2.9 and 5.2.2.10)."""
        encoding = self.byte()
        identifier, namespace = self._identifier(encoding & 0x3F)
        prefix = f"ns={namespace};" if namespace else ""
        if encoding & 0x80:
            prefix = f"nsu={self.text()};"
        if encoding & 0x40:
            prefix = f"svr={self.uint32()};{prefix}"
        return prefix + identifier

    def _identifier(self, form: int) -> tuple[str, int]:
        if form == 0:
            return f"i={self.byte()}", 0
        if form == 1:
            namespace = self.byte()
            return f"i={self.uint16()}", namespace
        namespace = self.uint16()
        if form == 2:
            return f"i={self.uint32()}", namespace
        if form == 3:
            return f"s={self.text() or ''}", namespace
        if form == 4:
            return f"g={self.guid()}", namespace
        if form == 5:
            return f"b={base64.b64encode(self.bytestring() or b'').decode()}", namespace
        raise DecodeError(f"unknown node id encoding {form} at offset {self.at}")

    def qualified_name(self) -> str:
        namespace = self.uint16()
        name = self.text() or ""
        return f"{namespace}:{name}" if namespace else name

    def localized_text(self) -> str | None:
        mask = self.byte()
        if mask & 1:
            self.text()
        return self.text() if mask & 2 else None

    def extension_object(self) -> UnreadObject:
        """Its type and undecoded body; `opcua_structures` reads it."""
        type_id = self.node_id()
        encoding = self.byte()
        if encoding > 2:
            raise DecodeError(f"unknown extension object encoding {encoding} at offset {self.at}")
        body = (None, self.bytestring, self.text)[encoding]
        return UnreadObject(type=type_id, body=body() if body else None)

    def diagnostic_info(self) -> dict[str, Any]:
        """Its fields by name (Part 6, 5.2.2.12); empty for the usual zero mask."""
        mask = self.byte()
        info: dict[str, Any] = {}
        for bit, name in ((1, "symbolicId"), (2, "namespaceUri"), (8, "locale"), (4, "localizedText")):
            if mask & bit:
                info[name] = self.int32()
        if mask & 0x10:
            info["additionalInfo"] = self.text()
        if mask & 0x20:
            info["innerStatusCode"] = self.uint32()
        if mask & 0x40:
            info["innerDiagnosticInfo"] = self.nested(Cursor.diagnostic_info)
        return info

    def data_value(self) -> Any:
        """The value of a DataValue only."""
        return self._data_value()[1]

    def inner_data_value(self) -> dict[str, Any]:
        """A DataValue within a value: `v`, `status` where it is not Good, `t` where it has a source time, as text."""
        kind, value, status, time_ns = self._data_value()
        shown = {"v": _inner(kind, value)}
        if status != GOOD:
            shown["status"] = status
        if time_ns is not None:
            shown["t"] = rfc3339(time_ns)
        return shown

    def inner_variant(self) -> Any:
        """A Variant within a value."""
        return _inner(*self.nested(Cursor.variant))

    def _data_value(self) -> tuple[int, Any, int, int | None]:
        """Kind, value, status and source time in UTC ns (Part 6, 5.2.2.17)."""
        mask = self.byte()
        kind, value = self.nested(Cursor.variant) if mask & 0x01 else (Kind.NULL, None)
        status = self.uint32() if mask & 0x02 else GOOD
        time_ns = self.datetime() if mask & 0x04 else None
        for bit, size in ((0x10, 2), (0x08, 8), (0x20, 2)):
            if mask & bit:
                self.skip(size)
        return kind, value, status, time_ns

    def variant(self) -> tuple[int, Any]:
        """(built-in type, with 0x80 for an array; value). Matrices come as nested lists (Part 6, 5.2.2.16)."""
        encoding = self.byte()
        kind = encoding & 0x3F
        if not encoding & ARRAY:
            if encoding & 0x40:
                raise DecodeError(f"a scalar with dimensions at offset {self.at}")
            return kind, self.scalar(kind)
        values = self.array(kind)
        if encoding & 0x40:
            values = nested_lists(values, self.dimensions())
        return kind | ARRAY, values

    def dimensions(self) -> list[int]:
        """The lengths of a matrix, slowest first."""
        return [self.int32() for _ in range(self.count(4))]

    def scalar(self, kind: int) -> Any:
        """One value of a built-in type."""
        if kind == Kind.NULL:
            return None
        number = _NUMBER.get(kind)
        if number is not None:
            return number.unpack_from(self.body, self.skip(number.size))[0]
        read = VARIABLE.get(kind)
        if read is None:
            raise DecodeError(f"unknown built-in type {kind} at offset {self.at}")
        return read(self)

    def array(self, kind: int) -> list[Any]:
        """An array of a built-in type, its length first."""
        fixed = FIXED.get(kind)
        if fixed is None:
            read = VARIABLE.get(kind)
            if read is None:
                raise DecodeError(f"an array of unknown type {kind} at offset {self.at}")
            return [read(self) for _ in range(self.count())]
        count = self.count(fixed.itemsize)
        if count <= SHORT_ARRAY:
            layout = SHORT_ARRAYS[kind][count]
            return list(layout.unpack_from(self.body, self.skip(layout.size)))
        values: list[Any] = np.frombuffer(self.body, fixed, count, self.skip(count * fixed.itemsize)).tolist()
        return values

    def nested(self, read: Any) -> Any:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise DecodeError(f"values are nested deeper than {DEPTH_MAX}")
        value = read(self)
        self.depth -= 1
        return value


VARIABLE: Final[dict[int, Callable[[Cursor], Any]]] = {
    Kind.STRING: Cursor.text,
    Kind.DATETIME: Cursor.datetime,
    Kind.GUID: Cursor.guid,
    Kind.BYTESTRING: Cursor.bytestring,
    Kind.XML_ELEMENT: Cursor.text,
    Kind.NODE_ID: Cursor.node_id,
    Kind.EXPANDED_NODE_ID: Cursor.node_id,
    Kind.QUALIFIED_NAME: Cursor.qualified_name,
    Kind.LOCALIZED_TEXT: Cursor.localized_text,
    Kind.EXTENSION_OBJECT: Cursor.extension_object,
    Kind.DATA_VALUE: Cursor.inner_data_value,
    Kind.VARIANT: Cursor.inner_variant,
    Kind.DIAGNOSTIC_INFO: Cursor.diagnostic_info,
}


def _inner(kind: int, value: Any) -> Any:
    """A value whose type is told by nothing around it: DateTime as text."""
    if kind & ~ARRAY != Kind.DATETIME:
        return value
    return [_inner(kind, each) for each in value] if isinstance(value, list) else rfc3339(value)


def nested_lists(values: list[Any], dimensions: list[int]) -> list[Any]:
    """A flat array as nested lists, last dimension fastest; left flat where the dimensions do not multiply out."""
    total = 1
    for size in dimensions:
        total *= size
    if total != len(values) or min(dimensions, default=0) < 1 or len(dimensions) > DIMENSIONS_MAX:
        return values
    for size in reversed(dimensions[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)]
    return values
