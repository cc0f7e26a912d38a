"""Modbus source: poll cycles over a read plan, one Batch per cycle.

Each poll period has its own absolute schedule (`modbus_schedule`); periods that go by without a poll are counted
(`overruns`). Modbus gives no time: a row's time is when its block's reply came, flagged ARRIVAL_TIME.

A read that fails gives rows without a value and with an OPC UA StatusCode (time-out: BadTimeout); a line in the log
when that begins and when it ends, and one in `faults` meanwhile. What a failure means:

    exceptions 2, 3    the block is cut, at once and until only the points at fault fail; what that shows is kept, and
                       the reads are planned anew (`modbus_holes`)
    exceptions 5, 6    the device is busy: asked once more after `BUSY_S`
    exceptions 10, 11  the gateway in between says that the unit does not answer: as a time-out
    time-outs          of some blocks: these are asked less and less often (`modbus_rest`). Of `SILENT_REQUESTS_MAX`
                       requests in a row, and nothing else: the rest of the cycle is not asked, and only one request a
                       cycle from then on; after `SILENT_CYCLES_MAX` such cycles the device is NotConnected. Then each
                       `connect` asks one value first: a dead unit costs one time-out per back-off of the supervisor,
                       however many tags it has, and whoever shares its line.

With a `profile` the device is asked what it is at every connection, every `recheck`, and after a silence, before
anything else is read: what another firmware's registers hold is never taken for what they held before.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from connectors.modbus_follow import Follower
from connectors.modbus_frames import BAD_CONNECTION_CLOSED, ILLEGAL_ADDRESS, ILLEGAL_VALUE, Query, Reply
from connectors.modbus_holes import HoleFile, Holes, fingerprint
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import NOTHING_KNOWN, Block, Point, Range, halves
from connectors.modbus_poll import ABSENT, Poll
from connectors.modbus_reads import reads
from connectors.modbus_rest import Rests, is_silence
from connectors.modbus_schedule import Schedule
from connectors.modbus_settings import ModbusDevice
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import Corrupt, NotConnected
from pipelines.gaps import Ledger, NoLedger
from pipelines.tags import Tag, TagTable

SILENT_CYCLES_MAX = 3
SILENT_REQUESTS_MAX = 3
BUSY_S = 0.1
_NAMES_SHOWN_MAX = 3
_REFUSED = (ILLEGAL_ADDRESS, ILLEGAL_VALUE)
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
        self._holes = Holes()
        self._file = HoleFile(data_dir, name)
        self._rests = Rests(settings.timeout, random.random)
        self._faults: dict[str, str] = {}
        self._absent: dict[str, str] = {}
        self._once_read: set[str] = set()
        self._tag_ids = _tag_ids(name, settings, tags)
        self._ledger = ledger or NoLedger()
        self._follower: Follower | None = None
        if settings.profile:
            self._follower = Follower(name, settings, tags, data_dir, self._log)
            self._follower.adjust(self._link)
        self._plan()
        self._doubt = False
        """The device was silent: it may have been restarted, with another firmware."""
        self._asked_ns = 0
        """When it was asked what it is."""
        self._read_ns = 0
        self._number = 0
        self._silent_cycles = 0
        self._unanswered = 0
        """Probes since the device was given up."""
        self._answering: Range | None = None
        """What the last of them read."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one clear line."""
        return self._faults | self._absent

    @property
    def identity(self) -> Mapping[str, str]:
        """What the device said of itself, where it has a profile: fact -> text."""
        return self._follower.identity.facts if self._follower and self._follower.identity else {}

    async def connect(self, resume: Sequence[bytes]) -> None:
        """Dials; every poll period is due at once. Raises NotConnected, or Permanent, also where no profile fits."""
        probing = self._silent_cycles >= (1 if self._follower else SILENT_CYCLES_MAX)
        await self._link.connect(() if probing or self._follower else self._schedule.polls[0].queries)
        if probing:
            await self._probe()
        if self._follower:
            await self._follow(self._follower)
        await self._recall()
        self._silent_cycles = self._unanswered = 0
        self._schedule.restart(self._clock.mono_ns(), self._source_id)

    async def read(self) -> Batch:
        """The batch of the poll cycle that is due next. Raises NotConnected."""
        if self._link.lost:
            raise NotConnected(self._link.lost)
        if self._follower and await self._changed(self._follower):
            await self._recall()
            self._schedule.restart(self._clock.mono_ns(), self._source_id)
        wait_ns = self._schedule.due_ns - self._clock.mono_ns()
        if wait_ns > 0:
            await self._clock.sleep(wait_ns / 1e9)
        now_ns = self._clock.mono_ns()
        self._holes.forget_passing(now_ns)
        poll, missed = self._schedule.take(now_ns)
        if missed:
            self.counters.add("overruns", missed)
        replies = await (self._ask_awake(poll) if self._rests else self._ask(poll.blocks, poll.queries))
        if failed := _any_failed(replies):
            replies = await self._explore(poll, await self._ask_busy(poll, replies))
            failed = _any_failed(replies)
        if not poll.proven:
            self._prove(poll, replies)
        if failed or self._faults:
            self._note(poll, replies)
        batch = poll.batch(replies, self._source_id, self._number, self._clock.wall_ns(), self._clock.state)
        self._number += 1
        self._read_ns = batch.received_ns
        return poll.converted(poll.blank(batch, replies) if failed else batch)

    def commit(self, number: int) -> None:
        """Nothing to acknowledge: a Modbus device keeps nothing."""

    async def close(self) -> None:
        """Idempotent, allowed before `connect`."""
        await self._link.close()

    def _plan(self) -> None:
        """What is read, by the settings and the map of the device's profile as it is now."""
        self._map = self._follower.map if self._follower else None
        ids = self._follower.tag_ids() if self._follower else {}
        self._reads = reads(self._settings, self._map)
        self._fingerprint = fingerprint(str(self._settings.url), self._reads.points)
        self._absent.clear()
        self._faults.clear()
        self._once_read.clear()

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
        in_doubt = self._doubt or self._clock.mono_ns() - self._asked_ns >= self._settings.recheck
        return in_doubt and await self._follow(follower)

    async def _follow(self, follower: Follower) -> bool:
        """Asks the device what it is; True where it is read by another map from now on."""
        change = await follower.follow(self._link)
        self._asked_ns, self._doubt, self.info = self._clock.mono_ns(), False, follower.info
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
        if poll.version == self._holes.version:
            return
        poll.adopt(*self._reads.of(poll.points, self._holes.known))
        poll.version = self._holes.version
        new = [point for point in poll.absent if point.name not in self._absent]
        for point in new:
            self._absent[point.name] = self._faults.pop(point.name, f"{point.span}: {ABSENT[1]}")
        for point in poll.points:
            if point.name in self._absent and point not in poll.absent:
                del self._absent[point.name]

    async def _recall(self) -> None:
        """What was learnt before; nothing when the device is another one."""
        try:
            known = await asyncio.to_thread(self._file.load, self._fingerprint, self.known_as)
        except (Corrupt, OSError) as error:
            self._log.warning("what was learnt of the device is lost: %s", error)
            known = NOTHING_KNOWN
        self._holes.adopt(known)
        self.counters.set("holes", len(known.refused))
        for poll in self._schedule.polls:
            self._replan(poll)
        if self._absent:
            self._log.warning("not asked for, the device refused them before (%s)", _names(list(self._absent)))

    async def _probe(self) -> None:
        """One small read, each time of another block. Raises NotConnected when it is not answered."""
        blocks = self._schedule.polls[0].blocks
        self._unanswered += 1
        if not blocks:
            return
        point = blocks[self._unanswered % len(blocks)].points[0]
        query = self._schedule.polls[0].query(Block(point.table, point.address, point.count, (point,)))
        [reply] = await self._link.read([query])
        if reply.failure and (is_silence(reply) or self._link.lost):
            raise NotConnected(self._link.lost or self._link.give_up(f"the unit is silent: {reply.failure.reason}"))
        self._answering = point.span

    async def _ask(self, blocks: Sequence[Block], queries: Sequence[Query]) -> list[Reply]:
        """A reply to each. Of a device that answers nothing only a few are asked."""
        due_ns = self._schedule.due_ns
        if self._silent_cycles or self._answering or self._rests:
            replies = await self._ask_first(self._first(blocks), queries)
        else:
            replies = await self._link.read(queries[:SILENT_REQUESTS_MAX], due_ns)
            if others := queries[SILENT_REQUESTS_MAX:]:
                silent = all(map(is_silence, replies))
                replies += _unasked(others, replies[-1]) if silent else await self._link.read(others, due_ns)
            if not _any_failed(replies):
                return replies
        self._judge(replies)
        if any(reply.failure is None for reply in replies):
            self._answering = None
            self._rests.note(blocks, replies, self._clock.mono_ns())
            self.counters.set("resting_blocks", self._rests.resting)
        return replies

    async def _ask_first(self, first: Sequence[int], queries: Sequence[Query]) -> list[Reply]:
        """The `first` ones; the others when one of those is answered."""
        others = [at for at in range(len(queries)) if at not in first]
        replies = await self._link.read([queries[at] for at in first])
        if others:
            asked = [queries[at] for at in others]
            silent = all(map(is_silence, replies))
            replies += _unasked(asked, replies[-1]) if silent else await self._link.read(asked)
        placed = dict(zip([*first, *others], replies, strict=True))
        return [placed[at] for at in range(len(queries))]

    def _first(self, blocks: Sequence[Block]) -> Sequence[int]:
        """The blocks to ask first, and alone when they are not answered; another one in each cycle of a silence."""
        if self._silent_cycles and blocks:
            return [(SILENT_REQUESTS_MAX - 1 + self._silent_cycles) % len(blocks)]
        if self._answering and blocks:
            answering = self._answering
            return [next((at for at, block in enumerate(blocks) if block.span.holds(answering)), 0)]
        answered = [at for at, block in enumerate(blocks) if block not in self._rests]
        return answered[:SILENT_REQUESTS_MAX] or range(min(len(blocks), SILENT_REQUESTS_MAX))

    async def _ask_awake(self, poll: Poll) -> list[Reply]:
        """As `_ask`, but for the blocks that rest."""
        now_ns, wall_ns = self._clock.mono_ns(), self._clock.wall_ns()
        rests = [self._rests.of(block, now_ns) for block in poll.blocks]
        awake = [at for at, rest in enumerate(rests) if rest is None]
        answers = iter(await self._ask([poll.blocks[at] for at in awake], [poll.queries[at] for at in awake]))
        return [
            next(answers) if rest is None else Reply(bytes(query.reply_bytes), wall_ns, rest)
            for query, rest in zip(poll.queries, rests, strict=True)
        ]

    async def _ask_busy(self, poll: Poll, replies: Sequence[Reply]) -> list[Reply]:
        """Once more where the device said that it needs time."""
        busy = [at for at, reply in enumerate(replies) if reply.failure and reply.failure.exception_code in _BUSY]
        answers = list(replies)
        if busy:
            await self._clock.sleep(BUSY_S)
            for at, reply in zip(busy, await self._link.read([poll.queries[at] for at in busy]), strict=True):
                answers[at] = reply
        return answers

    async def _explore(self, poll: Poll, replies: Sequence[Reply]) -> list[Reply]:
        """The replies to `poll.blocks`, which are cut where the device refuses one, and planned anew thereafter."""
        if not any(map(_is_refused, replies)):
            return list(replies)
        kept = self._holes.kept
        found: list[tuple[Block, Reply]] = []
        refused: list[Range] = []
        for block, reply in zip(poll.blocks, replies, strict=True):
            found += await self._cut(poll, block, reply, refused)
        alive = any(reply.failure is None for _, reply in found)
        for block, reply in found:
            if _is_refused(reply):
                once_read = any(point.name in self._once_read for point in block.points)
                self._holes.refused_single(block.span, alive and not once_read, self._clock.mono_ns())
        if self._holes.kept != kept:
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
            self._holes.refused_between(block.span, parts[0].span, parts[1].span)
        return found

    async def _keep(self) -> None:
        self.counters.set("holes", len(self._holes.kept.refused))
        try:
            await asyncio.to_thread(self._file.save, self._fingerprint, self.known_as, self._holes.kept)
        except OSError as error:
            self._log.warning("what was learnt of the device cannot be kept: %s", error)

    def _judge(self, replies: Sequence[Reply]) -> None:
        """Whether the connection is still worth something. Raises NotConnected when it broke before any reply."""
        self._doubt = self._doubt or any(map(is_silence, replies))
        if not replies or replies[-1].failure is None:
            self._silent_cycles = 0
            return
        if all(reply.failure and reply.failure.status == BAD_CONNECTION_CLOSED for reply in replies):
            raise NotConnected(self._link.lost)
        self._silent_cycles = self._silent_cycles + 1 if all(map(is_silence, replies)) else 0
        if self._silent_cycles >= SILENT_CYCLES_MAX:
            self._link.give_up(f"no reply in {SILENT_CYCLES_MAX} poll cycles")

    def _prove(self, poll: Poll, replies: Sequence[Reply]) -> None:
        """Takes note of what can be read; until all of it was."""
        for block, reply in zip(poll.blocks, replies, strict=True):
            if reply.failure is None:
                self._holes.answered(block.span)
                self._once_read.update(point.name for point in block.points if point.name)
        poll.proven = not _any_failed(replies)

    def _note(self, poll: Poll, replies: Sequence[Reply]) -> None:
        """Keeps `faults`; one line in the log for each block whose state changed."""
        for block, reply in zip(poll.blocks, replies, strict=True):
            if reply.failure and reply.failure.status == BAD_CONNECTION_CLOSED:
                continue  # the connection's trouble, not the tags'
            text = f"{block.place}: {reply.failure.reason}" if reply.failure else None
            names = [point.name for point in block.points if point.name]
            changed = [name for name in names if self._faults.get(name) != text]
            for name in changed:
                if text is None:
                    del self._faults[name]
                else:
                    self._faults[name] = text
            if changed and text:
                self._log.warning("%s (%s)", text, _names(changed))
            elif changed:
                self._log.info("%s is read again (%s)", block.place, _names(changed))


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


def _unasked(queries: Sequence[Query], like: Reply) -> list[Reply]:
    """In place of replies to requests that were not sent."""
    return [like._replace(data=bytes(query.reply_bytes)) for query in queries]


def _any_failed(replies: Sequence[Reply]) -> bool:
    for reply in replies:  # noqa: SIM110 (in every cycle: a generator costs more than the loop)
        if reply.failure is not None:
            return True
    return False


def _is_refused(reply: Reply) -> bool:
    return reply.failure is not None and reply.failure.exception_code in _REFUSED


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN_MAX
    return ", ".join(names[:_NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
