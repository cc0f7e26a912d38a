"""Columns against a reference written with `struct`, for every type, word order and place in a block."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.modbus_decode import Layout
from connectors.modbus_plan import DataType, Point, Table, WordOrder, plan
from pipelines.batch import Kind

REGISTERS = 40
FORMATS = {
    DataType.INT16: ("h", 1, Kind.INT16),
    DataType.UINT16: ("H", 1, Kind.UINT16),
    DataType.INT32: ("i", 2, Kind.INT32),
    DataType.UINT32: ("I", 2, Kind.UINT32),
    DataType.INT64: ("q", 4, Kind.INT64),
    DataType.UINT64: ("Q", 4, Kind.UINT64),
    DataType.FLOAT32: ("f", 2, Kind.FLOAT),
    DataType.FLOAT64: ("d", 4, Kind.DOUBLE),
}


@st.composite
def any_points(draw: st.DrawFn) -> list[Point]:
    points: list[Point] = []
    for at in range(draw(st.integers(1, 25))):
        kind, order = draw(st.sampled_from(DataType)), draw(st.sampled_from(WordOrder))
        table = draw(st.sampled_from(Table)) if kind is DataType.BOOL else draw(st.sampled_from([*Table][:2]))
        length = draw(st.integers(1, 9)) if kind is DataType.STRING else 0
        count = (length + 1) // 2 or FORMATS.get(kind, ("", 1))[1]
        address = draw(st.integers(0, REGISTERS - count))
        bit = draw(st.integers(0, 15)) if not table.of_bits and kind is DataType.BOOL else 0
        points.append(Point(f"p{at}", table, address, count, kind, order, bit, length))
    return points


def reference(point: Point, memory: dict[Table, bytes]) -> Any:
    if point.table.of_bits:
        return bool(memory[point.table][point.address // 8] >> point.address % 8 & 1)
    data = memory[point.table][2 * point.address : 2 * point.stop]
    words = [data[at : at + 2] for at in range(0, len(data), 2)]
    if point.order.bytes_swapped:
        words = [word[::-1] for word in words]
    if point.type is DataType.STRING:
        return b"".join(words)[: point.length].split(b"\0")[0].decode("utf-8", "replace").strip()
    if point.order.low_word_first:
        words.reverse()
    if point.type is DataType.BOOL:
        return bool(int.from_bytes(words[0], "big") >> point.bit & 1)
    return struct.unpack(">" + FORMATS[point.type][0], b"".join(words))[0]


@given(any_points(), st.binary(min_size=2 * REGISTERS, max_size=2 * REGISTERS), st.integers(0, 8), st.integers(5, 40))
def test_every_type_in_every_order_at_every_place(points: list[Point], image: bytes, gap: int, size: int) -> None:
    memory = {Table.HOLDING: image, Table.INPUT: image[::-1], Table.COIL: image[7:] + image[:7], Table.DISCRETE: image}
    blocks = plan(points, gap, size)
    replies = []
    for block in blocks:
        if block.table.of_bits:
            bits = int.from_bytes(memory[block.table], "little") >> block.start & (1 << block.count) - 1
            replies.append(bits.to_bytes(block.reply_bytes, "little"))
        else:
            replies.append(memory[block.table][2 * block.start : 2 * (block.start + block.count)])
    layout = Layout(blocks)
    value, extra = layout.decode(replies)
    assert sorted(point.name for point in layout.points) == sorted(point.name for point in points)
    for row, point in enumerate(layout.points):
        assert point in blocks[layout.block[row]].points
        check_row(row, reference(point, memory), point, layout, value, extra or {})


def check_row(row: int, expected: Any, point: Point, layout: Layout, value: Any, extra: dict[int, Any]) -> None:
    if point.type in FORMATS:
        assert layout.kind[row] == FORMATS[point.type][2]
    if row in extra:
        assert math.isnan(value[row])
        assert extra[row] == expected
        assert isinstance(expected, str) or abs(expected) > 2**53
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
    value, extra = Layout(plan([point], 0, 125)).decode([bytes.fromhex(data)])
    assert value.tolist() == [12.5]
    assert extra is None


def test_integers_beyond_2_to_the_53_stay_exact() -> None:
    points = [Point(str(at), Table.HOLDING, 4 * at, 4, DataType.UINT64) for at in range(3)]
    value, extra = Layout(plan(points, 0, 125)).decode([struct.pack(">QQQ", 2**53, 2**53 + 1, 2**64 - 1)])
    assert value[0] == 2**53
    assert extra == {1: 2**53 + 1, 2: 2**64 - 1}


def test_strings_end_at_nul_and_lose_padding() -> None:
    point = Point("model", Table.HOLDING, 0, 5, DataType.STRING, length=10)
    layout = Layout(plan([point], 0, 125))
    assert layout.decode([b"SDM630\0\0xy"])[1] == {0: "SDM630"}
    assert layout.decode([b"SDM630    "])[1] == {0: "SDM630"}
    assert layout.kind.tolist() == [Kind.STRING]


def test_signalling_nan_is_a_value_without_a_warning() -> None:
    point = Point("p", Table.HOLDING, 0, 2, DataType.FLOAT32)
    value, _ = Layout(plan([point], 0, 125)).decode([bytes.fromhex("7f800001")])
    assert math.isnan(value[0])
