"""The four payload formats, value by value (DESIGN section 6)."""

import json
import struct
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.payload import FORMATS, FormatName, Identity, make_format
from connectors.payload_fragments import SMALL_ROWS, TagTexts, dumps_column, encode, jsonable, rfc3339
from pipelines.batch import ARRAY, Batch, BatchBuilder, Flag, Kind
from pipelines.clock import UNDISCIPLINED, ClockState
from pipelines.few import FewRows, Row
from pipelines.tags import Tag, TagTable

TS_NS = 1_795_343_713_695_123_400
IDENTITY = Identity("line1-gw", "acme/plant1")
UNCERTAIN, BAD, OVERFLOW = 0x4090_0000, 0x800A_0000, 0x0000_0480

VALUES: list[tuple[Any, int, Any]] = [
    (21.37, Kind.DOUBLE, 21.37),
    (0.1 + 0.2, Kind.DOUBLE, 0.30000000000000004),
    (float(np.float32(0.1)), Kind.FLOAT, 0.10000000149011612),
    (5e-324, Kind.DOUBLE, 5e-324),
    (1.7976931348623157e308, Kind.DOUBLE, 1.7976931348623157e308),
    (-0.0, Kind.DOUBLE, -0.0),
    (float("nan"), Kind.DOUBLE, "NaN"),
    (float("inf"), Kind.FLOAT, "Infinity"),
    (float("-inf"), Kind.DOUBLE, "-Infinity"),
    (True, Kind.BOOLEAN, True),
    (False, Kind.BOOLEAN, False),
    (-128, Kind.SBYTE, -128),
    (65535, Kind.UINT16, 65535),
    (2**53, Kind.INT64, 2**53),
    (2**53 + 1, Kind.INT64, 2**53 + 1),
    (-(2**63), Kind.INT64, -(2**63)),
    (2**64 - 1, Kind.UINT64, 2**64 - 1),
    (0x800A0000, Kind.STATUS_CODE, 0x800A0000),
    ('läuft "gut"\n', Kind.STRING, 'läuft "gut"\n'),
    ("", Kind.STRING, ""),
    (b"\x89PNG\x00", Kind.BYTESTRING, "iVBORwA="),
    (TS_NS, Kind.DATETIME, "2026-11-22T10:35:13.6951234Z"),
    (0, Kind.DATETIME, "1970-01-01T00:00:00Z"),
    ("72962b91-fa75-4ae6-8d28-b404dc7daf63", Kind.GUID, "72962b91-fa75-4ae6-8d28-b404dc7daf63"),
    ("ns=2;s=Press4", Kind.NODE_ID, "ns=2;s=Press4"),
    ([1, 2**64 - 1], Kind.UINT64 | ARRAY, [1, 2**64 - 1]),
    ([1.5, float("nan"), float("-inf")], Kind.DOUBLE | ARRAY, [1.5, "NaN", "-Infinity"]),
    ([0, 10**9], Kind.DATETIME | ARRAY, ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z"]),
    ([b"\x00", b""], Kind.BYTESTRING | ARRAY, ["AA==", ""]),
    ([], Kind.INT32 | ARRAY, []),
    ([[1, 2], [3, 4]], Kind.INT32 | ARRAY, [[1, 2], [3, 4]]),
    ({"a": 1, "b": [float("nan"), b"x"], "c": {"d": None}}, 22, {"a": 1, "b": ["NaN", "eA=="], "c": {"d": None}}),
    (None, Kind.DOUBLE, None),
]


@pytest.fixture
def tags() -> TagTable:
    """Enough tags of one device, one of them with a name that needs escapes."""
    table = TagTable()
    table.add(Tag("press4", 'odd "name"\\ü'))
    for number in range(1, 2000):
        table.add(Tag("press4", f"tag{number}"))
    return table


def batch_of(rows: list[tuple[Any, int]], status: int = 0, flags: int = 0) -> Batch:
    """A batch, row i of tag i, 1 us apart."""
    builder = BatchBuilder()
    for tag, (value, kind) in enumerate(rows):
        builder.add(tag, TS_NS + tag * 1000, value, kind, status, flags)
    return replace(builder.build(0, 1, TS_NS), seq=1234)


def same(left: Any, right: Any) -> bool:
    """Equal in type too: 1 is not True and not 1.0."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(map(same, left.values(), right.values()))
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("d", left) == struct.pack("d", right)
    return type(left) is type(right) and bool(left == right)


@pytest.mark.parametrize("repeat", [1, SMALL_ROWS], ids=["small", "numpy"])
@pytest.mark.parametrize("name", ["json", "json-columns"])
def test_json_values_are_exact(name: Any, repeat: int, tags: TagTable) -> None:
    """Every type arrives as DESIGN says, by the small and by the columnar way, in messages and rows alike."""
    rows = [(value, int(kind)) for value, kind, _ in VALUES] * repeat
    expected = [value for _, _, value in VALUES] * repeat
    made = make_format(name, IDENTITY, tags)
    batch = batch_of(rows)
    message = json.loads(made.message("history", batch, False))
    columns = message["v"] if name == "json-columns" else [row["v"] for row in message["samples"]]
    single = [json.loads(row) for row in made.rows("history", batch, False)]
    rowwise = [row["v"][0] if name == "json-columns" else row["samples"][0]["v"] for row in single]
    for value, one, wanted in zip(columns, rowwise, expected, strict=True):
        assert same(value, wanted), (value, wanted)
        assert same(one, wanted), (one, wanted)


def test_large_doubles_beside_integers_are_no_warning(tags: TagTable) -> None:
    """Only integers are encoded as such; numpy warns where a Double beyond 64 bits is cast."""
    builder = BatchBuilder()
    for row in range(SMALL_ROWS):
        builder.add(0, TS_NS, 1e300 if row % 2 else row, Kind.DOUBLE if row % 2 else Kind.INT32)
    samples = json.loads(make_format("json", IDENTITY, tags).message("s", builder.build(0, 0, TS_NS), False))["samples"]
    assert [sample["v"] for sample in samples] == [1e300 if row % 2 else row for row in range(SMALL_ROWS)]


def test_json_each_value_alone(tags: TagTable) -> None:
    """A batch of one row: the shape that an idle route sends."""
    for value, kind, wanted in VALUES:
        message = json.loads(make_format("json", IDENTITY, tags).message("h", batch_of([(value, int(kind))]), False))
        assert same(message["samples"][0]["v"], wanted)


def test_json_message_is_byte_exact(tags: TagTable) -> None:
    """Pins the order of keys and the absence of white space."""
    batch = batch_of([(1.5, 11), (7, 6)])
    assert make_format("json", IDENTITY, tags).message("history", batch, True) == (
        b'{"gateway":"line1-gw","stream":"history","seq":1234,"device":"press4","historical":true,"samples":['
        b'{"tag":"odd \\"name\\"\\\\\xc3\xbc","t":1795343713695123,"v":1.5,"q":"good"},'
        b'{"tag":"tag1","t":1795343713695124,"v":7,"q":"good"}]}'
    )


@pytest.mark.parametrize(
    ("clock", "json_form", "msgpack_form"),
    [
        (
            ClockState("ntp", 370_000, "locked"),
            {"source": "ntp", "error_us": 370},
            {"source": "ntp", "error_ns": 370_000},
        ),
        (ClockState("ptp", 610, "locked"), {"source": "ptp", "error_us": 0.61}, {"source": "ptp", "error_ns": 610}),
        (
            ClockState("ntp", 2_000_000, "holdover"),
            {"source": "ntp", "state": "holdover", "error_us": 2000},
            {"source": "ntp", "state": "holdover", "error_ns": 2_000_000},
        ),
        (ClockState("none", 0, "unsync"), *[{"source": "none", "state": "unsync"}] * 2),
        (UNDISCIPLINED, None, None),
    ],
)
def test_the_gateways_clock(clock: ClockState, json_form: Any, msgpack_form: Any, tags: TagTable) -> None:
    """`sync` in every message of every format but `value`: who keeps it right, how well; nothing where nobody knows.

    It follows the batch: of one format object, batches of several states."""
    states = (clock, UNDISCIPLINED, ClockState("ptp", 25, "locked"), clock)
    for name, form, loads in (
        ("json", json_form, json.loads),
        ("json-columns", json_form, json.loads),
        ("msgpack", msgpack_form, msgpack.unpackb),
    ):
        made = make_format(name, IDENTITY, tags)
        batches = [replace(batch_of([(1.5, 11), (7, 6)]), clock=state) for state in states]
        found = [loads(made.message("h", batch, False)).get("sync") for batch in batches]
        assert (found[0], found[1], found[3]) == (form, None, form) and found[2]["source"] == "ptp"
        assert [loads(row).get("sync") for row in made.rows("h", batches[0], False)] == [form, form]


@pytest.mark.parametrize(
    ("status", "flags", "more"),
    [
        (0, 0, {"q": "good"}),
        (OVERFLOW, 0, {"q": "good", "status": OVERFLOW}),
        (UNCERTAIN, 0, {"q": "uncertain", "status": UNCERTAIN}),
        (BAD, Flag.ARRIVAL_TIME, {"q": "bad", "status": BAD, "arrival": True}),
        (0xC000_0000, 0, {"q": "bad", "status": 0xC000_0000}),
        (0, Flag.MACHINE_CLOCK_SUSPECT, {"q": "good", "clock": "suspect"}),
        (0, Flag.GATEWAY_CLOCK_STEPPED, {"q": "good", "clock": "stepped"}),
        (0, Flag.MACHINE_CLOCK_SUSPECT | Flag.GATEWAY_CLOCK_STEPPED, {"q": "good", "clock": "suspect+stepped"}),
        (0, Flag.PROFILE_UNCERTAIN, {"q": "good"}),
    ],
)
def test_json_quality_and_flags(status: int, flags: int, more: dict[str, Any], tags: TagTable) -> None:
    """Words beside the value stand only where they say something."""
    batch = batch_of([(1.0, 11)], status, int(flags))
    sample = {"tag": 'odd "name"\\ü', "t": TS_NS // 1000, "v": 1.0, **more}
    made = make_format("json", IDENTITY, tags)
    assert json.loads(made.message("s", batch, False))["samples"] == [sample]
    assert [json.loads(row)["samples"] for row in made.rows("s", batch, False)] == [[sample]]


@pytest.mark.parametrize("spacing_ns", [0, 1_000_000], ids=["one time", "a time each"])
def test_what_is_kept_from_batch_to_batch_is_not_seen(spacing_ns: int, tags: TagTable, monkeypatch: Any) -> None:
    """Batches of the same tags, with other ones between, of other quality and order, and more than are remembered:
    each message is the one that a format without a memory makes."""
    monkeypatch.setattr("connectors.payload_json._AROUND_MAX", 3)
    rows, random = 2 * SMALL_ROWS, np.random.default_rng(1)
    tag = np.arange(rows, dtype=np.uint32)
    uncertain = np.where(tag == 3, np.uint32(UNCERTAIN), np.uint32(0))
    columns = [(tag, 0 * tag), (tag, uncertain), (tag[::-1].copy(), uncertain)]
    columns += [(tag + number, 0 * tag) for number in range(1, 5)]
    kept = make_format("json", IDENTITY, tags)
    for number in random.integers(0, len(columns), 100).tolist() + [0] * 5:
        batch = batch_of([(value, int(Kind.DOUBLE)) for value in random.random(rows).tolist()])
        ts_ns = TS_NS + spacing_ns * np.arange(rows, dtype=np.int64)
        batch = replace(batch, tag=columns[number][0], status=columns[number][1], ts_ns=ts_ns)
        assert kept.message("h", batch, False) == make_format("json", IDENTITY, tags).message("h", batch, False)


def test_times_are_rounded_down_to_us(tags: TagTable) -> None:
    """Also before 1970."""
    batch = batch_of([(1.0, 11)] * 40)
    batch = replace(batch, ts_ns=np.arange(-20_000, 20_000, 1000, dtype=np.int64) - 1)
    message = json.loads(make_format("json", IDENTITY, tags).message("s", batch, False))
    assert [row["t"] for row in message["samples"]] == [-21 + row for row in range(40)]


def test_columns_rare_columns(tags: TagTable) -> None:
    """status, arrival and clock are absent, or have an entry for every row."""
    made = make_format("json-columns", IDENTITY, tags)
    plain = json.loads(made.message("s", batch_of([(1.0, 11), (2.0, 11)]), False))
    assert set(plain) == {"gateway", "stream", "seq", "device", "historical", "tags", "t", "v"}
    batch = replace(
        batch_of([(1.0, 11), (2.0, 11)]),
        status=np.array([0, BAD], np.uint32),
        flags=np.array([Flag.ARRIVAL_TIME, Flag.GATEWAY_CLOCK_STEPPED], np.uint8),
    )
    message = json.loads(made.message("s", batch, False))
    assert (message["status"], message["arrival"], message["clock"]) == ([0, BAD], [True, False], [None, "stepped"])
    first, second = (json.loads(row) for row in made.rows("s", batch, False))
    assert first["arrival"] == [True] and "status" not in first
    assert second["status"] == [BAD] and second["clock"] == ["stepped"]


@pytest.mark.parametrize("repeat", [1, SMALL_ROWS])
def test_msgpack_keeps_types(repeat: int, tags: TagTable) -> None:
    """Values come back as they were; DateTime as a timestamp, exact to the ns."""
    rows = [(value, int(kind)) for value, kind, _ in VALUES] * repeat
    made = make_format("msgpack", IDENTITY, tags)
    batch = batch_of(rows)
    message = msgpack.unpackb(made.message("h", batch, False))
    single = [msgpack.unpackb(row) for row in made.rows("h", batch, False)]
    assert [row["samples"]["v"][0] for row in single][-1] is None
    assert message["samples"]["t"] == batch.ts_ns.tolist()
    for got, one, (value, kind) in zip(message["samples"]["v"], single, rows, strict=True):
        if kind & ~ARRAY == Kind.DATETIME:
            continue
        assert same(got, value) and same(one["samples"]["v"][0], value), (got, value)
    assert message["samples"]["v"][21] == msgpack.Timestamp(TS_NS // 10**9, TS_NS % 10**9)
    assert {**message, "samples": 0} == {
        "gateway": "line1-gw", "stream": "h", "seq": 1234, "device": "press4", "historical": False, "samples": 0
    }  # fmt: skip


def test_msgpack_rare_columns(tags: TagTable) -> None:
    """As in json-columns."""
    batch = batch_of([(1.0, 11)], BAD, Flag.ARRIVAL_TIME | Flag.MACHINE_CLOCK_SUSPECT)
    for packed in (make_format("msgpack", IDENTITY, tags).message("s", batch, False),
                   *make_format("msgpack", IDENTITY, tags).rows("s", batch, False)):  # fmt: skip
        samples = msgpack.unpackb(packed)["samples"]
        assert (samples["status"], samples["arrival"], samples["clock"]) == ([BAD], [True], ["suspect"])


def test_bare_values(tags: TagTable) -> None:
    """`value`: text without quotes, all else as in JSON."""
    made = make_format("value", IDENTITY, tags)
    rows = [(value, int(kind)) for value, kind, _ in VALUES]
    for payload, (_, _, wanted) in zip(made.rows("s", batch_of(rows), False), VALUES, strict=True):
        if isinstance(wanted, str):
            assert payload.decode() == wanted
        else:
            assert same(json.loads(payload), wanted)
    with pytest.raises(ValueError, match="no message for a batch"):
        made.message("s", batch_of(rows), False)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "value"])
def test_what_no_encoder_likes_is_still_sent(name: Any, tags: TagTable) -> None:
    """Lone surrogates, integers beyond 64 bits, odd keys and objects: one bad row never stops a batch."""
    rows = [("\ud800", 12), (2**70, 9), ({(1, 2): object(), 3: 2**70}, 22), ([2**70], 9 | ARRAY)]
    made = make_format(name, IDENTITY, tags)
    assert made.message("s", batch_of(rows), False)
    assert len(made.rows("s", batch_of(rows), False)) == 4


def test_text_without_a_value_is_null(tags: TagTable) -> None:
    """A row of text whose value is missing is null, never NaN."""
    builder = BatchBuilder()
    builder.add(0, TS_NS, 1.0, Kind.DOUBLE)
    lone = builder.build(0, 1, TS_NS)
    lone = replace(lone, kind=np.array([Kind.STRING], np.uint8), value=np.array([float("nan")]))
    many = replace(batch_of([(float("nan"), 11)] * 20), kind=np.full(20, Kind.INT32, np.uint8))
    made = make_format("json", IDENTITY, tags)
    assert json.loads(made.message("s", lone, False))["samples"][0]["v"] is None
    assert {row["v"] for row in json.loads(made.message("s", many, False))["samples"]} == {None}
    assert msgpack.unpackb(make_format("msgpack", IDENTITY, tags).message("s", lone, False))["samples"]["v"] == [None]


@pytest.mark.parametrize(
    ("utc_ns", "text"),
    [
        (-11_644_473_600 * 10**9, "1601-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (100, "1970-01-01T00:00:00.0000001Z"),
        (253_402_300_799 * 10**9, "9999-12-31T23:59:59Z"),
        (910_692_730_085 * 10**9, "9999-12-31T23:59:59Z"),
        (-(10**21), "0001-01-01T00:00:00Z"),
    ],
)
def test_rfc3339(utc_ns: int, text: str) -> None:
    """The edges of OPC UA's DateTime, and beyond."""
    assert rfc3339(utc_ns) == text


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
def test_doubles_round_trip(numbers: list[float]) -> None:
    """Any double, any batch size, every format: read back bit by bit."""
    table = TagTable()
    for number in range(len(numbers)):
        table.add(Tag("d", str(number)))
    batch = batch_of([(number, 11) for number in numbers])
    read = [row["v"] for row in json.loads(make_format("json", IDENTITY, table).message("s", batch, False))["samples"]]
    columns = json.loads(make_format("json-columns", IDENTITY, table).message("s", batch, False))["v"]
    bare = [float(text) for text in make_format("value", IDENTITY, table).rows("s", batch, False)]
    for got in (read, columns, bare):
        assert [value.hex() for value in map(float, got)] == [value.hex() for value in numbers]


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=60))
def test_integers_round_trip(numbers: list[int]) -> None:
    """64-bit integers beside small ones."""
    table = TagTable()
    for number in range(len(numbers)):
        table.add(Tag("d", str(number)))
    batch = batch_of([(number, Kind.INT64) for number in numbers])
    columns = json.loads(make_format("json-columns", IDENTITY, table).message("s", batch, False))
    assert columns["v"] == numbers
    assert [int(text) for text in make_format("value", IDENTITY, table).rows("s", batch, False)] == numbers


@pytest.mark.parametrize("rows", [2, 3 * SMALL_ROWS])
def test_tags_that_are_added_later_have_their_names(rows: int) -> None:
    """Profiles and selections add tags while a format is in use; what it has seen before stays."""
    tags = TagTable()
    text = TagTexts(tags, lambda tag: tag.name.encode())
    for count in (1, rows):
        column = np.array([tags.add(Tag("press4", f"t{index}")) for index in range(count)], dtype=np.uint32)
        assert text.of(column[::-1]) == [f"t{index}".encode() for index in reversed(range(count))]


@pytest.mark.parametrize("column", [np.arange(6)[::2], np.frombuffer(b"\0" + np.arange(6).tobytes(), np.int64, 6, 1)])
def test_columns_need_not_be_dense_nor_aligned(column: Any) -> None:
    """Every other row; a column in the middle of a frame from disk."""
    assert orjson.loads(dumps_column(column)) == column.tolist()


@given(st.one_of(st.integers(-(2**64), 2**64), st.binary(), st.text()), st.sampled_from((8, 9, 12, 13, 15)))
def test_common_types_are_encoded_as_all_others(value: int | bytes | str, kind: int) -> None:
    """The short ways of `encode` give what `jsonable` says."""
    assert json.loads(encode(value, kind)) == json.loads(json.dumps(jsonable(value, kind)))


@pytest.mark.parametrize("count", [3, SMALL_ROWS + 3])
def test_names_stand_beside_labelled_numbers(tags: TagTable, count: int) -> None:
    """In every format with room for them; learned while running; only where a number has one."""
    batch = batch_of([(1, Kind.INT32), (9.0, Kind.DOUBLE), ([0, 1], Kind.BYTE | ARRAY)] + [(7, Kind.INT32)] * count)
    formats = {name: make_format(name, IDENTITY, tags) for name in FORMATS}
    before = {name: made.rows("s", batch, False) for name, made in formats.items()}
    assert not any(b'"name":' in row for row in before["json"])
    tags.learn(0, labels=((1, "RUN"),))
    tags.learn(1, labels=((0, "A"), (3, "B")), bits=True)
    tags.learn(2, labels=((1, "ON"),))
    tags.learn(3, labels=((1, "RUN"),))
    names = ["RUN", ["A", "B"], [None, "ON"], *[None] * count]
    message = orjson.loads(formats["json"].message("s", batch, False))
    assert [sample.get("name") for sample in message["samples"]] == names
    assert list(message["samples"][0]) == ["tag", "t", "v", "name", "q"]
    assert [orjson.loads(row)["samples"][0].get("name") for row in formats["json"].rows("s", batch, False)] == names
    assert orjson.loads(formats["json-columns"].message("s", batch, False))["name"] == names
    rows = [orjson.loads(row) for row in formats["json-columns"].rows("s", batch, False)]
    assert [row.get("name", [None])[0] for row in rows] == names
    assert msgpack.unpackb(formats["msgpack"].message("s", batch, False))["samples"]["name"] == names
    packed = [msgpack.unpackb(row)["samples"] for row in formats["msgpack"].rows("s", batch, False)]
    assert [row.get("name", [None])[0] for row in packed] == names
    assert formats["value"].rows("s", batch, False) == before["value"]


@pytest.mark.parametrize("name", ["json", "json-columns", "msgpack"])
def test_an_event_says_that_it_is_one(name: Any) -> None:
    """`kind` stands beside an event's fields, alone and among values, and nowhere else."""
    tags = TagTable()
    alarms, text = tags.add(Tag("press4", "alarms", event=True)), tags.add(Tag("press4", "text"))
    builder = BatchBuilder()
    builder.add(alarms, TS_NS, {"EventId": b"\0", "Severity": 700}, Kind.EXTENSION_OBJECT)
    builder.add(text, TS_NS, "x", Kind.STRING)
    batch = replace(builder.build(0, 1, TS_NS), seq=1)
    made = make_format(name, IDENTITY, tags)

    def kinds(message: bytes) -> list[Any]:
        parsed = msgpack.unpackb(message)["samples"] if name == "msgpack" else json.loads(message)
        if name == "json":
            return [sample.get("kind") for sample in parsed["samples"]]
        return list(parsed["kind"]) if "kind" in parsed else [None] * len(parsed["v"])

    assert kinds(made.message("h", batch, False)) == ["event", None]
    assert [kinds(row) for row in made.rows("h", batch, False)] == [["event"], [None]]
    without = made.message("h", batch.take(slice(1, None)), False)
    assert kinds(without) == [None] and b"kind" not in without


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("labels", [(), ((7, "RUNNING"), (21, "IDLE"))])
@pytest.mark.parametrize("clock", [UNDISCIPLINED, ClockState("ptp", 500, "locked")])
@pytest.mark.parametrize("historical", [True, False])
def test_few_rows_look_as_columns(
    name: FormatName, labels: tuple[tuple[int, str], ...], clock: ClockState, historical: bool
) -> None:
    """One row or some, of every type, with every quality: the same bytes, now and in the next message."""
    table = TagTable()
    for number in range(len(VALUES)):
        table.add(Tag("press4", f"tag{number}", labels=labels))
    made = make_format(name, IDENTITY, table)
    singles = [[(value, kind)] for value, kind, _ in VALUES] + [[(7, Kind.INT32)]]
    for rows in [*singles, *singles, [(value, kind) for value, kind, _ in VALUES[:12]]]:
        for status, flags in ((0, 0), (BAD, Flag.ARRIVAL_TIME), (UNCERTAIN, Flag.GATEWAY_CLOCK_STEPPED)):
            batch = replace(batch_of(rows, status, flags), clock=clock)
            few = FewRows.of(rows_without_columns(batch), 0, 1, None, batch.received_ns, batch.extra, clock, batch.seq)
            if name != "value":
                assert made.message("s", few, historical) == made.message("s", batch, historical)
            assert made.rows("s", few, historical) == made.rows("s", batch, historical)


def rows_without_columns(batch: Batch) -> list[Row]:
    """As a source makes them."""
    columns = (batch.tag, batch.ts_ns, batch.value, batch.status, batch.kind, batch.flags)
    return list(zip(*(column.tolist() for column in columns), strict=True))
