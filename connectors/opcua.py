"""OPC UA source: subscriptions whose notifications become batches, never an object per value.

One read() gives one part (at most `ROWS_MAX` rows) of one notification message, so that a message of 65,000 values does
not hold the event loop. A notification is acknowledged with the PublishRequest that follows its commit; what was not is
asked for again (Republish) by whoever goes on with the subscription (`opcua_link`). Where that cannot be, the gap is
filled from the server's history (`opcua_gaps`), or it is in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Final

from asyncua import ua

from connectors import opcua_requests
from connectors.opcua_backfill import Backfill
from connectors.opcua_batches import Batches
from connectors.opcua_binary import DecodeError
from connectors.opcua_describe import Describer
from connectors.opcua_directory import Directory
from connectors.opcua_events import EventReader
from connectors.opcua_hot import HotStandbys
from connectors.opcua_learnt import Labels
from connectors.opcua_link import Link, Opened, mapped
from connectors.opcua_notifications import PAUSE, Notifications
from connectors.opcua_overlap import Overlap
from connectors.opcua_plan import plan_events
from connectors.opcua_refresh import Refresh
from connectors.opcua_requests import TOO_MANY_PUBLISH_REQUESTS, ServiceError, status_name
from connectors.opcua_response import PublishResponse, parse_response
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_streams import Step, Streams
from connectors.opcua_upkeep import Upkeep
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Transient
from pipelines.gaps import Gap, Ledger, NoLedger, Reason
from pipelines.origin import newest
from pipelines.tags import Tag, TagTable, device_of

LEARNT_PER_TURN: Final = 500
"""Tags that become known: about a millisecond."""
OUTSTANDING_MIN: Final = 4
ARM_TOGETHER: Final = 2
"""PublishRequests in one write: each wakes a core at the server and costs us 0.1 ms."""
SILENCE_KEEP_ALIVES: Final = 3
"""Keep-alive times without any PublishResponse after which the connection counts as dead."""
SILENCE_LEFT_S: Final = 0.1
"""For what has arrived and was not looked at, after a long time without a read."""
PROOF_S: Final = 3.0
"""Beyond its keep-alive time: a subscription that was taken over and says nothing by then does not work."""

DISPROVED_MAX: Final = 3
"""Sessions in a row that ended before what they had taken over said anything."""

SERVICE_UNSUPPORTED: Final = 0x800B_0000


@dataclass(frozen=True, slots=True)
class _Ask:
    """A notification that has to be asked for."""

    subscription_id: int
    number: int


class OpcUaSource:
    """See `contracts.Source`. Origins are those of `pipelines.origin`: a stream is one life of a subscription."""

    replayable = True

    def __init__(
        self,
        name: str,
        source_id: int,
        settings: OpcUaDevice,
        tags: TagTable,
        clock: Clock,
        data_dir: Path,
        ledger: Ledger | None = None,
    ) -> None:
        self.name = name
        self.counters = Counters("source", name)
        self._ledger = NoLedger() if ledger is None else ledger
        self._log = logging.LoggerAdapter(logging.getLogger(__name__), {"subject": f"source {name}"})
        self._clock = clock
        self._tags = tags
        self._names: list[str] = []  # by client handle
        self._upkeep = Upkeep(settings, data_dir, clock, self.counters, self._log)
        self._make = Batches(source_id, tags, clock, self._upkeep.skew)
        self._settings = settings.at(self._upkeep.servers.current)
        self._directory = Directory(name, settings, data_dir, self._log)
        self._new_link = partial(
            Link,
            name,
            clock=clock,
            data_dir=data_dir,
            counters=self.counters,
            log=self._log,
        )
        self._link = self._new_link(self._settings, self._directory)
        self._hot = HotStandbys(
            self._upkeep.servers,
            settings,
            lambda standby: self._new_link(standby, self._directory.twin()),
            clock,
            self._log,
        )
        self._resume: Sequence[bytes] = ()
        self._events = EventReader(name, plan_events(settings), tags)
        self._streams = Streams()
        self._backfill = Backfill(device_of(name), settings, clock, self._ledger, self.counters, self._log)
        self._describer = Describer(name, tags, clock, self.counters, self._log)
        self._notifications = Notifications(
            self._names,
            self._make,
            self._streams,
            self._events,
            self._backfill,
            self._upkeep,
            clock,
            self._overflown,
        )
        self._held: Batch | None = None  # while its structures are read
        self._refresh = Refresh(name, settings, clock, self._log, self._learn, self._created)
        while self._learn():
            pass
        self._how = ""
        self._heard_ns = 0  # monotonic: the last PublishResponse
        self._batches: Iterator[Batch] = iter(())
        self._ahead: Callable[[Batch], None] | None = None
        self._due: deque[_Ask | bytes] = deque()  # before anything that is published now
        self._to_arm = 0
        self._unproven: set[int] = set()  # subscription ids that were taken over and not heard of yet
        self._proof_by_ns: int | None = None
        self._disproved = 0

    @property
    def faults(self) -> Mapping[str, str]:
        of_items = self._link.items.faults if self._link.items else {}
        of_selection = self._directory.faults
        if self._refresh.fault:
            of_selection = {**of_selection, "select": self._refresh.fault}
        return {**of_items, **of_selection} if of_selection else of_items

    @property
    def info(self) -> str:
        """How the present session came about, what is read from history, what is not as it should be."""
        link, upkeep = self._link, self._upkeep
        unfiltered = link.items.unfiltered.info if link.items else ""
        tags = (self._directory.info, self._backfill.info, unfiltered, self._describer.info)
        lacks = f"the server has no {', no '.join(link.lacks)}" if link.lacks else ""
        return "; ".join(
            filter(None, (self._how, *tags, upkeep.info, self._hot.info, link.server.info, lacks, *link.alarms))
        )

    async def connect(self, resume: Sequence[bytes]) -> None:
        self._resume = resume
        await self._open(self._choose_server())

    async def _open(self, first: Awaitable[None]) -> None:
        try:
            await first
            opened = await self._link.open(durable=bool(self._resume))
            while self._learn():  # noqa: ASYNC110  other tasks get a turn, nothing is waited for
                await asyncio.sleep(0)
            self._heed_profiles()
            await self._describe(waits=not opened.available)
            self._begin(opened, self._resume)
            await self._begin_backfill()
            self._make.forget_bands()
            self._make.set_bands(await self._link.unfiltered_bands())
            assert self._link.session is not None
            self._link.session.on_response = self._arrived
            await self._upkeep.begin(self._link.session, self._link.limits)
            self._refresh.start(self._link)
            self._hot.start()
        except BaseException as error:
            await self.close()
            as_contracted = mapped(error, self._settings)
            if as_contracted is error:
                raise
            raise as_contracted from error

    async def read(self) -> Batch:
        while True:
            try:
                batch = self._held or self._next_batch()
                if batch is PAUSE:
                    await asyncio.sleep(0)
                    continue
                batch = batch or self._from_history() or self._from_heartbeat()
                if batch is not None:
                    if self._describer.has_objects(batch):
                        self._held = batch  # a cancelled read loses nothing
                        await self._describer.read(batch)
                    self._held = None
                    return batch
                try:
                    self._batches = await self._next_batches()
                except (OSError, ServiceError, DecodeError, ua.UaError) as error:
                    raise mapped(error, self._settings) from error
            except (NotConnected, Transient):
                if not await self._failed_over():
                    raise

    def show(self, ahead: Callable[[Batch], None] | None) -> None:
        """As `contracts.CutThroughSource` says."""
        self._ahead = ahead

    def _arrived(self, body: bytes) -> bool:
        """A response, while `read` waits for one: what it gives next, it has from here."""
        if self._ahead is None:
            return False
        self._to_arm += 1
        try:
            self._batches = self._open_response(body)
            first = self._next_batch()
        except NotConnected as error:
            self._batches = map(_raised, [error])
            return True
        if first is not None:
            self._batches = chain([first], self._batches)
            if first is not PAUSE and not self._describer.has_objects(first):
                self._ahead(first)
        return True

    def _next_batch(self) -> Batch | None:
        """Of the notification that is being read."""
        try:
            return next(self._batches, None)
        except DecodeError as error:
            self.counters.add("undecodable")
            raise NotConnected(f"{self._settings.opcua}: invalid notification: {error}") from error

    def commit(self, number: int) -> None:
        self._streams.commit(number)

    async def close(self) -> None:
        await self._end()
        await self._hot.stop()

    async def _end(self) -> None:
        self._disproved = self._disproved + 1 if self._unproven else 0
        if self._disproved >= DISPROVED_MAX:
            self._link.forget()
        self._unproven = set()
        self._batches, self._held, self._notifications.overlap = iter(()), None, None
        self._due.clear()
        self._how = ""
        await self._refresh.stop()
        await self._upkeep.stop()
        await self._backfill.stop()
        await self._describer.stop()
        await self._link.close()

    def _learn(self) -> bool:
        """Some of the tags that have become known, behind those that were; True: there are more.

        One that a buffer has named already stays as it is.
        """
        known = len(self._names)
        resolved = self._directory.resolved
        tags = [*_tags(device_of(self.name), resolved.device, known, known + LEARNT_PER_TURN, self._directory.labels)]
        learns = self._settings.learns_tags
        added = [
            found if learns and (found := self._tags.id_of(tag.path)) is not None else self._tags.add(tag)
            for tag in tags
        ]
        names = [tag.name for tag in tags]
        self._names += names
        self._make.grow(added)
        self._backfill.grow(names, resolved.nodes)
        if self._upkeep.heartbeat is not None:
            self._upkeep.heartbeat.grow(resolved.device, names, resolved.nodes)
        return len(self._names) < len(resolved.device.tags)

    def _heed_profiles(self) -> None:
        """Which tags are not sure; said, where the server's profiles are not what they were."""
        self._doubt()
        for change in self._directory.take_changes():
            self._log.warning("the device is another than before, its tags follow: %s", change.text)
            now_ns = self._clock.wall_ns()
            self._ledger.note(change.gap(device_of(self.name), self._notifications.arrival_ns or now_ns, now_ns))

    def _doubt(self) -> None:
        doubtful = self._directory.doubtful
        self._make.doubt([int(self._make.tag_ids[at]) for at, name in enumerate(self._names) if name in doubtful])

    async def _created(self, new: Sequence[int]) -> None:
        """There are items that were not there before: what the server says of them, what it does not filter."""
        assert self._link.items is not None
        if new:
            self._doubt()
            nodes = self._link.items.nodes
            self._describer.also([(int(self._make.tag_ids[item]), nodes[item]) for item in new])
        self._make.set_bands(await self._link.unfiltered_bands())

    # --- connecting -------------------------------------------------------------------------------------------------

    async def _choose_server(self) -> None:
        """Another one than before begins from nothing."""
        url = await self._upkeep.servers.choose()
        if url != self._settings.opcua:
            self._use(self._new_link(self._settings.at(url), self._directory))

    def _use(self, link: Link) -> None:
        self._settings = self._settings.at(link.url)
        before, self._link = self._link, link
        self._directory = link.directory
        link.follow(before)

    async def _follow(self, url: str) -> None:
        """With the standby there."""
        await self._end()
        self._use(await self._hot.take(url))

    async def _failed_over(self) -> bool:
        """Whether the session is gone, or to be left, and a hot standby goes on instead. Raises like `connect`."""
        url = None if self._unproven else self._hot.next(self._settings.opcua)
        if url is None:
            return False
        held = self._held  # its structures can be read at the other server as well
        await self._open(self._follow(url))
        self._held = held
        self._notifications.overlap = Overlap(self._backfill.newest_of_all(), self._clock, self.counters)
        return True

    def _begin(self, opened: Opened, resume: Sequence[bytes]) -> None:
        """The session is there: what the server still keeps of what was sent is asked for before anything else."""
        assert self._link.items is not None
        subscriptions = self._link.items.subscriptions
        before_ns = max([self._streams.newest_ns, *(entry.ts_ns for entry in newest(resume).values())])
        pending = self._streams.begin(subscriptions, resume)
        asked = 0
        self._unproven, self._proof_by_ns = set(opened.available), None
        for one in subscriptions:
            if one.id in opened.available:
                step = self._streams.resume(one.id, pending.get(one.id, ()), opened.available[one.id])
                self._ask(one.id, step)
                asked += len(step.ask)
        if opened.available or before_ns:
            self.counters.add(opened.step)
        self._heard_ns = self._clock.mono_ns()
        self._how = f"{opened.how}, {asked} notifications are sent again" if asked else opened.how
        if opened.created and before_ns:
            lost = [item.handle for one in opened.created for item in one.items]
            if lost:
                self._backfill.missed(lost, before_ns)
            if self._settings.learns_tags and len(self._names) == len(self._settings.tags):
                # Tags that a former process had learnt by other rules: which they were is not known any more.
                now = self._clock.wall_ns()
                self._ledger.note(Gap(Reason.DISCONNECTED, device_of(self.name), "", (), before_ns, now, None))
            if any(one.events for one in opened.created):
                self._note(Reason.DISCONNECTED, self._events.names, before_ns)
        self._events.begin(self._link.items.events.unfiltered)
        self._batches = iter(self._bad_rows())
        assert self._link.session is not None
        has = self._link.session.outstanding + self._link.session.waiting
        self._to_arm = max(OUTSTANDING_MIN, 2 * len(subscriptions)) - has
        if not self._due:
            self._arm()

    async def _describe(self, waits: bool) -> None:
        link = self._link
        assert link.session is not None and link.items is not None
        tags = list(zip(self._make.tag_ids.tolist(), link.items.nodes, strict=False))  # events have none
        await self._describer.start(link.session, link.state.server_start, tags, waits=waits)

    async def _begin_backfill(self) -> None:
        assert self._link.session is not None
        if await self._backfill.start(self._link):
            self._log.info("what was missed is looked for in the server's history")

    def _check_upkeep(self) -> None:
        try:
            self._upkeep.check()
            self._hot.check()
        except Transient:  # to another server
            self._link.forget()
            raise

    def _ask(self, subscription_id: int, step: Step) -> None:
        self._due.extend(_Ask(subscription_id, number) for number in step.ask)
        if step.lost:
            self._missed(subscription_id, step.lost)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _next_batches(self) -> Iterator[Batch]:
        """The parts of the next notification, or the rows of tags whose state has changed."""
        link = self._link
        if link.session is None or link.items is None:
            raise NotConnected(f"{self._settings.opcua}: not connected")
        if self._due:
            due = self._due[0]
            batches = await self._asked_again(due) if isinstance(due, _Ask) else self._open_response(due)
            self._due.popleft()  # only now: a cancelled read loses nothing
            return batches
        self._check_upkeep()
        self._refresh.check()
        self._arm()
        if self._events.take_refresh(self._clock.mono_ns()):
            await link.items.events.refresh()
        retry_s = link.items.retry_in_s()
        wait_s = self._patience_s(link.session, link.items.keep_alive_s)
        try:
            async with asyncio.timeout(wait_s if retry_s is None else min(wait_s, retry_s)):
                body = await link.session.response()
        except TimeoutError:
            if retry_s is None or retry_s > wait_s:
                self._silent(SILENCE_KEEP_ALIVES * link.items.keep_alive_s)
            await self._created(await link.retry())
            body = None
        if body is None:
            return chain(self._batches, self._bad_rows())  # what has arrived meanwhile comes first
        self._to_arm += 1
        return self._open_response(body)

    def _open_response(self, body: bytes) -> Iterator[Batch]:
        self._heard_ns = self._clock.mono_ns()
        try:
            response = parse_response(body)
        except DecodeError as error:
            self.counters.add("undecodable")
            raise NotConnected(f"{self._settings.opcua}: invalid PublishResponse: {error}") from error
        if response.result & 0x8000_0000:
            self._refused(response.result)
            return iter(())
        if response.status_change is not None:
            state = status_name(response.status_change)
            raise NotConnected(
                f"{self._settings.opcua}: the server ended subscription {response.subscription_id}: {state}"
            )
        self._unproven.discard(response.subscription_id)
        step = self._streams.step(response)
        if step.foreign:
            if self._is_further(response.subscription_id):
                self._due.append(body)
                return iter([PAUSE])
            self._not_ours(response)
        if step.late:
            self.counters.add("repeated_notifications")
            return iter(())
        if step.ask or step.lost:
            self._ask(response.subscription_id, step)
            if not response.available:  # it keeps nothing that it has sent
                self._link.lacks["Republish"] = None
        if step.ask:
            self._due.append(body)
            return iter(())
        return self._parts(body, response)

    def _is_further(self, subscription_id: int) -> bool:
        """A subscription that was made for learnt tags: known from now on, or as soon as its creation is answered."""
        items = self._link.items
        assert items is not None
        made = next((one for one in items.subscriptions if one.id == subscription_id), None)
        return items.subscribing if made is None else self._streams.add(made)

    async def _asked_again(self, ask: _Ask) -> Iterator[Batch]:
        """What the server kept of a notification that was not acknowledged (Part 4, 5.13.6)."""
        assert self._link.session is not None
        encode = partial(opcua_requests.republish, subscription_id=ask.subscription_id, number=ask.number)
        body = await self._link.session.request(encode)
        self._heard_ns = self._clock.mono_ns()
        try:
            response = parse_response(body)
        except DecodeError as error:
            self.counters.add("undecodable")
            raise NotConnected(f"{self._settings.opcua}: invalid RepublishResponse: {error}") from error
        self._streams.answered(ask.subscription_id, ask.number)
        if response.result & 0x8000_0000 or response.sequence_number != ask.number:
            if response.result == SERVICE_UNSUPPORTED:
                self._link.lacks["Republish"] = None
            self._log.warning("notification %d cannot be had again: %s", ask.number, status_name(response.result))
            self._missed(ask.subscription_id, 1)
            return iter(())
        response.subscription_id = ask.subscription_id
        if not response.rows:  # such as the news that the subscription was handed over to us
            self._streams.acknowledge(ask.subscription_id, ask.number)
            return iter(())
        self.counters.add("republished_notifications")
        return self._parts(body, response)

    def _parts(self, body: bytes, response: PublishResponse) -> Iterator[Batch]:
        if response.skipped:
            self.counters.add("unread_notifications", response.skipped)
        if response.events and self._refresh.changed(response.subscription_id):
            response.events, response.skipped = [], 1  # there is nothing more in them
        return self._notifications.batches(body, response)

    def _from_history(self) -> Batch | None:
        """One batch of what was missed, between two notifications."""
        found = self._backfill.take()
        return None if found is None else self._make.of_history(*found)

    def _from_heartbeat(self) -> Batch | None:
        late = self._upkeep.heartbeat.take() if self._upkeep.heartbeat is not None else []
        return self._make.of_late(late) if late else None

    def _bad_rows(self) -> list[Batch]:
        """One row for each tag that has just turned out bad."""
        assert self._link.items is not None
        bad = list(self._link.items.take_changed())
        if self._upkeep.heartbeat is not None:
            self._upkeep.heartbeat.bad(bad)
        rows = [(int(self._make.tag_ids[item]), status) for item, status in bad]
        rows += ((int(self._events.tag_ids[item]), status) for item, status in self._link.items.events.take_changed())
        return self._make.of_bad(rows)

    def _arm(self) -> None:
        """Sends the PublishRequests that are due, some together; what may be acknowledged goes with the first."""
        assert self._link.session is not None
        if self._to_arm < ARM_TOGETHER <= self._link.session.outstanding:
            return
        for _ in range(self._to_arm):
            self._link.session.arm(self._streams.take_acks())
        self._to_arm = 0

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def _refused(self, status: int) -> None:
        if status & 0xFFFF_0000 == TOO_MANY_PUBLISH_REQUESTS:
            self._to_arm -= 1
            return
        raise NotConnected(f"{self._settings.opcua}: publishing ended: {status_name(status)}")

    def _patience_s(self, session: PublishSession, keep_alive_s: float) -> float:
        """How long nothing may come; not long where a subscription that was taken over has yet to show that it works.

        Raises NotConnected where one of several has not.
        """
        if not self._unproven:
            silent_s = (self._clock.mono_ns() - self._heard_ns) / 1e9
            return max(keep_alive_s * SILENCE_KEEP_ALIVES - silent_s, SILENCE_LEFT_S)
        if self._proof_by_ns is None:
            self._proof_by_ns = self._clock.mono_ns() + int((keep_alive_s + PROOF_S) * 1e9)
        left_s = (self._proof_by_ns - self._clock.mono_ns()) / 1e9
        if left_s <= 0 and not session.waiting:
            self._silent(keep_alive_s + PROOF_S)
        return max(left_s, 0.0)

    def _silent(self, waited_s: float) -> None:
        if not self._unproven:
            silence = f"{self._settings.opcua}: no publish response for {waited_s:.0f} s"
            assert self._link.session is not None
            self._link.session.lose(silence)  # not closed, which may arrive late: what it has is wanted
            raise NotConnected(silence)
        self._link.forget()
        raise NotConnected(
            f"{self._settings.opcua}: the server handed over subscription {min(self._unproven)} and sends nothing of "
            f"it; new ones are made"
        )

    def _not_ours(self, response: PublishResponse) -> None:
        self._link.forget()
        raise NotConnected(
            f"{self._settings.opcua}: notification {response.sequence_number} of subscription "
            f"{response.subscription_id} does not belong here; new subscriptions are made"
        )

    def _missed(self, subscription_id: int, count: int) -> None:
        self.counters.add("missed_notifications", count)
        self._log.warning(
            "subscription %d: %d notifications are lost, the server no longer has them", subscription_id, count
        )
        self._note(Reason.MISSED, (), self._streams.newest_of(subscription_id))

    def _overflown(self, count: int, tags: tuple[str, ...], from_ns: int, to_ns: int) -> None:
        self.counters.add("queue_overflows", count)
        self._note(Reason.QUEUE_OVERFLOW, tags, from_ns, to_ns)

    def _note(self, reason: Reason, tags: tuple[str, ...], from_ns: int = 0, to_ns: int = 0) -> None:
        now = self._clock.wall_ns()
        since_ns = from_ns or self._notifications.arrival_ns or now
        self._ledger.note(Gap(reason, device_of(self.name), "", tags, since_ns, to_ns or now, None))


def _raised(error: NotConnected) -> Batch:
    raise error


def _tags(device: str, settings: OpcUaDevice, start: int, stop: int, labels: Mapping[str, Labels]) -> Iterator[Tag]:
    """From the handle `start` on."""
    for name, tag in islice(settings.tags.items(), start, stop):
        own = labels.get(name, ())
        yield Tag(device, name, unit=tag.unit, scale=tag.scale, offset=tag.offset, deadband=tag.deadband, labels=own)
