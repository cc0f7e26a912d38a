"""pipelines.columns against the plain way."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.columns import ROWS_PER_RUN_MIN, runs, uniform

COLUMNS = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(1, 40)), max_size=8).map(
    lambda parts: [value for value, rows in parts for _ in range(rows)]
)


@given(COLUMNS)
def test_runs_are_the_groups_of_equal_neighbours(rows: list[int]) -> None:
    """Every run with its value and length, in order; None only where they are short on average."""
    groups = [(value, len(list(same))) for value, same in groupby(rows)]
    found = runs(np.array(rows, dtype=np.int64))
    assert found == groups or (found is None and len(groups) * ROWS_PER_RUN_MIN > len(rows))


@given(COLUMNS)
def test_uniform_means_at_most_one_value(rows: list[int]) -> None:
    """Also for no row and for one."""
    assert uniform(np.array(rows, dtype=np.int64)) == (len(set(rows)) <= 1)
