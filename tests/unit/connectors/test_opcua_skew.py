"""The clock filter: which reading counts, when a clock counts as wrong, what is done to a batch's columns."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from connectors.opcua_skew import Policy, Reading, Skew
from pipelines.batch import Flag
from pipelines.clock import SystemClock
from pipelines.counters import Counters

S = 10**9


def skew(policy: Policy = "flag", tolerance_s: float = 1.0) -> Skew:
    log = logging.LoggerAdapter(logging.getLogger("test"), {})
    return Skew(policy, int(tolerance_s * S), SystemClock(), Counters("source", "x"), log)


def test_the_shortest_round_trip_counts() -> None:
    """A slow link's reading is worth less, and never makes a clock wrong by itself."""
    one = skew()
    one._note(Reading(4 * S, 2 * S))
    assert not one.acts  # 2 s, give or take 2
    one._note(Reading(S // 100, S // 2))
    assert not one.acts and one._counters.gauges["clock_skew_seconds"] == 0.5


def test_a_clock_that_is_set_is_believed_at_once() -> None:
    one = skew()
    one._note(Reading(S // 100, 0))
    one._note(Reading(S // 10, 90 * S))
    assert one.acts and "90.000 s ahead" in one.info
    one._note(Reading(S // 10, 0))
    assert not one.acts and "more than" not in one.info


@pytest.mark.parametrize(
    ("policy", "ts", "flags"),
    [
        ("flag", [1, 2], [Flag.MACHINE_CLOCK_SUSPECT, Flag.ARRIVAL_TIME]),
        ("replace", [9, 9], [Flag.ARRIVAL_TIME, Flag.ARRIVAL_TIME]),
    ],
)
def test_columns(policy: Policy, ts: list[int], flags: list[int]) -> None:
    """What has the time of its arrival already is not suspect."""
    found = skew(policy).applied(np.array([1, 2]), np.array([0, Flag.ARRIVAL_TIME], dtype=np.uint8), 9)
    assert (found[0].tolist(), found[1].tolist()) == (ts, flags)
    assert found[1].dtype == np.uint8


def test_keep_never_acts() -> None:
    one = skew("keep")
    one._note(Reading(0, 90 * S))
    assert not one.acts and "more than clock_tolerance" in one.info
