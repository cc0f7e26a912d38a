"""Non-transparent redundancy (Part 4, 6.6.2): several servers with the same nodes, of which one is used at a time.

ServiceLevel says how fit each one is: 0 maintenance, 1 no data, 2-199 degraded, 200-255 healthy. The fittest is used;
it is left when it is no longer healthy and another one is fitter, or when the first of the file is as fit again for
`HOLD_S` (fail-back). Subscriptions are made at the switch, but not in a hot set (`opcua_hot`): what lies between is a
gap like that of any new subscription, filled from history or in the ledger. The mode says how the others are watched:

    cold        a standby may not answer: the others are asked only when the one in use is not healthy, or not the first
    warm, hot   a session is held at each of them, and its ServiceLevel read as often as that of the one in use
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from asyncua import Client, ua

from connectors.opcua_browse import session as looking
from connectors.opcua_limits import read_standard
from connectors.opcua_resume import Log
from connectors.opcua_security import Access
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import Clock, SystemClock
from pipelines.errors import NotConnected, Permanent, Transient

SERVICE_LEVEL: Final = 2267
REDUNDANCY_SUPPORT: Final = 3709
"""Numeric ids, namespace 0."""
HEALTHY: Final = 200
MODES: Final = {1: "cold", 2: "warm", 3: "hot", 5: "hot"}
"""RedundancySupport (Part 5, 12.5): 5 is hot and mirrored."""
LEVEL_EVERY_S: Final = 2.0
HOLD_S: Final = 10.0
COLD_ASK_S: Final = 30.0
"""How often the first server of a cold set is tried while another one is used."""
GRACE_S: Final = 1.0
"""A healthy server has answered: how long the others may still take."""


class Servers:
    """The servers of one device. Lives as long as it; `choose` for each connection."""

    def __init__(self, settings: OpcUaDevice, data_dir: Path, clock: Clock, log: Log) -> None:
        self.urls: Sequence[str] = settings.servers
        self.current = self.urls[0]
        self._settings = settings
        self._data_dir = data_dir
        self._clock = clock
        self._log = log
        self._levels: dict[str, int] = {}  # of those that answered last time
        self.mode: str = settings.redundancy
        self._standby: dict[str, tuple[AsyncExitStack, Client]] = {}
        self._fit_since_ns: int | None = None  # the first server, while it is not used
        self._asked_ns = 0

    @property
    def info(self) -> str:
        """One line for health; empty where there is no choice."""
        if len(self.urls) == 1:
            return ""
        shown = (f"{url} {self._levels.get(url, 'does not answer')}" for url in self.urls)
        return f"uses {self.current}, redundancy {self.mode}, service levels: {', '.join(shown)}"

    async def choose(self) -> str:
        """The server to connect to. Raises NotConnected: none answers, or all of them are in maintenance; Permanent."""
        if len(self.urls) == 1:
            return self.current
        failures = await self._ask_all()
        usable = {url: level for url, level in self._levels.items() if level > 0}
        if not usable:
            kind = Permanent if failures and all(isinstance(e, Permanent) for e in failures.values()) else NotConnected
            raise kind(
                "; ".join([*(str(e) for e in failures.values()), *(f"{url}: maintenance" for url in self._levels)])
            )
        before, self.current = self.current, self._fittest(usable)
        if before != self.current:
            self._log.warning("%s", self.info)
        self._fit_since_ns = None
        return self.current

    def step_in(self, left: str, ready: Collection[str]) -> str | None:
        """Which of these follows on `left`, and is used from now on; None: none of them is to be, or fit to."""
        if self.current == left:  # not left for another one that is fitter
            self._levels.pop(left, None)
        wanted = ready if self.current == left else [url for url in ready if url == self.current]
        fit = {url: self._levels[url] for url in wanted if self._levels.get(url)}
        if not fit:
            return None
        self.current = self._fittest(fit)
        self._fit_since_ns = None
        self._log.warning("%s", self.info)
        return self.current

    async def watch(self, session: PublishSession) -> None:
        """One look at the service levels. Raises Transient when another server is to be used now; what reads raise."""
        [level] = await read_standard(session, [SERVICE_LEVEL])
        self._note(self.current, level)
        own = self._levels[self.current]
        now = self._clock.mono_ns()
        waits = self.mode == "cold" and own >= HEALTHY
        if not waits or (self.current != self.urls[0] and now - self._asked_ns >= COLD_ASK_S * 1e9):
            self._asked_ns = now
            await asyncio.gather(*(self._look(url) for url in self.urls if url != self.current))
        best = self._fittest(self._levels)
        if own < HEALTHY and self._levels[best] > own:
            self._switch(best, f"service level {own}")
        first = self._levels.get(self.urls[0], 0)
        if self.current == self.urls[0] or first < max(HEALTHY, own):
            self._fit_since_ns = None
        elif self._fit_since_ns is None:
            self._fit_since_ns = now
        elif now - self._fit_since_ns >= HOLD_S * 1e9:
            self._switch(self.urls[0], f"{self.urls[0]} is fit again")

    async def close(self) -> None:
        """Idempotent."""
        standby, self._standby = self._standby, {}
        await asyncio.gather(*(stack.aclose() for stack, _ in standby.values()))

    def _fittest(self, levels: Mapping[str, int]) -> str:
        """Highest service level; among equals the one in use, then the first."""
        return max(levels, key=lambda url: (levels[url], url == self.current, -self.urls.index(url)))

    def _switch(self, url: str, why: str) -> None:
        left, self.current = self.current, url
        raise Transient(f"{left}: {why}; {url} is used from now on", 0.0)

    async def _ask_all(self) -> dict[str, Exception]:
        """Brings the levels up to date; why some did not answer. Does not wait long for others when one is healthy."""
        asked = {asyncio.create_task(self._ask(url)): url for url in self.urls}
        waiting, failures = set(asked), dict[str, Exception]()
        self._levels = {}
        grace: float | None = None
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    error = task.exception()
                    if isinstance(error, Permanent | NotConnected):
                        failures[asked[task]] = error
                    elif error is not None:
                        raise error
                if any(level >= HEALTHY for level in self._levels.values()):
                    grace = GRACE_S
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return failures

    async def _ask(self, url: str) -> None:
        """One short session. Raises NotConnected, Permanent."""
        async with AsyncExitStack() as stack:
            await self._read(url, await self._enter(url, stack))

    async def _look(self, url: str) -> None:
        """At a standby; a session is held where the mode says so. One that does not answer has no level."""
        try:
            if self.mode == "cold":
                await self._ask(url)
                return
            if url not in self._standby:
                stack = AsyncExitStack()
                self._standby[url] = (stack, await self._enter(url, stack))
            await self._read(url, self._standby[url][1])
        except (NotConnected, Permanent) as error:
            self._log.debug("%s", error)
            self._levels.pop(url, None)
            if url in self._standby:
                await self._standby.pop(url)[0].aclose()

    async def _enter(self, url: str, stack: AsyncExitStack) -> Client:
        return await stack.enter_async_context(looking(url, Access.of(self._settings), self._data_dir))

    async def _read(self, url: str, client: Client) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout / 1e9):
                level, support = await read_standard(client.uaclient.session, [SERVICE_LEVEL, REDUNDANCY_SUPPORT])
        except (OSError, TimeoutError, ua.UaError) as error:
            raise NotConnected(f"{url}: {error}") from error
        self._note(url, level)
        if self._settings.redundancy == "auto":
            self.mode = MODES.get(support, "cold") if isinstance(support, int) else "cold"

    def _note(self, url: str, level: object) -> None:
        """A server that does not say has the level that the standard gives to one without redundancy."""
        self._levels[url] = level if isinstance(level, int) else 255


async def fittest(settings: OpcUaDevice, data_dir: Path) -> str:
    """The server for one session. Raises like `Servers.choose`."""
    log = logging.LoggerAdapter(logging.getLogger(__name__), {})
    return await Servers(settings, data_dir, SystemClock(), log).choose()
