"""One device's session and subscriptions, from connect to close, and what is kept of them for the next connection.

Tried in this order, each with `timeout` as its budget: the session that the server still has of this process on the new
connection; a new session that takes over the subscriptions; new subscriptions. Where a lane is durable the
subscriptions live on when the gateway stops, and are kept in a file for the next process.

A link may also be prepared while another one is in use (`opcua_hot`): `open` then only has its items report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from asyncua import ua

from connectors import opcua_reverse
from connectors.network import NetworkRefused
from connectors.opcua_binary import DecodeError
from connectors.opcua_directory import Directory
from connectors.opcua_expiry import CertificateWatch
from connectors.opcua_items import MonitoredItems
from connectors.opcua_limits import Limits
from connectors.opcua_memory import Memory
from connectors.opcua_requests import MODE_SAMPLING, ServiceError, status_name
from connectors.opcua_resume import (
    SESSION_TIMEOUT_MIN_MS,
    KeptSession,
    Log,
    ResumingClient,
    delete,
    server_start,
    transfer,
)
from connectors.opcua_security import Access, Secured, refusal, secure
from connectors.opcua_servers import Server, identify, profiled
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_state import DeviceState, Subscription
from connectors.tcp import MACHINE_PATIENCE, notice_dead_peer
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Permanent
from pipelines.tags import device_of

SESSION_OUTLIVES_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class Opened:
    """How a connection came about."""

    how: str
    """One line for people."""
    step: str
    """The counter's name: reactivated, transferred, failed_over or recreated."""
    available: Mapping[int, Sequence[int] | None] = field(default_factory=dict)
    """Subscription id that goes on -> the sequence numbers that the server keeps; None where it was not asked."""
    created: Sequence[Subscription] = ()


class Link:
    """`open` may be called again after `close`; what lies between is bridged as well as the server can."""

    def __init__(
        self,
        name: str,
        settings: OpcUaDevice,
        directory: Directory,
        clock: Clock,
        data_dir: Path,
        counters: Counters,
        log: Log,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._data_dir = data_dir
        self._log = log
        self._timeout_s = settings.timeout / 1e9
        self.directory = directory
        self._memory = Memory(data_dir, name, settings.opcua, directory.resolved.plan, log)
        self._changing = asyncio.Lock()  # `items`
        self._access = Access.of(settings, device_of(name))
        self._watch = CertificateWatch(data_dir, counters, log)
        self._secured: Secured | None = None
        self._is_anonymous = settings.security == "none" and settings.auth is None
        self._kept: KeptSession | None = None
        self._holds = False  # the session of this connection has the subscriptions of `state`
        self._prepared = False  # it has them from `prepare`
        self._client: ResumingClient | None = None
        self._calls: opcua_reverse.Calls | None = None
        self.session: PublishSession | None = None
        self.items: MonitoredItems | None = None
        self.limits = Limits(log)
        self.lacks: dict[str, None] = {}
        """What the server has turned out not to have, in the order found."""
        self.server = Server()

    async def open(self, durable: bool) -> Opened:
        """Raises what `mapped` maps; then `close` has to be called."""
        memory = self._memory
        memory.durable = durable
        if durable and await memory.load() and self._is_anonymous and self.state.session is not None:
            self._kept = KeptSession.anonymous(self.state.session, self._session_ms)
        prepared, self._prepared = self._prepared, False
        client = self._client if prepared else None
        if client is None:
            client = await self._connected(self._kept if any(self.state.subscriptions) else None)
            self._holds = client.resumed
            await self._meet()
        session = self.session
        assert session is not None and self._secured is not None
        self._watch.begin(self._secured, lambda reason: session.lose(f"{self._settings.opcua}: {reason}"))
        live = [one for one in self.state.subscriptions if one is not None]
        self.items = MonitoredItems(session, self.directory.resolved, self.limits, self._clock, self._log)
        self._heed(self.server)
        start = await server_start(client)
        available: dict[int, Sequence[int] | None]
        if prepared:
            available = {one.id: () for one in live}
        elif client.resumed:
            await delete(client, memory.stale, self._timeout_s, self._log)
            memory.stale = []
            available = {one.id: None for one in live}
        else:
            available = {**await self._taken_over(client, start)} if live or memory.stale else {}
            self._holds = bool(available)
        session.keep_subscriptions = durable and bool(available)  # not those of an attempt that fails
        known = [one if one is not None and one.id in available else None for one in self.state.subscriptions]
        created = await self.items.create(known)
        if prepared:
            await self.items.report()
        if self.items.short_queue:
            keeps, asked = self.items.short_queue
            self.lacks[f"queue of {asked} values (it keeps {keeps})"] = None
        self.state.server_start, self.state.subscriptions = start, [*self.items.subscriptions]
        self._holds = True
        if self._remember_session(client) or created or prepared or not durable:
            await memory.save()
        session.keep_subscriptions = durable
        session.keep_session = durable and self._is_anonymous
        if prepared:
            return Opened("the standby's subscriptions go on", "failed_over", available, created)
        return self._opened(client.resumed, available, created, bool(live))

    async def prepare(self) -> None:
        """As far as `open` goes while another server is in use: items of all values, sampled and not reported.

        Leaves the device's file alone. Raises what `mapped` maps; then `close` has to be called.
        """
        await self._connected(None)
        await self._meet()
        assert self.session is not None
        resolved = self.directory.resolved
        values = replace(resolved, plan=[one for one in resolved.plan if not one.events])
        self.items = MonitoredItems(self.session, values, self.limits, self._clock, self._log)
        self.items.mode = MODE_SAMPLING
        self._heed(self.server)
        await self.items.create([None] * len(values.plan))
        self._memory.has(self.items.subscriptions)
        self._prepared = True

    @property
    def url(self) -> str:
        """Of its server."""
        return self._settings.opcua

    @property
    def alarms(self) -> Sequence[str]:
        """Lines about certificates that are about to end."""
        return self._watch.alarms

    async def unfiltered_bands(self) -> dict[int, tuple[float, float]]:
        """What the gateway has to filter itself; see `Unfiltered.bands`."""
        assert self.session is not None and self.items is not None
        unfiltered, nodes = self.items.unfiltered, [tag.node for tag in self.directory.resolved.device.tags.values()]
        return await unfiltered.bands(self.session, self.limits, nodes) if unfiltered.filters else {}

    @property
    def state(self) -> DeviceState:
        """What has to be known to go on."""
        return self._memory.state

    async def save(self) -> None:
        """See `Memory.save`."""
        await self._memory.save()

    def follow(self, other: Link) -> None:
        """Instead of `other`, to another server."""
        self._memory.follow(other._memory)

    async def retry(self) -> Sequence[int]:
        """Bad items again, at what their addresses mean by now; those that are good now. Raises what requests raise."""
        assert self.session is not None and self.items is not None
        bad = self.items.bad
        await self.directory.resolve_missing(self.session.request)
        await self.with_items(MonitoredItems.retry)
        return sorted(bad - self.items.bad)

    async def with_items(self, change: Callable[[MonitoredItems], Awaitable[None]]) -> None:
        """Takes the directory as it is now, has `change` done, and keeps what has come of it. Raises like `change`.

        One change after the other: bad items are retried by whoever reads, learnt ones made by `opcua_refresh`.
        """
        items = self.items
        assert items is not None
        async with self._changing:
            self._memory.extend(self.directory.resolved.plan)
            items.take(self.directory.resolved)
            try:
                await change(items)
            finally:
                self._memory.has(items.subscriptions)
        await self.save()

    def forget(self) -> None:
        """The subscriptions are of no use: the next `open` makes new ones."""
        self._memory.forget()
        if self.session is not None:
            self.session.keep_subscriptions = self.session.keep_session = False

    async def close(self) -> None:
        """Idempotent. A session whose connection is lost is kept in mind for the next `open`.

        So is that of a connection before, and what it has, when this one has not come as far as taking it over.
        """
        client, self._client = self._client, None
        session, self.session = self.session, None
        self._prepared = False
        self._watch.stop()
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.close()
        if client is None or session is None:
            return
        holds, self._holds = self._holds, False
        ended = not session.lost and not session.keep_session
        own = KeptSession.of(client)
        ended = await client.leave() and ended
        if not holds:
            self._kept = client.kept
            return
        self._kept = None if ended else own
        if ended and not session.keep_subscriptions:
            self._memory.forget()

    @property
    def _session_ms(self) -> int:
        """A session that nobody closed outlives its subscriptions, which begin to age when the last request is used up.

        Some servers end both together; Eclipse Milo 1.1.2 never ends subscriptions that are left without a session.
        """
        return self._settings.lifetime // 1_000_000 + SESSION_OUTLIVES_MS

    async def _connected(self, kept: KeptSession | None) -> ResumingClient:
        settings = self._settings
        url = settings.opcua
        if reverse := settings.reverse:
            url = reverse.endpoint
            self._calls = await opcua_reverse.expect(settings.opcua, reverse.server, url, settings.network.network)
        client = self._client = ResumingClient(url, self._timeout_s, kept, self._log, self._calls)
        client.name = client.description = "mec-gateway"
        client.session_timeout = self._session_ms
        session = self.session = PublishSession(client.uaclient, self._clock, self._timeout_s)
        client.uaclient.session = session
        self._secured = await secure(client, self._data_dir, self._access)
        client.connection_lost_callback = self._connection_lost
        await client.connect()
        session.request_bytes_max = client.request_bytes_max
        if (protocol := client.uaclient.protocol) and protocol.transport:
            notice_dead_peer(protocol.transport.get_extra_info("socket"), MACHINE_PATIENCE * settings.timeout)
        if not client.session_timeout:
            self.lacks["session time-out"] = None
        # A server may answer 0; asyncua's watchdog would then give its probe no time at all.
        client.session_timeout = max(client.session_timeout, SESSION_TIMEOUT_MIN_MS)
        return client

    async def _meet(self) -> None:
        """What the server takes, what it is, and what the tags mean there."""
        assert self.session is not None
        request, settings = self.session.request, self._settings
        await self.limits.learn(self.session)
        self.server = await identify(self.session, self.limits, self._data_dir, self._log)
        if settings.profile:
            self.server = await profiled(self.server, request, self.limits, settings, self._data_dir)
        await self.directory.resolve(request, self.limits, self.server)
        self._memory.replan(self.directory.resolved.plan)

    def _remember_session(self, client: ResumingClient) -> bool:
        """For another process, where that one could do nothing else. Returns whether the state has changed."""
        before = self.state.session
        kept = KeptSession.of(client) if self._is_anonymous else None
        self.state.session = kept.as_anonymous() if kept is not None else None
        return self.state.session != before

    async def _connection_lost(self, error: Exception) -> None:
        if self.session:
            self.session.lose(f"{self._settings.opcua}: the connection was lost: {error}")

    async def _taken_over(self, client: ResumingClient, start: str) -> Mapping[int, Sequence[int]]:
        """What the new session has of the old one's subscriptions; those of another plan are removed."""
        stale, self._memory.stale = self._memory.stale, []
        if not start or start != self.state.server_start:
            self._log.info("the server was restarted (or does not say when it started): new subscriptions")
            return {}
        if not stale:
            return await transfer(client, self.state, self._timeout_s, self._log)
        old = DeviceState("", start, [*stale])
        taken = await transfer(client, old, self._timeout_s, self._log)
        await delete(client, [one for one in stale if one.id in taken], self._timeout_s, self._log)
        return {}

    def _heed(self, server: Server) -> None:
        """What is known of the server beyond the size of calls."""
        assert self.items is not None
        tags = len(self.directory.resolved.device.tags)
        room = server.limits.get("monitored_items_in_all", tags)
        if tags > room:
            known = ", ".join(profile.profile for profile in server.profiles)
            self._log.warning("%d tags, and what is known as %s takes %d in all", tags, known, room)
        if not all(profile.filters for profile in server.profiles):
            self.items.without_filters()

    def _opened(
        self, resumed: bool, available: Mapping[int, Sequence[int] | None], created: list[Subscription], before: bool
    ) -> Opened:
        assert self.items is not None
        total = len(self.items.subscriptions)
        step = "recreated" if created else "reactivated" if resumed else "transferred"
        if not created:
            how = "session taken up again" if resumed else f"{total} subscriptions taken over"
        elif available:
            how = f"{len(available)} of {total} subscriptions taken over, the others made anew"
        else:
            how = "new subscriptions: the old ones are gone" if before else "new subscriptions"
        self._log.info(how)
        return Opened(how, step, available, created)


def mapped(error: BaseException, settings: OpcUaDevice) -> BaseException:
    """What connecting or reading raised, as the contract names it."""
    url = settings.opcua
    if isinstance(error, Permanent):
        return Permanent(_at(url, error), error.cured)
    if isinstance(error, NotConnected | NetworkRefused):
        return NotConnected(_at(url, error))
    if isinstance(error, ua.UaStatusCodeError):
        refused = refusal(error)
        return Permanent(f"{url}: {refused}") if refused else NotConnected(f"{url}: {status_name(error.code)}")
    if isinstance(error, TimeoutError):
        return NotConnected(f"{url}: no answer within {settings.timeout / 1e9:g} s")
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        return NotConnected(f"{url}: {reason}; is the machine on, are address and port right?")
    if isinstance(error, ServiceError | DecodeError | ua.UaError):
        return NotConnected(f"{url}: {error}")
    if isinstance(error, Exception) and _is_of_asyncua(error):
        return NotConnected(f"{url}: the server's answer makes no sense: {error!r}")
    return error


def _at(url: str, error: BaseException) -> str:
    """Where a redundant server was meant, the text says which."""
    return str(error) if str(error).startswith("opc.tcp://") else f"{url}: {error}"


def _is_of_asyncua(error: Exception) -> bool:
    """Raised there, or in what it called that is not ours (`enum`): its decoders make anything of nonsense, from an
    AssertionError to a TypeError."""
    inner, at = "", error.__traceback__
    while at is not None:
        package = str(at.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        inner = package if package in ("asyncua", "connectors", "pipelines") else inner
        at = at.tb_next
    return inner == "asyncua"
