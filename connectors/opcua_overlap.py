"""What the queues of a hot standby hold although the server before has sent it: left out, by its source times."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Final

import numpy as np

from connectors.opcua_decode import Columns
from connectors.opcua_gaps import Int64s
from pipelines.clock import Clock
from pipelines.counters import Counters

SETTLED_S: Final = 10.0
"""By then the queues have been sent; an item whose clock is set back is not held up for longer."""
_NEVER: Final = np.iinfo(np.int64).min


class Overlap:
    """`newest_ns`: source times of the last values that were collected, by client handle; 0: none."""

    def __init__(self, newest_ns: Int64s, clock: Clock, counters: Counters) -> None:
        self._newest_ns = newest_ns
        self._clock = clock
        self._counters = counters
        self._until_ns = clock.mono_ns() + int(SETTLED_S * 1e9)

    @property
    def is_over(self) -> bool:
        """Nothing is left out any more."""
        return self._clock.mono_ns() >= self._until_ns

    def without(self, columns: Columns) -> Columns:
        """The rows that are new: of each item the first one that is newer, and all behind it."""
        new = columns.ts_ns > self._newest_ns[columns.handle]
        if not new.all():
            self._counters.add("repeated_rows", int(np.count_nonzero(~new)))
            columns = _taken(columns, np.flatnonzero(new))
        self._newest_ns[columns.handle] = _NEVER
        return columns


def _taken(columns: Columns, rows: Int64s) -> Columns:
    arrays = {one.name: getattr(columns, one.name)[rows] for one in fields(columns) if one.name != "extra"}
    extra = {at: columns.extra[row] for at, row in enumerate(rows.tolist()) if row in columns.extra}
    return replace(columns, **arrays, extra=extra)
