"""A redundant set of two independent stacks: which server is used, when it is left, and what becomes of the gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from asyncua import Server, ua
from asyncua.client.ua_session import UaSession

from connectors import opcua_redundancy
from connectors.opcua import OpcUaSource
from connectors.opcua_browse import session
from connectors.opcua_security import Access
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_write import OpcUaWriter
from pipelines.errors import NotConnected, Transient
from pipelines.gaps import Reason
from tests.conftest import made
from tests.contract.source_suite import within
from tests.integration.opcua_plant import Make, plant_server, rows, url, values, write_standard
from tests.integration.opcua_rig import Rig
from tests.services.asyncua_server import AsyncuaServer
from tests.services.node_opcua import NodeOpcua
from tests.services.ports import HOST, free_port

TAGS = {"x": "ns=1;s=Double"}
LEVEL, SUPPORT = "i=2267", 3709


@pytest.fixture(scope="module")
def node() -> Iterator[NodeOpcua]:
    with made(NodeOpcua) as server:
        yield server


@pytest.fixture
async def second(node: NodeOpcua, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """asyncua's, with the same node; both are healthy, and looked at often."""
    monkeypatch.setattr(opcua_redundancy, "LEVEL_EVERY_S", 0.05)
    monkeypatch.setattr(opcua_redundancy, "HOLD_S", 0.2)
    monkeypatch.setattr(opcua_redundancy, "COLD_ASK_S", 0.1)
    async with plant_server() as server:
        await server.nodes.objects.add_variable(ua.NodeId("Double", 1), "1:Double", 2.0)
        await write_standard(server, 2267, 255, ua.VariantType.Byte)
        node.bind(LEVEL, "Byte", 255)
        node.set_value("Double", 1.0)
        yield server


async def ended(press: OpcUaSource, error: type[Exception]) -> str:
    """Reads until the source raises; it is closed and connected again, as the supervisor does."""
    with pytest.raises(error) as raised:
        while True:
            await rows(press, 1)
    await within(press.close())
    await within(press.connect([]))
    return str(raised.value)


@pytest.mark.parametrize("mode", ["cold", "warm"])
async def test_a_degraded_server_is_left_and_returned_to_when_it_is_fit(
    node: NodeOpcua, second: Server, source: Make, mode: str
) -> None:
    """The first of two equals; at 150 the other one; at 255 again, after a while, the first; nothing is left behind."""
    press = source([node.url, url(second)], TAGS, redundancy=mode)
    await within(press.connect([]))
    assert await values(press, 1) == [1.0] and f"uses {node.url}" in press.info and mode in press.info
    node.bind(LEVEL, "Byte", 150)
    assert "service level 150" in await ended(press, Transient)
    assert await values(press, 1) == [2.0]
    node.bind(LEVEL, "Byte", 255)
    assert "fit again" in await ended(press, Transient)
    assert await values(press, 1) == [1.0]
    assert not second.iserver.subscription_service.subscriptions


async def test_the_mode_is_what_the_servers_say(node: NodeOpcua, second: Server, source: Make) -> None:
    """RedundancySupport Warm: a session is held at the standby, and ended with the source."""
    await write_standard(second, SUPPORT, 2, ua.VariantType.Int32)
    node.bind("i=3709", "Int32", 2)
    press = source([node.url, url(second)], TAGS)
    await within(press.connect([]))
    assert "redundancy warm" in press.info
    async with asyncio.timeout(30):
        while not press._upkeep.servers._standby:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await within(press.close())
    assert not press._upkeep.servers._standby
    node.bind("i=3709", "Int32", 0)


async def test_the_fittest_is_used_and_one_in_maintenance_never(node: NodeOpcua, second: Server, source: Make) -> None:
    node.bind(LEVEL, "Byte", 0)
    await write_standard(second, 2267, 20, ua.VariantType.Byte)
    press = source([node.url, url(second)], TAGS)
    await within(press.connect([]))
    assert await values(press, 1) == [2.0]
    await within(press.close())
    await write_standard(second, 2267, 0, ua.VariantType.Byte)
    with pytest.raises(NotConnected, match="maintenance"):
        await within(press.connect([]))


async def test_one_that_is_off_is_no_reason_to_wait(node: NodeOpcua, source: Make) -> None:
    """The first does not answer: the second is used; both off: one line names both."""
    off = f"opc.tcp://{HOST}:{free_port()}"
    node.bind(LEVEL, "Byte", 255)
    press = source([off, node.url], TAGS)
    await within(press.connect([]))
    assert f"uses {node.url}" in press.info and f"{off} does not answer" in press.info
    with pytest.raises(NotConnected, match=off):
        await within(source([off, f"opc.tcp://{HOST}:{free_port()}"], TAGS).connect([]))


async def test_commands_go_to_the_one_that_is_fit(node: NodeOpcua, tmp_path: Path) -> None:
    """The first of the set is off."""
    node.bind(LEVEL, "Byte", 255)
    node.set_value("Double", 4.5)
    urls = [f"opc.tcp://{HOST}:{free_port()}", node.url]
    writer = OpcUaWriter(OpcUaDevice.model_validate({"opcua": urls, "security": "none", "tags": TAGS}), tmp_path)
    assert await writer.read("x") == 4.5
    await writer.close()


async def test_a_killed_server_costs_a_gap_that_is_in_the_ledger(second: Server, tmp_path: Path) -> None:
    """Over a disk lane: values of the first, then of the second, with unique origins, and one gap between them."""
    with made(AsyncuaServer) as first:
        first.set_value("Double", 1.0)
        settings = OpcUaDevice.model_validate(
            {
                "opcua": [first.url, url(second)],
                "security": "none",
                "every": "50ms",
                "timeout": "4s",
                "tags": {"x": "ns=2;s=Double"},
            }
        )
        rig = Rig(tmp_path / "gateway", settings)
        await rig.start()
        await rig.has(1.0, "x")
        await asyncio.to_thread(first.kill)
        await rig.ended()
        double = await second.nodes.objects.add_variable(ua.NodeId("Double", 2), "2:Double", 2.5)
        await rig.start()
        await rig.has(2.5, "x")
        await double.write_value(3.0)
        found = await rig.has(3.0, "x")
        assert found[-3:] == [1.0, 2.5, 3.0] and rig.skipped() == 0
        async with asyncio.timeout(30):
            while not rig.notes:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert [gap.reason for gap in rig.notes] == [Reason.DISCONNECTED]
        await rig.stop()


@pytest.mark.parametrize("request_type", [ua.CreateSessionRequest, ua.ActivateSessionRequest])
async def test_a_look_that_is_cancelled_leaves_no_session(
    node: NodeOpcua, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_type: type
) -> None:
    """Cancelled while an answer is awaited that makes the session, or makes it usable."""
    reached, send = asyncio.Event(), UaSession._send_request

    async def sent(self: UaSession, request: object) -> object:
        sending = asyncio.ensure_future(send(self, request))
        await asyncio.sleep(0)
        if isinstance(request, request_type):
            reached.set()
        return await sending

    async def look() -> None:
        async with session(node.url, Access(security=None), tmp_path):
            pytest.fail("it was to be cancelled")

    before = node.sessions_and_subscriptions()
    monkeypatch.setattr(UaSession, "_send_request", sent)
    looking = asyncio.create_task(look())
    await within(reached.wait())
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(looking)
    assert node.sessions_and_subscriptions() == before


async def test_a_server_that_hangs_while_it_is_left(
    node: NodeOpcua, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The connection is closed nevertheless, in time, and what was done with it counts."""
    closing = asyncio.Event()

    async def never(*_: object) -> None:
        closing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(UaSession, "close_session", never)
    async with session(node.url, Access(security=None), tmp_path) as client:
        transport = client.uaclient.protocol.transport
    assert closing.is_set() and transport.is_closing()
