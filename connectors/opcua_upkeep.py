"""What keeps a device's data alive and honest beside the reading: service levels, silent items, the machine's clock."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from connectors import opcua_redundancy, opcua_skew
from connectors.opcua_chores import Chores
from connectors.opcua_heartbeat import Heartbeat
from connectors.opcua_limits import Limits
from connectors.opcua_redundancy import Servers
from connectors.opcua_resume import Log
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_skew import Skew
from pipelines.clock import Clock
from pipelines.counters import Counters


class Upkeep:
    """Lives as long as the device; `begin` for each session, `stop` at its end."""

    def __init__(self, settings: OpcUaDevice, data_dir: Path, clock: Clock, counters: Counters, log: Log) -> None:
        self.servers = Servers(settings, data_dir, clock, log)
        self.skew = Skew(settings.clock, settings.clock_tolerance, clock, counters, log)
        asked_for = any(settings.heartbeat_ns(tag) for tag in settings.tags.values())
        self.heartbeat = Heartbeat(settings, clock, counters, log) if asked_for else None
        self._chores = Chores(clock, log)

    @property
    def info(self) -> str:
        """For health."""
        return "; ".join(filter(None, (self.skew.info, self.servers.info)))

    async def begin(self, session: PublishSession, limits: Limits) -> None:
        """Raises what a first look at the clock raises."""
        await self.skew.begin(session)
        start = partial(self._chores.start, wake=session.nudge)
        start("clock skew", opcua_skew.EVERY_S, partial(self.skew.measure, session))
        if self.heartbeat is not None:
            self.heartbeat.begin()
            start("heartbeat", self.heartbeat.every_s, partial(self.heartbeat.look, session, limits))
        if len(self.servers.urls) > 1:
            start("service level", opcua_redundancy.LEVEL_EVERY_S, partial(self.servers.watch, session))

    def check(self) -> None:
        """Raises Transient: another server is to be used; NotConnected; a bug of ours."""
        self._chores.check()

    async def stop(self) -> None:
        """Idempotent."""
        await self._chores.stop()
        await self.servers.close()
