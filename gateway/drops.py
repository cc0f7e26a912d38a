"""Which buffers drop samples now. That samples are missing must not stand in counters and the gap ledger only.

A line in the log when a buffer begins to drop, and one when it has dropped nothing for `OVER_AFTER_S`; in between
`/health` is degraded and says which buffer it is, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.log import Log
from pipelines.clock import Clock
from pipelines.contracts import Lane

LOOK_EVERY_S: Final = 1.0
OVER_AFTER_S: Final = 30.0


@dataclass
class _Spell:
    """From the first sample dropped on."""

    rows_before: int
    """Counted before it."""
    why: str
    over_ns: int = 0
    """Monotonic, unless more are dropped."""


class DropWatch:
    """`reasons`: lane name -> one line, while it drops samples."""

    def __init__(self, lanes: Sequence[Lane], clock: Clock) -> None:
        self.reasons: dict[str, str] = {}
        self._lanes = lanes
        self._clock = clock
        self._spells: dict[str, _Spell] = {}
        self._counted = {lane.name: _counted(lane) for lane in lanes}

    async def run(self) -> None:
        """Never returns."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)  # a look, not a deadline: the clock says when it was

    def look(self) -> None:
        """Says what began and what is over."""
        for lane in self._lanes:
            before, (rows, no_room) = self._counted[lane.name], _counted(lane)
            self._counted[lane.name] = rows, no_room
            if rows > before[0]:
                self._dropped(lane, before[0], rows, no_room > before[1])
            elif lane.name in self._spells:
                self._calm(lane.name, rows)

    def _dropped(self, lane: Lane, before: int, rows: int, no_room: bool) -> None:
        spell, why = self._spells.get(lane.name), _why(lane.durable, no_room)
        if spell is None:
            spell = self._spells[lane.name] = _Spell(before, why)
            Log(f"route {lane.name}").warning(f"it drops samples, `gateway gaps` lists them: {why}")
        elif no_room:
            spell.why = why
        spell.over_ns = self._clock.mono_ns() + int(OVER_AFTER_S * 1e9)
        self.reasons[lane.name] = f"{rows - spell.rows_before} samples dropped: {spell.why}"

    def _calm(self, name: str, rows: int) -> None:
        if self._clock.mono_ns() >= self._spells[name].over_ns:
            dropped = rows - self._spells.pop(name).rows_before
            del self.reasons[name]
            Log(f"route {name}").info("it drops no samples any more", dropped=dropped)


def dropped_rows(lane: Lane) -> int:
    """For want of room, so far; what `max_age` drops is as the file wants it."""
    totals = lane.counters.totals
    return totals.get("dropped_rows", 0) - totals.get("expired_rows", 0)


def _counted(lane: Lane) -> tuple[int, int]:
    """Rows dropped so far; how often the disk had no room."""
    return dropped_rows(lane), lane.counters.totals.get("disk_full", 0)


def _why(durable: bool, no_room: bool) -> str:
    if no_room:
        return "the disk has no room beyond what `buffer.reserve` keeps free; free some of it"
    return f"its buffer is full, {'`buffer.disk`' if durable else '`memory`'} says how much it holds"
