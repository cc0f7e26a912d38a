"""Modbus source: poll cycles over a read plan, one Batch per cycle; on fast routes one per reply (`show`).

Each poll period has its own absolute schedule (`modbus_schedule`); periods that go by without a poll are counted
(`overruns`). Modbus gives no time: a row's time is when its block's reply came, flagged ARRIVAL_TIME.

A read that fails gives rows without a value and with an OPC UA StatusCode (time-out: BadTimeout); a line in the log
when that begins and when it ends, and one in `faults` meanwhile. What a failure means:

    exceptions 2, 3    the block is cut, and the reads are planned anew by what that shows (`modbus_explore`)
    exceptions 5, 6    the device is busy: asked once more after `BUSY_S`
    exceptions 10, 11  the gateway in between says that the unit does not answer: as a time-out
    time-outs          of some blocks: these are asked less and less often; of all: a dead unit costs one time-out per
                       back-off of the supervisor, however many tags it has (`modbus_breaker`)

With a `profile` the device is asked what it is at every connection, every `recheck`, and after a silence, before
anything else is read: what another firmware's registers hold is never taken for what they held before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from connectors.modbus_breaker import SILENT_CYCLES_MAX, Breaker, any_failed
from connectors.modbus_explore import Explorer
from connectors.modbus_faults import Faults
from connectors.modbus_follow import Follower
from connectors.modbus_frames import Query, Reply
from connectors.modbus_holes import HoleFile, fingerprint
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Point
from connectors.modbus_poll import Poll
from connectors.modbus_reads import reads
from connectors.modbus_rows import Rows
from connectors.modbus_schedule import Schedule
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_wire import Arrived
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from pipelines.gaps import Ledger, NoLedger
from pipelines.tags import Tag, TagTable

BUSY_S = 0.1
_BUSY = (5, 6)


class ModbusSource:
    """contracts.Source. Counts requests, timeouts, exceptions, bad_replies, stale_replies, overruns, received_bytes;
    shows holes, resting_blocks."""

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
        self.known_as = ""
        """What the device says it is, where it has a profile: another one, and what was learnt is forgotten."""
        self.counters = Counters("source", name)
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"subject": f"source {name}"})
        self._source_id = source_id
        self._settings = settings
        self._clock = clock
        self._link = ModbusLink(settings.url, settings.timeout, clock, self.counters, settings.manners)
        self._breaker = Breaker(self._link, settings.timeout, clock, self.counters)
        self._explorer = Explorer(self._link, HoleFile(data_dir, name), clock, self.counters, self._log)
        self._faults = Faults(self._log)
        self._tag_ids = _tag_ids(name, settings, tags)
        self._ledger = ledger or NoLedger()
        self._follower: Follower | None = None
        if settings.profile:
            self._follower = Follower(name, settings, tags, data_dir, self._log)
            self._follower.adjust(self._link)
        self._plan()
        self._ahead: Callable[[Batch], None] | None = None
        self._ready: deque[Batch] = deque()
        """What `read` gives next, in another session too: shown ahead, in the order of the replies, and what is left of
        their cycle."""
        self._asked_ns = 0
        """When it was asked what it is."""
        self._read_ns = 0
        self._number = 0

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one clear line."""
        return self._faults.all

    @property
    def identity(self) -> Mapping[str, str]:
        """What the device said of itself, where it has a profile: fact -> text."""
        return self._follower.identity.facts if self._follower and self._follower.identity else {}

    async def connect(self, resume: Sequence[bytes]) -> None:
        """Dials; every poll period is due at once. Raises NotConnected, or Permanent, also where no profile fits."""
        probing = self._breaker.silent_cycles >= (1 if self._follower else SILENT_CYCLES_MAX)
        await self._link.connect(() if probing or self._follower else self._schedule.polls[0].queries)
        if probing:
            await self._breaker.probe(self._schedule.polls[0])
        if self._follower:
            await self._follow(self._follower)
        await self._recall()
        self._breaker.reset()
        self._schedule.restart(self._clock.mono_ns(), self._source_id)

    async def read(self) -> Batch:
        """The batch of the poll cycle that is due next, or one of several. Raises NotConnected."""
        if self._ready:
            return self._ready.popleft()
        if self._link.lost:
            raise NotConnected(self._link.lost)
        if self._follower and await self._changed(self._follower):
            await self._recall()
            self._schedule.restart(self._clock.mono_ns(), self._source_id)
        wait_ns = self._schedule.due_ns - self._clock.mono_ns()
        if wait_ns > 0:
            await self._clock.sleep(wait_ns / 1e9)
        now_ns = self._clock.mono_ns()
        self._explorer.holes.forget_passing(now_ns)
        poll, missed = self._schedule.take(now_ns)
        if missed:
            self.counters.add("overruns", missed)
        replies = await self._breaker.read(poll.blocks, poll.queries, self._schedule.due_ns, self._shows(poll))
        if failed := any_failed(replies):
            replies = await self._explorer.explore(poll, await self._ask_busy(poll, replies))
            failed = any_failed(replies)
        if not poll.proven:
            self._explorer.prove(poll, replies)
        if failed or self._faults.failing:
            self._faults.note(poll, replies)
        if len(self._ready) < len(poll.blocks) or poll.absent:
            self._finish(poll.rows, replies, failed)
        return self._ready.popleft()

    def show(self, ahead: Callable[[Batch], None] | None) -> None:
        """As `contracts.CutThroughSource` says: each reply as it comes, a batch by itself; what of the cycle cannot be
        given so is one more, behind them."""
        self._ahead = ahead

    def commit(self, number: int) -> None:
        """Nothing to acknowledge: a Modbus device keeps nothing."""

    async def close(self) -> None:
        """Idempotent, allowed before `connect`."""
        await self._link.close()

    def _shows(self, poll: Poll) -> Arrived | None:
        """Who is told of the poll's replies. Where fast routes have polls of their own, others are read as always."""
        if self._ahead is None or (self._reads.apart and not poll.apart):
            return None
        return partial(self._arrived, poll, self._ahead)

    def _arrived(self, poll: Poll, ahead: Callable[[Batch], None], query: Query, reply: Reply) -> None:
        if (rows := poll.prompt(query)) is not None:
            batch = rows.prompt(reply, self._source_id, self._number, self._clock.state)
            self._number += 1
            self._read_ns = batch.received_ns
            self._ready.append(batch)
            ahead(batch)

    def _finish(self, rows: Rows, replies: Sequence[Reply], failed: bool) -> None:
        """A cycle is over: what it has beside what was shown."""
        batch = rows.batch(replies, self._source_id, self._number, self._clock.wall_ns(), self._clock.state)
        batch = rows.converted(rows.blank(batch, replies) if failed else batch)
        if self._ready:
            shown = np.concatenate([one.tag for one in self._ready])
            batch = batch.take(~np.isin(batch.tag, shown))
        if len(batch) or not self._ready:
            self._number += 1
            self._read_ns = batch.received_ns
            self._ready.append(batch)

    def _plan(self) -> None:
        """What is read, by the settings and the map of the device's profile as it is now."""
        self._map = self._follower.map if self._follower else None
        ids = self._follower.tag_ids() if self._follower else {}
        self._reads = reads(self._settings, self._map)
        self._explorer.begin(fingerprint(str(self._settings.url), self._reads.points))
        self._faults.clear()

        def poll(every_ns: int, points: Sequence[Point], apart: bool = False) -> Poll:
            return Poll(every_ns, self._settings.url, points, ids | self._tag_ids, self._reads.meanings, apart)

        def merged(polls: Sequence[Poll]) -> Poll:
            return poll(polls[0].every_ns, [point for one in polls for point in one.points])

        polls = [poll(*own) for own in self._reads.periods.items()]
        polls += [poll(*own, True) for own in self._reads.apart.items()]
        self._schedule = Schedule(polls, self._replan, merged)
        for one in self._schedule.polls:
            self._replan(one)

    async def _changed(self, follower: Follower) -> bool:
        """Asks again what the device is, where it is time or it was silent; True where it is another one."""
        in_doubt = self._breaker.doubt or self._clock.mono_ns() - self._asked_ns >= self._settings.recheck
        return in_doubt and await self._follow(follower)

    async def _follow(self, follower: Follower) -> bool:
        """Asks the device what it is; True where it is read by another map from now on."""
        change = await follower.follow(self._link)
        self._asked_ns, self._breaker.doubt, self.info = self._clock.mono_ns(), False, follower.info
        self.known_as = follower.identity.shown if follower.identity else ""
        if follower.map is self._map:
            return False
        self._plan()
        if change:
            self._log.warning("the device is another than before, its tags follow: %s", change.text)
            now_ns = self._clock.wall_ns()
            self._ledger.note(change.gap(self.name, self._read_ns or now_ns, now_ns))
        return True

    def _replan(self, poll: Poll) -> None:
        """Gives the poll its reads when something was learnt since."""
        holes = self._explorer.holes
        if poll.version == holes.version:
            return
        poll.adopt(*self._reads.of(poll.points, holes.known))
        poll.version = holes.version
        self._faults.planned(poll)

    async def _recall(self) -> None:
        """What was learnt before; nothing when the device is another one."""
        await self._explorer.recall(self.known_as)
        for poll in self._schedule.polls:
            self._replan(poll)
        self._faults.recalled()

    async def _ask_busy(self, poll: Poll, replies: Sequence[Reply]) -> list[Reply]:
        """Once more where the device said that it needs time."""
        busy = [at for at, reply in enumerate(replies) if reply.failure and reply.failure.exception_code in _BUSY]
        answers = list(replies)
        if busy:
            await self._clock.sleep(BUSY_S)
            for at, reply in zip(busy, await self._link.read([poll.queries[at] for at in busy]), strict=True):
                answers[at] = reply
        return answers


def _tag_ids(device: str, settings: ModbusDevice, tags: TagTable) -> dict[str, int]:
    """Adds the device's tags to the table, in the order of the file."""
    return {
        name: tags.add(
            Tag(
                device,
                name,
                unit=tag.unit,
                scale=tag.scale,
                offset=tag.offset,
                deadband=tag.deadband,
                labels=tag.labels,
                bits=bool(tag.bits),
            )
        )
        for name, tag in settings.tags.items()
    }
