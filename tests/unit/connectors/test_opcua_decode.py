"""opcua_decode and opcua_binary against asyncua's own encoder, which is an independent reading of OPC UA Part 6."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from asyncua import ua
from asyncua.ua.ua_binary import struct_to_binary
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.opcua_binary import Cursor, DecodeError
from connectors.opcua_decode import decode_changes, decode_few
from connectors.opcua_response import DataChange, PublishResponse, _any, parse_response
from connectors.opcua_variable import READ
from pipelines.batch import ARRAY, Flag, Kind

ARRIVAL_NS = 1_700_000_000_000_000_000
SOURCE = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
SOURCE_NS = 1_795_428_000_123_456_000
VT = ua.VariantType


def response(
    items: list[tuple[int, ua.DataValue]],
    *,
    sequence: int = 7,
    more: bool = False,
    diagnostics: Sequence[ua.DiagnosticInfo] = (),
) -> bytes:
    """A PublishResponse with one DataChangeNotification, encoded by asyncua."""
    change = ua.DataChangeNotification(
        MonitoredItems=[ua.MonitoredItemNotification(ClientHandle=handle, Value=value) for handle, value in items],
        DiagnosticInfos=list(diagnostics),
    )
    message = ua.PublishResponse()
    message.Parameters = ua.PublishResult(
        SubscriptionId=3,
        AvailableSequenceNumbers=[5, 6, 7],
        MoreNotifications=more,
        NotificationMessage=ua.NotificationMessage(
            SequenceNumber=sequence, PublishTime=SOURCE, NotificationData=[change]
        ),
        Results=[ua.StatusCode(0), ua.StatusCode(ua.StatusCodes.BadSequenceNumberUnknown)],
    )
    return bytes(struct_to_binary(message))


def data_value(variant: ua.Variant | None, status: int | None = None, source: datetime | None = SOURCE) -> ua.DataValue:
    return ua.DataValue(
        variant, None if status is None else ua.StatusCode(status), SourceTimestamp=source, ServerTimestamp=SOURCE
    )


def rows(body: bytes, rows_max: int = 1000) -> list[tuple[int, int, Any, int, int, int]]:
    """(handle, ts_ns, value, status, kind, flags) per row; values as Python objects."""
    out = []
    for part in decode_changes(body, parse_response(body), ARRIVAL_NS, rows_max):
        assert len(part.handle) <= rows_max
        for row in range(len(part.handle)):
            value = part.extra.get(row, float(part.value[row]))
            out.append(
                (
                    int(part.handle[row]), int(part.ts_ns[row]), value,
                    int(part.status[row]), int(part.kind[row]), int(part.flags[row]),
                )
            )  # fmt: skip
    return out


GUID = uuid.UUID("72962b91-fa75-4ae6-8d28-b404dc7daf63")
SAMPLES: list[tuple[ua.Variant, int, Any]] = [
    (ua.Variant(True, VT.Boolean), Kind.BOOLEAN, 1.0),
    (ua.Variant(-128, VT.SByte), Kind.SBYTE, -128.0),
    (ua.Variant(255, VT.Byte), Kind.BYTE, 255.0),
    (ua.Variant(-32768, VT.Int16), Kind.INT16, -32768.0),
    (ua.Variant(65535, VT.UInt16), Kind.UINT16, 65535.0),
    (ua.Variant(-(2**31), VT.Int32), Kind.INT32, float(-(2**31))),
    (ua.Variant(2**32 - 1, VT.UInt32), Kind.UINT32, float(2**32 - 1)),
    (ua.Variant(2**53, VT.Int64), Kind.INT64, float(2**53)),
    (ua.Variant(2**53 + 1, VT.Int64), Kind.INT64, 2**53 + 1),
    (ua.Variant(-(2**63), VT.Int64), Kind.INT64, -(2**63)),
    (ua.Variant(2**64 - 1, VT.UInt64), Kind.UINT64, 2**64 - 1),
    (ua.Variant(0.5, VT.Float), Kind.FLOAT, 0.5),
    (ua.Variant(0.1, VT.Double), Kind.DOUBLE, 0.1),
    (ua.Variant("größer", VT.String), Kind.STRING, "größer"),
    (ua.Variant(SOURCE, VT.DateTime), Kind.DATETIME, SOURCE_NS),
    (ua.Variant(GUID, VT.Guid), Kind.GUID, str(GUID)),
    (ua.Variant(b"\0\xff", VT.ByteString), Kind.BYTESTRING, b"\0\xff"),
    (ua.Variant(ua.XmlElement("<a/>"), VT.XmlElement), Kind.XML_ELEMENT, "<a/>"),
    (ua.Variant(ua.NodeId("Press", 2), VT.NodeId), Kind.NODE_ID, "ns=2;s=Press"),
    (ua.Variant(ua.NodeId(70000, 3), VT.NodeId), Kind.NODE_ID, "ns=3;i=70000"),
    (ua.Variant(ua.NodeId(GUID, 1), VT.NodeId), Kind.NODE_ID, f"ns=1;g={GUID}"),
    (ua.Variant(ua.StatusCode(0x80340000), VT.StatusCode), Kind.STATUS_CODE, float(0x80340000)),
    (ua.Variant(ua.QualifiedName("Name", 2), VT.QualifiedName), Kind.QUALIFIED_NAME, "2:Name"),
    (ua.Variant(ua.LocalizedText("Hallo", "de"), VT.LocalizedText), Kind.LOCALIZED_TEXT, "Hallo"),
    (ua.Variant([1.5, -2.5], VT.Double), Kind.DOUBLE | ARRAY, [1.5, -2.5]),
    (ua.Variant([True, False], VT.Boolean), Kind.BOOLEAN | ARRAY, [True, False]),
    (ua.Variant([2**63 - 1], VT.Int64), Kind.INT64 | ARRAY, [2**63 - 1]),
    (ua.Variant(["a", "", "ü"], VT.String), Kind.STRING | ARRAY, ["a", "", "ü"]),
    (ua.Variant([], VT.Int32, is_array=True), Kind.INT32 | ARRAY, []),
    (ua.Variant([SOURCE], VT.DateTime), Kind.DATETIME | ARRAY, [SOURCE_NS]),
    (ua.Variant([[1, 2, 3], [4, 5, 6]], VT.Int32), Kind.INT32 | ARRAY, [[1, 2, 3], [4, 5, 6]]),
    (ua.Variant([ua.Variant(1, VT.Int32), ua.Variant("x", VT.String)], VT.Variant), Kind.VARIANT | ARRAY, [1, "x"]),
]


@pytest.mark.parametrize(("variant", "kind", "value"), SAMPLES)
@pytest.mark.parametrize("count", [1, 40])
def test_each_builtin_type_is_decoded_alone_and_as_a_run(
    variant: ua.Variant, kind: int, value: Any, count: int
) -> None:
    """Every built-in type and array gives the value that was encoded, on the scalar way and on the column way."""
    body = response([(i, data_value(variant)) for i in range(count)])
    assert rows(body) == [(i, SOURCE_NS, value, 0, kind, 0) for i in range(count)]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(SAMPLES), st.sampled_from([None, 0, 0x40000000, 0x80350000])), max_size=60),
       st.integers(1, 17))  # fmt: skip
def test_any_mixture_keeps_every_row_in_its_place(
    picked: list[tuple[tuple[ua.Variant, int, Any], int | None]], rows_max: int
) -> None:
    """Runs, gathered records and scalar records may follow each other in any order, whatever the parts' size."""
    body = response([(i, data_value(sample[0], status)) for i, (sample, status) in enumerate(picked)])
    expected = [(i, SOURCE_NS, sample[2], status or 0, sample[1], 0) for i, (sample, status) in enumerate(picked)]
    assert rows(body, rows_max) == expected


def test_diagnostics_behind_the_records_are_read_over() -> None:
    """They are of no use here, but the bytes behind a record have to be theirs to the last one."""
    items = [(1, data_value(ua.Variant(4.5, VT.Double)))]
    told = [ua.DiagnosticInfo(AdditionalInfo="sampled late"), ua.DiagnosticInfo()]
    assert rows(response(items, diagnostics=told)) == rows(response(items))


def test_bytes_behind_the_diagnostics_are_refused() -> None:
    """A record that was read too short, or too long, leaves something behind."""
    record = struct.pack("<IBBd", 1, 0x01, Kind.DOUBLE, 4.5)
    assert [row[2] for row in rows(_raw(record, 1))] == [4.5]
    with pytest.raises(DecodeError, match="4 bytes are left over"):
        rows(_raw(record + struct.pack("<i", -1), 1))


def _length(value: bytes | None) -> bytes:
    return struct.pack("<i", -1) if value is None else struct.pack("<i", len(value)) + value


def _array(kind: int, layout: str, *values: Any) -> tuple[int, bytes]:
    return kind | ARRAY, struct.pack(f"<i{len(values)}{layout}", len(values), *values)


RAW_VALUES: list[tuple[int, bytes]] = [
    *[(kind, _length(text)) for kind in (12, 15, 16)
      for text in (None, b"", b"abc", "µ€".encode(), b"\xff\xc3", b"x" * 99)],
    *[(21, bytes((mask,)) + (_length(b"en") if mask & 1 else b"") + (_length(b"Hi \x80") if mask & 2 else b""))
      for mask in range(5)],
    (21, b"\x03" + _length(None) + _length(None)),
    (12 | ARRAY, struct.pack("<i", -1)),
    (12 | ARRAY, struct.pack("<i", 3) + _length(b"a") + _length(None) + _length(b"\xff")),
    _array(11, "d", 1.5, -2.5, float("nan")),
    _array(11, "d", *map(float, range(40))),
    _array(6, "i"),
    _array(6, "i", 1, -2, 3),
    _array(6, "i", 4, 5),
    _array(8, "q", 2**63 - 1),
    _array(1, "B", 0, 1, 2),
    _array(3, "B", *range(200), *range(200), *range(200)),
    (6 | ARRAY, struct.pack("<i", -7)),
    (6 | 0xC0, struct.pack("<i6iiii", 6, *range(6), 2, 2, 3)),
    (6, struct.pack("<i", -5)),
    (9, struct.pack("<Q", 2**64 - 1)),
    (13, struct.pack("<q", 132_000_000_000_000_000)),
    (14, bytes(range(16))),
    (22, b"\0\0\0"),
]  # fmt: skip


def _raw_record(handle: int, mask: int, value: tuple[int, bytes]) -> bytes:
    record = struct.pack("<IB", handle, mask)
    if mask & 1:
        record += bytes((value[0],)) + value[1]
    for bit, layout, field in (
        (2, "<I", handle),
        (4, "<q", 132 * 10**15 + handle),
        (16, "<H", 1),
        (8, "<q", 2),
        (32, "<H", 3),
    ):
        if mask & bit:
            record += struct.pack(layout, field)
    return record


def _outcome(body: bytes, rows_max: int) -> str:
    try:
        return repr(rows(body, rows_max))
    except DecodeError:
        return "refused"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(RAW_VALUES), st.sampled_from((1, 3, 5, 7, 13, 63)), st.integers(1, 9)), max_size=12
    ),
    st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=2),
)
def test_columns_hold_what_single_records_hold(
    picked: list[tuple[tuple[int, bytes], int, int]], flips: list[tuple[int, int]]
) -> None:
    """Runs, gathered records and values read in place equal the cursor, row by row; both refuse the same damage."""
    plain = [(value, mask) for value, mask, times in picked for _ in range(times)]
    records = bytearray(b"".join(_raw_record(handle, mask, value) for handle, (value, mask) in enumerate(plain)))
    for at, change in flips if records else []:
        records[at % len(records)] ^= change
    body = _raw(bytes(records), len(plain))
    assert _outcome(body, 1000) == _outcome(body, 1)


def test_alternating_shapes_are_gathered() -> None:
    """Shapes that take turns, some of them often and some only once or twice, keep their rows and order."""
    plain = [RAW_VALUES[i % len(RAW_VALUES)] for i in range(10 * len(RAW_VALUES))] + RAW_VALUES
    body = _raw(b"".join(_raw_record(i, 5, value) for i, value in enumerate(plain)), len(plain))
    assert _outcome(body, 1000) == _outcome(body, 1) != "refused"


def test_the_frame_is_read() -> None:
    """Subscription, sequence number, available numbers, MoreNotifications and acknowledgement results."""
    parsed = parse_response(response([(0, data_value(ua.Variant(1.0)))], more=True))
    assert (parsed.subscription_id, parsed.sequence_number, parsed.available) == (3, 7, (5, 6, 7))
    assert parsed.more and parsed.rows == 1 and parsed.result == 0
    assert parsed.ack_results == (0, ua.StatusCodes.BadSequenceNumberUnknown)


def test_a_keep_alive_has_no_rows() -> None:
    """An empty NotificationData means that the server is alive."""
    message = ua.PublishResponse()
    message.Parameters.SubscriptionId = 3
    parsed = parse_response(bytes(struct_to_binary(message)))
    assert parsed.rows == 0 and parsed.status_change is None


def test_a_status_change_is_seen() -> None:
    """BadTimeout in a StatusChangeNotification: the subscription has expired."""
    message = ua.PublishResponse()
    message.Parameters.NotificationMessage.NotificationData = [
        ua.StatusChangeNotification(Status=ua.StatusCode(ua.StatusCodes.BadTimeout))
    ]
    assert parse_response(bytes(struct_to_binary(message))).status_change == ua.StatusCodes.BadTimeout


def test_a_service_fault_gives_its_code() -> None:
    """ServiceFault and a bad service result both end up in `result`."""
    fault = ua.ServiceFault()
    fault.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadNoSubscription)
    assert parse_response(bytes(struct_to_binary(fault))).result == ua.StatusCodes.BadNoSubscription


def test_every_mask_gives_the_same_value() -> None:
    """Servers send masks 1, 5, 13, 15, 63, ...: the record's layout follows the mask, on both ways of decoding."""
    for mask in range(0x40):
        record = struct.pack("<IB", 9, mask)
        if mask & 1:
            record += struct.pack("<Bd", 11, 2.5)
        if mask & 2:
            record += struct.pack("<I", 0x40000000)
        ticks = SOURCE_NS // 100 + 116_444_736_000_000_000
        for bit, layout, field in ((4, "<q", ticks), (0x10, "<H", 3), (8, "<q", ticks), (0x20, "<H", 3)):
            if mask & bit:
                record += struct.pack(layout, field)
        for count in (1, 20):
            [row] = set(map(repr, rows(_raw(record * count, count))))
            time, flags = (SOURCE_NS, 0) if mask & 4 else (ARRIVAL_NS, int(Flag.ARRIVAL_TIME))
            value, kind = (2.5, 11) if mask & 1 else (float("nan"), 0)
            assert row == repr((9, time, value, 0x40000000 if mask & 2 else 0, kind, flags)), mask


@pytest.mark.parametrize("count", [1, 20])
def test_a_time_outside_of_what_nanoseconds_hold_is_flagged(count: int) -> None:
    """Year 1601 (unset) and 9999 (DateTime's end) are no source times: the arrival time is used, and said."""
    for when in (ua.uatypes.MinDateTime if hasattr(ua.uatypes, "MinDateTime") else datetime(1601, 1, 1, tzinfo=UTC),
                 datetime(9999, 12, 31, tzinfo=UTC)):  # fmt: skip
        body = response([(0, data_value(ua.Variant(1.0), source=when))] * count)
        assert rows(body) == [(0, ARRIVAL_NS, 1.0, 0, Kind.DOUBLE, int(Flag.ARRIVAL_TIME))] * count


def test_a_run_of_65000_is_split_into_steps() -> None:
    """One message with 65,000 values comes in parts of at most 1,000 rows, none lost, in order."""
    record = b"".join(struct.pack("<IBBdq", i, 5, 11, i / 2, 132_000_000_000_000_000 + i) for i in range(65_000))
    body = _raw(record, 65_000)
    parts = list(decode_changes(body, parse_response(body), ARRIVAL_NS, 1000))
    assert [len(part.handle) for part in parts] == [1000] * 65
    assert np.array_equal(np.concatenate([part.handle for part in parts]), np.arange(65_000))
    assert np.array_equal(np.concatenate([part.value for part in parts]), np.arange(65_000) / 2)


def test_truncated_responses_are_refused() -> None:
    """Cut anywhere, a response raises DecodeError; no other exception, no row made of missing bytes."""
    body = response([(i, data_value(sample[0])) for i, sample in enumerate(SAMPLES * 2)])
    for size in range(len(body)):
        with pytest.raises(DecodeError):
            rows(body[:size])


def test_a_record_must_not_reach_beyond_its_notification() -> None:
    """The notification's own length bounds its records, although the message goes on behind it."""
    record = struct.pack("<IBBdq", 1, 5, 11, 1.0, SOURCE_NS)
    with pytest.raises(DecodeError):
        rows(_raw(record * 19 + record[:-3], 20))


def test_nesting_is_bounded() -> None:
    """A Variant in a Variant in a Variant ... is refused instead of exhausting the stack."""
    deep = (bytes([0x80 | Kind.VARIANT]) + struct.pack("<i", 1)) * 5000 + b"\x01\x01"
    with pytest.raises(DecodeError, match="nested deeper"):
        Cursor(deep).variant()


def test_a_huge_array_length_allocates_nothing() -> None:
    """A length of 2^31 - 1 with no bytes behind it is refused before anything is read."""
    for kind in (Kind.DOUBLE, Kind.STRING, Kind.VARIANT, Kind.NULL):
        with pytest.raises(DecodeError):
            Cursor(bytes([0x80 | kind]) + struct.pack("<i", 2**31 - 1)).variant()


def test_datetimes_of_the_standard_are_exact() -> None:
    """100 ns steps survive, also before 1970."""
    for when in (datetime(1969, 1, 1, tzinfo=UTC), SOURCE + timedelta(microseconds=1)):
        [row] = rows(response([(0, data_value(ua.Variant(when, VT.DateTime)))]))
        assert row[2] == (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _raw(records: bytes, count: int) -> bytes:
    """A PublishResponse around hand-made records."""
    template = response([])
    empty = struct.pack("<ii", 0, 0)  # no items, no diagnostics: what asyncua writes for empty lists
    at = template.index(b"\x01\x00\x2b\x03\x01") + 5
    [size] = struct.unpack_from("<i", template, at)
    assert template[at + 4 : at + 4 + size] in (empty, struct.pack("<ii", -1, -1), struct.pack("<ii", 0, -1))
    body = struct.pack("<i", count) + records + struct.pack("<i", -1)
    return template[:at] + struct.pack("<i", len(body)) + body + template[at + 4 + size :]


def test_records_that_are_broken_are_refused() -> None:
    """Reserved bits; a run of texts whose last record ends too soon; more numbers than there is room for."""
    with pytest.raises(DecodeError, match="reserved bits"):
        rows(_raw(struct.pack("<IBB", 1, 0x40, 0), 1))
    text = struct.pack("<IBBi", 1, 0x05, Kind.STRING, 2) + b"ab" + bytes(8)
    assert len(rows(_raw(text * 40, 40))) == 40
    with pytest.raises(DecodeError, match="goes beyond the end"):
        rows(_raw((text * 40)[:-8], 40))
    with pytest.raises(DecodeError, match="1000 elements at offset 4 cannot fit"):
        READ[Kind.DOUBLE | ARRAY](struct.pack("<i", 1000) + bytes(80), 0, 84)


def test_diagnostics_of_acknowledgements_are_read_over() -> None:
    """Behind their results, at the very end."""
    made = ua.PublishResponse()
    message = ua.NotificationMessage(SequenceNumber=9, PublishTime=SOURCE)
    told = [ua.DiagnosticInfo(AdditionalInfo="late")]
    made.Parameters = ua.PublishResult(SubscriptionId=3, NotificationMessage=message, DiagnosticInfos=told)
    assert parse_response(bytes(struct_to_binary(made))).sequence_number == 9


def test_a_republish_response_names_no_subscription() -> None:
    """Its notification is read as any other; one that is refused has a result and nothing else."""
    made = ua.RepublishResponse()
    made.NotificationMessage = ua.NotificationMessage(SequenceNumber=9, PublishTime=SOURCE)
    found = parse_response(bytes(struct_to_binary(made)))
    assert (found.result, found.subscription_id, found.sequence_number, found.rows) == (0, 0, 9, 0)
    made.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadMessageNotAvailable)
    assert parse_response(bytes(struct_to_binary(made))).result == ua.StatusCodes.BadMessageNotAvailable
    refused = ua.PublishResponse()
    refused.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadNoSubscription)
    assert parse_response(bytes(struct_to_binary(refused))).result == ua.StatusCodes.BadNoSubscription


def test_a_data_value_of_a_read_response_is_its_value() -> None:
    assert Cursor(b"\1\1\1").data_value() is True
    assert Cursor(b"\0").data_value() is None


def test_a_data_value_within_a_value_says_what_it_has() -> None:
    """Status and time where they say something; picoseconds and the server's time are passed over."""
    assert Cursor(b"\0").inner_data_value() == {"v": None}
    everything = b"\x3f\1\1" + bytes(3) + b"\x40" + bytes(8 + 2 + 8 + 2)
    cursor = Cursor(everything)
    assert cursor.inner_data_value() == {"v": True, "status": 0x40000000, "t": "1601-01-01T00:00:00Z"}
    assert cursor.at == len(everything)


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        (b"\4\2\0" + GUID.bytes_le, f"ns=2;g={GUID}"),
        (b"\5\2\0\2\0\0\0\0\xff", "ns=2;b=AP8="),
        (b"\xc0\7\1\0\0\0u\3\0\0\0", "svr=3;nsu=u;i=7"),
        (b"\x83\0\0\1\0\0\0a\1\0\0\0u", "nsu=u;s=a"),
    ],
)
def test_node_ids_of_every_form(encoded: bytes, text: str) -> None:
    """Expanded ones too."""
    assert Cursor(encoded).node_id() == text
    for size in range(len(encoded)):
        with pytest.raises(DecodeError):
            Cursor(encoded[:size]).node_id()
    with pytest.raises(DecodeError, match="unknown node id"):
        Cursor(b"\6\0\0").node_id()


def test_a_text_without_its_length_at_the_end_of_the_message() -> None:
    """There is nothing behind it that could be taken for one."""
    record = struct.pack("<IBBi", 1, 1, Kind.STRING, 0)
    even = record * 16 + bytes(4)
    parts = decode_changes(even, PublishResponse(0, changes=[DataChange(0, len(even), 16)]), ARRIVAL_NS, 8)
    assert [len(part.extra) for part in parts] == [8, 8]
    body = record * 6 + record[:-2]
    whole = PublishResponse(0, changes=[DataChange(0, len(body), 7)])
    with pytest.raises(DecodeError, match="beyond the end of the message"):
        list(decode_changes(body, whole, ARRIVAL_NS, 1000))


@pytest.mark.parametrize("listed", [[], [7], [*range(1, 65)], [*range(1, 70)], None])
@pytest.mark.parametrize("results", [0, 1, 64, 65])
def test_the_plain_frame_is_read_as_any_other(listed: list[int] | None, results: int) -> None:
    """By the places of its fields, or one by one: the same."""
    message = ua.PublishResponse()
    change = ua.DataChangeNotification(MonitoredItems=[ua.MonitoredItemNotification(1, data_value(ua.Variant(1.5)))])
    message.Parameters = ua.PublishResult(
        SubscriptionId=3,
        AvailableSequenceNumbers=listed or [],
        MoreNotifications=True,
        NotificationMessage=ua.NotificationMessage(SequenceNumber=9, PublishTime=SOURCE, NotificationData=[change]),
        Results=[ua.StatusCode(0)] * results,
    )
    body = bytes(struct_to_binary(message))
    if listed is None:  # a null array
        at = body.index(struct.pack("<Ii", 3, 0)) + 4
        body = body[:at] + struct.pack("<i", -1) + body[at + 4 :]
    read = parse_response(body)
    assert read == _any(body)
    assert (read.subscription_id, read.sequence_number, read.rows, read.more) == (3, 9, 1, True)
    assert list(read.available) == (listed or []) and len(read.ack_results) == results


def test_few_rows_are_read_without_columns() -> None:
    """As columns hold them: numbers in place, all else by the cursor; diagnostics behind them are read over."""
    told = [ua.DiagnosticInfo(SymbolicId=ua.Int32(1)), ua.DiagnosticInfo()]
    values = [
        ua.Variant(1.5),
        ua.Variant(2**60, VT.Int64),
        ua.Variant("text"),
        ua.Variant(True),
        ua.Variant(7, VT.Byte),
    ]
    items = [(at, data_value(value, 0x40000000 if at else None)) for at, value in enumerate(values)]
    items += [(9, data_value(None)), (8, data_value(ua.Variant(2.5), source=None))]
    for body in (response(items), response(items, diagnostics=told)):
        few, extra = decode_few(body, parse_response(body), ARRIVAL_NS)
        found = [
            (handle, ts_ns, extra.get(at, float(value)), *rest) for at, (handle, ts_ns, value, *rest) in enumerate(few)
        ]
        assert repr(found) == repr(rows(body))
    record = _raw_record(1, 5, (11, struct.pack("<d", 1.5)))
    for damaged in (_raw(record[:-1], 1), _raw(record + bytes(3), 1)):  # cut, something left over
        with pytest.raises(DecodeError):
            decode_few(damaged, parse_response(damaged), ARRIVAL_NS)
        with pytest.raises(DecodeError):
            rows(damaged)
