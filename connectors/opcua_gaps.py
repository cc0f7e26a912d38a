"""Times in which nothing was collected, and how they are filled from the server's history, beside the live values.

A gap ends, for each item, with its first live value. What history has between the newest value that was collected and
that one is read in pages, one request at a time, and delivered as batches without origin. What cannot be filled, and
what was, goes to the ledger when the gap is done with; until then it is in the device's state, so that a new process
goes on with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from connectors.opcua_history import (
    ATTRIBUTE_ACCESS_LEVEL,
    HISTORY_READABLE,
    Row,
    history_pages,
    history_read,
    history_rows,
)
from connectors.opcua_limits import Limits, Service
from connectors.opcua_requests import ServiceError, Session, status_name

VALUES_PER_NODE: Final = 500
"""About a millisecond of decoding."""
NO_HISTORY: Final = "no item has a history"
FIRST_VALUES_S: Final = 5.0
"""An item without a live value by then is taken to end its gap when collection went on."""
WAITING_MAX: Final = 4
"""Batches of history that wait to be read."""
GAPS_MAX: Final = 16

_UNSEEN: Final = np.iinfo(np.int64).max

Int64s = npt.NDArray[np.int64]


class Gap:
    """For each item the times after and before which values may be missing; UTC ns, by client handle."""

    def __init__(self, items: Sequence[int], after_ns: Int64s, resumed_ns: int, before_ns: int | None = None) -> None:
        self.items = list(items)
        self.after_ns = after_ns
        self.resumed_ns = resumed_ns
        self.before_ns: Int64s = np.full(len(after_ns), _UNSEEN if before_ns is None else before_ns, dtype=np.int64)
        self.rows = 0
        self.filled: set[int] = set()
        self.closed = asyncio.Event()
        """Every item has its first live value."""
        if before_ns is not None:
            self.closed.set()

    def grow(self, more: int) -> None:
        """Items that were not there yet; nothing of them is missing."""
        self.after_ns = np.pad(self.after_ns, (0, more))
        self.before_ns = np.pad(self.before_ns, (0, more))

    def live(self, handle: npt.NDArray[np.uint32], ts_ns: Int64s) -> None:
        """Values that were just collected, in order: the first of an item ends the gap for it."""
        if self.closed.is_set():
            return
        unseen = self.before_ns[handle] == _UNSEEN
        self.before_ns[handle[unseen][::-1]] = ts_ns[unseen][::-1]
        if not (self.before_ns[self.items] == _UNSEEN).any():
            self.closed.set()

    def close(self) -> None:
        """No item's end is waited for any longer."""
        self.before_ns[self.before_ns == _UNSEEN] = self.resumed_ns
        self.closed.set()

    @property
    def open_items(self) -> list[int]:
        """Those of which something may be missing."""
        return [item for item in self.items if self.after_ns[item] < self.before_ns[item] and item not in self.filled]

    def span(self, items: Sequence[int]) -> tuple[int, int]:
        """From the earliest start to the latest end."""
        ends = np.where(self.before_ns[items] == _UNSEEN, self.resumed_ns, self.before_ns[items])
        return int(self.after_ns[items].min()), int(ends.max())


class History:
    """Fills one gap after the other. `deliver` waits until there is room."""

    def __init__(
        self,
        session: Session,
        nodes: Sequence[bytes],
        limits: Limits,
        deliver: Callable[[int, Sequence[Row]], Awaitable[None]],
    ) -> None:
        self._session = session
        self._nodes = nodes
        self._deliver = deliver
        self._limits = limits
        self._nodes_max = Service.HISTORY_READ.default
        self._kept: dict[int, bytes] = {}  # item -> continuation point at the server; empty: not begun
        self._between_ns = 0, 0
        self.why = ""
        """The last reason why something of the present gap could not be filled."""

    async def fill(self, gap: Gap) -> None:
        """Reads what history has of it; `gap.filled` says of which items. Raises what requests raise.

        Given up in the middle, `release` is due.
        """
        self.why = ""
        try:
            async with asyncio.timeout(FIRST_VALUES_S):
                await gap.closed.wait()
        except TimeoutError:
            gap.close()
        readable = await self._readable(gap.open_items)
        if not readable and gap.open_items:
            self.why = NO_HISTORY
        waiting = deque(readable)
        while waiting:
            per_call = min(self._nodes_max, self._limits.size(Service.HISTORY_READ), len(waiting))
            items = [waiting.popleft() for _ in range(per_call)]
            try:
                waiting.extend(await self._fill_items(gap, items))
            except ServiceError as error:
                self.why = str(error)
                if not self._limits.too_many(Service.HISTORY_READ, per_call, error):
                    if self._nodes_max == 1:
                        return
                    self._nodes_max = 1  # a server may limit the nodes per call without saying so
                waiting.extendleft(item for item in reversed(items) if item not in gap.filled)

    async def release(self) -> None:
        """Gives back what the server keeps for the next pages. Raises what requests raise."""
        kept, self._kept = self._kept, {}
        nodes = [(self._nodes[item], point) for item, point in kept.items() if point]
        if nodes:
            await self._session.request(
                partial(history_read, nodes=nodes, between_ns=self._between_ns, values_max=0, release=True)
            )

    async def _readable(self, items: Sequence[int]) -> list[int]:
        nodes = [self._nodes[item] for item in items]
        levels = await self._limits.read(self._session.request, nodes, ATTRIBUTE_ACCESS_LEVEL)
        return [item for item, level in zip(items, levels, strict=True) if level is None or level & HISTORY_READABLE]

    async def _fill_items(self, gap: Gap, items: Sequence[int]) -> list[int]:
        """All pages of some items; returns those of which a server cut the last page without saying so."""
        cut = []
        between = self._between_ns = gap.span(items)
        continuation = self._kept = dict.fromkeys(items, b"")
        while continuation:
            asked = list(continuation)
            pages = await self._pages(asked, continuation, between)
            for item, (status, more, data) in zip(asked, pages, strict=True):
                if status & 0x8000_0000:
                    self.why = status_name(status)
                    del continuation[item]
                    continue
                before_ns = int(gap.after_ns[item])
                whole = await self._take(gap, item, data)
                continuation[item] = more
                if more:
                    continue
                del continuation[item]
                if whole and int(gap.after_ns[item]) > before_ns:
                    cut.append(item)
                else:
                    gap.filled.add(item)
        return cut

    async def _pages(
        self, items: Sequence[int], continuation: dict[int, bytes], between: tuple[int, int]
    ) -> list[tuple[int, bytes, bytes]]:
        nodes = [(self._nodes[item], continuation[item]) for item in items]
        encode = partial(history_read, nodes=nodes, between_ns=between, values_max=VALUES_PER_NODE)
        return history_pages(await self._session.request(encode), len(items))

    async def _take(self, gap: Gap, item: int, data: bytes) -> bool:
        """Delivers what lies between the edges, which were collected. Returns whether it is a full page."""
        after, before = int(gap.after_ns[item]), int(gap.before_ns[item])
        found = history_rows(data)
        rows = [row for row in found if after < row[0] < before]
        if rows:
            await self._deliver(item, rows)
            gap.rows += len(rows)
            gap.after_ns[item] = max(row[0] for row in rows)
        else:
            await asyncio.sleep(0)
        return len(found) >= VALUES_PER_NODE


def named(gap: Gap, names: Sequence[str]) -> Iterator[tuple[bool, tuple[str, ...], tuple[int, int], int | None]]:
    """What the ledger should know of a gap that is done with: (backfilled, tags, span, rows)."""
    filled = sorted(gap.filled)
    if filled:
        yield True, tuple(names[item] for item in filled), gap.span(filled), gap.rows
    left = gap.open_items
    if left:
        everything = len(left) == len(names)
        yield False, () if everything else tuple(names[item] for item in left), gap.span(left), None
