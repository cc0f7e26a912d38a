"""Numbers that a component counts: named plain integers and a latency histogram. Read by metrics and health."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final

import numpy as np
import numpy.typing as npt

OCTAVES: Final = 26
STEPS: Final = 16
"""Buckets to an octave: none is wider than a sixteenth of its lower bound."""
BOUNDS_NS: npt.NDArray[np.int64] = np.array(
    [2_000, *(125 * (STEPS + step) << octave for octave in range(OCTAVES) for step in range(1, STEPS + 1))],
    dtype=np.int64,
)
"""Upper bounds of the buckets: 2 us, 2.125 us, ... 4 us, 4.25 us, ... 134 s; one more bucket holds what is above."""
OCTAVE_BOUNDS_NS: npt.NDArray[np.int64] = BOUNDS_NS[::STEPS]
"""2 us, 4 us, 8 us, ... 134 s."""

_BOUNDS = BOUNDS_NS.tolist()
_FEW = 32
"""Up to here counting one by one is faster than numpy."""
_EXPONENT_BITS = 52 - (STEPS.bit_length() - 1)
_FIRST = (1023 << (STEPS.bit_length() - 1)) - 1
"""What is left of the bits of an f64 just below 1 when all but exponent and first bits of the fraction are cut off."""
_TO_FIRST = 0.0005 * (1 - 2**-45)
"""ns -> first buckets of 2 us; but a duration that is a bound itself stays below it, in its own bucket."""


class Histogram:
    """Durations in ns, counted in the fixed buckets of `BOUNDS_NS`; negative ones apart, in `negative`."""

    def __init__(self) -> None:
        self._cells = array("q", bytes(8 * (len(BOUNDS_NS) + 1)))
        self.counts = np.frombuffer(self._cells, dtype=np.int64)
        """By bucket; the same memory as `_cells`, which is quicker where one is counted."""
        self.sum_ns = 0
        self.negative = 0
        """How many ended before they began: two clocks that differ (a machine's ahead of ours), or one that stepped."""

    def observe(
        self, durations_ns: npt.NDArray[np.int64] | int, times: npt.NDArray[np.int64] | int | None = None
    ) -> None:
        """One duration, counted `times`; or a column of them, each counted once or as often as `times` says."""
        if isinstance(durations_ns, int):
            self.count_one(durations_ns, int(times) if times is not None else 1)
        elif len(durations_ns) > _FEW:
            self._count_column(durations_ns, times if isinstance(times, np.ndarray) else None)
        else:
            often = times.tolist() if isinstance(times, np.ndarray) else [1] * len(durations_ns)
            for duration_ns, number in zip(durations_ns.tolist(), often, strict=True):
                self.count_one(duration_ns, number)

    def count_one(self, duration_ns: int, times: int = 1) -> None:
        """Half a microsecond."""
        if duration_ns < 0:
            self.negative += times
        else:
            self._cells[bisect_left(_BOUNDS, duration_ns)] += times
            self.sum_ns += duration_ns * times

    def _count_column(self, column: npt.NDArray[np.int64], times: npt.NDArray[np.int64] | None) -> None:
        """Buckets are found in the bits of the floats, at a third of what a search in the bounds takes."""
        least_ns = column.min()
        if least_ns < 0:
            ours = column >= 0
            self.negative += int(len(column) - ours.sum() if times is None else times[~ours].sum())
            column, times = column[ours], None if times is None else times[ours]
        scaled = column * _TO_FIRST
        # in floats: a thousand machines at 1970 would overflow an i64
        self.sum_ns += round(float(scaled.sum() if times is None else scaled @ times) * 2_000)
        if least_ns < 2_000:
            np.maximum(scaled, 0.999, out=scaled)
        bits = scaled.view(np.int64)
        bits >>= _EXPONENT_BITS
        bits -= _FIRST
        found = np.bincount(bits, times)
        last = len(self.counts) - 1
        if len(found) > last:
            self.counts[last] += int(found[last:].sum())
            found = found[:last]
        self.counts[: len(found)] += found.astype(np.int64, copy=False)

    @property
    def count(self) -> int:
        """How many durations were observed; without the negative ones."""
        return int(self.counts.sum())

    def quantile_ns(self, q: float) -> int:
        """See `quantiles_ns`."""
        return quantiles_ns(self.counts, (q,))[0]


def quantiles_ns(counts: npt.NDArray[np.integer[Any]], qs: Sequence[float]) -> list[int]:
    """Each quantile (0..1) of durations counted as in a `Histogram`; 0 where nothing was counted.

    In the bucket that holds it, as if its durations were spread evenly; 134 s for what is above.
    """
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    found = []
    for q in qs:
        rank = max(ceil(q * total), 1)
        bucket = int(np.searchsorted(cumulative, rank))
        if not total or bucket >= len(_BOUNDS):
            found.append(_BOUNDS[-1] if total else 0)
            continue
        before = int(cumulative[bucket - 1]) if bucket else 0
        low = _BOUNDS[bucket - 1] if bucket else 0
        found.append(low + (_BOUNDS[bucket] - low) * (rank - before) // int(counts[bucket]))
    return found


class Counters:
    """One component's numbers: `add` for what only grows, `set` for what goes up and down.

    `kind` and `name` say whose they are ("source", "press4"); names end in their unit (`rows`, `lane_bytes`).
    """

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        self.totals: defaultdict[str, int] = defaultdict(int)
        self.gauges: dict[str, int | float] = {}
        self.histograms: defaultdict[str, Histogram] = defaultdict(Histogram)

    def add(self, name: str, amount: int = 1) -> None:
        """Adds to a total."""
        self.totals[name] += amount

    def set(self, name: str, value: int | float) -> None:
        """Sets a gauge."""
        self.gauges[name] = value

    def snapshot(self) -> Mapping[str, int | float]:
        """All totals and gauges by name, as they are now."""
        return {**self.totals, **self.gauges}
