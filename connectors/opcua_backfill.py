"""The task that fills a device's gaps from history while its live values are read, within the time that it may take."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors import opcua_history
from connectors.opcua_binary import DecodeError
from connectors.opcua_gaps import GAPS_MAX, NO_HISTORY, WAITING_MAX, Gap, History, Int64s, named
from connectors.opcua_link import Link
from connectors.opcua_requests import ServiceError
from connectors.opcua_resume import Log
from connectors.opcua_settings import OpcUaDevice
from pipelines import gaps
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from pipelines.few import Row
from pipelines.gaps import Ledger, Reason

MARGIN_NS: Final = 2 * 10**9
"""Before the newest value that is known: what one lane had and another one lost, and items of one time that were
published one after the other. Another process has nothing but that time, so it may deliver these values twice."""


class Backfill:
    """`start` for each session, `stop` at its end; what is not done by then goes on in the next one."""

    def __init__(
        self, name: str, settings: OpcUaDevice, clock: Clock, ledger: Ledger, counters: Counters, log: Log
    ) -> None:
        self.info = ""
        self._name = name
        self._budget_s = settings.backfill / 1e9
        self._names: list[str] = []
        self._nodes: list[bytes] = []
        self._clock = clock
        self._ledger = ledger
        self._counters = counters
        self._log = log
        self._newest_ns: Int64s = np.zeros(0, dtype=np.int64)  # per client handle, by this process
        self.open: deque[Gap] = deque()
        """What is missing, or being filled."""
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[int, Sequence[opcua_history.Row]]] = deque()
        self._room = asyncio.Event()

    def grow(self, names: Sequence[str], nodes: list[bytes]) -> None:
        """`names` stand behind those that are known; `nodes` are all, as they are now."""
        more = len(names)
        self._names += names
        self._nodes = nodes
        self._newest_ns = np.pad(self._newest_ns, (0, more))
        for gap in self.open:
            gap.grow(more)

    def live(self, handle: npt.NDArray[np.uint32], ts_ns: Int64s) -> None:
        """Values that were just collected, in order."""
        self._newest_ns[handle] = ts_ns
        for gap in self.open:
            gap.live(handle, ts_ns)

    def live_few(self, rows: Iterable[Row]) -> None:
        """As `live`; there must not be a gap."""
        for handle, ts_ns, *_ in rows:
            self._newest_ns[handle] = ts_ns

    def newest_of_all(self) -> Int64s:
        """The newest source time of each item, by client handle; 0 where this process has none."""
        return self._newest_ns.copy()

    def newest_ns(self, items: npt.NDArray[np.uint32]) -> int:
        """Since when something may be missing of these: the oldest of their newest source times; 0 if one has none."""
        return int(self._newest_ns[items].min())

    def missed(self, items: Sequence[int], before_ns: int) -> None:
        """Nothing was collected of these items from about `before_ns` until now."""
        after_ns = np.maximum(self._newest_ns, before_ns - MARGIN_NS)
        self.open.append(Gap(items, after_ns, self._clock.wall_ns()))
        while len(self.open) > GAPS_MAX:
            self._done(self.open.popleft())

    def take(self) -> tuple[int, Sequence[opcua_history.Row]] | None:
        """The next rows of an item from history; None where there are none now. Raises what a bug of ours raised."""
        if self._task is not None and self._task.done():
            self._task.result()
        if not self._waiting:
            return None
        self._room.set()
        return self._waiting.popleft()

    async def start(self, link: Link) -> None:
        """Begins with what was missed, now or by a former process, where something was."""
        self._link = link
        if not self.open:
            everything = range(len(self._names))
            for start, end in link.state.gaps[:GAPS_MAX]:
                after_ns = np.full(len(self._names), start, dtype=np.int64)
                self.open.append(Gap(everything, after_ns, end, end))
        if not self.open:
            return
        self._log.info("what was missed is looked for in the server's history")
        await self._save(link)
        self._task = asyncio.create_task(self._run(link), name=f"history {self._name}")

    async def stop(self) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        self.info = ""
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._waiting.clear()

    async def _run(self, link: Link) -> None:
        assert link.session is not None
        history = History(link.session, self._nodes, link.limits, self._deliver)
        while self.open:
            gap = self.open[0]
            self.info = "what was missed is read from the server's history"
            try:
                async with asyncio.timeout(self._budget_s):
                    if self._budget_s:
                        await history.fill(gap)
            except TimeoutError:
                history.why = f"not done within {self._budget_s:g} s (backfill)"
            except (ServiceError, DecodeError) as error:
                history.why = str(error)
            except NotConnected:
                return  # the next session goes on
            self.open.popleft()
            if history.why == NO_HISTORY:
                link.lacks["history"] = None
            self._done(gap, history.why)
            await self._save(link)
        self.info = ""

    async def _deliver(self, item: int, rows: Sequence[opcua_history.Row]) -> None:
        while len(self._waiting) >= WAITING_MAX:
            self._room.clear()
            await self._room.wait()
        self._waiting.append((item, rows))
        self._counters.add("backfilled_rows", len(rows))
        if self._link is not None and self._link.session is not None:
            self._link.session.nudge()

    async def _save(self, link: Link) -> None:
        link.state.gaps = [gap.span(gap.items) for gap in self.open]
        await link.save()

    def _done(self, gap: Gap, why: str = "") -> None:
        """Into the ledger, and one line."""
        gap.close()
        for backfilled, tags, (start, end), rows in named(gap, self._names):
            self._ledger.note(gaps.Gap(Reason.DISCONNECTED, self._name, "", tags, start, end, rows, backfilled))
            if backfilled:
                self._log.info("%d values of %d tags were missed and are filled from history", rows, len(tags))
            else:
                self._log.warning("%s tags have a gap of %.1f s: %s", len(tags) or "all", (end - start) / 1e9, why)
