"""The source behind a proxy that harms what a real server answers: it never ends but by the contract, and goes on."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors import opcua_plan, opcua_silence
from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected, Permanent
from pipelines.tags import TagTable
from tests.integration.opcua_rig import Counter
from tests.services import asyncua_types
from tests.services.asyncua_server import VARIABLES, AsyncuaServer
from tests.services.hostile_proxy import HostileProxy
from tests.services.node_opcua import NodeOpcua
from tests.unit.connectors.opcua_messages import is_well_typed

HARMED = 16
CHUNKS_PER_HARM = 6


class Reader:
    """Connects and reads again and again, as a supervisor does; keeps the faults and what came."""

    def __init__(self, url: str, tags: dict[str, Any], folder: Path, **options: Any) -> None:
        settings = {"opcua": url, "every": "20ms", "timeout": "1s", "tags": tags, **options}
        self.tags = TagTable()
        self.source = OpcUaSource("press", 0, OpcUaDevice.model_validate(settings), self.tags, SystemClock(), folder)
        self.faults: list[str] = []
        self.values: dict[str, list[Any]] = {name: [] for name in tags}

    async def run(self) -> None:
        """Ends only by an error that the contract does not have."""
        while True:
            try:
                await self.source.connect([])
                while True:
                    self._keep(await self.source.read())
            except (NotConnected, Permanent) as error:
                self.faults.append(str(error))
            finally:
                await self.source.close()
            await asyncio.sleep(0)

    def _keep(self, batch: Batch) -> None:
        for row, (tag, kind, value) in enumerate(
            zip(batch.tag.tolist(), batch.kind.tolist(), batch.values(), strict=True)
        ):
            shown = value if batch.extra and row in batch.extra else repr(float("nan" if value is None else value))
            assert is_well_typed(kind, shown), f"kind {kind} has the value {value!r}"
            self.values[self.tags[tag].name].append(value)
        self.source.commit(batch.number)


async def until(reading: asyncio.Task[None], done: Callable[[], bool], seconds: float = 90) -> None:
    """Waits; what ended the reading, which has no end, is raised."""
    async with asyncio.timeout(seconds):
        while not done():
            if reading.done():
                reading.result()
            await asyncio.sleep(0.02)


async def harm(
    proxy: HostileProxy, reader: Reader, counter: Counter, begun: Callable[[], bool], times: int, seed: int
) -> int:
    """Harms so many chunks once it has begun, then no more, and waits for the counter's last number, which it gives."""
    reading = asyncio.create_task(reader.run())
    try:
        await until(reading, begun)
        proxy.every = CHUNKS_PER_HARM
        await until(reading, lambda: proxy.harmed >= times)
        proxy.every = 0
        await counter.reaches(3)  # nobody sees that a number was harmed: the last one must not be
        last = await counter.stopped()
        await until(reading, lambda: reader.values["Int32"][-1] == last)
    except BaseException as error:
        source = reader.source
        error.add_note(f"seed {seed}; {proxy.harmed} chunks harmed, faults: {reader.faults[-5:]}")
        error.add_note(
            f"now: {source.info}; {source.faults}; {source.counters.snapshot()}; {reader.values['Int32'][-3:]}"
        )
        raise
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    return last


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing is given up soon."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 200_000_000)
    monkeypatch.setattr(opcua_silence, "KEEP_ALIVES", 1)


async def test_a_hostile_server(asyncua_server: Callable[..., AsyncuaServer], tmp_path: Path) -> None:
    """Chunks flipped, cut, doubled, reordered, oversized: faults are counted, and what comes is right again at once."""
    server, seed = asyncua_server(types=True), random.randrange(2**32)
    names = [*VARIABLES, *asyncua_types.EXPECTED]
    async with HostileProxy(server.port, random.Random(seed)) as proxy:
        reader = Reader(proxy.url, {name: f"ns=2;s={name}" for name in names}, tmp_path, security="none")
        counter = Counter(lambda number: server.set_value("Int32", number))
        await harm(proxy, reader, counter, lambda: all(reader.values.values()), HARMED, seed)
    assert reader.faults


async def test_with_sign_and_encrypt_every_harm_is_refused(node_opcua: NodeOpcua, tmp_path: Path) -> None:
    """What is delivered is what the server has had as its value, never anything else."""
    seed = random.randrange(2**32)
    async with HostileProxy(node_opcua.port, random.Random(seed)) as proxy:
        reader = Reader(proxy.url, {"Int32": "ns=1;s=Int32", "Double": "ns=1;s=Double"}, tmp_path)
        with pytest.raises(Permanent, match="not trusted"):
            await reader.source.connect([])
        [pending] = (tmp_path / "pki" / "pending").iterdir()
        shutil.move(pending, tmp_path / "pki" / "trusted")
        counter = Counter(lambda number: node_opcua.set_value("Int32", number), first=1000)
        last = await harm(proxy, reader, counter, lambda: len(reader.values["Int32"]) > 1, HARMED // 2, seed)
    assert set(reader.values["Int32"][1:]) <= set(range(1000, last + 1))
    assert len(set(reader.values["Double"])) == 1
