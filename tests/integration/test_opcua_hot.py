"""A hot set (Part 4, 6.6.2.4.5) of two real servers that show the same machine: who goes on, with what, and how often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asyncua import Server

from connectors import opcua_hot, opcua_redundancy
from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from tests.conftest import made
from tests.contract.source_suite import within
from tests.integration.opcua_plant import Make, plant_server, rows, url
from tests.integration.opcua_rig import Counter, Rig
from tests.integration.opcua_rig import Make as MakeRig
from tests.services.node_opcua import NodeOpcua

TAGS = {"x": "ns=1;s=Double", "still": "ns=1;s=Float"}
LEVEL = "i=2267"


class Machine:
    """What two servers show of it: the same values with the same source times."""

    def __init__(self, *servers: NodeOpcua) -> None:
        self.servers = [*servers]

    def write(self, number: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        for server in [*self.servers]:
            server.set_value("Double", float(number), source_ms=now_ms)

    @property
    def options(self) -> dict[str, Any]:
        urls = [server.url for server in self.servers]
        return {"opcua": urls, "redundancy": "hot", "sampling": 0, "queue": 1000, "every": "50ms", "tags": TAGS}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[NodeOpcua, NodeOpcua]]:
    with made(NodeOpcua) as first, made(NodeOpcua) as second:
        yield first, second


@pytest.fixture
def machine(pair: tuple[NodeOpcua, NodeOpcua], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Both are up and healthy, looked at often."""
    monkeypatch.setattr(opcua_redundancy, "LEVEL_EVERY_S", 0.1)
    monkeypatch.setattr(opcua_redundancy, "HOLD_S", 0.2)
    monkeypatch.setattr(opcua_hot, "AGAIN_S", 0.1)
    for server in pair:
        server.start()
        server.bind(LEVEL, "Byte", 255)
    yield Machine(*pair)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def ready(source: OpcUaSource, server: NodeOpcua) -> bool:
    return f"ready to take over: {server.url}" in source.info


def subscriptions(rig: Rig) -> list[tuple[int, list[int]]]:
    """Their ids at the server in use, and those of their items."""
    assert rig.source._link.items is not None
    return [(one.id, [item.id for item in one.items]) for one in rig.source._link.items.subscriptions]


async def begun(machine: Machine, rig: Rig) -> Counter:
    machine.write(0)
    await rig.start()
    await rig.has(0.0, "x")
    await until(lambda: ready(rig.source, machine.servers[1]))
    return Counter(machine.write)


async def all_once(rig: Rig, last: int) -> None:
    values = await rig.has(float(last), "x")
    assert values[values.index(0.0) :] == [float(number) for number in range(last + 1)]
    assert len(await rig.values("still")) == 1


async def test_a_killed_server_is_followed_by_one_that_has_everything_ready(machine: Machine, rig: MakeRig) -> None:
    """No item is made at the switch, the reader notices nothing, and each value is collected once, in order."""
    press = rig(OpcUaDevice.model_validate({"security": "none", "timeout": "4s", **machine.options}))
    first, second = machine.servers
    counter = await begun(machine, press)
    await counter.reaches(20)
    standby = press.source._hot._ready[second.url].items
    assert standby is not None
    before = [(one.id, [item.id for item in one.items]) for one in standby.subscriptions]
    machine.servers.remove(first)
    await asyncio.to_thread(first.kill)
    await until(lambda: press.counted.get("failed_over") == 1)
    await counter.reaches(20)
    await all_once(press, await counter.stopped())
    assert subscriptions(press) == before and f"uses {second.url}" in press.source.info
    assert press.collecting is not None and not press.collecting.done()
    assert not press.notes and press.skipped() == 0 and press.counted["repeated_rows"] >= 20
    assert second.sessions_and_subscriptions()[1] == 1
