"""The task that keeps a device's learnt tags as its server is: looks through it after connecting, when the server says
that its address space has changed (GeneralModelChangeEventType, Part 3, 9.32.7), and every `refresh`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from asyncua import ua

from connectors.opcua_binary import DecodeError
from connectors.opcua_directory import Changes
from connectors.opcua_items import MonitoredItems
from connectors.opcua_known import KnownTags
from connectors.opcua_link import Link
from connectors.opcua_requests import ServiceError
from connectors.opcua_resume import Log, reason
from connectors.opcua_select import REFRESH
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import Clock
from pipelines.errors import NotConnected

SETTLE_S: Final = 1.0
"""Between a change and the look for it: changes come in bursts."""
IDLE_SHARE: Final = 4
"""A look is followed by a pause of at least this many times its duration, whatever the server says."""
FAILED_S: Final = 30.0
"""Until a look that failed is tried again."""
MODEL_CHANGES_HANDLE: Final = 0xFFFF_FFFF
"""Client handle of the item; no tag has it."""
GONE: Final = ua.StatusCodes.BadNodeIdUnknown


class Refresh:
    """`start` for each session, `stop` at its end."""

    def __init__(self, name: str, settings: OpcUaDevice, clock: Clock, log: Log, known: KnownTags) -> None:
        self.fault = ""
        self._name = name
        self._every_s = (settings.select.refresh if settings.select else REFRESH) / 1e9
        self._wanted = settings.learns_tags
        self._clock = clock
        self._log = log
        self._known = known
        self._changed = asyncio.Event()
        self._watched: set[int] = set()  # ids of subscriptions that have the item; no other events come in them
        self._task: asyncio.Task[None] | None = None

    def start(self, link: Link) -> None:
        """Nothing where the device selects nothing."""
        assert link.items is not None
        self._watched = {one.id for one in link.items.subscriptions if one.model_changes}
        if self._wanted:
            self._task = asyncio.create_task(self._run(link), name=f"refresh {self._name}")

    async def stop(self) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def changed(self, subscription_id: int) -> bool:
        """Events of a subscription: where it is the one for this, they say that the address space has changed."""
        if subscription_id in self._watched:
            self._changed.set()
            return True
        return False

    def check(self) -> None:
        """Raises what a bug of ours raised in the task."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _run(self, link: Link) -> None:
        try:
            await self._watch_model(link)
            while True:
                pause_s = await self._look(link)
                await asyncio.sleep(pause_s)
                await self._wait(FAILED_S if self.fault else self._every_s)
        except NotConnected:
            return  # the next session goes on

    async def _look(self, link: Link) -> float:
        """One look through the server; how long to do nothing after it, s."""
        assert link.session is not None
        self._changed.clear()
        began_ns = self._clock.mono_ns()
        try:
            changes = await link.directory.refresh(link.session.request)
            await self._take(link, changes)
            self.fault = ""
        except (ServiceError, DecodeError, TimeoutError, ua.UaError) as error:
            self.fault = f"the server cannot be looked through: {reason(error)}"
            self._log.warning("select: %s", self.fault)
        return max(SETTLE_S, IDLE_SHARE * (self._clock.mono_ns() - began_ns) / 1e9)

    async def _take(self, link: Link, changes: Changes) -> None:
        if not (changes.new or changes.gone or changes.back):
            return
        assert link.session is not None
        self._log.info("%d new tags, %d are gone, %d are back", len(changes.new), len(changes.gone), len(changes.back))
        await self._known.learn(link.directory)

        async def change(items: MonitoredItems) -> None:
            await items.remove(changes.gone, GONE, "its node is no longer there, or no longer selected")
            await items.create_missing(again=changes.back)

        await link.with_items(change)
        await self._known.created(link, changes.new)
        link.session.nudge()

    async def _wait(self, seconds: float) -> None:
        """Until the next look is due."""
        try:
            async with asyncio.timeout(seconds or None):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_S)

    async def _watch_model(self, link: Link) -> None:
        """An item for the server's own news of its address space, in the first subscription; some servers have none."""
        assert link.items is not None and link.session is not None
        subscription = link.items.subscriptions[0]
        if subscription.model_changes:
            return
        self._watched.add(subscription.id)
        try:
            [result] = await link.session.create_monitored_items(_model_changes(subscription.id))
        except (ua.UaError, TimeoutError) as error:
            self._log.info("the server does not say when it changes (%s): it is looked through instead", reason(error))
            return
        if result.StatusCode.is_good():
            subscription.model_changes = int(result.MonitoredItemId)
            await link.save()
        else:
            self._log.info("the server does not say when it changes (%s)", result.StatusCode.name)


def _model_changes(subscription_id: int) -> ua.CreateMonitoredItemsParameters:
    """Events of the Server object that say so; of an event its type is enough (Part 4, 7.22.3)."""
    of_type = ua.ContentFilterElement(FilterOperator=ua.FilterOperator.OfType)
    of_type.FilterOperands = [ua.LiteralOperand(Value=ua.Variant(_numeric(ua.ObjectIds.GeneralModelChangeEventType)))]
    event_type = ua.SimpleAttributeOperand(
        TypeDefinitionId=_numeric(ua.ObjectIds.BaseEventType),
        BrowsePath=[ua.QualifiedName("EventType", 0)],
        AttributeId=ua.AttributeIds.Value,
    )
    event_filter = ua.EventFilter(SelectClauses=[event_type], WhereClause=ua.ContentFilter(Elements=[of_type]))
    item = ua.MonitoredItemCreateRequest(
        ItemToMonitor=ua.ReadValueId(NodeId=_numeric(ua.ObjectIds.Server), AttributeId=ua.AttributeIds.EventNotifier),
        MonitoringMode=ua.MonitoringMode.Reporting,
        RequestedParameters=ua.MonitoringParameters(
            ClientHandle=MODEL_CHANGES_HANDLE, SamplingInterval=0.0, Filter=event_filter, QueueSize=10
        ),
    )
    return ua.CreateMonitoredItemsParameters(
        SubscriptionId=subscription_id, TimestampsToReturn=ua.TimestampsToReturn.Source, ItemsToCreate=[item]
    )


def _numeric(identifier: int) -> ua.NodeId:
    return ua.NodeId(ua.Int32(identifier))
