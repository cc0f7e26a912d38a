"""The circuit breaker of one unit: how a device is asked that may be silent.

A time-out costs everybody on the line. When `SILENT_REQUESTS_MAX` requests in a row stay unanswered, and nothing else
was answered, the rest of the cycle is not asked, and only one request a cycle from then on, each time of another block;
after `SILENT_CYCLES_MAX` such cycles the connection is given up, and each new one begins with one small read. Of a
device that answers some blocks and not others, those rest (`modbus_rest`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from connectors.modbus_frames import BAD_CONNECTION_CLOSED, Query, Reply
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Block, Range
from connectors.modbus_poll import Poll
from connectors.modbus_rest import Rests, is_silence
from connectors.modbus_wire import Arrived
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected

SILENT_CYCLES_MAX = 3
SILENT_REQUESTS_MAX = 3


class Breaker:
    """Counts resting_blocks."""

    def __init__(self, link: ModbusLink, timeout_ns: int, clock: Clock, counters: Counters) -> None:
        self.silent_cycles = 0
        """In a row."""
        self.doubt = False
        """The device was silent: it may have been restarted, with another firmware. For who asked to take back."""
        self._link = link
        self._clock = clock
        self._counters = counters
        self._rests = Rests(timeout_ns, random.random)
        self._probes = 0
        """Since the device was given up."""
        self._answering: Range | None = None
        """What the last of them read."""

    async def read(
        self, blocks: Sequence[Block], queries: Sequence[Query], due_ns: int, arrived: Arrived | None = None
    ) -> list[Reply]:
        """A reply to each; blocks that rest are not asked. `due_ns`: of the next cycle, as `ModbusLink.read` wants it.

        Raises NotConnected when the connection broke before any reply.
        """
        if not self._rests:
            return await self._ask(blocks, queries, due_ns, arrived)
        now_ns, wall_ns = self._clock.mono_ns(), self._clock.wall_ns()
        rests = [self._rests.of(block, now_ns) for block in blocks]
        awake = [at for at, rest in enumerate(rests) if rest is None]
        asked = [blocks[at] for at in awake], [queries[at] for at in awake]
        answers = iter(await self._ask(*asked, due_ns, arrived))
        return [
            next(answers) if rest is None else Reply(bytes(query.reply_bytes), wall_ns, rest)
            for query, rest in zip(queries, rests, strict=True)
        ]

    async def probe(self, poll: Poll) -> None:
        """One small read, each time of another block. Raises NotConnected when it is not answered."""
        self._probes += 1
        if not poll.blocks:
            return
        point = poll.blocks[self._probes % len(poll.blocks)].points[0]
        [reply] = await self._link.read([poll.query(Block(point.table, point.address, point.count, (point,)))])
        if reply.failure and (is_silence(reply) or self._link.lost):
            raise NotConnected(self._link.lost or self._link.give_up(f"the unit is silent: {reply.failure.reason}"))
        self._answering = point.span

    def reset(self) -> None:
        """The device is connected anew, and answers."""
        self.silent_cycles = self._probes = 0

    async def _ask(
        self, blocks: Sequence[Block], queries: Sequence[Query], due_ns: int, arrived: Arrived | None
    ) -> list[Reply]:
        if self.silent_cycles or self._answering or self._rests:
            replies = await self._ask_first(self._first(blocks), queries, arrived)
        else:
            replies = await self._link.read(queries[:SILENT_REQUESTS_MAX], due_ns, arrived)
            if others := queries[SILENT_REQUESTS_MAX:]:
                silent = all(map(is_silence, replies))
                replies += _unasked(others, replies[-1]) if silent else await self._link.read(others, due_ns, arrived)
            if not any_failed(replies):
                return replies
        self._judge(replies)
        if any(reply.failure is None for reply in replies):
            self._answering = None
            self._rests.note(blocks, replies, self._clock.mono_ns())
            self._counters.set("resting_blocks", self._rests.resting)
        return replies

    async def _ask_first(self, first: Sequence[int], queries: Sequence[Query], arrived: Arrived | None) -> list[Reply]:
        """The `first` ones; the others when one of those is answered."""
        others = [at for at in range(len(queries)) if at not in first]
        replies = await self._link.read([queries[at] for at in first], 0, arrived)
        if others:
            asked = [queries[at] for at in others]
            silent = all(map(is_silence, replies))
            replies += _unasked(asked, replies[-1]) if silent else await self._link.read(asked, 0, arrived)
        placed = dict(zip([*first, *others], replies, strict=True))
        return [placed[at] for at in range(len(queries))]

    def _first(self, blocks: Sequence[Block]) -> Sequence[int]:
        """The blocks to ask first, and alone when they are not answered; another one in each cycle of a silence."""
        if self.silent_cycles and blocks:
            return [(SILENT_REQUESTS_MAX - 1 + self.silent_cycles) % len(blocks)]
        if self._answering and blocks:
            answering = self._answering
            return [next((at for at, block in enumerate(blocks) if block.span.holds(answering)), 0)]
        answered = [at for at, block in enumerate(blocks) if block not in self._rests]
        return answered[:SILENT_REQUESTS_MAX] or range(min(len(blocks), SILENT_REQUESTS_MAX))

    def _judge(self, replies: Sequence[Reply]) -> None:
        """Whether the connection is still worth something."""
        self.doubt = self.doubt or any(map(is_silence, replies))
        if not replies or replies[-1].failure is None:
            self.silent_cycles = 0
            return
        if all(reply.failure and reply.failure.status == BAD_CONNECTION_CLOSED for reply in replies):
            raise NotConnected(self._link.lost)
        self.silent_cycles = self.silent_cycles + 1 if all(map(is_silence, replies)) else 0
        if self.silent_cycles >= SILENT_CYCLES_MAX:
            self._link.give_up(f"no reply in {SILENT_CYCLES_MAX} poll cycles")


def any_failed(replies: Sequence[Reply]) -> bool:
    """Whether one of them has no values."""
    for reply in replies:  # noqa: SIM110 (in every cycle: a generator costs more than the loop)
        if reply.failure is not None:
            return True
    return False


def _unasked(queries: Sequence[Query], like: Reply) -> list[Reply]:
    """In place of replies to requests that were not sent."""
    return [like._replace(data=bytes(query.reply_bytes)) for query in queries]
