"""What the supervisor runs: a source with the routes that it offers to, a sink with the pumps that write to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.log import Log
from pipelines.clock import Clock, SystemClock
from pipelines.contracts import Lane, OverPaths, Sink, Source, Stage
from pipelines.errors import Corrupt, NotConnected
from pipelines.gaps import Gap, Ledger, NoLedger, Reason
from pipelines.route import LAST_BATCH, Pump, Route, collect


@dataclass
class SourceSession:
    """connect, then collect: read, scale, offer to every route, acknowledge.

    What a machine that keeps nothing (`replayable`) could not give while it was away goes into the ledger.
    """

    source: Source
    address: str
    routes: Sequence[Route]
    stages: Sequence[Stage]
    clock: Clock = field(default_factory=SystemClock)
    ledger: Ledger = field(default_factory=NoLedger)
    connected: Callable[[int], None] | None = None
    """Is told when, by the wall clock."""
    kind: str = field(default="source", init=False)
    _away_since_ns: int | None = field(default=None, init=False)
    server: str = field(default="", init=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def faults(self) -> Mapping[str, str]:
        return self.source.faults

    @property
    def info(self) -> str:
        return self.source.info

    async def connect(self) -> None:
        durable = [lane for route in self.routes for lane in route.lanes if lane.durable]
        began_ns = self.clock.wall_ns()
        try:
            await self.source.connect([lane.origin(self.name) or b"" for lane in durable])
        except Exception:
            self._away(began_ns)
            raise
        if self.connected:
            self.connected(self.clock.wall_ns())
        self.note_absence()

    async def run(self) -> None:
        try:
            await collect(self.source, self.routes, self.stages)
        except Exception:
            last_s = self.source.counters.gauges.get(LAST_BATCH)
            self._away(self.clock.wall_ns() if last_s is None else int(last_s * 1e9))
            raise

    async def close(self) -> None:
        await self.source.close()

    def note_absence(self) -> None:
        """The machine is back, or the gateway ends without it."""
        since_ns, self._away_since_ns = self._away_since_ns, None
        if since_ns is not None and not self.source.replayable:
            gap = Gap(Reason.DISCONNECTED, self.name, "", (), since_ns, self.clock.wall_ns(), None)
            self.ledger.note(gap)

    def _away(self, since_ns: int) -> None:
        if self._away_since_ns is None:
            self._away_since_ns = since_ns


@dataclass(frozen=True)
class SinkSession:
    """connect, then the pumps of all routes that go to this sink, until one of them or the connection ends."""

    sink: Sink
    configured: str
    """The addresses in the file; without credentials."""
    lanes: Sequence[Lane]
    pumps: Sequence[Pump]
    clock: Clock = field(default_factory=SystemClock)
    ledger: Ledger = field(default_factory=NoLedger)
    kind: str = field(default="sink", init=False)

    @property
    def name(self) -> str:
        return self.sink.name

    @property
    def info(self) -> str:
        return self.sink.info if isinstance(self.sink, OverPaths) else ""

    @property
    def address(self) -> str:
        return self.server or self.configured

    @property
    def server(self) -> str:
        return self.sink.server

    @property
    def faults(self) -> Mapping[str, str]:
        return self.sink.faults

    async def connect(self) -> None:
        positions = await self.sink.connect()
        for lane in self.lanes:
            if lane.name in positions:
                self._restore(lane, positions[lane.name])

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for pump in self.pumps:
                group.create_task(pump.run())
            await self.sink.wait_closed()
            raise NotConnected("the connection was closed by the other side")

    async def close(self) -> None:
        await self.sink.close()

    def _restore(self, lane: Lane, position: bytes) -> None:
        try:
            lane.restore(position)
        except Corrupt as error:
            Log(f"sink {self.name}").warning(f"what it says of the route's position is not believed: {error}")
            now = self.clock.wall_ns()
            self.ledger.note(Gap(Reason.FORGOTTEN, "", lane.name, (), now, now, None))
