"""Event loop lag: a timer every 20 ms, and by how much it came late.

`lag` is wall time: it also grows when the machine is suspended or busy with other processes, which cannot be told
apart from a blocking call. `lag_cpu` is what our own steps took of it, and the figure that the limit of 5 ms is about:
the lateness without the time that the loop's thread waited for a core since the tick before (Linux counts it in
schedstat), and at most the thread's own CPU time since then. Exact while cores are free; on a full machine a wait that
was over before the tick was due is taken off too, up to one tick. Where there is no schedstat, nothing is: then waiting
counts as ours.

A step that starts and ends between two ticks is not seen; one of 5 ms is seen in about a quarter of the cases. A tick
costs some 10 us, ten times that when it has to wake an idle core, which is why there are not more.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

import numpy as np

from pipelines.counters import Counters

TICK_S: Final = 0.020
TICKS_PER_FLUSH: Final = 50
SCHEDSTAT: Final = "/proc/thread-self/schedstat"
"""Time on a core, time waited for one (both in ns), and turns, of the thread that opens it."""


class LoopWatch:
    """Measures the running loop between `start` and `stop`."""

    def __init__(self) -> None:
        self.counters = Counters("loop", "main")
        self._lags_ns: list[tuple[int, int]] = []
        self._worst_ns = (0, 0)
        self._due_ns = 0
        self._cpu_ns = 0
        self._waited_ns = 0
        self._schedstat = -1
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to tick on the running loop; called in its thread."""
        try:
            self._schedstat = os.open(SCHEDSTAT, os.O_RDONLY)
        except OSError:
            self._schedstat = -1
        self._cpu_ns, self._waited_ns = time.thread_time_ns(), self._waited()
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        """Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._schedstat >= 0:
            os.close(self._schedstat)
            self._schedstat = -1

    def flush(self) -> None:
        """Brings the histograms up to date and the maxima since the last flush into the gauges: before each scrape."""
        self._observe()
        self.counters.set("lag_max_seconds", self._worst_ns[0] / 1e9)
        self.counters.set("lag_cpu_max_seconds", self._worst_ns[1] / 1e9)
        self._worst_ns = (0, 0)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_ns = time.monotonic_ns() + int(TICK_S * 1e9)
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        cpu_ns, waited_ns = time.thread_time_ns(), self._waited()
        lag_ns = max(time.monotonic_ns() - self._due_ns, 0)
        self._lags_ns.append((lag_ns, own_share(lag_ns, cpu_ns - self._cpu_ns, waited_ns - self._waited_ns)))
        self._cpu_ns, self._waited_ns = cpu_ns, waited_ns
        if len(self._lags_ns) >= TICKS_PER_FLUSH:
            self._observe()
        self._arm(loop)

    def _waited(self) -> int:
        """ns that this thread has waited for a core so far; 0 where the kernel does not say."""
        return int(os.pread(self._schedstat, 100, 0).split()[1]) if self._schedstat >= 0 else 0

    def _observe(self) -> None:
        if not self._lags_ns:
            return
        columns = np.array(self._lags_ns, dtype=np.int64).T
        self._lags_ns.clear()
        self.counters.histograms["lag"].observe(columns[0])
        self.counters.histograms["lag_cpu"].observe(columns[1])
        lag_ns, cpu_ns = (int(column.max()) for column in columns)
        self._worst_ns = (max(self._worst_ns[0], lag_ns), max(self._worst_ns[1], cpu_ns))


def own_share(lag_ns: int, cpu_ns: int, waited_ns: int) -> int:
    """What of a tick's lateness was our own work, given CPU time and time waited for a core since the tick before."""
    return min(max(lag_ns - waited_ns, 0), cpu_ns)
