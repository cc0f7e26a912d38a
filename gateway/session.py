"""What the supervisor runs: a source with the routes that it offers to, a sink with the pumps that write to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.log import Log
from pipelines.contracts import Lane, Sink, Source, Stage
from pipelines.errors import Corrupt, NotConnected
from pipelines.route import Pump, Route, collect


@dataclass(frozen=True)
class SourceSession:
    """connect, then collect: read, scale, offer to every route, acknowledge."""

    source: Source
    address: str
    routes: Sequence[Route]
    stages: Sequence[Stage]
    kind: str = field(default="source", init=False)
    server: str = field(default="", init=False)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def faults(self) -> Mapping[str, str]:
        return self.source.faults

    async def connect(self) -> None:
        durable = [lane for route in self.routes for lane in route.lanes if lane.durable]
        await self.source.connect([lane.origin(self.name) or b"" for lane in durable])

    async def run(self) -> None:
        await collect(self.source, self.routes, self.stages)

    async def close(self) -> None:
        await self.source.close()


@dataclass(frozen=True)
class SinkSession:
    """connect, then the pumps of all routes that go to this sink, until one of them or the connection ends."""

    sink: Sink
    configured: str
    """The addresses in the file; without credentials."""
    lanes: Sequence[Lane]
    pumps: Sequence[Pump]
    kind: str = field(default="sink", init=False)

    @property
    def name(self) -> str:
        return self.sink.name

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
