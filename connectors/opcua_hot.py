"""Hot standbys of a redundant set (Part 4, 6.6.2.4.5): a session at each, all items made, sampled, not reported.

One task per standby prepares a `Link` and keeps its subscriptions alive; when the server in use is left, the link is
taken as it is, and its items report from then on, what their queues hold first. A server that reports nevertheless does
not know what Sampling is: it is a warm standby.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Never

from connectors.opcua_binary import DecodeError
from connectors.opcua_link import Link, mapped
from connectors.opcua_redundancy import Servers
from connectors.opcua_requests import TOO_MANY_PUBLISH_REQUESTS, status_name
from connectors.opcua_response import parse_response
from connectors.opcua_resume import Log
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import Clock
from pipelines.errors import NotConnected, Permanent

AGAIN_S: Final = 5.0
"""Until a standby that failed is tried again."""
KEEP_ALIVES: Final = 3
"""Keep-alive times without any, after which a standby counts as dead."""
REQUESTS_MIN: Final = 2
"""PublishRequests that wait at a standby: one may be on its way."""


class HotStandbys:
    """Of one device. `start` when a session is up, `stop` at the end; `take` in between."""

    def __init__(
        self,
        servers: Servers,
        settings: OpcUaDevice,
        new_link: Callable[[OpcUaDevice], Link],
        clock: Clock,
        log: Log,
    ) -> None:
        self._servers = servers
        self._settings = settings
        self._new_link = new_link
        self._clock = clock
        self._log = log
        tags = settings.tags.values()
        self._possible = not settings.learns_tags and {settings.discard_of(tag) for tag in tags} == {"oldest"}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, Link] = {}

    @property
    def info(self) -> str:
        """One line for health; empty where nothing stands by."""
        return f"ready to take over: {', '.join(self._ready)}" if self._ready else ""

    def start(self) -> None:
        """At every server that is not in use; nothing where the set is not hot."""
        if self._servers.mode != "hot" or not self._possible:
            return
        for url in self._servers.urls:
            if url != self._servers.current and url not in self._tasks:
                self._tasks[url] = asyncio.create_task(self._stand_by(url), name=f"standby {url}")

    def check(self) -> None:
        """Raises what a bug of ours raised in a task."""
        for task in self._tasks.values():
            if task.done():
                task.result()

    def next(self, left: str) -> str | None:
        """The server to go on at after `left`, in use from now on; None: none is ready, or fit."""
        return self._servers.step_in(left, self._ready) if self._ready else None

    async def take(self, url: str) -> Link:
        """Its link, which is the caller's from now on. Raises NotConnected: it was lost meanwhile."""
        if (task := self._tasks.pop(url, None)) is not None:
            await _ended(task)
        if url not in self._ready:
            raise NotConnected(f"{url}: the standby is gone as well")
        return self._ready.pop(url)

    async def stop(self) -> None:
        """Idempotent. Ends the sessions."""
        tasks, self._tasks = self._tasks, {}
        await asyncio.gather(*map(_ended, tasks.values()))
        ready, self._ready = self._ready, {}
        await asyncio.gather(*(link.close() for link in ready.values()))

    async def _stand_by(self, url: str) -> None:
        """Ends where the server cannot be a hot standby."""
        said = ""
        while True:
            try:
                link = self._ready[url] = await self._prepared(self._settings.at(url))
                self._log.info("%s is ready to take over", url)
                said = ""
                await _alive(link)  # cancelled meanwhile, the link is in `_ready` for whoever has cancelled
            except (NotConnected, Permanent, _Reports) as error:
                if (lost := self._ready.pop(url, None)) is not None:
                    await lost.close()
                if said != str(error):
                    self._log.warning("standby %s", error)
                said = str(error)
                if isinstance(error, _Reports):
                    return
            await self._clock.sleep(AGAIN_S)

    async def _prepared(self, settings: OpcUaDevice) -> Link:
        """Raises NotConnected, Permanent."""
        link = self._new_link(settings)
        try:
            await link.prepare()
        except BaseException as error:
            await link.close()
            as_contracted = mapped(error, settings)
            if as_contracted is error:
                raise
            raise as_contracted from error
        return link


class _Reports(Exception):
    """A server sends values of items that it is to sample only."""


async def _alive(link: Link) -> Never:
    """Answers keep-alives. Raises NotConnected, _Reports."""
    session, items = link.session, link.items
    assert session is not None and items is not None
    for _ in range(max(REQUESTS_MIN, len(items.subscriptions))):
        session.arm(())
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVES * items.keep_alive_s):
                body = await session.response()
            response = parse_response(body or b"")
        except (TimeoutError, DecodeError) as error:
            raise NotConnected(f"{link.url}: no keep-alive that makes sense: {error!r}") from error
        if response.result & 0xFFFF_0000 == TOO_MANY_PUBLISH_REQUESTS and session.outstanding:
            continue
        if response.result & 0x8000_0000 or response.status_change is not None:
            status = status_name(response.status_change or response.result)
            raise NotConnected(f"{link.url}: the subscriptions ended: {status}")
        if response.numbered:
            raise _Reports(f"{link.url}: sends what it is to sample only (MonitoringMode), so it is a warm one")
        session.arm(())


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
