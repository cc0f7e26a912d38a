"""The legs of a sample's way: what is counted, what is not, and what the last minute looked like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipelines.batch import Batch, Flag
from pipelines.counters import Counters, Histogram
from pipelines.latency import (
    BATCHES_NOTED_MAX,
    KEPT_S,
    LANE_TO_ACK,
    RECEIVED_TO_ACK,
    RECEIVED_TO_LANE,
    SETTLE_NS,
    SOURCE_TO_ACK,
    SOURCE_TO_RECEIVED,
    WAYS,
    Latency,
    Recent,
    Sessions,
)
from tests.unit.pipelines.fakes import WALL_NS, make_batch

MS = 1_000_000


def made(ages_ns: Sequence[int], received_ns: int = WALL_NS, lane_ns: int = 0, flags: int = 0) -> Batch:
    """A batch of rows that were so old when they were received."""
    rows = len(ages_ns)
    times = np.array([received_ns - age_ns for age_ns in ages_ns], dtype=np.int64)
    column = np.full(rows, flags, dtype=np.uint8)
    return replace(make_batch(0, rows), ts_ns=times, received_ns=received_ns, lane_ns=lane_ns, flags=column)


def counted(batches: Sequence[Batch], now_ns: int, sessions: Sessions | None = None) -> dict[str, Histogram]:
    counters = Counters("pump", "fast")
    latency = Latency(counters, sessions)
    latency.observe(batches, now_ns)
    latency.flush()
    return dict(counters.histograms)


def test_each_leg_of_each_row() -> None:
    """The legs of every row add up to its whole way; a batch counts as many times as it has rows."""
    batches = [made([3 * MS, 5 * MS], lane_ns=WALL_NS + MS), made([7 * MS], WALL_NS + MS, WALL_NS + 2 * MS)]
    found = counted(batches, WALL_NS + 10 * MS)
    sums = {way: (each.count, each.sum_ns // MS) for way, each in found.items()}
    assert sums == {
        SOURCE_TO_RECEIVED: (3, 15),
        RECEIVED_TO_LANE: (3, 3),
        LANE_TO_ACK: (3, 26),
        RECEIVED_TO_ACK: (3, 29),
        SOURCE_TO_ACK: (3, 44),
    }


@pytest.mark.parametrize("period", [1, 7, 500])
def test_runs_of_one_time_count_as_row_by_row(period: int) -> None:
    """Rows that share a time are counted together: the same as one by one, whatever the length of the runs."""
    random = np.random.default_rng(period)
    batches = []
    for number in range(12):
        ages = np.repeat(random.integers(-MS, 50 * MS, 1 + 900 // period), period)[: 700 + number]
        flags = np.where(np.arange(len(ages)) % 1000 < 90, Flag.ARRIVAL_TIME, 0).astype(np.uint8)
        batches.append(replace(made(ages.tolist(), WALL_NS + number, WALL_NS + number + MS), flags=flags))
    found = counted(batches, WALL_NS + 60 * MS)
    for way, end_ns in ((SOURCE_TO_RECEIVED, None), (SOURCE_TO_ACK, WALL_NS + 60 * MS)):
        single = Histogram()
        for batch in batches:
            timed = batch.ts_ns[batch.flags == 0]
            for ts_ns in timed.tolist():
                single.observe((end_ns or batch.received_ns) - ts_ns)
        assert found[way].counts.tolist() == single.counts.tolist()
        assert found[way].negative == single.negative


def test_a_clock_ahead_is_not_a_latency_of_0() -> None:
    """Rows from the future are counted as such; what the gateway takes is known of them all the same."""
    found = counted([made([-MS, -MS, 2 * MS])], WALL_NS + 4 * MS)
    assert (found[SOURCE_TO_RECEIVED].negative, found[SOURCE_TO_RECEIVED].count) == (2, 1)
    assert (found[SOURCE_TO_ACK].negative, found[SOURCE_TO_ACK].count) == (0, 3)
    assert found[RECEIVED_TO_ACK].count == 3


def test_the_gateways_own_time_says_nothing_of_the_machine() -> None:
    """Rows without a machine's time have no first leg, and no way from the machine."""
    found = counted([made([0, 0], flags=Flag.ARRIVAL_TIME), made([MS] * 40)], WALL_NS + MS)
    assert (found[SOURCE_TO_RECEIVED].count, found[SOURCE_TO_ACK].count, found[RECEIVED_TO_ACK].count) == (40, 40, 42)


def test_what_a_subscription_sends_first_is_no_latency() -> None:
    """A value measured before its device was connected is not counted; any that comes later on is, however old."""
    sessions = Sessions()
    sessions.began(0, WALL_NS)
    hour_ns = 3600 * 10**9
    early = made([hour_ns, -MS], WALL_NS)
    later = made([hour_ns], WALL_NS + SETTLE_NS)
    found = counted([early, later], WALL_NS + SETTLE_NS + MS, sessions)
    assert found[SOURCE_TO_ACK].count == 2 and found[SOURCE_TO_ACK].quantile_ns(1.0) > 100 * 10**9
    assert found[SOURCE_TO_RECEIVED].negative == 1
    assert found[RECEIVED_TO_ACK].count == 3
    other = counted([replace(early, source_id=1)], WALL_NS + MS, sessions)
    assert other[SOURCE_TO_ACK].count == 2  # one of another device, connected long ago


def test_of_what_was_read_from_disk_the_lane_is_not_known() -> None:
    """No time of the lane, no legs at it; the others are counted."""
    found = counted([made([MS]), made([MS], lane_ns=WALL_NS + MS)], WALL_NS + 2 * MS)
    assert [found[way].count for way in WAYS] == [2, 1, 1, 2, 2]


def test_what_is_noted_is_bounded() -> None:
    """Small batches are counted together, but never more than so many."""
    counters = Counters("pump", "fast")
    latency = Latency(counters)
    for _ in range(BATCHES_NOTED_MAX):
        assert counters.histograms[SOURCE_TO_ACK].count == 0
        latency.observe([made([MS])], WALL_NS)
    assert counters.histograms[SOURCE_TO_ACK].count == BATCHES_NOTED_MAX


def test_a_window_sees_now_and_not_the_start() -> None:
    """Quantiles since a moment; what is older than a minute is forgotten, and memory with it."""
    counters = Counters("pump", "fast")
    latency = Latency(counters)
    recent = Recent(counters.histograms)
    random = np.random.default_rng(1)
    ages: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
    for second in range(200):
        recent.note(second * 10**9)
        ages[second] = random.lognormal(13 + second / 40, 1, 50).astype(np.int64)
        latency.observe([made(ages[second].tolist())], WALL_NS)
        latency.flush()
    for over_s in (1, 10, 59):
        lately = np.concatenate([ages[second] for second in range(200 - over_s, 200)])
        found = recent.quantiles(SOURCE_TO_RECEIVED, (200 - over_s) * 10**9)
        assert (found.rows, found.negative) == (50 * over_s, 0)
        for q, ns in ((0.5, found.p50_ns), (0.99, found.p99_ns), (0.999, found.p999_ns), (1.0, found.max_ns)):
            assert ns == pytest.approx(np.quantile(lately, q, method="inverted_cdf"), rel=0.07)
    everything = recent.quantiles(SOURCE_TO_RECEIVED, 0)
    assert 50 * KEPT_S <= everything.rows <= 50 * (KEPT_S + 2)
