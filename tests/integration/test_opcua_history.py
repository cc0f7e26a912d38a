"""Gaps that are filled from the server's history: asyncua's own history storage, and node-opcua's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncua import Server, ua

from connectors import opcua_gaps
from connectors.opcua_settings import OpcUaDevice
from pipelines.gaps import Reason
from tests.conftest import made
from tests.integration.opcua_plant import empty_server
from tests.integration.opcua_rig import Rig
from tests.services.node_opcua import NodeOpcua

TAGS = ("kept", "also", "plain")


@pytest.fixture
async def historian() -> AsyncIterator[Server]:
    """ns=2;s=kept and `also` have a history, `plain` has none."""
    server = await empty_server()
    await server.register_namespace("urn:test")
    nodes = {
        name: await server.nodes.objects.add_variable(ua.NodeId(name, 2), f"2:{name}", 0.0, ua.VariantType.Double)
        for name in TAGS
    }
    async with server:
        for name in ("kept", "also"):
            await server.historize_node_data_change(nodes[name], period=None, count=10_000)
        yield server


def settings(url: str, namespace: int, tags: tuple[str, ...] = TAGS, **options: Any) -> OpcUaDevice:
    nodes = {tag: f"ns={namespace};s={tag}" for tag in tags}
    common = {"opcua": url, "security": "none", "every": "50ms", "timeout": "2s"}
    return OpcUaDevice.model_validate({**common, "tags": nodes, **options})


async def write(server: Server, number: int) -> None:
    for name in TAGS:
        await server.get_node(ua.NodeId(name, 2)).write_value(float(number))
    await asyncio.sleep(0.001)  # two source times are never one


async def collected(rig: Rig, tags: tuple[str, ...], value: float) -> None:
    await rig.start()
    for tag in tags:
        await rig.has(value, tag)


async def noted(rig: Rig, count: int) -> None:
    async with asyncio.timeout(30):
        while len(rig.notes) < count:  # noqa: ASYNC110  a task inside the source fills it
            await asyncio.sleep(0.02)


async def test_a_gap_is_filled_between_its_edges_while_live_values_go_on(
    historian: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recreated in the same process: several pages, each value once, what has no history is named in the ledger."""
    monkeypatch.setattr(opcua_gaps, "VALUES_PER_NODE", 7)
    rig = Rig(tmp_path, settings(str(historian.endpoint.geturl()), 2))
    await write(historian, 1)
    await collected(rig, TAGS, 1.0)
    rig.source._link.forget()
    rig.drop_connection()
    await rig.ended()
    for number in range(2, 41):
        await write(historian, number)
    await collected(rig, TAGS, 40.0)
    await write(historian, 41)
    await noted(rig, 2)
    for tag in ("kept", "also"):
        values = await rig.has(41.0, tag)
        assert sorted(values[-41:]) == [float(number) for number in range(1, 42)], tag
    plain = await rig.has(41.0, "plain")
    assert 20.0 not in plain
    filled, missing = rig.notes
    assert (filled.reason, filled.backfilled, filled.tags, filled.rows) == (
        Reason.DISCONNECTED,
        True,
        ("kept", "also"),
        2 * 38,
    )
    assert (missing.reason, missing.backfilled, missing.tags, missing.rows) == (
        Reason.DISCONNECTED,
        False,
        ("plain",),
        None,
    )
    assert rig.counted["backfilled_rows"] == 2 * 38
    await rig.stop()


async def test_another_process_fills_what_its_server_forgot(historian: Server, tmp_path: Path) -> None:
    """Killed, and the state damaged, so that nothing can be taken over: the gap begins where the lanes' data ends."""
    device = settings(str(historian.endpoint.geturl()), 2)
    first = Rig(tmp_path / "first", device)
    await write(historian, 1)
    await collected(first, TAGS, 1.0)
    await first.kill(tmp_path / "second")
    for number in range(2, 30):
        await write(historian, number)
    (tmp_path / "second" / "opcua" / "press.json").write_bytes(b"nonsense")
    second = Rig(tmp_path / "second", device)
    await collected(second, TAGS, 29.0)
    await noted(second, 2)
    values = await second.has(28.0, "kept")
    assert set(values) >= {float(number) for number in range(1, 30)}
    twice = [value for value in set(values) if values.count(value) > 1]
    assert all(value <= 1.0 for value in twice), "only the margin before the newest known time may come twice"
    await second.stop()


async def test_backfill_can_be_turned_off(historian: Server, tmp_path: Path) -> None:
    """`backfill: 0`: the server is not asked, and the whole gap is in the ledger."""
    rig = Rig(tmp_path, settings(str(historian.endpoint.geturl()), 2, backfill=0))
    await write(historian, 1)
    await collected(rig, TAGS, 1.0)
    rig.source._link.forget()
    rig.drop_connection()
    await rig.ended()
    await write(historian, 2)
    await write(historian, 3)
    await collected(rig, TAGS, 3.0)
    await noted(rig, 1)
    [gap] = rig.notes
    assert not gap.backfilled and gap.tags == () and "backfilled_rows" not in rig.counted
    await rig.stop()


@pytest.fixture(scope="module")
def node_opcua_historian() -> Iterator[NodeOpcua]:
    with made(NodeOpcua) as server:
        yield server


async def test_node_opcua_fills_too(node_opcua_historian: NodeOpcua, tmp_path: Path) -> None:
    """Its own implementation of HistoryRead, source times in milliseconds; ns=1;s=Historized keeps what is set."""
    server = node_opcua_historian
    rig = Rig(tmp_path, settings(server.url, 1, ("Historized",)))
    server.set_value("Historized", 1.0)
    await collected(rig, ("Historized",), 1.0)
    rig.source._link.forget()
    rig.drop_connection()
    await rig.ended()
    for number in range(2, 20):
        server.set_value("Historized", float(number))
    await collected(rig, ("Historized",), 19.0)
    await noted(rig, 1)
    values = await rig.has(18.0, "Historized")
    assert sorted(values[-19:]) == [float(number) for number in range(1, 20)]
    await rig.stop()
