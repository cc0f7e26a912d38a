"""Intervals behave as a set of integers, whatever is added and removed in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.intervals import Intervals

PAIR = st.tuples(st.integers(0, 40), st.integers(0, 40))
ACTIONS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), PAIR), max_size=30)


def played(actions: list[tuple[str, tuple[int, int]]]) -> tuple[Intervals, set[int]]:
    intervals, model = Intervals(), set[int]()
    for action, (start, end) in actions:
        if action == "add":
            intervals.add(start, end)
            model |= set(range(start, end))
        else:
            intervals.remove(start, end)
            model -= set(range(start, end))
    return intervals, model


@given(ACTIONS)
def test_holds_what_a_set_would_hold(actions: list[tuple[str, tuple[int, int]]]) -> None:
    """Membership, size and truth are the set's after any changes; empty and reversed ranges do nothing."""
    intervals, model = played(actions)
    assert {number for number in range(-1, 42) if number in intervals} == model
    assert len(intervals) == len(model)
    assert bool(intervals) == bool(model)


@given(ACTIONS)
def test_is_the_shortest_list(actions: list[tuple[str, tuple[int, int]]]) -> None:
    """Intervals are ascending, never empty, never overlapping and never adjacent: the form that is stored is unique."""
    intervals, model = played(actions)
    flat = [bound for pair in intervals for bound in pair]
    assert flat == sorted(set(flat))
    assert intervals == Intervals((number, number + 1) for number in model)


@given(ACTIONS, PAIR)
def test_first_in(actions: list[tuple[str, tuple[int, int]]], window: tuple[int, int]) -> None:
    """`first_in` gives the first run of the set within the window, cut at its borders, and None for an empty window."""
    intervals, model = played(actions)
    low, high = window
    inside = [number for number in range(low, high) if number in model]
    found = intervals.first_in(low, high)
    if not inside:
        assert found is None
        return
    assert found is not None
    start, end = found
    assert start == inside[0]
    assert set(range(start, end)) <= set(inside)
    assert end not in model or end == high


@given(ACTIONS, ACTIONS)
def test_copy_is_independent(
    before: list[tuple[str, tuple[int, int]]], after: list[tuple[str, tuple[int, int]]]
) -> None:
    """A copy equals its original and is not changed with it."""
    intervals, model = played(before)
    copy = intervals.copy()
    assert copy == intervals
    for action, (start, end) in after:
        getattr(intervals, action)(start, end)
    assert {number for number in range(42) if number in copy} == model


def test_equality_and_text() -> None:
    """Another type is unequal; a mutable set has no hash; the text shows the intervals."""
    intervals = Intervals([(1, 3), (3, 4), (8, 9)])
    assert list(intervals) == [(1, 4), (8, 9)]
    assert intervals != [(1, 4), (8, 9)]
    assert repr(intervals) == "Intervals([(1, 4), (8, 9)])"
    with pytest.raises(TypeError):
        hash(intervals)
