"""How long samples take, leg by leg: the machine's source time -> received -> in the lane -> acknowledged.

Every figure counts samples: a batch of a hundred counts a hundred times. Only what can be known is counted. A sample
that has the gateway's own time (the machine gave none) has no first leg and no way from the machine. Neither has a
value that was measured before its device was connected: what a subscription sends first may be hours old. A machine's
clock that is ahead of ours makes negative durations: they are counted apart (`Histogram.negative`), not as 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.batch import Batch, Flag
from pipelines.columns import ROWS_PER_RUN_MIN
from pipelines.counters import Counters, Histogram, quantiles_ns

SOURCE_TO_RECEIVED: Final[str] = "source_to_received"
RECEIVED_TO_LANE: Final[str] = "received_to_lane"
LANE_TO_ACK: Final[str] = "lane_to_ack"
RECEIVED_TO_ACK: Final[str] = "received_to_ack"
"""What the gateway and the broker take of it."""
SOURCE_TO_ACK: Final[str] = "source_to_ack"
"""The whole way."""
LEGS: Final = (SOURCE_TO_RECEIVED, RECEIVED_TO_LANE, LANE_TO_ACK)
WAYS: Final = (*LEGS, RECEIVED_TO_ACK, SOURCE_TO_ACK)

SETTLE_NS: Final = 5_000_000_000
"""For so long after a device was connected, values are looked at whether they were measured before."""
ROWS_NOTED_MAX: Final = 10_000
BATCHES_NOTED_MAX: Final = 500
"""What is noted before it is counted: numpy's fixed cost is shared, and a step stays far below 1 ms."""

_Noted = tuple[int, int, int, int, int, npt.NDArray[np.int64], npt.NDArray[np.uint8]]
"""source id, rows, received_ns, lane_ns, acknowledged; columns ts_ns and flags."""


class Sessions:
    """Since when each source is connected."""

    def __init__(self) -> None:
        self._began_ns: dict[int, int] = {}
        self._settled_ns = 0

    def began(self, source_id: int, wall_ns: int) -> None:
        """It is connected; what arrived from it since it began to connect may be older than that."""
        self._began_ns[source_id] = wall_ns
        self._settled_ns = max(self._settled_ns, wall_ns + SETTLE_NS)

    def since_ns(
        self, source_id: npt.NDArray[np.int64], received_ns: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64] | None:
        """For each batch: a source time before it is no latency; 0 where any is. None: 0 for all of them."""
        if received_ns[0] >= self._settled_ns:
            return None
        began_ns = np.array([self._began_ns.get(each, 0) for each in source_id.tolist()], dtype=np.int64)
        return np.where(received_ns < began_ns + SETTLE_NS, began_ns, 0)


class Latency:
    """Fills the histograms of one pump. Its batches are noted one by one, which costs little, and counted together."""

    def __init__(self, counters: Counters, sessions: Sessions | None = None) -> None:
        self._sessions = sessions or Sessions()
        self._of = {way: counters.histograms[way] for way in WAYS}
        self._noted: list[_Noted] = []
        self._rows = 0

    def observe(self, batches: Sequence[Batch], now_ns: int) -> None:
        """Of live batches that the broker has acknowledged; `now_ns` by the wall clock. Counted at the next `flush`."""
        for batch in batches:
            rows = len(batch)
            note = (batch.source_id, rows, batch.received_ns, batch.lane_ns, now_ns, batch.ts_ns, batch.flags)
            self._noted.append(note)
            self._rows += rows
            if self._rows >= ROWS_NOTED_MAX or len(self._noted) >= BATCHES_NOTED_MAX:
                self.flush()

    def flush(self) -> None:
        """Brings the histograms up to date: before they are read."""
        if not self._noted:
            return
        noted, self._noted, self._rows = self._noted, [], 0
        *numbers, ts_columns, flag_columns = zip(*noted, strict=True)
        source, rows, received_ns, lane_ns, now_ns = (np.array(each, dtype=np.int64) for each in numbers)
        self._of[RECEIVED_TO_ACK].observe(now_ns - received_ns, rows)
        in_lane: npt.NDArray[np.bool_] | slice = slice(None) if lane_ns.all() else lane_ns != 0
        self._of[RECEIVED_TO_LANE].observe((lane_ns - received_ns)[in_lane], rows[in_lane])
        self._of[LANE_TO_ACK].observe((now_ns - lane_ns)[in_lane], rows[in_lane])

        ts_ns, flags = np.concatenate(ts_columns), np.concatenate(flag_columns)
        times: npt.NDArray[np.int64] | None = None
        if (ends := _runs(ts_ns, flags, rows)) is not None:
            times, ts_ns, flags = np.diff(ends, prepend=0), ts_ns[ends - 1], flags[ends - 1]
            rows = np.diff(np.searchsorted(ends, np.cumsum(rows)) + 1, prepend=0)  # now: runs
        to_received, to_ack = np.repeat(received_ns, rows) - ts_ns, np.repeat(now_ns, rows) - ts_ns
        known = (flags & Flag.ARRIVAL_TIME) == 0 if flags.any() else None
        if (since_ns := self._sessions.since_ns(source, received_ns)) is not None:
            later = ts_ns >= np.repeat(since_ns, rows)
            known = later if known is None else known & later
        if known is not None:
            to_received, to_ack, times = to_received[known], to_ack[known], None if times is None else times[known]
        self._of[SOURCE_TO_RECEIVED].observe(to_received, times)
        self._of[SOURCE_TO_ACK].observe(to_ack, times)


def _runs(
    ts_ns: npt.NDArray[np.int64], flags: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64] | None:
    """Where each run of rows of one batch, time and flags ends: machines give many values one time.

    `rows` are those of each batch. None where the runs are too short to be worth it.
    """
    differs = np.append(ts_ns[1:] != ts_ns[:-1], True)
    if flags.any():
        differs[:-1] |= flags[1:] != flags[:-1]
    differs[np.cumsum(rows) - 1] = True
    if np.count_nonzero(differs) * ROWS_PER_RUN_MIN > len(ts_ns):
        return None
    return np.flatnonzero(differs) + 1


QUANTILES: Final = (0.5, 0.99, 0.999, 1.0)
KEPT_S: Final = 60.0
"""How far a `Recent` looks back."""


_Change = tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]
"""Which counts have grown, by how much: of hundreds, a few."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of one way, in ns; `rows` samples, and as many that ended before they began (`negative`)."""

    rows: int
    negative: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    """The end of its bucket: at most a sixteenth too much."""


class Recent:
    """What one pump's histograms counted lately. Costs the hot path nothing: `note` looks at them now and then."""

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self._histograms = histograms
        self._last = {way: _state(histograms[way]) for way in WAYS}
        self._notes: deque[tuple[int, dict[str, _Change]]] = deque()

    def note(self, mono_ns: int) -> None:
        """Remembers what has changed since the last note; forgets what is older than `KEPT_S`."""
        changes: dict[str, _Change] = {}
        for way in WAYS:
            state = _state(self._histograms[way])
            change = state - self._last[way]
            where = np.flatnonzero(change)
            if len(where):
                changes[way] = where, change[where]
                self._last[way] = state
        self._notes.append((mono_ns, changes))
        while self._notes[0][0] <= mono_ns - KEPT_S * 1e9:
            self._notes.popleft()

    def quantiles(self, way: str, since_ns: int) -> Quantiles:
        """From the last note that is not after `since_ns` (monotonic), or the oldest there is, until now."""
        counted = _state(self._histograms[way]) - self._last[way]
        for mono_ns, changes in self._notes:
            if mono_ns > since_ns and way in changes:
                where, change = changes[way]
                counted[where] += change
        return Quantiles(int(counted[:-1].sum()), int(counted[-1]), *quantiles_ns(counted[:-1], QUANTILES))


def _state(histogram: Histogram) -> npt.NDArray[np.int64]:
    """The counts, and behind them the negative ones."""
    return np.append(histogram.counts, histogram.negative)
