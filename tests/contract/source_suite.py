"""The contract of a Source, as tests: every implementation, every kind of server, one suite.

A `Machine` says how to reach a real server, what its tags hold, and how to make something happen there;
`test_sources.py` gives one per kind of server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from connectors import SOURCES, load
from pipelines.batch import SEVERITY_MASK, Batch
from pipelines.clock import SystemClock
from pipelines.contracts import CutThroughSource, Source
from pipelines.errors import NotConnected
from pipelines.quantities import Settings
from pipelines.tags import TagTable
from tests.services.ports import connections
from tests.services.process import Service
from tests.services.serial_line import SerialService

DEADLINE_S = 60.0
"""Far beyond what any step needs: a test that waits this long has failed."""


@dataclass
class Machine:
    """A real server and what the suite must know of it."""

    kind: str
    server: Service
    settings: Settings
    expected: Mapping[str, Any]
    """Tag name -> the value that the server holds at the start."""
    bad_tag: str
    """A tag of `settings` that the server does not have."""
    change: Callable[[], Any] = field(default=lambda: None)
    """Makes the server report something new (a polled one does so anyway)."""
    transport: str = "tcp"

    @property
    def address(self) -> str:
        """What an error about the connection must name."""
        return str(self.server.line.gateway_port if isinstance(self.server, SerialService) else self.server.port)

    def open_connections(self) -> int:
        """Sockets towards the server, or how often its serial port is open."""
        if isinstance(self.server, SerialService):
            return self.server.line.held_open()
        return connections(self.server.port, transport=self.transport)


class Fixture:
    """A source on a machine, with the reading that all tests need."""

    def __init__(self, machine: Machine, data_dir: Path) -> None:
        self.machine = machine
        self.tags = TagTable()
        make = load(SOURCES[machine.kind])
        self.source: Source = make("machine", 3, machine.settings, self.tags, SystemClock(), data_dir)

    async def connect(self) -> None:
        await within(self.source.connect([]))

    async def read(self) -> Batch:
        return await within(self.source.read())

    async def read_until(self, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Newest value per tag name (None for a bad row), read and committed until `done` says so."""
        values: dict[str, Any] = {}
        while not done(values):
            batch = await self.read()
            for tag, status, value in zip(batch.tag, batch.status, batch.values(), strict=True):
                values[self.tags[int(tag)].name] = None if int(status) & SEVERITY_MASK else value
            self.source.commit(batch.number)
        return values


async def within(work: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(work, DEADLINE_S)


async def settled(quiet: Callable[[], bool]) -> bool:
    """Waits until `quiet`, bounded by the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not quiet():  # noqa: ASYNC110  what is waited for happens in other processes
            await asyncio.sleep(0.01)
    return True


class SourceSuite:
    """Inherit, and give a class-scoped fixture `machine` (a started server)."""

    @pytest.fixture
    async def fixture(self, machine: Machine, tmp_path: Path) -> AsyncIterator[Fixture]:
        made = Fixture(machine, tmp_path)
        yield made
        await made.source.close()

    async def test_every_tag_arrives_with_its_value(self, fixture: Fixture) -> None:
        """Values are what the server holds, of every type; the batch knows its source and its times are of today."""
        machine = fixture.machine
        await fixture.connect()
        values = await fixture.read_until(lambda seen: set(machine.expected) | {machine.bad_tag} <= set(seen))
        assert {name: values[name] for name in machine.expected} == machine.expected

    async def test_batches_are_numbered_without_gaps(self, fixture: Fixture) -> None:
        """`number` grows by one per batch; commit may be repeated and may come late."""
        await fixture.connect()
        first = await fixture.read()
        fixture.machine.change()
        second = await fixture.read()
        assert second.number == first.number + 1 and first.source_id == second.source_id == 3
        fixture.source.commit(second.number)
        fixture.source.commit(second.number)
        fixture.source.commit(first.number)
        fixture.machine.change()
        assert (await fixture.read()).number == second.number + 1

    async def test_what_is_shown_is_what_read_returns(self, fixture: Fixture) -> None:
        """Of a source that shows: the very batches that the waiting `read` and those after it return, each once, in
        order; to nobody any more after `show(None)`."""
        machine, source, shown, read = fixture.machine, fixture.source, list[Batch](), list[Batch]()
        if not isinstance(source, CutThroughSource):
            return
        await fixture.connect()
        await fixture.read_until(lambda seen: set(machine.settings.tags) <= set(seen))  # then nothing comes by itself
        source.show(shown.append)
        while not shown:
            waiting = asyncio.create_task(fixture.read())
            await asyncio.to_thread(machine.change)
            read.append(await waiting)
        source.show(None)
        count = len(shown)
        read += [await fixture.read() for _ in shown[1:]]
        assert all(one is other for one, other in zip(shown, read[-count:], strict=True))
        machine.change()
        assert (await fixture.read()).number == read[-1].number + 1
        assert len(shown) == count

    async def test_a_bad_tag_leaves_the_others_running(self, fixture: Fixture) -> None:
        """An address that does not exist gives a row with a bad status and a line in `faults`, and nothing else."""
        machine = fixture.machine
        await fixture.connect()
        values = await fixture.read_until(lambda seen: set(machine.expected) | {machine.bad_tag} <= set(seen))
        assert values[machine.bad_tag] is None
        assert list(fixture.source.faults) == [machine.bad_tag]
        assert all(values[name] is not None for name in machine.expected)

    async def test_an_absent_server_is_a_normal_state(self, fixture: Fixture) -> None:
        """No server: NotConnected that names the address; once it is there, the same object connects."""
        server = fixture.machine.server
        await asyncio.to_thread(server.stop)
        try:
            with pytest.raises(NotConnected, match=fixture.machine.address):
                await fixture.connect()
        finally:
            await asyncio.to_thread(server.start)
        await fixture.connect()
        assert len(await fixture.read())

    async def test_a_killed_server_ends_read_and_everything_comes_back(self, fixture: Fixture) -> None:
        """read() raises NotConnected when the server dies; after its restart every tag is delivered again."""
        machine = fixture.machine
        await fixture.connect()
        await fixture.read_until(lambda seen: set(machine.expected) <= set(seen))
        await asyncio.to_thread(machine.server.kill)
        try:
            with pytest.raises(NotConnected):
                await fixture.read_until(lambda _: False)
        finally:
            await asyncio.to_thread(machine.server.start)
        await within(fixture.source.close())
        await fixture.connect()
        values = await fixture.read_until(lambda seen: set(machine.expected) <= set(seen))
        assert {name: values[name] for name in machine.expected} == machine.expected

    async def test_stop_during_connect_leaves_nothing_behind(self, fixture: Fixture) -> None:
        """The server accepts and does not answer; cancelling connect() ends at once, without tasks or sockets."""
        server = fixture.machine.server
        tasks, sockets = len(asyncio.all_tasks()), fixture.machine.open_connections()
        server.process.pause()
        try:
            connecting = asyncio.create_task(fixture.source.connect([]))
            await settled(lambda: fixture.machine.open_connections() > sockets or connecting.done())
            connecting.cancel()
            [outcome] = await within(asyncio.gather(connecting, return_exceptions=True))
            # A transport without a handshake of its own may have been connected already.
            assert outcome is None or isinstance(outcome, asyncio.CancelledError | NotConnected)
            await within(fixture.source.close())
        finally:
            server.process.resume()
        assert await settled(
            lambda: len(asyncio.all_tasks()) <= tasks and fixture.machine.open_connections() <= sockets
        )
        await fixture.connect()
        assert len(await fixture.read())

    async def test_a_cancelled_read_loses_nothing(self, fixture: Fixture) -> None:
        """read() may be cancelled while it waits; what comes afterwards is delivered by the next read()."""
        machine = fixture.machine
        await fixture.connect()
        await fixture.read_until(lambda seen: set(machine.settings.tags) <= set(seen))  # then nothing comes by itself
        waiting = asyncio.create_task(fixture.source.read())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        machine.change()
        assert len(await fixture.read())

    async def test_close_is_idempotent_and_leaves_nothing_running(self, fixture: Fixture) -> None:
        """close() before connect, twice, and after reading: no task, no socket; read() afterwards says NotConnected."""
        tasks, sockets = len(asyncio.all_tasks()), fixture.machine.open_connections()
        await within(fixture.source.close())
        await fixture.connect()
        await fixture.read()
        await within(fixture.source.close())
        await within(fixture.source.close())
        assert await settled(
            lambda: len(asyncio.all_tasks()) <= tasks and fixture.machine.open_connections() <= sockets
        )
        with pytest.raises(NotConnected):
            await fixture.read()
