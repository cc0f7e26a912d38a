"""Numbers that a component counts: named plain integers and a latency histogram. Read by metrics and health."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import ceil

import numpy as np
import numpy.typing as npt

from pipelines.columns import runs

BOUNDS_NS: npt.NDArray[np.int64] = np.array(
    [step * 10**power for power in range(4, 11) for step in (1, 2, 5)] + [10**11], dtype=np.int64
)
"""Upper bounds of the buckets: 10 us, 20 us, 50 us, ... 50 s, 100 s; one more bucket holds what is above."""

_BOUNDS = BOUNDS_NS.tolist()
_FEW = 8
"""Up to here counting one by one is faster than numpy."""


class Histogram:
    """Durations in ns, counted in the fixed buckets of `BOUNDS_NS`."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(BOUNDS_NS) + 1, dtype=np.int64)
        self.sum_ns = 0

    def observe(self, durations_ns: npt.NDArray[np.int64] | int) -> None:
        """One duration, or a column of them; negative ones (a machine's clock ahead of ours) count as 0."""
        if isinstance(durations_ns, int):
            self._observe_runs([(durations_ns, 1)])
        elif len(durations_ns) <= _FEW:
            self._observe_runs([(duration_ns, 1) for duration_ns in durations_ns.tolist()])
        elif (found := runs(durations_ns)) is not None:
            self._observe_runs(found)
        else:
            column = np.maximum(durations_ns, 0)
            self.counts += np.bincount(np.searchsorted(BOUNDS_NS, column), minlength=len(self.counts))
            self.sum_ns += int(column.sum(dtype=np.float64))  # a thousand machines at 1970 would overflow an i64

    def _observe_runs(self, found: Iterable[tuple[int, int]]) -> None:
        for duration_ns, times in found:
            self.counts[bisect_left(_BOUNDS, duration_ns)] += times
            self.sum_ns += max(duration_ns, 0) * times

    @property
    def count(self) -> int:
        """How many durations were observed."""
        return int(self.counts.sum())

    def quantile_ns(self, q: float) -> int:
        """Upper bound of the bucket that holds quantile `q` (0..1); 100 s above it; 0 when nothing was observed."""
        total = self.count
        if not total:
            return 0
        bucket = int(np.searchsorted(np.cumsum(self.counts), max(ceil(q * total), 1)))
        return int(BOUNDS_NS[min(bucket, len(BOUNDS_NS) - 1)])


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
