"""Finds out what a device has not got: a refused read is cut, at once and until only the points at fault fail.

What that shows is kept (`modbus_holes`), and the reads are planned anew by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from connectors.modbus_frames import ILLEGAL_ADDRESS, ILLEGAL_VALUE, Reply
from connectors.modbus_holes import HoleFile, Holes
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import NOTHING_KNOWN, Block, Range, halves
from connectors.modbus_poll import Poll
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import Corrupt

if TYPE_CHECKING:
    Log: TypeAlias = logging.LoggerAdapter[logging.Logger]

_REFUSED = (ILLEGAL_ADDRESS, ILLEGAL_VALUE)


class Explorer:
    """`holes` is what is known of the device. Counts holes."""

    def __init__(self, link: ModbusLink, file: HoleFile, clock: Clock, counters: Counters, log: Log) -> None:
        self.holes = Holes()
        self._link = link
        self._file = file
        self._clock = clock
        self._counters = counters
        self._log = log
        self._fingerprint = self._identity = ""
        self._once_read: set[str] = set()
        """Tags that the device has had."""

    def begin(self, fingerprint: str) -> None:
        """Other points are read from now on, or at another address."""
        self._fingerprint = fingerprint
        self._once_read.clear()

    async def recall(self, identity: str) -> None:
        """What was learnt before; nothing when the device is another one. `identity`: what it says it is."""
        self._identity = identity
        try:
            known = await asyncio.to_thread(self._file.load, self._fingerprint, identity)
        except (Corrupt, OSError) as error:
            self._log.warning("what was learnt of the device is lost: %s", error)
            known = NOTHING_KNOWN
        self.holes.adopt(known)
        self._counters.set("holes", len(known.refused))

    def prove(self, poll: Poll, replies: Sequence[Reply]) -> None:
        """Takes note of what can be read; until all of it was."""
        for block, reply in zip(poll.blocks, replies, strict=True):
            if reply.failure is None:
                self.holes.answered(block.span)
                self._once_read.update(point.name for point in block.points if point.name)
        poll.proven = all(reply.failure is None for reply in replies)

    async def explore(self, poll: Poll, replies: Sequence[Reply]) -> list[Reply]:
        """The replies to `poll.blocks`, which are cut where the device refuses one, and planned anew thereafter."""
        if not any(map(_is_refused, replies)):
            return list(replies)
        kept = self.holes.kept
        found: list[tuple[Block, Reply]] = []
        refused: list[Range] = []
        for block, reply in zip(poll.blocks, replies, strict=True):
            found += await self._cut(poll, block, reply, refused)
        alive = any(reply.failure is None for _, reply in found)
        for block, reply in found:
            if _is_refused(reply):
                once_read = any(point.name in self._once_read for point in block.points)
                self.holes.refused_single(block.span, alive and not once_read, self._clock.mono_ns())
        if self.holes.kept != kept:
            await self._keep()
        poll.adopt([block for block, _ in found], poll.absent)
        poll.version = -1
        return [reply for _, reply in found]

    async def _cut(self, poll: Poll, block: Block, reply: Reply, refused: list[Range]) -> list[tuple[Block, Reply]]:
        """The block itself; or when it was refused, its halves, and theirs, with the replies that they get.

        `refused` gathers what was asked for in vain: a part that holds such a read is not asked for.
        """
        if not _is_refused(reply):
            return [(block, reply)]
        refused.append(block.span)
        if (parts := halves(block)) is None:
            return [(block, reply)]
        found: list[tuple[Block, Reply]] = []
        whole = True
        for part in parts:
            if any(part.span.holds(span) for span in refused):
                answer = reply._replace(data=bytes(part.reply_bytes))
            else:
                [answer] = await self._link.read([poll.query(part)])
            whole = whole and answer.failure is None
            found += await self._cut(poll, part, answer, refused)
        if whole:
            self.holes.refused_between(block.span, parts[0].span, parts[1].span)
        return found

    async def _keep(self) -> None:
        self._counters.set("holes", len(self.holes.kept.refused))
        try:
            await asyncio.to_thread(self._file.save, self._fingerprint, self._identity, self.holes.kept)
        except OSError as error:
            self._log.warning("what was learnt of the device cannot be kept: %s", error)


def _is_refused(reply: Reply) -> bool:
    return reply.failure is not None and reply.failure.exception_code in _REFUSED
