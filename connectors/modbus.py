"""Modbus source: poll cycles over a read plan, one Batch per cycle.

Each poll period has its own plan and its own absolute schedule; periods that go by without a poll are counted
(`overruns`). Modbus gives no time: a row's time is when its block's reply came, flagged ARRIVAL_TIME.

A read that fails gives rows without a value and with an OPC UA StatusCode (time-out: BadTimeout); a line in the log
when that begins and when it ends, and one in `faults` meanwhile. A block that the device refuses (exception 2 or 3) is
cut in two, at once and until only the points at fault fail; the cuts hold until the next `connect`. A device that
answers nothing for `SILENT_CYCLES_MAX` cycles is NotConnected, after the rows that say so.

With a `profile` the device is asked what it is at every connection, every `recheck`, and after a silence, before
anything else is read: what another firmware's registers hold is never taken for what they held before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from connectors.modbus_follow import Follower, limits, planned_map
from connectors.modbus_link import (
    BAD_CONNECTION_CLOSED,
    ILLEGAL_ADDRESS,
    ILLEGAL_VALUE,
    ModbusLink,
    Query,
    Reply,
    RequestFailed,
)
from connectors.modbus_plan import Block, describe, halves, plan
from connectors.modbus_poll import Poll
from connectors.modbus_profile import Polling, RegisterMap, parse_block
from connectors.modbus_settings import ModbusDevice
from pipelines.batch import BAD_TIMEOUT, Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from pipelines.gaps import Gap, Ledger, NoLedger, Reason
from pipelines.quantities import format_duration
from pipelines.tags import Tag, TagTable

SILENT_CYCLES_MAX = 3
_NAMES_SHOWN_MAX = 3
_REFUSED = (ILLEGAL_ADDRESS, ILLEGAL_VALUE)


def describe_plan(settings: ModbusDevice) -> list[str]:
    """The requests of each poll period: `every 1s: holding 0-99 (100 registers, 40 tags, 2 gaps bridged)`."""
    found = planned_map(settings)
    lines = [
        f"every {format_duration(every_ns)}: {line}"
        for every_ns, blocks in _plans(settings, found).items()
        for line in describe(blocks)
    ]
    return (
        lines
        if found or not settings.profile
        else [*lines, f"profile {settings.profile}: known when the device was asked"]
    )


def _plans(settings: ModbusDevice, profile: RegisterMap | None) -> dict[int, tuple[Block, ...]]:
    """Poll period in ns -> its reads."""
    poll = profile.poll if profile else Polling()
    periods = {every: list(points) for every, points in settings.points().items()}
    every = settings.every if poll.every is None or "every" in settings.model_fields_set else poll.every
    for name, tag in (profile.tags if profile else {}).items():
        if name not in settings.tags:
            periods.setdefault(every, []).append(tag.point)
    gap, size = limits(settings, poll)
    holes = [parse_block(text) for text in poll.forbidden]
    return {every: plan(points, gap, size, holes) for every, points in sorted(periods.items())}


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
        self._settings = settings
        self._tags = tags
        self._ledger = ledger or NoLedger()
        self._follower = Follower(name, settings, tags, clock, data_dir, self._log) if settings.profile else None
        self._map: RegisterMap | None = None
        self._asked_ns = 0
        self._read_ns = 0
        self._polls: list[Poll] = []
        self._plan()
        self._timeout_ns = self._timeout()
        self._link = ModbusLink(settings.url, self._timeout_ns, clock, self.counters)
        self._faults: dict[str, str] = {}
        self._number = 0
        self._silent_cycles = 0
        self._doubt = False
        """The device was silent: it may have been restarted, with another firmware."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one clear line."""
        return self._faults

    @property
    def identity(self) -> Mapping[str, str]:
        """What the device said of itself, where it has a profile: fact -> text."""
        return self._follower.identity.facts if self._follower and self._follower.identity else {}

    async def connect(self, resume: Sequence[bytes]) -> None:
        """Dials; every poll period is due at once. Raises NotConnected, or Permanent where no profile fits."""
        await self._link.connect()
        if self._follower:
            await self._follow(self._follower)
        self._silent_cycles = 0
        now_ns = self._clock.mono_ns()
        for poll in self._polls:
            poll.restart(now_ns)

    async def read(self) -> Batch:
        """The batch of the poll cycle that is due next. Raises NotConnected."""
        if self._link.lost:
            raise NotConnected(self._link.lost)
        if self._follower and (self._doubt or self._clock.mono_ns() - self._asked_ns >= self._settings.recheck):
            await self._follow(self._follower)
        poll = self._polls[0] if len(self._polls) == 1 else min(self._polls, key=_due_ns)
        wait_ns = poll.due_ns - self._clock.mono_ns()
        if wait_ns > 0:
            await self._clock.sleep(wait_ns / 1e9)
        missed = poll.advance(self._clock.mono_ns())
        if missed:
            self.counters.add("overruns", missed)
        replies = await self._ask(poll.queries)
        if failed := _failures(replies):
            replies = await self._cut_refused(poll, replies)
            failed = _failures(replies)
        if failed or self._faults:
            self._note(poll, replies)
        self._judge(failed, len(replies))
        batch = poll.batch(replies, self._source_id, self._number, self._clock.state)
        self._number += 1
        self._read_ns = batch.received_ns
        return poll.converted(poll.blank(batch, replies) if failed else batch)

    def commit(self, number: int) -> None:
        """Nothing to acknowledge: a Modbus device keeps nothing."""

    async def close(self) -> None:
        """Idempotent, allowed before `connect`."""
        await self._link.close()

    def _plan(self) -> None:
        """One poll a period; adds the device's tags to the table, in the order of the file, then of the profile."""
        self._map = self._follower.map if self._follower else None
        ids = {
            name: self._tags.add(
                Tag(self.name, name, unit=tag.unit, scale=tag.scale, offset=tag.offset, deadband=tag.deadband)
            )
            for name, tag in self._settings.tags.items()
        }
        known = {name: tag for name, tag in (self._map.tags if self._map else {}).items() if name not in ids}
        if self._follower:
            ids = {**dict.fromkeys(known, 0), **self._follower.tag_ids(), **ids}  # 0: of no tag, and never delivered
        meanings = {name: tag.meaning for name, tag in known.items()}
        plans = _plans(self._settings, self._map)
        self._polls = [Poll(every, self._settings.url, blocks, ids, meanings) for every, blocks in plans.items()]

    def _timeout(self) -> int:
        """For a request, in ns: the file's, else the profile's."""
        said = "timeout" in self._settings.model_fields_set
        own = self._map.poll.timeout if self._map else None
        return self._settings.timeout if said or own is None else own

    async def _ask(self, queries: Sequence[Query]) -> list[Reply]:
        """A reply to each, with the pause before each that the profile wants."""
        pause_ns = self._map.poll.pause if self._map else None
        if not pause_ns:
            return await self._link.read(queries)
        replies: list[Reply] = []
        for query in queries:
            await self._clock.sleep(pause_ns / 1e9)
            replies += await self._link.read([query])
        return replies

    async def _follow(self, follower: Follower) -> None:
        """Asks the device what it is; reads by another map from now on where that has changed."""
        change = await follower.follow(self._link)
        self._asked_ns, self._doubt, self.info = self._clock.mono_ns(), False, follower.info
        if follower.map is self._map:
            return
        self._plan()
        self._faults.clear()
        for poll in self._polls:
            poll.restart(self._asked_ns)
        if self._timeout_ns != self._timeout():
            await self._link.close()
            self._timeout_ns = self._timeout()
            self._link = ModbusLink(self._settings.url, self._timeout_ns, self._clock, self.counters)
            await self._link.connect()
        if change:
            self._log.warning("the device is another than before, its tags follow: %s", change.text)
            now_ns = self._clock.wall_ns()
            gap = Gap(Reason.MAP_CHANGED, self.name, "", change.tags, self._read_ns or now_ns, now_ns, 0)
            self._ledger.note(replace(gap, detail=change.text))

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
            [answer] = await self._ask([poll.query(part)])
            found += await self._cut(poll, part, answer)
        return found

    def _judge(self, failed: Sequence[RequestFailed], blocks: int) -> None:
        """Whether the connection is still worth something. Raises NotConnected when it broke before any reply."""
        self._doubt = any(failure.status == BAD_TIMEOUT for failure in failed)
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


def _failures(replies: Sequence[Reply]) -> list[RequestFailed]:
    return [reply.failure for reply in replies if reply.failure]


def _refused(reply: Reply) -> bool:
    return reply.failure is not None and reply.failure.exception_code in _REFUSED


def _due_ns(poll: Poll) -> int:
    return poll.due_ns


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN_MAX
    return ", ".join(names[:_NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
