"""What a hot standby's queues repeat: which rows are left out, and until when."""

from __future__ import annotations

import numpy as np

from connectors.opcua_decode import Columns
from connectors.opcua_overlap import SETTLED_S, Overlap
from pipelines.clock import SystemClock
from pipelines.counters import Counters


class Watch(SystemClock):
    """Monotonic time is what the test says."""

    now_ns = 0

    def mono_ns(self) -> int:
        return self.now_ns


def columns(*rows: tuple[int, int, object]) -> Columns:
    """(handle, source time, value); what is no number is beside the columns."""
    made = Columns.empty(len(rows))
    for at, (handle, ts_ns, value) in enumerate(rows):
        made.handle[at], made.ts_ns[at] = handle, ts_ns
        made.value[at] = value if isinstance(value, float) else np.nan
        if not isinstance(value, float):
            made.extra[at] = value
    return made


def overlap(*newest_ns: int) -> Overlap:
    return Overlap(np.array(newest_ns, dtype=np.int64), Watch(), Counters("source", "x"))


def test_rows_up_to_the_newest_time_of_their_item_are_left_out_and_counted() -> None:
    """Values beside the columns move along; an item of which nothing was collected loses nothing."""
    one = overlap(20, 0)
    left = one.without(columns((0, 10, "a"), (1, 5, "b"), (0, 20, 1.0), (0, 30, "c")))
    assert left.handle.tolist() == [1, 0] and left.ts_ns.tolist() == [5, 30] and left.extra == {0: "b", 1: "c"}
    assert one._counters.totals["repeated_rows"] == 2


def test_behind_the_first_newer_row_an_item_may_say_what_it_will() -> None:
    """A machine's clock that is set back holds nothing up."""
    one = overlap(20)
    assert not len(one.without(columns((0, 20, 1.0))).handle)
    assert len(one.without(columns((0, 21, 2.0))).handle) == len(one.without(columns((0, 3, 3.0))).handle) == 1


def test_it_ends_when_the_queues_must_have_been_sent() -> None:
    one = overlap(20)
    assert not one.is_over
    one._clock.now_ns = int(SETTLED_S * 1e9)  # type: ignore[attr-defined]
    assert one.is_over
