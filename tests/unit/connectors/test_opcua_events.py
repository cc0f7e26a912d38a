"""Events: what is asked of a server, how its notifications become rows, what a refresh and an overflow mean."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.server.monitored_item_service import WhereClauseEvaluator
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary
from pydantic import ValidationError

from connectors.opcua import OpcUaSource
from connectors.opcua_binary import DecodeError
from connectors.opcua_event_decode import EVENTS_MAX, Event, decode_events
from connectors.opcua_event_filter import event_filter
from connectors.opcua_event_settings import FIELDS
from connectors.opcua_events import REFRESH_MAX_NS, EventReader
from connectors.opcua_plan import describe_plan, plan_events, plan_subscriptions
from connectors.opcua_response import parse_response
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_state import Subscription
from pipelines.batch import BatchBuilder, Flag, Kind
from pipelines.clock import SystemClock
from pipelines.stage_deadband import DeadbandStage
from pipelines.stage_scale import ScaleStage, TagScaleStage
from pipelines.tags import Tag, TagTable

ARRIVAL_NS = 1_700_000_000_000_000_000
TIME = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
TIME_NS = 1_795_428_000_123_456_000
NAMES = ("EventId", "EventType", "Time", "Message", "Severity")
VT = ua.VariantType


def device(**events: Any) -> OpcUaDevice:
    return OpcUaDevice.model_validate({"opcua": "opc.tcp://h:1", "tags": {"x": "i=1"}, "events": events})


def event(
    text: str = "hot", type_id: int = 2041, time: ua.Variant | None = None, severity: int = 500
) -> list[ua.Variant]:
    return [
        ua.Variant(text.encode(), VT.ByteString),
        ua.Variant(ua.NodeId(ua.Int32(type_id)), VT.NodeId),
        time or ua.Variant(TIME, VT.DateTime),
        ua.Variant(ua.LocalizedText(text, "en"), VT.LocalizedText),
        ua.Variant(severity, VT.UInt16),
    ]


def response(events: Sequence[tuple[int, list[ua.Variant]]]) -> bytes:
    """A PublishResponse with one EventNotificationList, encoded by asyncua."""
    listed = ua.EventNotificationList(Events=[ua.EventFieldList(handle, fields) for handle, fields in events])
    message = ua.PublishResponse()
    message.Parameters = ua.PublishResult(
        SubscriptionId=3,
        NotificationMessage=ua.NotificationMessage(SequenceNumber=7, PublishTime=TIME, NotificationData=[listed]),
    )
    return bytes(struct_to_binary(message))


def decoded(body: bytes, *names: Sequence[str]) -> list[tuple[int, int, int, dict[str, Any]]]:
    """(handle, ts_ns, flags, fields) of each event."""
    found = []
    asked = dict(enumerate(names or (NAMES,)))
    for columns, _ in decode_events(body, parse_response(body), asked, ARRIVAL_NS):
        assert set(columns.kind.tolist()) == {Kind.EXTENSION_OBJECT} and len(columns.handle) <= EVENTS_MAX
        rows = zip(columns.handle.tolist(), columns.ts_ns.tolist(), columns.flags.tolist(), strict=True)
        found += [(*row, columns.extra[number]) for number, row in enumerate(rows)]
    return found


def test_an_event_is_one_row_with_its_fields_as_a_structure() -> None:
    """Time is the row's time; a LocalizedText is its text, a DateTime RFC 3339; what is null is left out."""
    body = response([(0, event()), (1, [ua.Variant(ua.NodeId(), VT.NodeId), ua.Variant(TIME, VT.DateTime)])])
    assert parse_response(body).rows == 2 and parse_response(body).numbered
    assert decoded(body, NAMES, ("BranchId", "ReceiveTime")) == [
        (
            0,
            TIME_NS,
            0,
            {
                "EventId": b"hot",
                "EventType": "i=2041",
                "Time": "2026-11-23T10:00:00.123456Z",
                "Message": "hot",
                "Severity": 500,
            },
        ),
        (1, ARRIVAL_NS, Flag.ARRIVAL_TIME, {"ReceiveTime": "2026-11-23T10:00:00.123456Z"}),
    ]


def test_many_events_come_in_parts() -> None:
    """A burst does not hold the loop; the order is the server's."""
    body = response([(0, event(str(number))) for number in range(EVENTS_MAX + 3)])
    assert [fields["Message"] for *_, fields in decoded(body)] == [str(number) for number in range(EVENTS_MAX + 3)]
    parts = [(len(columns.handle), read) for columns, read in decode_events(body, parse_response(body), {0: NAMES}, 0)]
    assert parts == [(EVENTS_MAX, EVENTS_MAX), (3, 3)]


def test_what_nobody_wants_leaves_no_row_behind() -> None:
    """The last part counts what was read behind it; where nothing is wanted there is no part."""
    body = response([(0, event(str(number))) for number in range(60)])

    def parts(*texts: str) -> list[tuple[int, int]]:
        def wanted(one: Event) -> bool:
            return one.fields["Message"] in texts

        return [(len(c.handle), read) for c, read in decode_events(body, parse_response(body), {0: NAMES}, 0, wanted)]

    assert parts("3", "7") == [(2, 60)] and parts() == []
    assert parts(*map(str, range(EVENTS_MAX + 1))) == [(EVENTS_MAX, EVENTS_MAX), (1, 10)]


@pytest.mark.parametrize("wrong", [[(1, event())], [(0, event()[:-1])], [(0, [*event(), ua.Variant()])]])
def test_what_was_not_asked_for_is_refused(wrong: list[tuple[int, list[ua.Variant]]]) -> None:
    """An unknown handle, too few fields, too many."""
    with pytest.raises(DecodeError):
        decoded(response(wrong))


def test_damaged_bytes_are_refused_or_stay_within_their_fields() -> None:
    """10,000 mutations and every truncation: DecodeError or rows, nothing else."""
    whole = response([(0, event("a")), (0, event("b"))])
    chance = random.Random(5)
    for size in range(len(whole)):
        with pytest.raises(DecodeError):
            decoded(whole[:size])
    for _ in range(10_000):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        try:
            assert all(handle == 0 for handle, *_ in decoded(bytes(body)))
        except DecodeError:
            continue


def test_the_filter_is_what_the_standard_asks_for() -> None:
    """Every field with the type that declares it; a round trip through the encoding."""
    [planned] = plan_events(device(alarms={"types": ["ns=2;i=7"], "fields": [*FIELDS, "LowLimit", "2:Station/2:Code"]}))
    made = struct_from_binary(ua.EventFilter, Buffer(struct_to_binary(event_filter(planned))))
    clauses = {
        field: (
            clause.TypeDefinitionId.to_string(),
            [(name.NamespaceIndex, name.Name) for name in clause.BrowsePath or ()],
            clause.AttributeId,
        )
        for field, clause in zip(planned.fields, made.SelectClauses, strict=True)
    }
    assert clauses["Message"] == ("i=2041", [(0, "Message")], 13)
    assert clauses["ConditionId"] == ("i=2782", [], 1)
    assert clauses["ActiveState/Id"] == ("i=2915", [(0, "ActiveState"), (0, "Id")], 13)
    assert clauses["LowLimit"] == ("i=2955", [(0, "LowLimit")], 13)
    assert clauses["2:Station/2:Code"] == ("ns=2;i=7", [(2, "Station"), (2, "Code")], 13)


class _Event:
    """What asyncua's server evaluates a where clause with."""

    def __init__(self, type_id: str, severity: int) -> None:
        self.EventType = ua.NodeId.from_string(type_id)
        self.Severity = severity


@pytest.mark.parametrize(
    ("asked", "passes", "fails"),
    [
        ({}, [("i=2041", 0), ("i=7", 1)], []),
        ({"severity": 500}, [("i=7", 500), ("i=2787", 0), ("i=2788", 0), ("i=2789", 0)], [("i=7", 499)]),
        ({"types": ["i=7"]}, [("i=7", 1), ("i=2788", 0)], [("i=8", 1000)]),
        ({"types": ["i=7", "i=8", "AlarmConditionType"], "severity": 10},
         [("i=7", 10), ("i=8", 11), ("i=2915", 10), ("i=2787", 0)], [("i=9", 10), ("i=8", 9)]),
    ],
)  # fmt: skip
def test_the_where_clause_lets_pass_what_the_file_means(
    asked: dict[str, Any], passes: list[tuple[str, int]], fails: list[tuple[str, int]]
) -> None:
    """As another implementation reads it, after a round trip; what speaks of the subscription always passes."""
    [planned] = plan_events(device(alarms=asked))
    made = struct_from_binary(ua.EventFilter, Buffer(struct_to_binary(event_filter(planned))))
    evaluator = WhereClauseEvaluator(None, None, made.WhereClause)  # type: ignore[arg-type]
    assert all(evaluator.eval(_Event(*one)) for one in passes)
    assert not any(evaluator.eval(_Event(*one)) for one in fails)


def reader(**more: Any) -> EventReader:
    events = {"fields": ["Message"], **more}
    made = EventReader("press", plan_events(device(alarms=events)), TagTable())
    made.begin({})
    return made


def read(reader: EventReader, *type_ids: int, at_ns: int = ARRIVAL_NS, severity: int = 500) -> list[bool]:
    """Of each event that is wanted, whether it is marked as a refresh's."""
    order = [0, 1, 2, 4, 3]  # as `plan_events` has the fields
    fields = [event(type_id=type_id, severity=severity) for type_id in type_ids]
    body = response([(0, [one[place] for place in order]) for one in fields])
    parts = list(reader.parts(body, parse_response(body), at_ns))
    return [fields.get("refresh", False) for _, columns, _ in parts for fields in columns.extra.values()]


def test_what_comes_within_a_refresh_is_marked() -> None:
    """From its start to its end, over notifications; one whose end is not heard of is over after a while."""
    events = reader()
    assert read(events, 2915, 2787, 2915) == [False, True, True]
    assert read(events, 2915, 2788, 2915) == [True, True, False]
    assert read(events, 2787) == [True]
    assert read(events, 2915, at_ns=ARRIVAL_NS + REFRESH_MAX_NS) == [False]
    events.begin({})
    assert read(events, 2915) == [False]


def test_an_overflow_is_told_and_asks_for_a_refresh() -> None:
    """So does the server that says that one is required; at most one a minute, however often it runs over."""
    events = reader()
    assert events.take_refresh(0) and not events.take_refresh(REFRESH_MAX_NS)
    for number, (type_id, overflown) in enumerate(((3035, ["alarms"]), (2789, [])), 1):
        assert read(events, 2041, type_id) == [False, False]
        assert not events.take_refresh(number * REFRESH_MAX_NS - 1) and events.take_refresh(number * REFRESH_MAX_NS)
        assert events.take_overflown() == overflown
        assert not events.take_overflown()


def test_the_gateway_filters_where_the_server_does_not() -> None:
    """Types with their subtypes, and the severity; what speaks of the subscription passes."""
    events = reader(severity=400)
    events.begin({0: frozenset({"i=2915", "i=2955"})})
    assert len(read(events, 2915, 2041, 2955, 2787, 3035)) == 4
    assert len(read(events, 2915, 2955, 2788, severity=399)) == 1
    events.begin({0: frozenset()})
    assert len(read(events, 2041)) == 1 and not read(events, 2041, severity=399)


def test_stages_let_events_pass_untouched() -> None:
    """Scale and deadband, of a route and of tags: the same event twice goes on twice."""
    tags = TagTable()
    alarms = tags.add(Tag("press", "alarms", event=True))
    builder = BatchBuilder()
    for _ in range(40):
        builder.add(alarms, TIME_NS, {"Severity": 500}, Kind.EXTENSION_OBJECT)
    batch = builder.build(0, 1, TIME_NS)
    for stage in (ScaleStage(2.0, 1.0), TagScaleStage(tags), DeadbandStage(tags, absolute=5.0, percent=50.0)):
        assert stage.process(batch) is batch and stage.process(batch.take(slice(0, 2))) is not None


def test_settings_plan_and_tags() -> None:
    """A notifier's short form; one subscription for all events, behind those of the values; a tag for each stream."""
    settings = device(alarms="ns=2;s=Line1", all={"severity": 300, "fields": ["Message", "Time"]})
    line, everything = plan_events(settings)
    assert (line.node, line.fields) == ("ns=2;s=Line1", FIELDS)
    assert (everything.node, everything.fields) == ("i=2253", ("EventId", "EventType", "Time", "Severity", "Message"))
    *_, last = plan_subscriptions(settings)
    assert last.events == [line, everything] and not last.items
    assert "  all: events of i=2253, all types, severity from 300" in describe_plan(settings)
    tags = TagTable()
    EventReader("press", [line, everything], tags)
    assert [(tag.path, tag.event) for tag in tags] == [("press/alarms", True), ("press/all", True)]


@pytest.mark.parametrize(
    "wrong", [{"node": "Line1"}, {"types": ["AlarmType"]}, {"fields": ["a//b"]}, {"severity": 1001}, {"queue": 0}]
)
def test_mistakes_are_refused(wrong: dict[str, Any]) -> None:
    """Each with what to write instead."""
    with pytest.raises(ValidationError):
        device(alarms=wrong)


def test_a_stream_of_events_has_a_name_of_its_own() -> None:
    """Routes tell tags and streams apart by name."""
    with pytest.raises(ValidationError, match="different names"):
        device(x={})


@pytest.mark.parametrize("severity", [0, 500])
def test_a_notification_is_acknowledged_as_a_whole(severity: int, tmp_path: Path) -> None:
    """Values and events in one message: the last batch ends it; events that nobody wants are acknowledged at once,
    behind values with them."""
    settings = device(alarms={"severity": 400, "fields": ["Message"]})
    source = OpcUaSource("press", 0, settings, TagTable(), SystemClock(), tmp_path)
    source._streams.begin([Subscription(3, 1, 100.0, 50, 1200, [])], [])
    source._events.begin({0: frozenset()})
    order = [0, 1, 2, 4, 3]
    fields = [[event(severity=severity)[place] for place in order] for _ in range(60)]
    value = ua.MonitoredItemNotification(0, ua.DataValue(ua.Variant(1.5, VT.Double)))

    def read(*data: Any) -> list[int]:
        message = ua.PublishResponse()
        message.Parameters = ua.PublishResult(
            SubscriptionId=3, NotificationMessage=ua.NotificationMessage(7, TIME, list(data))
        )
        body = bytes(struct_to_binary(message))
        return [len(batch) for batch in source._parts(body, parse_response(body)) if len(batch)]

    events = ua.EventNotificationList([ua.EventFieldList(0, one) for one in fields])
    values = ua.DataChangeNotification([value])
    assert read(values, events) == ([1] if severity < 400 else [1, 50, 10])
    assert source._streams.take_acks() == []
    source.commit(source._make.number)
    assert source._streams.take_acks() == [(3, 7)]
    assert read(events) == ([] if severity < 400 else [50, 10])
    source.commit(source._make.number)
    assert source._streams.take_acks() == [(3, 7)]
