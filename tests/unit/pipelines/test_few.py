"""Few rows without columns: to everybody who asks, the batch that the columns make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.batch import Batch, Kind
from pipelines.clock import UNDISCIPLINED
from pipelines.few import FewRows, Row, few_rows, first_tag
from pipelines.frame import decode, decode_batch, encode_batch
from tests.unit.pipelines.fakes import WALL_NS, rows_of_batch

ROWS: list[Row] = [
    (7, WALL_NS, 1.5, 0, Kind.DOUBLE, 0),
    (2, WALL_NS + 1, 3, 0x800A_0000, Kind.INT32, 1),
    (7, WALL_NS + 2, float("nan"), 0, Kind.STRING, 2),
]
EXTRA = {2: "text"}


def few() -> FewRows:
    return FewRows.of(ROWS, 3, 11, b"o", WALL_NS, EXTRA, UNDISCIPLINED)


def columns() -> Batch:
    tag, ts_ns, value, status, kind, flags = zip(*ROWS, strict=True)
    return Batch(
        3,
        11,
        b"o",
        WALL_NS,
        np.array(tag, np.uint32),
        np.array(ts_ns, np.int64),
        np.array(value, np.float64),
        np.array(status, np.uint32),
        np.array(kind, np.uint8),
        np.array(flags, np.uint8),
        EXTRA,
        UNDISCIPLINED,
    )


def same(one: Batch, other: Batch) -> bool:
    """Every field, and the types of the columns."""
    types = [
        [getattr(batch, name).dtype for name in ("tag", "ts_ns", "value", "status", "kind", "flags")]
        for batch in (one, other)
    ]
    heads = [(b.source_id, b.number, b.origin, b.received_ns, b.clock, b.seq, b.lane_ns) for b in (one, other)]
    return rows_of_batch(one) == rows_of_batch(other) and types[0] == types[1] and heads[0] == heads[1]


def test_columns_on_demand() -> None:
    """Values, types, length and size are those of the columns."""
    assert same(few(), columns())
    assert len(few()) == 3 and few().nbytes == columns().nbytes
    assert few_rows(few()) == ROWS and few_rows(columns()) is None
    assert first_tag(few()) == first_tag(columns()) == 7


def test_numbered_keeps_the_rows() -> None:
    """What a lane gives; the batch itself stays as it was."""
    batch = few()
    numbered = batch.numbered(5, 6)
    assert same(numbered, columns().numbered(5, 6)) and few_rows(numbered) == ROWS
    assert (batch.seq, batch.lane_ns) == (-1, 0)


def test_a_replaced_column_shows_in_the_rows() -> None:
    """As the stages do it; and numbered behind it."""
    flagged = replace(few(), flags=few().flags | np.uint8(4)).numbered(5, 6)
    assert same(flagged, replace(columns(), flags=columns().flags | np.uint8(4)).numbered(5, 6))
    assert [row[5] for row in few_rows(flagged) or ()] == [4, 5, 6]


@pytest.mark.parametrize("rows", [slice(1, 3), np.array([True, False, True])])
def test_take(rows: slice) -> None:
    """Some of the rows, `extra` with them."""
    assert same(few().take(rows), columns().take(rows))
    assert first_tag(few().take(rows)) == first_tag(columns().take(rows))


def test_through_a_frame() -> None:
    """The disk lane writes the same bytes."""
    assert encode_batch(few(), 5) == encode_batch(columns(), 5)
    assert same(decode_batch(decode(encode_batch(few(), 5))).batch, columns().numbered(5))


def test_no_such_attribute() -> None:
    """An error as of any object."""
    with pytest.raises(AttributeError, match="colour"):
        few().colour  # noqa: B018
