"""A Kafka destination goes back to a preferred path while rows are written: nothing fails, is missing or is twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from connectors import kafka as module
from connectors.kafka import KafkaSink
from connectors.kafka_session import Session
from connectors.kafka_settings import KafkaTarget
from pipelines.errors import NotConnected
from tests.integration.kafka_plant import DEADLINE_S, Plant, make_sink, numbers, other_tasks, read_topic, write
from tests.services.kafka import Kafka

SOURCES = {"a": "127.0.0.7", "b": "127.0.0.8"}
PATHS = {name: {"source": address} for name, address in SOURCES.items()}
DELIVERIES = ["exactly-once", "at-least-once"]


class Ways:
    """`refusing`: paths by which no producer starts. `silent`: those by which no probe gets through either."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusing: set[str] = set()
        self.silent: set[str] = set()
        self.refused = 0
        start = Session.start

        async def started(session: Session) -> None:
            if session._target.path in self.refusing | self.silent:
                self.refused += 1
                raise NotConnected(f"no answer by {session._target.path}")
            await start(session)

        async def probed(target: KafkaTarget, _: bool) -> None:
            if target.path in self.silent:
                raise NotConnected(f"no answer by {target.path}")

        monkeypatch.setattr(Session, "start", started)
        monkeypatch.setattr(module, "_probe", probed)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


@asynccontextmanager
async def writing(sink: KafkaSink, plant: Plant) -> AsyncIterator[Callable[[int], object]]:
    """One write after the other, and what the supervisor would run; gives a wait for so many writes more."""
    written, over = 0, False

    async def writes() -> None:
        nonlocal written
        while not over:
            await write(sink, plant.batch())
            written += 1

    async def more(number: int) -> None:
        wanted = written + number
        await _until(lambda: written >= wanted or writer.done() or keeper.done())

    writer, keeper = asyncio.ensure_future(writes()), asyncio.ensure_future(sink.wait_closed())
    try:
        yield more
    finally:
        over = True
        await writer
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def sources(sink: KafkaSink) -> set[str]:
    """Addresses that its connections come from."""
    return {sock.getsockname()[0] for sock in sink._waiting()}


@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_it_goes_back_between_two_writes(kafka: Kafka, ways: Ways, delivery: str) -> None:
    """Every connection is of the path in use; one that was wrongly thought to work is left alone."""
    plant, topic = Plant(), f"paths-back-{delivery}"
    await kafka.create_topic(topic, partitions=2)
    sink = make_sink(plant, kafka.bootstrap, topic, paths=PATHS, hold="100ms", delivery=delivery)
    ways.silent = {"a"}
    await sink.connect()
    assert (sink.server, sources(sink)) == (f"{kafka.bootstrap} (b)", {SOURCES["b"]})
    assert sink.faults == {f"{kafka.bootstrap} (a)": "no answer by a"}
    async with writing(sink, plant) as more:
        await more(5)
        ways.silent, ways.refusing, before = set(), {"a"}, ways.refused
        await _until(lambda: ways.refused > before)
        await more(5)
        assert sink.server == f"{kafka.bootstrap} (b)"
        await _until(lambda: sources(sink) == {SOURCES["b"]})  # none, while it looks whether it can go back
        ways.refusing = set()
        await _until(lambda: sink.server.endswith("(a)"))
        await more(5)
        assert sources(sink) == {SOURCES["a"]}
    await sink.close()
    assert not await other_tasks()
    seen = numbers(await asyncio.to_thread(read_topic, kafka.bootstrap, topic))
    assert sorted(seen) == list(range(plant.rows))
