"""Counters are plain integers; the histogram's quantiles are numpy's within a bucket."""

import numpy as np
import pytest

from pipelines.counters import BOUNDS_NS, OCTAVE_BOUNDS_NS, OCTAVES, Counters, Histogram


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


@pytest.mark.parametrize("count", [1, 3, 8, 33, 1000, 20_000])
@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles(count: int, q: float) -> None:
    """Each quantile is in the bucket that holds numpy's of the same durations: never more than a sixteenth away."""
    durations = np.random.default_rng(count).lognormal(14, 3, count).astype(np.int64)
    histogram = Histogram()
    histogram.observe(durations)
    ranked = int(np.quantile(durations, q, method="inverted_cdf"))
    bucket = int(np.searchsorted(BOUNDS_NS, ranked))
    lower = int(BOUNDS_NS[bucket - 1]) if bucket else -1
    assert lower <= histogram.quantile_ns(q) <= int(BOUNDS_NS[min(bucket, len(BOUNDS_NS) - 1)])
    assert histogram.count == count
    assert histogram.sum_ns == pytest.approx(int(durations.sum()))


def test_buckets_are_fine_and_begin_at_two_microseconds() -> None:
    """No bucket is wider than a sixteenth of its lower bound; every octave's bounds are among them."""
    assert BOUNDS_NS[0] == 2_000 and BOUNDS_NS[-1] > 100 * 10**9
    assert float((np.diff(BOUNDS_NS) / BOUNDS_NS[:-1]).max()) == 1 / 16
    assert OCTAVE_BOUNDS_NS.tolist() == [2_000 << octave for octave in range(OCTAVES + 1)]


def test_quantiles_of_a_spread_bucket() -> None:
    """Inside a bucket durations are taken to be spread evenly: the median of one full octave is its middle."""
    histogram = Histogram()
    histogram.observe(np.arange(1_024_001, 2_048_001, 100))
    assert histogram.quantile_ns(0.5) == pytest.approx(1_536_000, rel=0.002)


def test_one_by_one_is_the_same_as_a_column() -> None:
    """An int, a short column and a long column count the same, bounds themselves in their own bucket."""
    durations = np.concatenate([BOUNDS_NS, BOUNDS_NS + 1, BOUNDS_NS - 1, [-5, 0, 10**15]])
    single, short, column, often = Histogram(), Histogram(), Histogram(), Histogram()
    often.observe(durations, np.full(len(durations), 3))
    column.observe(durations)
    for duration in durations.tolist():
        single.observe(duration)
    for start in range(0, len(durations), 5):
        short.observe(durations[start : start + 5])
    assert single.counts.tolist() == short.counts.tolist() == column.counts.tolist()
    assert single.sum_ns == short.sum_ns == pytest.approx(column.sum_ns)
    assert (often.counts // 3).tolist() == single.counts.tolist() and often.negative == 3 * single.negative == 3
    assert often.sum_ns == pytest.approx(3 * single.sum_ns)


def test_negative_durations_are_counted_apart() -> None:
    """A machine's clock ahead of ours: not a latency of 0, neither count nor sum nor quantile see it."""
    histogram = Histogram()
    histogram.observe(-(10**12))
    histogram.observe(np.full(50, -(10**12)))
    assert (histogram.negative, histogram.count, histogram.sum_ns, histogram.quantile_ns(1.0)) == (51, 0, 0, 0)
    histogram.observe(np.concatenate([np.full(50, -1), np.full(50, 7_000)]))
    assert (histogram.negative, histogram.count, histogram.sum_ns) == (101, 50, 350_000)


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
