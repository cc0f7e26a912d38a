"""Event loop lag: a timer every 10 ms, and by how much it came late.

`lag` is wall time: it also grows when the machine is suspended or busy with other processes, which cannot be told
apart from a blocking call. `lag_cpu` is the smaller of the lateness and the loop thread's own CPU time since the tick
before: an upper bound of what our own steps took, and the figure that the limit of 5 ms is about. A step that starts
and ends between two ticks is not seen; one of 5 ms is seen in about half of the cases.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import numpy as np

from pipelines.counters import Counters

TICK_S: Final = 0.010
TICKS_PER_FLUSH: Final = 100


class LoopWatch:
    """Measures the running loop between `start` and `stop`."""

    def __init__(self) -> None:
        self.counters = Counters("loop", "main")
        self._lags_ns: list[tuple[int, int]] = []
        self._worst_ns = (0, 0)
        self._due_ns = 0
        self._cpu_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to tick on the running loop."""
        self._cpu_ns = time.thread_time_ns()
        self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        """Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

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
        cpu_ns = time.thread_time_ns()
        lag_ns = max(time.monotonic_ns() - self._due_ns, 0)
        self._lags_ns.append((lag_ns, min(lag_ns, cpu_ns - self._cpu_ns)))
        self._cpu_ns = cpu_ns
        if len(self._lags_ns) >= TICKS_PER_FLUSH:
            self._observe()
        self._arm(loop)

    def _observe(self) -> None:
        if not self._lags_ns:
            return
        columns = np.array(self._lags_ns, dtype=np.int64).T
        self._lags_ns.clear()
        self.counters.histograms["lag"].observe(columns[0])
        self.counters.histograms["lag_cpu"].observe(columns[1])
        lag_ns, cpu_ns = (int(column.max()) for column in columns)
        self._worst_ns = (max(self._worst_ns[0], lag_ns), max(self._worst_ns[1], cpu_ns))
