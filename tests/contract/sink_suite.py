"""The contract of a Sink, as tests: every implementation, a real broker, read back by a client that is not ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import pytest

from connectors import SINKS, load
from connectors.payload import Identity
from pipelines.batch import Batch, BatchBuilder, Kind
from pipelines.clock import SystemClock
from pipelines.contracts import CutThroughSink, Sink
from pipelines.errors import GatewayError, NotConnected
from pipelines.quantities import Settings
from pipelines.tags import Tag, TagTable
from tests.contract.source_suite import DEADLINE_S, settled, within
from tests.services.ports import connections
from tests.services.process import Service

ROWS = 20


class Consumer(Protocol):
    """A subscriber that sees what was sent from its start on."""

    payloads: list[bytes]

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


@dataclass
class Broker:
    """A real broker, how to reach it, and how to read back what arrives."""

    kind: str
    server: Service
    settings: Callable[[str], Settings]
    """Topic -> the destination's settings."""
    consumer: Callable[[str], Consumer]
    """Topic -> a foreign consumer."""
    session: bool = True
    """The protocol has a session whose end is noticed while nothing is written."""


class Fixture:
    """A sink, a consumer of its topic, and batches whose values are counted up."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.broker = broker
        self.tags = TagTable()
        self.tag = self.tags.add(Tag("press", "speed"))
        make = load(SINKS[broker.kind])
        self.sink: Sink = make(
            "plant", broker.settings(topic), Identity("gw", "acme"), self.tags, SystemClock(), ["history"]
        )
        self.consumer = broker.consumer(topic)
        self.made = 0

    async def connect(self) -> None:
        await within(self.sink.connect())

    def batch(self, rows: int = ROWS) -> Batch:
        """The next `rows` numbers, numbered as a lane does."""
        builder = BatchBuilder()
        for _ in range(rows):
            builder.add(self.tag, 1_795_343_713_695_123_000, float(self.made), Kind.DOUBLE)
            self.made += 1
        return replace(builder.build(0, self.made, 1_795_343_713_695_123_000), seq=self.made)

    async def write(self, *batches: Batch) -> None:
        await within(self.sink.write("history", batches, b"", historical=False))

    def received(self) -> list[int]:
        """The numbers that the consumer has, in the order of their arrival."""
        samples = [sample for payload in self.consumer.payloads for sample in json.loads(payload)["samples"]]
        return [int(sample["v"]) for sample in samples]

    async def received_all(self) -> list[int]:
        """What the consumer has once it has the last number made; then whatever else has come with it."""
        await settled(lambda: self.made - 1 in self.received())
        return self.received()


class SinkSuite:
    """Inherit, and give a class-scoped fixture `broker` (a started server)."""

    @pytest.fixture
    async def fixture(self, broker: Broker, request: pytest.FixtureRequest) -> AsyncIterator[Fixture]:
        made = Fixture(broker, f"suite.{type(self).__name__}.{request.node.name}")
        await made.consumer.start()
        yield made
        await made.sink.close()
        await made.consumer.stop()

    async def test_what_write_returned_for_is_there_once_and_in_order(self, fixture: Fixture) -> None:
        """Every row of every batch, in order, once; the payload names gateway, stream, seq and device."""
        await fixture.connect()
        for _ in range(5):
            await fixture.write(fixture.batch(), fixture.batch(1))
        assert await fixture.received_all() == list(range(fixture.made))
        first = json.loads(fixture.consumer.payloads[0])
        assert (first["gateway"], first["stream"], first["device"], first["historical"]) == (
            "gw",
            "history",
            "press",
            False,
        )
        assert first["seq"] == ROWS

    async def test_a_batch_without_a_row_is_delivered_as_it_is(self, fixture: Fixture) -> None:
        """A lane has such where a damaged segment no longer says what its tags are: it keeps nothing behind it back."""
        await fixture.connect()
        await fixture.write(fixture.batch(0))
        await fixture.write(fixture.batch(1), fixture.batch(0), fixture.batch(1))
        assert await fixture.received_all() == [0, 1]

    async def test_writes_in_flight_keep_their_order(self, fixture: Fixture) -> None:
        """As many writes as the sink allows, started one after the other: delivered in that order."""
        await fixture.connect()
        for _ in range(10):
            writes = [
                asyncio.create_task(fixture.write(fixture.batch(), fixture.batch()))
                for _ in range(fixture.sink.in_flight_max)
            ]
            await asyncio.gather(*writes)
        assert await fixture.received_all() == list(range(fixture.made))

    async def test_what_is_sent_at_once_keeps_its_order_among_writes(self, fixture: Fixture) -> None:
        """Of a sink that can: sent without a turn of the event loop, acknowledged as a write is; not without a session.

        Behind a write that is under way it is refused, and goes by `write` as everything does.
        """
        sink = fixture.sink
        if not isinstance(sink, CutThroughSink):
            return
        assert sink.send("history", fixture.batch(0)) is None
        await fixture.connect()
        for _ in range(5):
            sent = [sink.send("history", fixture.batch(1)) for _ in range(sink.sent_max)]
            waits = [acknowledged() for acknowledged in sent if acknowledged]
            assert len(waits) == sink.sent_max
            await within(asyncio.gather(*waits))
            await fixture.write(fixture.batch(), fixture.batch(1))
        assert await fixture.received_all() == list(range(fixture.made))
        assert sink.counters.totals["rows"] == fixture.made
        await within(sink.close())
        assert sink.send("history", fixture.batch(1)) is None

    async def test_an_absent_broker_is_a_normal_state(self, fixture: Fixture) -> None:
        """No broker: NotConnected that names its address; once it is there, the same object connects and writes."""
        server = fixture.broker.server
        await asyncio.to_thread(server.stop)
        try:
            with pytest.raises(NotConnected, match=str(server.port)):
                await fixture.connect()
        finally:
            await asyncio.to_thread(server.start)
        await self._reconnect(fixture)
        await self._persistently(fixture, fixture.batch())

    async def test_nothing_acknowledged_is_lost_when_the_broker_is_killed(self, fixture: Fixture) -> None:
        """Writes end with an error, not silently; written again as a pump does, everything acknowledged is there."""
        await fixture.connect()
        failed: list[Batch] = []

        async def write(batch: Batch) -> None:
            try:
                await fixture.write(batch)
            except GatewayError:
                failed.append(batch)

        await write(fixture.batch())
        killing = asyncio.create_task(asyncio.to_thread(fixture.broker.server.kill))
        while not failed:
            await write(fixture.batch())
        await killing
        await asyncio.to_thread(fixture.broker.server.start)
        await within(fixture.sink.close())
        await self._reconnect(fixture)
        for batch in sorted(failed, key=lambda batch: batch.seq):
            await self._persistently(fixture, batch)
        await self._persistently(fixture, fixture.batch())

    async def _reconnect(self, fixture: Fixture) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                with suppress(NotConnected):
                    return await fixture.connect()

    async def _persistently(self, fixture: Fixture, batch: Batch) -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            while True:
                try:
                    return await fixture.write(batch)
                except GatewayError:
                    await self._reconnect(fixture)

    async def test_stop_during_connect_leaves_nothing_behind(self, fixture: Fixture) -> None:
        """The broker accepts and does not answer; cancelling connect() ends at once, without tasks or sockets."""
        server = fixture.broker.server
        tasks, sockets = len(asyncio.all_tasks()), connections(server.port)
        server.process.pause()
        try:
            connecting = asyncio.create_task(fixture.sink.connect())  # type: ignore[arg-type]
            await settled(lambda: connections(server.port) > sockets or connecting.done())
            connecting.cancel()
            [outcome] = await within(asyncio.gather(connecting, return_exceptions=True))
            assert isinstance(outcome, asyncio.CancelledError)
            await within(fixture.sink.close())
        finally:
            server.process.resume()
        assert await settled(lambda: len(asyncio.all_tasks()) <= tasks and connections(server.port) <= sockets)
        await self._reconnect(fixture)
        await self._persistently(fixture, fixture.batch())

    async def test_a_cancelled_write_does_not_stand_in_the_way(self, fixture: Fixture) -> None:
        """A write may be cancelled while it waits for the broker; the session goes on, or says that it ended."""
        await fixture.connect()
        fixture.broker.server.process.pause()
        try:
            writing = asyncio.create_task(fixture.write(fixture.batch()))
            await asyncio.sleep(0.01)
            writing.cancel()
            [outcome] = await within(asyncio.gather(writing, return_exceptions=True))
            # The broker may have answered before it stopped.
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        finally:
            fixture.broker.server.process.resume()
        await self._persistently(fixture, fixture.batch())
        assert fixture.made - 1 in await fixture.received_all()

    async def test_the_end_of_the_session_is_noticed(self, fixture: Fixture) -> None:
        """wait_closed() ends while nothing is written: when the broker goes away, or else with close()."""
        await fixture.connect()
        waiting = asyncio.create_task(within(fixture.sink.wait_closed()))
        await asyncio.sleep(0)
        if fixture.broker.session:
            await asyncio.to_thread(fixture.broker.server.kill)
            try:
                with pytest.raises(NotConnected):
                    await waiting
            finally:
                await asyncio.to_thread(fixture.broker.server.start)
        else:
            await within(fixture.sink.close())
            await waiting

    async def test_close_is_idempotent_and_leaves_nothing_running(self, fixture: Fixture) -> None:
        """close() before connect, twice, after writing: no task, no socket; write() afterwards says NotConnected."""
        server = fixture.broker.server
        tasks, sockets = len(asyncio.all_tasks()), connections(server.port)
        await within(fixture.sink.close())
        await fixture.connect()
        await fixture.write(fixture.batch())
        await within(fixture.sink.close())
        await within(fixture.sink.close())
        assert await settled(lambda: len(asyncio.all_tasks()) <= tasks and connections(server.port) <= sockets)
        with pytest.raises(NotConnected):
            await fixture.write(fixture.batch())
