"""Pending offsets as a short list of intervals: what is delivered out of order is remembered exactly."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Self


class Intervals:
    """A set of integers kept as disjoint, ascending, non-adjacent half-open intervals [start, end)."""

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in pairs:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        """How many integers, not how many intervals."""
        return sum(self._ends) - sum(self._starts)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Intervals({list(self)})"

    def copy(self) -> Self:
        """An independent copy."""
        copy = type(self)()
        copy._starts, copy._ends = self._starts.copy(), self._ends.copy()
        return copy

    def add(self, start: int, end: int) -> None:
        """Every integer of [start, end) is in the set. Empty ranges are allowed."""
        if start >= end:
            return
        if not self._ends or self._ends[-1] < start:  # what a lane does for each batch, this or the next
            self._starts.append(start)
            self._ends.append(end)
            return
        if self._ends[-1] == start:
            self._ends[-1] = end
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """No integer of [start, end) is in the set."""
        if start >= end:
            return
        if self._starts and self._starts[0] == start and end <= self._ends[0]:  # what is read, and delivered in order
            if end < self._ends[0]:
                self._starts[0] = end
            else:
                del self._starts[0], self._ends[0]
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        kept = [pair for pair in ((left, start), (end, right)) if pair[0] < pair[1]]
        self._starts[first:last] = [pair[0] for pair in kept]
        self._ends[first:last] = [pair[1] for pair in kept]

    def first_in(self, low: int, high: int) -> tuple[int, int] | None:
        """The lowest interval's part within [low, high), or None."""
        at = bisect_right(self._ends, low)
        if low >= high or at == len(self._starts) or self._starts[at] >= high:
            return None
        return max(self._starts[at], low), min(self._ends[at], high)

    def within(self, low: int, high: int) -> list[tuple[int, int]]:
        """The parts of all intervals within [low, high)."""
        first, last = bisect_right(self._ends, low), bisect_left(self._starts, high)
        pairs = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return [(max(start, low), min(end, high)) for start, end in pairs]
