"""Counters are plain integers; the histogram's quantiles are numpy's within a bucket."""

from math import ceil

import numpy as np
import pytest

from pipelines.counters import BOUNDS_NS, Counters, Histogram


def test_snapshot() -> None:
    """Totals grow by `add`, gauges take the last `set`; the snapshot is a copy."""
    counters = Counters("lane", "history")
    counters.add("rows")
    counters.add("rows", 4)
    counters.set("lane_bytes", 9)
    counters.set("lane_bytes", 3)
    snapshot = counters.snapshot()
    counters.add("rows")
    assert (counters.kind, counters.name) == ("lane", "history")
    assert snapshot == {"rows": 5, "lane_bytes": 3}


@pytest.mark.parametrize("count", [1, 3, 8, 9, 1000])
@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles(count: int, q: float) -> None:
    """Each quantile is the upper bound of the bucket that holds numpy's quantile of the same durations."""
    durations = np.random.default_rng(count).lognormal(14, 3, count).astype(np.int64)
    histogram = Histogram()
    histogram.observe(durations)
    ranked = int(np.sort(durations)[max(ceil(q * count), 1) - 1])
    assert ranked == np.quantile(durations, q, method="inverted_cdf")
    bound = histogram.quantile_ns(q)
    index = int(np.flatnonzero(bound == BOUNDS_NS)[0])
    lower = int(BOUNDS_NS[index - 1]) if index else -1
    assert lower < ranked <= bound or (bound == BOUNDS_NS[-1] and ranked > bound)
    assert histogram.count == count
    assert histogram.sum_ns == pytest.approx(int(durations.sum()))


def test_one_by_one_is_the_same_as_a_column() -> None:
    """An int, a short column and a long column count the same, bounds themselves in their own bucket."""
    durations = np.concatenate([BOUNDS_NS, BOUNDS_NS + 1, BOUNDS_NS - 1, [-5, 0, 10**15]])
    single, short, column = Histogram(), Histogram(), Histogram()
    column.observe(durations)
    for duration in durations.tolist():
        single.observe(duration)
    for start in range(0, len(durations), 5):
        short.observe(durations[start : start + 5])
    assert single.counts.tolist() == short.counts.tolist() == column.counts.tolist()
    assert single.sum_ns == short.sum_ns == column.sum_ns


def test_negative_durations_count_as_zero() -> None:
    """A machine's clock ahead of ours neither fails nor lowers the sum."""
    histogram = Histogram()
    histogram.observe(-(10**12))
    histogram.observe(np.full(20, -(10**12)))
    assert (histogram.count, histogram.sum_ns, histogram.quantile_ns(1.0)) == (21, 0, int(BOUNDS_NS[0]))


def test_machines_at_1970_do_not_overflow() -> None:
    """A thousand rows with an unset machine clock are 55 years each: more than an i64 of ns in sum."""
    histogram = Histogram()
    histogram.observe(np.full(1000, 1_750_000_000_000_000_000))
    assert histogram.sum_ns == pytest.approx(1000 * 1_750_000_000_000_000_000)
    assert histogram.quantile_ns(0.5) == BOUNDS_NS[-1]


def test_nothing_observed() -> None:
    """An empty histogram, and one that saw an empty column, answers 0."""
    histogram = Histogram()
    histogram.observe(np.zeros(0, dtype=np.int64))
    assert (histogram.count, histogram.quantile_ns(0.5), histogram.sum_ns) == (0, 0, 0)
