"""A source with real disk lanes that can be killed as a process is: its connection dropped, its folders untouched."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.contracts import Lane, Part
from pipelines.gaps import Gap
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane
from pipelines.route import Route, collect
from pipelines.tags import TagTable
from tests.contract.source_suite import within

DEVICE = "press"


class HeldLane(DiskLane):
    """Its disk can be made to hang: what comes then is neither synced nor, after a power cut, there."""

    hangs = False

    async def sync(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await super().sync()


class Notes:
    """A ledger."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    def note(self, gap: Gap) -> None:
        self.gaps.append(gap)


class Rig:
    """One gateway process: a source, its durable lanes and what they collect."""

    def __init__(self, folder: Path, settings: OpcUaDevice, lanes: int = 1, fast: bool = False) -> None:
        clock, self.tags, notes = SystemClock(), TagTable(), Notes()
        self.notes = notes.gaps
        self.folder, self.settings = folder, settings
        self.source = OpcUaSource(DEVICE, 0, settings, self.tags, clock, folder, notes)
        limits = Limits(64 * 2**20, fsync_every_ns=20_000_000)
        self.durable = [
            HeldLane(f"lane{i}", folder / "lanes" / f"lane{i}", clock, limits, tags=self.tags, sources=[DEVICE])
            for i in range(lanes)
        ]
        self.memory = [MemoryLane("fast", bytes_max=2**26)] if fast else []
        self.routes = [Route(lane.name, [], lane) for lane in [*self.durable, *self.memory]]
        self.collecting: asyncio.Task[None] | None = None
        self._readers = {lane.name: lane.reader(Part.ALL) for lane in self.lanes}
        self._read: dict[str, list[Batch]] = {lane.name: [] for lane in self.lanes}

    @property
    def lanes(self) -> list[Lane]:
        return [*self.durable, *self.memory]

    @property
    def counted(self) -> Mapping[str, int]:
        return self.source.counters.totals

    def skipped(self, lane: int = 0) -> int:
        return self.lanes[lane].counters.totals.get("skipped_rows", 0)

    async def start(self) -> None:
        await within(self.source.connect([lane.origin(DEVICE) or b"" for lane in self.durable]))
        self.collecting = asyncio.create_task(collect(self.source, self.routes, []))

    async def batches(self, lane: int = 0) -> list[Batch]:
        """All that the lane was given so far, in this life and before."""
        of = self.lanes[lane]
        while sum(map(len, self._read[of.name])) < of.pending_rows:
            _, batches = await within(self._readers[of.name].read(10_000))
            self._read[of.name] += batches
        return self._read[of.name]

    async def values(self, tag: str, lane: int = 0) -> list[Any]:
        number = self.tags.id_of(f"{DEVICE}/{tag}")
        return [
            value
            for batch in await self.batches(lane)
            for row, value in zip(batch.tag, batch.values(), strict=True)
            if row == number
        ]

    async def until(self, done: Callable[[list[Any]], bool], tag: str, lane: int = 0) -> list[Any]:
        """Waits for what a lane holds of a tag; collection must be going on."""

        async def wait() -> list[Any]:
            while not done(values := await self.values(tag, lane)):
                assert self.collecting is not None
                if self.collecting.done():
                    self.collecting.result()
                await asyncio.sleep(0.02)
            return values

        return await asyncio.wait_for(wait(), 60)

    async def has(self, value: Any, tag: str, lane: int = 0) -> list[Any]:
        return await self.until(lambda values: value in values, tag, lane)

    def drop_connection(self) -> None:
        """The connection is gone, without a word to the server."""
        session = self.source._link.session
        assert session is not None and session._client.protocol is not None
        transport = session._client.protocol.transport
        assert transport is not None
        transport.abort()

    async def ended(self) -> BaseException:
        """Waits until collection ends by itself; what ended it. The source is closed, as the supervisor does."""
        assert self.collecting is not None
        await asyncio.wait([self.collecting], timeout=30)
        error = self.collecting.exception()
        assert error is not None
        await within(self.source.close())
        return error

    async def kill(self, folder: Path, as_of: Mapping[str, Path] | None = None) -> None:
        """kill -9: nothing more is written or said; `folder` gets what the disk has (`as_of`: of some lanes, before).

        The object is cleaned up afterwards, which the server does not see.
        """
        await self._cancel()
        self.drop_connection()
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.new"))  # renamed at any moment
        for name, before in (as_of or {}).items():
            shutil.rmtree(folder / "lanes" / name)
            shutil.copytree(before, folder / "lanes" / name)
        await asyncio.sleep(0)  # lets the transport tell its protocol
        await self._clean_up()

    async def stop(self) -> None:
        """As a clean stop: the source closes first."""
        await self._cancel()
        await self._clean_up()

    async def _cancel(self) -> None:
        if self.collecting:
            self.collecting.cancel()
            await asyncio.wait([self.collecting])

    async def _clean_up(self) -> None:
        await within(self.source.close())
        for lane in self.lanes:
            await lane.close()


Make = Callable[..., Rig]


class Counter:
    """Writes 1, 2, 3, ... to a server's variable from another connection, every 20 ms, until `stopped`."""

    def __init__(self, write: Callable[[int], object], first: int = 1) -> None:
        self.last = first - 1
        self._write = write
        self._enough = False
        self._numbers = count(first)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        for number in self._numbers:
            if self._enough:
                return
            await asyncio.to_thread(self._write, number)
            self.last = number
            await asyncio.sleep(0.02)

    async def reaches(self, more: int) -> None:
        """Waits for so many more writes."""
        goal = self.last + more
        async with asyncio.timeout(30):
            while self.last < goal:
                if self._task.done():
                    self._task.result()
                await asyncio.sleep(0.01)

    async def stopped(self) -> int:
        """The last number that was written."""
        self._enough = True  # not cancelled: a thread would go on writing
        await self._task
        return self.last
