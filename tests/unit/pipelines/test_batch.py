"""Batch and BatchBuilder against a model that knows rows only."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch import ARRAY, EXACT_INTEGER_MAX, SMALL_ROWS, Batch, BatchBuilder, Flag, Kind, rows_of
from pipelines.clock import ClockState
from tests.unit.pipelines.fakes import make_batch, rows_of_batch

BITS = {Kind.SBYTE: 8, Kind.INT16: 16, Kind.INT32: 32, Kind.INT64: 64}
UNSIGNED_BITS = {Kind.BYTE: 8, Kind.UINT16: 16, Kind.UINT32: 32, Kind.UINT64: 64, Kind.STATUS_CODE: 32}
VALUES: dict[int, st.SearchStrategy[Any]] = {
    Kind.NULL: st.none(),
    Kind.BOOLEAN: st.booleans(),
    Kind.FLOAT: st.floats(width=32),
    Kind.DOUBLE: st.floats(),
    Kind.STRING: st.text(max_size=5),
    Kind.DATETIME: st.integers(-(2**63), 2**63 - 1),
    Kind.GUID: st.uuids().map(str),
    Kind.BYTESTRING: st.binary(max_size=5),
    Kind.EXTENSION_OBJECT: st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    Kind.INT32 | ARRAY: st.lists(st.integers(-9, 9), max_size=3),
    Kind.STRING | ARRAY: st.lists(st.text(max_size=2), max_size=3),
}
VALUES |= {kind: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for kind, bits in BITS.items()}
VALUES |= {kind: st.integers(0, 2**bits - 1) for kind, bits in UNSIGNED_BITS.items()}
ROW = st.sampled_from(sorted(VALUES)).flatmap(
    lambda kind: st.tuples(
        st.integers(0, 2**32 - 1),  # tag
        st.integers(-(2**63), 2**63 - 1),  # ts_ns
        VALUES[kind],
        st.just(int(kind)),
        st.integers(0, 2**32 - 1),  # status
        st.integers(0, 15),  # flags
    )
)
ROWS = st.lists(ROW, max_size=2 * SMALL_ROWS + 8)


def built(rows: list[tuple[Any, ...]]) -> Batch:
    builder = BatchBuilder()
    for row in rows:
        builder.add(*row)
    assert len(builder) == len(rows)
    return builder.build(source_id=3, number=7, received_ns=11, origin=b"o")


def expected(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [
        (tag, ts, status, kind, flags, f"{type(value).__name__} {value!r}")
        for tag, ts, value, kind, status, flags in rows
    ]


@given(ROWS)
def test_built_rows_come_back(rows: list[tuple[Any, ...]]) -> None:
    """Every value of every kind comes back exactly and with its Python type, in small and in large batches."""
    batch = built(rows)
    assert rows_of_batch(batch) == expected(rows)
    assert len(batch) == len(rows)


@given(ROWS, st.data())
def test_take(rows: list[tuple[Any, ...]], data: st.DataObject) -> None:
    """`take` by mask, by slice and by row numbers in any order is the same choice of rows, extras included."""
    batch = built(rows)
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    chosen = [row for row, wanted in zip(rows, mask, strict=True) if wanted]
    assert rows_of_batch(batch.take(np.array(mask, dtype=np.bool_))) == expected(chosen)
    start, stop = data.draw(st.tuples(st.integers(0, 50), st.integers(0, 50)))
    step = data.draw(st.sampled_from([None, 1, 2, 3]))
    part = slice(start, stop, step)
    assert rows_of_batch(batch.take(part)) == expected(rows[part])
    order = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(0, len(rows)))]
    assert rows_of_batch(batch.take(np.array(order, dtype=np.intp))) == expected([rows[row] for row in order])


@given(ROWS, st.integers(1, 20))
def test_split(rows: list[tuple[Any, ...]], rows_max: int) -> None:
    """Parts are in order, none above the limit, together all rows; only the last one carries the origin."""
    batch = built(rows)
    parts = list(batch.split(rows_max))
    assert [row for part in parts for row in rows_of_batch(part)] == expected(rows)
    assert all(len(part) <= rows_max for part in parts)
    assert [part.origin for part in parts] == [None] * (len(parts) - 1) + [b"o"]
    assert {(part.source_id, part.number, part.received_ns) for part in parts} == {(3, 7, 11)}
    assert rows_of(parts) == len(rows)


def test_split_leaves_a_small_batch_alone() -> None:
    """A batch within the limit, an empty one too, is itself its only part."""
    for rows in (0, 1, 1000):
        batch = make_batch(rows=rows)
        (part,) = batch.split(1000)
        assert part is batch


def test_take_nothing_has_no_extra() -> None:
    """A batch without rows in `extra` says None, not an empty dict."""
    batch = built([(0, 0, "a", int(Kind.STRING), 0, 0), (0, 0, 1.0, int(Kind.DOUBLE), 0, 0)])
    assert batch.take(slice(1, 2)).extra is None
    assert batch.take(np.array([False, True])).extra is None
    assert batch.take(np.array([1])).extra is None


@pytest.mark.parametrize("rows", [1, SMALL_ROWS + 1])
def test_rows_without_a_value_are_none(rows: int) -> None:
    """NaN is a value of floats only: a boolean, integer or text row without a value reads None, not NaN or True."""
    for kind in range(Kind.DIAGNOSTIC_INFO + 1):
        value = make_batch(value=[float("nan")] * rows, kind=kind).values()
        if kind in (Kind.FLOAT, Kind.DOUBLE):
            assert all(item != item for item in value)  # noqa: PLR0124
        else:
            assert value == [None] * rows
    assert make_batch(value=[5.0] * rows, kind=Kind.NULL).values() == [None] * rows


@pytest.mark.parametrize("rows", [1, SMALL_ROWS + 1])
def test_infinity_in_an_integer_row_survives(rows: int) -> None:
    """A stage may leave an infinity in an integer row: it is given as it is, and raises nothing."""
    assert make_batch(value=[float("inf")] * rows, kind=Kind.INT32).values() == [float("inf")] * rows


def test_small_and_large_batches_agree() -> None:
    """The row-by-row way and the columnar way give the same objects for every kind and any finite number."""
    kinds = [kind for kind in range(Kind.DIAGNOSTIC_INFO + 1) for _ in range(2)]
    numbers = [number for _ in range(Kind.DIAGNOSTIC_INFO + 1) for number in (0.0, 3.0)]
    large = make_batch(value=numbers, kind=kinds).values()
    small = [make_batch(value=[n], kind=k).values()[0] for k, n in zip(kinds, numbers, strict=True)]
    assert [(type(v), v) for v in large] == [(type(v), v) for v in small]


@pytest.mark.parametrize("number", [EXACT_INTEGER_MAX, -EXACT_INTEGER_MAX])
def test_integers_up_to_2_53_stay_in_the_column(number: int) -> None:
    """2^53 itself is exact in an f64; one beyond travels in `extra`."""
    inside = built([(0, 0, number, int(Kind.INT64), 0, 0)])
    assert inside.extra is None
    beyond = number + (1 if number > 0 else -1)
    outside = built([(0, 0, beyond, int(Kind.INT64), 0, 0)])
    assert outside.extra == {0: beyond}
    assert np.isnan(outside.value[0])


def test_build_fills_the_head() -> None:
    """Head fields are passed through; columns have the types of the design; a new batch has no seq."""
    clock = ClockState("ptp", 40)
    builder = BatchBuilder()
    builder.add(1, 2, 3.0, Kind.DOUBLE, flags=Flag.ARRIVAL_TIME)
    batch = builder.build(1, 2, 3, origin=b"x", clock=clock)
    assert (batch.source_id, batch.number, batch.received_ns, batch.origin, batch.clock, batch.seq) == (
        1,
        2,
        3,
        b"x",
        clock,
        -1,
    )
    types = [column.dtype for column in (batch.tag, batch.ts_ns, batch.value, batch.status, batch.kind, batch.flags)]
    assert types == [np.uint32, np.int64, np.float64, np.uint32, np.uint8, np.uint8]


def test_a_built_batch_does_not_change_with_its_builder() -> None:
    """Rows that are added after `build` are in the next batch only, extras too."""
    builder = BatchBuilder()
    builder.add(0, 0, "a", Kind.STRING)
    batch = builder.build(0, 0, 0)
    builder.add(0, 0, "b", Kind.STRING)
    assert batch.values() == ["a"]
    assert builder.build(0, 0, 0).values() == ["a", "b"]


def test_numbered_changes_the_seq_only() -> None:
    """A lane's number makes a new batch that shares every column; the offered one stays unnumbered."""
    batch = built([(1, 2, "a", int(Kind.STRING), 4, 1)])
    numbered = batch.numbered(99)
    assert (numbered.seq, batch.seq) == (99, -1)
    assert numbered.value is batch.value
    assert (numbered.origin, numbered.number, numbered.clock) == (b"o", 7, batch.clock)
    assert rows_of_batch(numbered) == rows_of_batch(batch)


@pytest.mark.parametrize(
    ("value", "at_least"),
    [
        ("x" * 5000, 5000),
        (b"x" * 5000, 5000),
        (["x" * 100] * 50, 5000),
        ([1.5] * 1000, 32_000),
        ([[1, 2]] * 100, 100 * (50 + 64)),
        ({"a": "x" * 5000, "b": {"c": b"x" * 5000}}, 10_000),
        (2**60, 32),
        ([], 0),
    ],
)
def test_nbytes_counts_what_extras_hold(value: Any, at_least: int) -> None:
    """A lane's bound holds for text, bytes, nested lists and structures too, not for columns only."""
    plain, heavy = make_batch(rows=10), make_batch(rows=10, extra={0: value})
    assert plain.nbytes == 200 + 26 * 10
    assert plain.nbytes + at_least <= heavy.nbytes <= plain.nbytes + at_least * 3 + 400
