"""The planner's promises, for any points."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.modbus_plan import Block, DataType, Point, Range, Table, describe, halves, plan


@st.composite
def any_points(draw: st.DrawFn) -> list[Point]:
    spots = st.tuples(st.sampled_from(Table), st.integers(0, 300), st.integers(1, 8))
    points = []
    for at, (table, address, count) in enumerate(draw(st.lists(spots, min_size=1, max_size=60))):
        kind = DataType.BOOL if table.of_bits else DataType.STRING
        points.append(Point(f"p{at}", table, address, 1 if table.of_bits else count, kind))
    return points


def covered(block: Block) -> set[int]:
    return {address for point in block.points for address in range(point.address, point.stop)}


@given(any_points(), st.integers(0, 20), st.integers(8, 125))
def test_every_point_is_read_once_whole_and_within_the_limits(points: list[Point], gap: int, size: int) -> None:
    blocks = plan(points, gap, size)
    assert sorted(point.name for block in blocks for point in block.points) == sorted(point.name for point in points)
    for block in blocks:
        unit = 16 if block.table.of_bits else 1
        assert block.count <= size * unit
        assert all(point.table is block.table for point in block.points)
        assert all(block.start <= point.address and point.stop <= block.start + block.count for point in block.points)
        used = sorted(covered(block))
        assert used[0] == block.start
        assert used[-1] == block.start + block.count - 1
        assert all(after - before - 1 <= gap * unit for before, after in pairwise(used))


@given(any_points(), st.integers(0, 20), st.integers(8, 125))
def test_no_two_neighbouring_reads_could_be_one(points: list[Point], gap: int, size: int) -> None:
    for first, second in pairwise(plan(points, gap, size)):
        if first.table is second.table:
            unit = 16 if first.table.of_bits else 1
            opening = second.points[0]
            too_long = opening.stop - first.start > size * unit
            too_far = opening.address - (first.start + first.count) > gap * unit
            assert too_long or too_far


@given(any_points(), st.integers(0, 300), st.integers(1, 20))
def test_no_gap_is_bridged_over_a_forbidden_range(points: list[Point], start: int, length: int) -> None:
    hole = Range(Table.HOLDING, start, start + length)
    for block in plan(points, 125, 125, [hole]):
        if block.table is Table.HOLDING:
            gaps = set(range(block.start, block.start + block.count)) - covered(block)
            assert not gaps & set(range(hole.start, hole.stop))


@given(any_points())
def test_halves_keep_every_point_and_end(points: list[Point]) -> None:
    waiting = list(plan(points, 20, 125))
    ended: list[Block] = []
    while waiting:
        block = waiting.pop()
        parts = halves(block)
        if parts is None:
            assert len({(point.address, point.stop) for point in block.points}) == 1
            ended.append(block)
            continue
        assert parts[0].points + parts[1].points == block.points
        assert all(part.points and part.count <= block.count for part in parts)
        waiting.extend(parts)
    assert sorted(point.name for block in ended for point in block.points) == sorted(point.name for point in points)


def test_a_refused_block_is_cut_in_its_widest_gap_first() -> None:
    points = [Point(str(at), Table.HOLDING, at, 1, DataType.INT16) for at in (0, 1, 3, 10, 11)]
    (block,) = plan(points, 8, 125)
    parts = halves(block)
    assert parts is not None
    assert [part.place for part in parts] == ["holding 0-3", "holding 10-11"]


def test_a_point_longer_than_a_read_is_refused() -> None:
    with pytest.raises(ValueError, match="name: needs 16 registers"):
        plan([Point("name", Table.INPUT, 0, 16, DataType.STRING, length=32)], 8, 10)


def test_describe_counts_bridged_gaps() -> None:
    points = [Point(str(at), Table.HOLDING, at, 1, DataType.INT16) for at in (0, 1, 5, 9)]
    assert describe(plan(points, 3, 125)) == ["holding 0-9 (10 registers, 4 tags, 2 gaps bridged)"]
    assert describe(plan(points[:1], 3, 125)) == ["holding 0 (1 register, 1 tag)"]
