"""Values of commands -> OPC UA types: nothing is bent to fit."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from asyncua import ua

from connectors.opcua_write_values import VT, ValueType, converted, shown
from pipelines.commands import BAD_OUT_OF_RANGE, BAD_TYPE_MISMATCH, Refused

GUID = "72962b91-fa75-4ae6-8d28-b404dc7daf63"
MODE = {"Off": 0, "Auto": 1}


@pytest.mark.parametrize(
    ("kind", "value", "sent"),
    [
        (VT.Boolean, True, True),
        (VT.SByte, -128, -128),
        (VT.Byte, 255.0, 255),
        (VT.Int64, 2**63 - 1, 2**63 - 1),
        (VT.UInt64, 2**64 - 1, 2**64 - 1),
        (VT.Double, 1, 1.0),
        (VT.Float, 0.1, 0.10000000149011612),
        (VT.String, "text", "text"),
        (VT.LocalizedText, "Text", ua.LocalizedText("Text")),
        (VT.DateTime, "2026-11-23T10:00:00+02:00", datetime(2026, 11, 23, 8)),  # noqa: DTZ001  asyncua's are naive UTC
        (VT.Guid, GUID, uuid.UUID(GUID)),
        (VT.ByteString, "AAEC", b"\0\1\2"),
        (VT.NodeId, "ns=2;s=a", ua.NodeId("a", 2)),
    ],
)
def test_each_type_takes_its_own(kind: ua.VariantType, value: Any, sent: Any) -> None:
    """Alone and in an array."""
    assert converted(value, ValueType(kind)) == ua.Variant(sent, kind)
    assert converted([value, value], ValueType(kind, is_array=True)).Value == [sent, sent]
    assert converted([], ValueType(kind, is_array=True)).is_array


@pytest.mark.parametrize(
    ("wanted", "value", "status"),
    [
        (ValueType(VT.Boolean), 1, BAD_TYPE_MISMATCH),
        (ValueType(VT.Int16), True, BAD_TYPE_MISMATCH),
        (ValueType(VT.Int16), "1", BAD_TYPE_MISMATCH),
        (ValueType(VT.Int16), 1.5, BAD_TYPE_MISMATCH),
        (ValueType(VT.Int16), 2**15, BAD_OUT_OF_RANGE),
        (ValueType(VT.UInt64), -1, BAD_OUT_OF_RANGE),
        (ValueType(VT.Double), float("nan"), BAD_OUT_OF_RANGE),
        (ValueType(VT.Int32), float("inf"), BAD_OUT_OF_RANGE),
        (ValueType(VT.Float), 1e39, BAD_OUT_OF_RANGE),
        (ValueType(VT.Double, low=0, high=10), 10.1, BAD_OUT_OF_RANGE),
        (ValueType(VT.Double), None, BAD_TYPE_MISMATCH),
        (ValueType(VT.Double), [1.0], BAD_TYPE_MISMATCH),
        (ValueType(VT.Double, is_array=True), 1.0, BAD_TYPE_MISMATCH),
        (ValueType(VT.Double, is_array=True), [[1.0]], BAD_TYPE_MISMATCH),
        (ValueType(VT.String), 1, BAD_TYPE_MISMATCH),
        (ValueType(VT.Guid), "x", BAD_TYPE_MISMATCH),
        (ValueType(VT.DateTime), "now", BAD_TYPE_MISMATCH),
        (ValueType(VT.ByteString), "?", BAD_TYPE_MISMATCH),
        (ValueType(VT.ExtensionObject), {}, BAD_TYPE_MISMATCH),
        (ValueType(VT.Int32, names=MODE), "auto", BAD_OUT_OF_RANGE),
        (ValueType(VT.Int32, names=MODE), 2, BAD_OUT_OF_RANGE),
        (ValueType(VT.Int32, names=MODE), True, BAD_OUT_OF_RANGE),
    ],
)
def test_what_does_not_fit_is_refused(wanted: ValueType, value: Any, status: int) -> None:
    """With a reason that names the value."""
    with pytest.raises(Refused) as refused:
        converted(value, wanted)
    assert refused.value.status == status and str(refused.value)


def test_enumerations_by_name_and_number() -> None:
    """Both give the number."""
    assert [converted(value, ValueType(VT.Int32, names=MODE)).Value for value in ("Auto", 1)] == [1, 1]


def test_what_is_shown_is_json() -> None:
    """As a record keeps it."""
    values = [None, True, 1, 1.5, "a", b"\0", datetime(2026, 1, 1, tzinfo=UTC), ua.LocalizedText("t"), ua.NodeId(1, 2)]
    assert shown(values) == [None, True, 1, 1.5, "a", "AA==", "2026-01-01T00:00:00+00:00", "t", "ns=2;i=1"]
    assert shown(ua.StatusCode(0x80340000)) == 0x80340000 and shown(uuid.UUID(GUID)) == GUID
