"""Columns against a reference written with `struct`, for every type, word order and place in a block."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.modbus_decode import BAD_DECODING_ERROR, BAD_NO_DATA, Layout
from connectors.modbus_few import scalars
from connectors.modbus_plan import DATE_TIMES, REGISTERS, Block, DataType, Point, Table, WordOrder, plan
from connectors.modbus_register import parse_register
from connectors.modbus_time import to_ns
from pipelines.batch import ARRAY, Kind

IMAGE_REGISTERS = 40
FORMATS = {
    DataType.INT8: ("b", 1, Kind.SBYTE),
    DataType.UINT8: ("B", 1, Kind.BYTE),
    DataType.FLOAT16: ("e", 1, Kind.FLOAT),
    DataType.BCD16: ("H", 1, Kind.UINT16),
    DataType.BCD32: ("I", 2, Kind.UINT32),
    DataType.INT16: ("h", 1, Kind.INT16),
    DataType.UINT16: ("H", 1, Kind.UINT16),
    DataType.INT32: ("i", 2, Kind.INT32),
    DataType.UINT32: ("I", 2, Kind.UINT32),
    DataType.INT64: ("q", 4, Kind.INT64),
    DataType.UINT64: ("Q", 4, Kind.UINT64),
    DataType.FLOAT32: ("f", 2, Kind.FLOAT),
    DataType.FLOAT64: ("d", 4, Kind.DOUBLE),
}


BYTES = {DataType.INT8, DataType.UINT8}
NO_ARRAY = BYTES | {DataType.STRING} | DATE_TIMES


@st.composite
def any_points(draw: st.DrawFn) -> list[Point]:
    points: list[Point] = []
    for at in range(draw(st.integers(1, 25))):
        kind, order = draw(st.sampled_from(DataType)), draw(st.sampled_from(WordOrder))
        table = draw(st.sampled_from(Table)) if kind is DataType.BOOL else draw(st.sampled_from([*Table][:2]))
        length = draw(st.integers(1, 9)) if kind is DataType.STRING else 0
        half = draw(st.sampled_from(["low", "high"])) if kind in BYTES or (length and draw(st.booleans())) else ""
        array = kind not in NO_ARRAY and (kind is not DataType.BOOL or table.of_bits) and draw(st.booleans())
        items = draw(st.integers(1, 4)) if array else 0
        count = REGISTERS.get(kind, length if half else (length + 1) // 2) * (items or 1)
        address = draw(st.integers(0, IMAGE_REGISTERS - count))
        bit = draw(st.integers(0, 15)) if not table.of_bits and kind is DataType.BOOL else 0
        points.append(Point(f"p{at}", table, address, count, kind, order, bit, length, half, items))
    return points


def reference(point: Point, memory: dict[Table, bytes]) -> Any:
    """The value with `struct` and plain Python; None where the bytes are none."""
    if point.items:
        each = [reference(one, memory) for one in point.elements()]
        return None if None in each else each
    if point.table.of_bits:
        return bool(memory[point.table][point.address // 8] >> point.address % 8 & 1)
    data = memory[point.table][2 * point.address : 2 * point.stop]
    words = [data[at : at + 2] for at in range(0, len(data), 2)]
    if point.order.bytes_swapped:
        words = [word[::-1] for word in words]
    if point.order.low_word_first:
        words.reverse()
    if point.half:
        words = [word[:1] if point.half == "high" else word[1:] for word in words]
    if point.type is DataType.STRING:
        return b"".join(words)[: point.length].decode("utf-8", "replace").split("\0")[0].strip()
    if point.type is DataType.BOOL:
        return bool(int.from_bytes(words[0], "big") >> point.bit & 1)
    if point.type.is_time:
        return to_ns(point.type, b"".join(words))
    if point.type in {DataType.BCD16, DataType.BCD32}:
        digits = b"".join(words).hex()
        return int(digits) if digits.isdecimal() else None
    return struct.unpack(">" + FORMATS[point.type][0], b"".join(words))[0]


def answers(blocks: tuple[Block, ...], memory: dict[Table, bytes]) -> list[bytes]:
    replies = []
    for block in blocks:
        if block.table.of_bits:
            bits = int.from_bytes(memory[block.table], "little") >> block.start & (1 << block.count) - 1
            replies.append(bits.to_bytes(block.reply_bytes, "little"))
        else:
            replies.append(memory[block.table][2 * block.start : 2 * (block.start + block.count)])
    return replies


IMAGES = st.one_of(
    st.binary(min_size=2 * IMAGE_REGISTERS, max_size=2 * IMAGE_REGISTERS),
    st.lists(st.sampled_from(range(10)), min_size=4 * IMAGE_REGISTERS, max_size=4 * IMAGE_REGISTERS).map(
        lambda digits: bytes.fromhex("".join(map(str, digits)))  # BCD, and now and then a date
    ),
)


@given(any_points(), IMAGES, st.integers(0, 8), st.integers(16, 40))
def test_every_type_in_every_order_at_every_place(points: list[Point], image: bytes, gap: int, size: int) -> None:
    memory = {Table.HOLDING: image, Table.INPUT: image[::-1], Table.COIL: image[7:] + image[:7], Table.DISCRETE: image}
    blocks = plan(points, gap, size)
    layout = Layout(blocks)
    value, extra, bad = layout.decode(answers(blocks, memory))
    assert sorted(point.name for point in layout.points) == sorted(point.name for point in points)
    for row, point in enumerate(layout.points):
        assert point in blocks[layout.block[row]].points
        expected = reference(point, memory)
        if expected is None:
            assert (bad[row], row in (extra or {})) == (BAD_DECODING_ERROR, False)
            assert math.isnan(value[row])
        else:
            assert row not in bad
            check_row(row, expected, point, layout, value, extra or {})


@given(any_points(), IMAGES, st.integers(0, 8), st.integers(16, 40))
def test_a_few_numbers_without_numpy_are_the_same(points: list[Point], image: bytes, gap: int, size: int) -> None:
    """Where the scalar way takes a block, it gives what the columns are; nothing, where some are in `extra`."""
    memory = {Table.HOLDING: image, Table.INPUT: image[::-1], Table.COIL: image[7:] + image[:7], Table.DISCRETE: image}
    blocks = plan(
        [point for point in points if not point.items and point.type in FORMATS | {DataType.BOOL: ()}], gap, size
    )
    for block, data in zip(blocks, answers(blocks, memory), strict=True):
        layout = Layout([block])
        value, extra, bad = layout.decode([data])
        decode = scalars(block, layout.points)
        bcd = any(point.type in {DataType.BCD16, DataType.BCD32} for point in block.points)
        assert (decode is None) is bcd
        if decode is not None:
            found = decode(data)
            assert (found is None) is bool(extra) and not bad
            assert found is None or repr(found) == repr(value.tolist())


def check_row(row: int, expected: Any, point: Point, layout: Layout, value: Any, extra: dict[int, Any]) -> None:
    if point.type in FORMATS:
        assert layout.kind[row] == FORMATS[point.type][2] + (ARRAY if point.items else 0)
    if isinstance(expected, list):
        np.testing.assert_equal(extra[row], expected)  # NaN equals NaN
        assert [type(item) for item in extra[row]] == [type(item) for item in expected]
        assert math.isnan(value[row])
    elif row in extra:
        assert math.isnan(value[row])
        assert extra[row] == expected
        assert isinstance(expected, str) or abs(expected) > 2**53 or point.type.is_time
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(value[row])
    else:
        assert value[row] == expected
        assert not isinstance(expected, str)


@pytest.mark.parametrize(
    ("order", "data"),
    [
        (WordOrder.BIG, "41480000"),
        (WordOrder.LITTLE, "00004148"),
        (WordOrder.BIG_BYTE_SWAPPED, "48410000"),
        (WordOrder.LITTLE_BYTE_SWAPPED, "00004841"),
    ],
)
def test_the_four_word_orders_of_12_5(order: WordOrder, data: str) -> None:
    point = Point("flow", Table.INPUT, 12, 2, DataType.FLOAT32, order)
    value, extra, _ = Layout(plan([point], 0, 125)).decode([bytes.fromhex(data)])
    assert value.tolist() == [12.5]
    assert extra is None


def test_integers_beyond_2_to_the_53_stay_exact() -> None:
    points = [Point(str(at), Table.HOLDING, 4 * at, 4, DataType.UINT64) for at in range(3)]
    value, extra, _ = Layout(plan(points, 0, 125)).decode([struct.pack(">QQQ", 2**53, 2**53 + 1, 2**64 - 1)])
    assert value[0] == 2**53
    assert extra == {1: 2**53 + 1, 2: 2**64 - 1}


def test_strings_end_at_nul_and_lose_padding() -> None:
    point = Point("model", Table.HOLDING, 0, 5, DataType.STRING, length=10)
    layout = Layout(plan([point], 0, 125))
    assert layout.decode([b"SDM630\0\0xy"]).extra == {0: "SDM630"}
    assert layout.decode([b"SDM630    "]).extra == {0: "SDM630"}
    assert layout.kind.tolist() == [Kind.STRING]


def test_signalling_nan_is_a_value_without_a_warning() -> None:
    point = Point("p", Table.HOLDING, 0, 2, DataType.FLOAT32)
    value, _, _ = Layout(plan([point], 0, 125)).decode([bytes.fromhex("7f800001")])
    assert math.isnan(value[0])


def decoded(points: list[Point], registers: list[int]) -> dict[str, Any]:
    """Registers from address 0 on -> each point's value, or ("bad", StatusCode)."""
    blocks = plan(points, 8, 125)
    layout = Layout(blocks)
    data = struct.pack(f">{len(registers)}H", *registers)
    value, extra, bad = layout.decode([data[2 * block.start : 2 * (block.start + block.count)] for block in blocks])
    rows = {row: (extra or {}).get(row, number) for row, number in enumerate(value.tolist())}
    return {point.name: ("bad", bad[row]) if row in bad else rows[row] for row, point in enumerate(layout.points)}


def sunspec(name: str, register: str, scale: str, *invalid: int) -> Point:
    return replace(parse_register(register, name), scale_from=parse_register(scale), invalid=invalid)


def test_a_scale_from_a_register_is_a_power_of_ten() -> None:
    """SunSpec: W = 231 with W_SF = -1 is 23.1, exactly what a person would write."""
    points = [
        sunspec("tenth", "holding 0 int16", "holding 1 int16"),
        sunspec("big", "holding 2 uint32", "holding 4 int16"),
        sunspec("none", "holding 5 int16", "holding 6 int16", -32768),
        sunspec("no scale", "holding 0 int16", "holding 7 int16"),
        sunspec("exact", "holding 8 uint64", "holding 4 int16"),
    ]
    registers = [231, 0xFFFF, 1, 0, 3, 0x8000, 0, 0x8000, 0x8000, 0, 0, 1]
    assert decoded(points, registers) == {
        "tenth": 23.1,
        "big": 65536_000.0,
        "none": ("bad", BAD_NO_DATA),
        "no scale": ("bad", BAD_NO_DATA),
        "exact": (2**63 + 1) * 1000.0,
    }


def test_value_and_scale_come_in_one_read() -> None:
    """Also far from each other, and where a block ends between them: then the scale is read twice."""
    far = [sunspec("w", "holding 0 int16", "holding 60 int16")]
    assert [block.place for block in plan(far, 0, 125)] == ["holding 0-60"]
    points = [sunspec(f"p{at}", f"holding {at} int16", "holding 30 int16") for at in (0, 25, 50)]
    blocks = plan(points, 8, 40)
    assert [block.place for block in blocks] == ["holding 0-30", "holding 30-50"]
    assert decoded(points, [*range(30), 2, *range(31, 60)]) == {"p0": 0.0, "p25": 2500.0, "p50": 5000.0}
    layout = Layout(blocks)
    assert [layout.points[row].name for row in np.flatnonzero(layout.rows_without(1))] == ["p50"]


def test_a_scale_out_of_reach_is_read_by_itself() -> None:
    points = [sunspec("w", "holding 0 int16", "holding 60 int16"), sunspec("v", "holding 1 int16", "holding 60 int16")]
    blocks = plan(points, 0, 50)
    assert [block.place for block in blocks] == ["holding 0-1", "holding 60"]
    layout = Layout(blocks)
    assert [point.name for point in layout.points] == ["w", "v"]
    assert layout.decode([b"\0\5\0\6", b"\0\1"]).value.tolist() == [50.0, 60.0]
    assert layout.rows_without(1).all()


@pytest.mark.parametrize(
    ("register", "invalid", "raw"),
    [
        ("holding 0 int16", -32768, [0x8000]),
        ("holding 0 uint16", 0xFFFF, [0xFFFF]),
        ("holding 0 uint32", 0xFFFFFFFF, [0xFFFF, 0xFFFF]),
        ("holding 0 uint64", 2**64 - 1, [0xFFFF] * 4),
        ("holding 0 int64", -(2**63), [0x8000, 0, 0, 0]),
        ("holding 0 float32", math.nan, [0x7FC0, 0]),
        ("holding 0 float32", 3.4028235e38, [0x7F7F, 0xFFFF]),
        ("holding 0 string 4", "", [0, 0]),
        ("holding 0 string 4", "n/a", [0x6E2F, 0x6100]),
    ],
)
def test_a_raw_value_that_stands_for_none(register: str, invalid: Any, raw: list[int]) -> None:
    point = replace(parse_register(register, "p"), invalid=(invalid, 77 if not isinstance(invalid, str) else "?"))
    assert decoded([point], raw) == {"p": ("bad", BAD_NO_DATA)}
    assert decoded([point], [word ^ 0x0101 for word in raw])["p"] != ("bad", BAD_NO_DATA)


@pytest.mark.parametrize(
    ("encoding", "register", "text"),
    [
        ("latin-1", "holding 0 string 8", "Öl 20°C"),
        ("cp1252", "holding 0 string 8", "€ 5"),
        ("utf-16-be", "holding 0 string 8", "Öl€"),
        ("utf-8", "holding 0 string 8", "Öl €"),
    ],
)
def test_strings_have_a_code_page(encoding: str, register: str, text: str) -> None:
    point = replace(parse_register(register, "p"), encoding=encoding)
    data = text.encode(encoding).ljust(8, b"\0")
    assert decoded([point], list(struct.unpack(">4H", data))) == {"p": text}


def test_strings_may_lie_backwards_or_in_one_byte_of_each_register() -> None:
    points = [
        parse_register("holding 0 string 4", "swapped", WordOrder.BIG_BYTE_SWAPPED),
        parse_register("holding 2 string 4", "backwards", WordOrder.LITTLE_BYTE_SWAPPED),
        parse_register("holding 4.low string 3", "low"),
    ]
    registers = [0x6261, 0x6463, 0x6463, 0x6261, 0x0058, 0x0059, 0x005A]
    assert decoded(points, registers) == {"swapped": "abcd", "backwards": "abcd", "low": "XYZ"}


def test_absent_points_have_the_last_rows() -> None:
    here, gone = parse_register("holding 0 uint16", "here"), parse_register("holding 1 uint16", "gone")
    layout = Layout(plan([here], 0, 125), [gone])
    assert layout.decode([b"\0\7"]).value.tolist()[:1] == [7.0]
    assert [layout.kind.tolist(), layout.block.tolist()] == [[Kind.UINT16, Kind.NULL], [0, -1]]
    assert math.isnan(Layout([], [gone]).decode([]).value[0])
