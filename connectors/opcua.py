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
from itertools import chain
from pathlib import Path
from typing import Final

from asyncua import ua

from connectors import opcua_requests
from connectors.opcua_backfill import Backfill
from connectors.opcua_batches import Batches
from connectors.opcua_beside import Beside
from connectors.opcua_binary import DecodeError
from connectors.opcua_describe import Describer
from connectors.opcua_directory import Directory
from connectors.opcua_events import EventReader
from connectors.opcua_hot import HotStandbys
from connectors.opcua_known import KnownTags
from connectors.opcua_link import Link, Opened, mapped
from connectors.opcua_losses import Losses
from connectors.opcua_notifications import PAUSE, Notifications
from connectors.opcua_overlap import Overlap
from connectors.opcua_plan import plan_events
from connectors.opcua_refresh import Refresh
from connectors.opcua_requests import TOO_MANY_PUBLISH_REQUESTS, ServiceError, status_name
from connectors.opcua_response import PublishResponse, parse_response
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_silence import Silence
from connectors.opcua_state import Subscription
from connectors.opcua_streams import Step, Streams
from connectors.opcua_upkeep import Upkeep
from pipelines.batch import Batch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Transient
from pipelines.gaps import Ledger, NoLedger
from pipelines.origin import newest
from pipelines.tags import TagTable, device_of

OUTSTANDING_MIN: Final = 4
ARM_TOGETHER: Final = 2
"""PublishRequests in one write: each wakes a core at the server and costs us 0.1 ms."""
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
        self._log = log = logging.LoggerAdapter(logging.getLogger(__name__), {"subject": f"source {name}"})
        self._clock = clock
        device, ledger = device_of(name), NoLedger() if ledger is None else ledger
        self._upkeep = Upkeep(settings, data_dir, clock, self.counters, log)
        self._make = Batches(source_id, tags, clock, self._upkeep.skew)
        self._settings = settings.at(self._upkeep.servers.current)
        self._new_link = partial(Link, name, clock=clock, data_dir=data_dir, counters=self.counters, log=log)
        self._link = self._new_link(self._settings, Directory(name, settings, data_dir, log))
        self._hot = HotStandbys(
            self._upkeep.servers,
            settings,
            lambda standby: self._new_link(standby, self._link.directory.twin()),
            clock,
            log,
        )
        self._events = EventReader(name, plan_events(settings), tags)
        self._streams = Streams()
        self._backfill = Backfill(device, settings, clock, ledger, self.counters, log)
        self._describer = Describer(name, tags, clock, self.counters, log)
        self._known = KnownTags(device, tags, self._make, self._backfill, self._upkeep.heartbeat, self._describer)
        self._losses = Losses(device, clock, ledger, self.counters, log, lambda: self._notifications.arrival_ns)
        self._notifications = Notifications(
            self._known.names,
            self._make,
            self._streams,
            self._events,
            self._backfill,
            self._upkeep,
            clock,
            self._losses.overflown,
        )
        self._refresh = Refresh(name, settings, clock, log, self._known)
        while self._known.learn_some(self._link.directory):
            pass
        self._beside = Beside(self._make, self._backfill, self._upkeep.heartbeat, self._events)
        self._silence = Silence(clock)
        self._unproven = self._silence.unproven
        self._resume: Sequence[bytes] = ()
        self._how = ""
        self._heard_ns = 0  # monotonic: the last PublishResponse
        self._batches: Iterator[Batch] = iter(())
        self._held: Batch | None = None  # while its structures are read
        self._ahead: Callable[[Batch], None] | None = None
        self._due: deque[_Ask | bytes] = deque()  # before anything that is published now
        self._to_arm = 0

    @property
    def faults(self) -> Mapping[str, str]:
        of_items = self._link.items.faults if self._link.items else {}
        of_selection = self._link.directory.faults
        if self._refresh.fault:
            of_selection = {**of_selection, "select": self._refresh.fault}
        return {**of_items, **of_selection} if of_selection else of_items

    @property
    def info(self) -> str:
        """How the present session came about, what is read from history, what is not as it should be."""
        link, upkeep = self._link, self._upkeep
        unfiltered = link.items.unfiltered.info if link.items else ""
        tags = (link.directory.info, self._backfill.info, unfiltered, self._describer.info)
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
            link = self._link
            opened = await link.open(durable=bool(self._resume))
            await self._known.learn(link.directory)
            self._known.doubt(link.directory)
            self._losses.changed(link.directory.take_changes())
            await self._known.describe(link, waits=not opened.available)
            self._begin(opened, self._resume)
            await self._backfill.start(link)
            self._make.forget_bands()
            self._make.set_bands(await link.unfiltered_bands())
            assert link.session is not None
            link.session.on_response = self._arrived
            await self._upkeep.begin(link.session, link.limits)
            self._refresh.start(link)
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
                batch = batch or self._beside.take()
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
        if self._silence.end():
            self._link.forget()
        self._batches, self._held, self._notifications.overlap = iter(()), None, None
        self._due.clear()
        self._how = ""
        await self._refresh.stop()
        await self._upkeep.stop()
        await self._backfill.stop()
        await self._describer.stop()
        await self._link.close()

    # --- connecting -------------------------------------------------------------------------------------------------

    async def _choose_server(self) -> None:
        """Another one than before begins from nothing."""
        url = await self._upkeep.servers.choose()
        if url != self._settings.opcua:
            self._use(self._new_link(self._settings.at(url), self._link.directory))

    def _use(self, link: Link) -> None:
        self._settings = self._settings.at(link.url)
        before, self._link = self._link, link
        link.follow(before)

    async def _step_over(self, url: str) -> None:
        """To the standby there."""
        await self._end()
        self._use(await self._hot.take(url))

    async def _failed_over(self) -> bool:
        """Whether the session is gone, or to be left, and a hot standby goes on instead. Raises like `connect`."""
        url = None if self._unproven else self._hot.next(self._settings.opcua)
        if url is None:
            return False
        held = self._held  # its structures can be read at the other server as well
        await self._open(self._step_over(url))
        self._held = held
        self._notifications.overlap = Overlap(self._backfill.newest_of_all(), self._clock, self.counters)
        return True

    def _begin(self, opened: Opened, resume: Sequence[bytes]) -> None:
        """The session is there: what the server still keeps of what was sent is asked for before anything else."""
        session, items = self._link.session, self._link.items
        assert session is not None and items is not None
        before_ns = max([self._streams.newest_ns, *(entry.ts_ns for entry in newest(resume).values())])
        pending = self._streams.begin(items.subscriptions, resume)
        self._silence.begin(opened.available)
        for one in items.subscriptions:
            if one.id in opened.available:
                self._ask(one.id, self._streams.resume(one.id, pending.get(one.id, ()), opened.available[one.id]))
        if opened.available or before_ns:
            self.counters.add(opened.step)
        self._heard_ns = self._clock.mono_ns()
        self._how = f"{opened.how}, {len(self._due)} notifications are sent again" if self._due else opened.how
        if before_ns:
            self._lost_with(opened.created, before_ns)
        self._events.begin(items.events.unfiltered)
        self._batches = iter(self._beside.bad(items))
        has = session.outstanding + session.waiting
        self._to_arm = max(OUTSTANDING_MIN, 2 * len(items.subscriptions)) - has
        if not self._due:
            self._arm()

    def _lost_with(self, created: Sequence[Subscription], before_ns: int) -> None:
        """Instead of these subscriptions there were others, heard of last about `before_ns`."""
        lost = [item.handle for one in created for item in one.items]
        if lost:
            self._backfill.missed(lost, before_ns)
        if created and self._settings.learns_tags and len(self._known.names) == len(self._settings.tags):
            # Tags that a former process had learnt by other rules: which they were is not known any more.
            self._losses.disconnected((), before_ns)
        if any(one.events for one in created):
            self._losses.disconnected(self._events.names, before_ns)

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

    def _missed(self, subscription_id: int, count: int) -> None:
        self._losses.missed(subscription_id, count, self._streams.newest_of(subscription_id))

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
        wait_s = self._silence.patience_s(link, self._heard_ns)
        try:
            async with asyncio.timeout(wait_s if retry_s is None else min(wait_s, retry_s)):
                body = await link.session.response()
        except TimeoutError:
            if retry_s is None or retry_s > wait_s:
                raise self._silence.broken(link) from None
            await self._known.created(link, await link.retry())
            body = None
        if body is None:
            return chain(self._batches, self._beside.bad(link.items))  # what has arrived meanwhile comes first
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

    def _not_ours(self, response: PublishResponse) -> None:
        self._link.forget()
        raise NotConnected(
            f"{self._settings.opcua}: notification {response.sequence_number} of subscription "
            f"{response.subscription_id} does not belong here; new subscriptions are made"
        )


def _raised(error: NotConnected) -> Batch:
    raise error
