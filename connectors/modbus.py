"""Modbus source: poll cycles over a read plan, one Batch per cycle.

Each poll period has its own plan and its own absolute schedule; periods that go by without a poll are counted
(`overruns`). Modbus gives no time: a row's time is when its block's reply came, flagged ARRIVAL_TIME.

A read that fails gives rows without a value and with an OPC UA StatusCode (time-out: BadTimeout); a line in the log
when that begins and when it ends, and one in `faults` meanwhile. A block that the device refuses (exception 2 or 3) is
cut in two, at once and until only the points at fault fail; the cuts hold until the next `connect`. A device that
answers nothing for `SILENT_CYCLES_MAX` cycles is NotConnected, after the rows that say so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from connectors.modbus_frames import BAD_CONNECTION_CLOSED, ILLEGAL_ADDRESS, ILLEGAL_VALUE, Reply, RequestFailed
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Block, describe, halves, plan
from connectors.modbus_poll import Poll
from connectors.modbus_settings import ModbusDevice
from pipelines.batch import BAD_TIMEOUT, Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from pipelines.gaps import Ledger
from pipelines.quantities import format_duration
from pipelines.tags import Tag, TagTable

SILENT_CYCLES_MAX = 3
_NAMES_SHOWN_MAX = 3
_REFUSED = (ILLEGAL_ADDRESS, ILLEGAL_VALUE)


def describe_plan(settings: ModbusDevice) -> list[str]:
    """The requests of each poll period: `every 1s: holding 0-99 (100 registers, 40 tags, 2 gaps bridged)`."""
    return [
        f"every {format_duration(every_ns)}: {line}"
        for every_ns, blocks in _plans(settings).items()
        for line in describe(blocks)
    ]


def _plans(settings: ModbusDevice) -> dict[int, tuple[Block, ...]]:
    """Poll period in ns -> its reads."""
    return {every: plan(points, settings.max_gap, settings.max_block) for every, points in settings.points().items()}


class ModbusSource:
    """contracts.Source. Counts requests, timeouts, exceptions, bad_replies, stale_replies, overruns, received_bytes."""

    replayable = False
    info = ""

    def __init__(
        self,
        name: str,
        source_id: int,
        settings: ModbusDevice,
        tags: TagTable,
        clock: Clock,
        data_dir: Path,
        ledger: Ledger | None = None,
    ) -> None:
        self.name = name
        self.counters = Counters("source", name)
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"subject": f"source {name}"})
        self._source_id = source_id
        self._clock = clock
        self._link = ModbusLink(settings.url, settings.timeout, clock, self.counters, settings.manners)
        self._polls = _polls(name, settings, tags)
        self._faults: dict[str, str] = {}
        self._number = 0
        self._silent_cycles = 0

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one clear line."""
        return self._faults

    async def connect(self, resume: Sequence[bytes]) -> None:
        """Dials; every poll period is due at once. Raises NotConnected, Permanent."""
        await self._link.connect(self._polls[0].queries)
        self._silent_cycles = 0
        now_ns = self._clock.mono_ns()
        for poll in self._polls:
            poll.restart(now_ns)

    async def read(self) -> Batch:
        """The batch of the poll cycle that is due next. Raises NotConnected."""
        if self._link.lost:
            raise NotConnected(self._link.lost)
        poll = self._polls[0] if len(self._polls) == 1 else min(self._polls, key=_due_ns)
        wait_ns = poll.due_ns - self._clock.mono_ns()
        if wait_ns > 0:
            await self._clock.sleep(wait_ns / 1e9)
        missed = poll.advance(self._clock.mono_ns())
        if missed:
            self.counters.add("overruns", missed)
        replies = await self._link.read(poll.queries, poll.due_ns)
        if failed := _failures(replies):
            replies = await self._cut_refused(poll, replies)
            failed = _failures(replies)
        if failed or self._faults:
            self._note(poll, replies)
        self._judge(failed, len(replies))
        batch = poll.batch(replies, self._source_id, self._number, self._clock.state)
        self._number += 1
        return poll.blank(batch, replies) if failed else batch

    def commit(self, number: int) -> None:
        """Nothing to acknowledge: a Modbus device keeps nothing."""

    async def close(self) -> None:
        """Idempotent, allowed before `connect`."""
        await self._link.close()

    async def _cut_refused(self, poll: Poll, replies: Sequence[Reply]) -> list[Reply]:
        """The replies to `poll.blocks`, which are cut where the device refuses one."""
        found: list[tuple[Block, Reply]] = []
        for block, reply in zip(poll.blocks, replies, strict=True):
            found += await self._cut(poll, block, reply)
        if len(found) > len(poll.blocks):
            poll.adopt([block for block, _ in found])
        return [reply for _, reply in found]

    async def _cut(self, poll: Poll, block: Block, reply: Reply) -> list[tuple[Block, Reply]]:
        """The block itself; or when it was refused, its halves, and theirs, with the replies that they get."""
        parts = halves(block) if _refused(reply) else None
        if parts is None:
            return [(block, reply)]
        found: list[tuple[Block, Reply]] = []
        for part in parts:
            [answer] = await self._link.read([poll.query(part)])
            found += await self._cut(poll, part, answer)
        return found

    def _judge(self, failed: Sequence[RequestFailed], blocks: int) -> None:
        """Whether the connection is still worth something. Raises NotConnected when it broke before any reply."""
        statuses = {failure.status for failure in failed} if len(failed) == blocks else set()
        if statuses == {BAD_CONNECTION_CLOSED}:
            raise NotConnected(self._link.lost)
        self._silent_cycles = self._silent_cycles + 1 if statuses == {BAD_TIMEOUT} else 0
        if self._silent_cycles >= SILENT_CYCLES_MAX:
            self._link.give_up(f"no reply in {SILENT_CYCLES_MAX} poll cycles")

    def _note(self, poll: Poll, replies: Sequence[Reply]) -> None:
        """Keeps `faults`; one line in the log for each block whose state changed."""
        for block, reply in zip(poll.blocks, replies, strict=True):
            if reply.failure and reply.failure.status == BAD_CONNECTION_CLOSED:
                continue  # the connection's trouble, not the tags'
            text = f"{block.place}: {reply.failure.reason}" if reply.failure else None
            changed = [point.name for point in block.points if self._faults.get(point.name) != text]
            for name in changed:
                if text is None:
                    del self._faults[name]
                else:
                    self._faults[name] = text
            if changed and text:
                self._log.warning("%s (%s)", text, _names(changed))
            elif changed:
                self._log.info("%s is read again (%s)", block.place, _names(changed))


def _polls(name: str, settings: ModbusDevice, tags: TagTable) -> list[Poll]:
    """One a period; adds the device's tags to the table, in the order of the file."""
    ids = {
        tag_name: tags.add(
            Tag(name, tag_name, unit=tag.unit, scale=tag.scale, offset=tag.offset, deadband=tag.deadband)
        )
        for tag_name, tag in settings.tags.items()
    }
    return [Poll(every_ns, settings.url, blocks, ids) for every_ns, blocks in _plans(settings).items()]


def _failures(replies: Sequence[Reply]) -> list[RequestFailed]:
    return [reply.failure for reply in replies if reply.failure]


def _refused(reply: Reply) -> bool:
    return reply.failure is not None and reply.failure.exception_code in _REFUSED


def _due_ns(poll: Poll) -> int:
    return poll.due_ns


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN_MAX
    return ", ".join(names[:_NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
