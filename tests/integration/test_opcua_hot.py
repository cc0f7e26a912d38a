"""A hot set (Part 4, 6.6.2.4.5): two real servers that show the same machine; who goes on, with what, how often."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asyncua import ua

from connectors import opcua_hot, opcua_redundancy
from connectors.opcua import OpcUaSource
from connectors.opcua_link import Link
from connectors.opcua_settings import OpcUaDevice
from pipelines.errors import NotConnected
from tests.conftest import made
from tests.contract.source_suite import within
from tests.integration.opcua_plant import Make, plant_server, rows, url, write_standard
from tests.integration.opcua_rig import Counter, Rig
from tests.integration.opcua_rig import Make as MakeRig
from tests.services.node_opcua import NodeOpcua

TAGS = {"x": "ns=1;s=Double", "still": "ns=1;s=Float"}
LEVEL = "i=2267"
Items = list[tuple[int, list[int]]]
"""Ids of subscriptions, and of their items."""


class Machine:
    """What two servers show of it: the same values with the same source times."""

    def __init__(self, *servers: NodeOpcua) -> None:
        self.servers = [*servers]

    def write(self, number: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        for server in [*self.servers]:
            if not number:
                server.set_value("Float", 0.5, source_ms=now_ms)
            server.set_value("Double", float(number), source_ms=now_ms)

    def source(self, make: Make, **options: Any) -> OpcUaSource:
        return make(self.options["opcua"], TAGS, redundancy="hot", **options)

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
        if not server.process.running:
            server.start()
        server.bind(LEVEL, "Byte", 255)
    yield Machine(*pair)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def ready(source: OpcUaSource, server: NodeOpcua) -> bool:
    return f"ready to take over: {server.url}" in source.info


def prepared(source: OpcUaSource, server: NodeOpcua) -> Items:
    return _ids(source._hot._ready[server.url])


def in_use(source: OpcUaSource) -> Items:
    return _ids(source._link)


def _ids(link: Link) -> Items:
    assert link.items is not None
    return [(one.id, [item.id for item in one.items]) for one in link.items.subscriptions]


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
    before = prepared(press.source, second)
    machine.servers.remove(first)
    await asyncio.to_thread(first.kill)
    await until(lambda: press.counted.get("failed_over") == 1)
    await counter.reaches(20)
    await all_once(press, await counter.stopped())
    assert in_use(press.source) == before and f"uses {second.url}" in press.source.info
    assert press.collecting is not None and not press.collecting.done()
    assert not press.notes and press.skipped() == 0 and press.counted["repeated_rows"] >= 20


async def test_a_server_that_is_not_fit_is_left_and_returned_to(machine: Machine, rig: MakeRig) -> None:
    """Level 150, then 255 again: the reader notices neither, each value comes once, and each switch finds all ready."""
    press = rig(OpcUaDevice.model_validate({"security": "none", "timeout": "4s", **machine.options}))
    first, second = machine.servers
    counter = await begun(machine, press)
    await counter.reaches(5)
    first.bind(LEVEL, "Byte", 150)
    await until(lambda: press.counted.get("failed_over") == 1)
    assert f"uses {second.url}" in press.source.info
    await counter.reaches(5)
    first.bind(LEVEL, "Byte", 255)
    await until(lambda: press.counted.get("failed_over") == 2)
    assert f"uses {first.url}" in press.source.info
    await counter.reaches(5)
    await all_once(press, await counter.stopped())
    assert press.collecting is not None and not press.collecting.done() and not press.notes


async def test_a_standby_that_dies_is_made_again_and_disturbs_nothing(machine: Machine, rig: MakeRig) -> None:
    press = rig(OpcUaDevice.model_validate({"security": "none", "timeout": "4s", **machine.options}))
    second = machine.servers[1]
    counter = await begun(machine, press)
    items = in_use(press.source)
    machine.servers.remove(second)
    await asyncio.to_thread(second.kill)
    await until(lambda: not ready(press.source, second))
    await counter.reaches(5)
    await asyncio.to_thread(second.start)
    await until(lambda: ready(press.source, second))
    await all_once(press, await counter.stopped())
    assert in_use(press.source) == items and "failed_over" not in press.counted and not press.notes


async def test_a_standby_that_hangs_when_it_is_needed_is_an_error(machine: Machine, source: Make) -> None:
    """NotConnected, and nothing is left open; once the standby answers again, the next connect finds it."""
    first, second = machine.servers
    machine.write(1)
    press = machine.source(source, timeout="2s")
    await within(press.connect([]))
    await rows(press, 2)
    await until(lambda: ready(press, second))
    second.process.pause()
    try:
        await asyncio.to_thread(first.kill)
        with pytest.raises(NotConnected):
            await rows(press, 1000)
        assert not press._hot._tasks and not press._hot._ready and press._link.session is None
        await within(press.close())
    finally:
        second.process.resume()
    await within(press.connect([]))
    await rows(press, 2)
    assert f"uses {second.url}" in press.info


async def test_close_leaves_nothing_at_either_server(machine: Machine, source: Make) -> None:
    second = machine.servers[1]
    machine.write(0)
    before = [server.sessions_and_subscriptions() for server in machine.servers]
    press = machine.source(source)
    await within(press.connect([]))
    await rows(press, 2)
    await until(lambda: ready(press, second) and bool(press._upkeep.servers._standby))
    assert second.sessions_and_subscriptions() == (before[1][0] + 2, before[1][1] + 1)
    await within(press.close())
    assert [server.sessions_and_subscriptions() for server in machine.servers] == before
    assert not press._hot._tasks and not press._hot.info


async def test_a_server_that_reports_what_it_shall_sample_is_a_warm_standby(
    machine: Machine, source: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncua 2.1: it is said once, its session there ends, and the switch is that of a warm set."""
    async with plant_server() as other:
        await other.nodes.objects.add_variable(ua.NodeId("Double", 1), "1:Double", 2.0)
        await write_standard(other, 2267, 255, ua.VariantType.Byte)
        machine.write(1)
        press = source([machine.servers[0].url, url(other)], {"x": TAGS["x"]}, redundancy="hot")
        await within(press.connect([]))
        await rows(press, 1)
        await until(lambda: "so it is a warm one" in caplog.text)
        await until(lambda: not other.iserver.subscription_service.subscriptions)
        assert "ready to take over" not in press.info
