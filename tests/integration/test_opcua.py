"""The OPC UA source where the contract suite does not look: security, retries, limits, overflow, silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asyncua import Server, ua

from connectors import opcua_items, opcua_plan
from connectors.opcua_pki import TRUSTED, move
from pipelines.errors import NotConnected, Permanent
from tests.contract.source_suite import within
from tests.integration.opcua_plant import Make, rows, url, write_standard
from tests.services.asyncua_server import AsyncuaServer
from tests.services.milo import Group, Milo
from tests.services.node_opcua import NodeOpcua


async def test_a_node_that_appears_later_is_picked_up(
    plant: Server, source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad node is retried with back-off; when the server has it, its value is delivered and the fault is gone."""
    monkeypatch.setattr(opcua_items, "RETRY_FIRST_S", 0.05)
    press = source(url(plant), {"there": "ns=2;s=v1", "later": "ns=2;s=later"})
    await within(press.connect([]))
    await rows(press, 2)
    assert "BadNodeIdUnknown" in press.faults["later"]
    await plant.nodes.objects.add_variable(ua.NodeId("later", 2), "2:later", 7.5)
    [*_, last] = await rows(press, 1)
    assert last.values() == [7.5] and not press.faults


async def test_operation_limits_are_honoured(plant: Server, source: Make) -> None:
    """A server that takes 3 nodes per Read and 4 items per call is asked in such steps, and every item is there."""
    ids = ua.ObjectIds
    for identifier, limit in (
        (ids.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead, 3),
        (ids.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall, 4),
    ):
        await write_standard(plant, identifier, limit, ua.VariantType.UInt32)
    calls: list[int] = []
    create = plant.iserver.subscription_service.create_monitored_items

    async def counted(params: Any) -> Any:
        calls.append(len(params.ItemsToCreate))
        return await create(params)

    plant.iserver.subscription_service.create_monitored_items = counted
    press = source(url(plant), {f"v{i}": f"ns=2;s=v{i}" for i in range(10)})
    await within(press.connect([]))
    assert sum(map(len, await rows(press, 10))) == 10
    assert calls == [4, 4, 2]


async def test_queue_overflow_is_counted_and_the_value_delivered(
    asyncua_server: Callable[..., AsyncuaServer], source: Make
) -> None:
    """The overflow bits say that older values fell out of the queue; this one is good."""
    server = asyncua_server()
    press = source(server.url, {"x": "ns=2;s=Double"})
    await within(press.connect([]))
    await rows(press, 1)
    server.set_value("Double", 2.5, status=0x0480)
    [batch] = await rows(press, 1)
    assert batch.values() == [2.5] and int(batch.status[0]) == 0x0480
    assert press.counters.totals["queue_overflows"] == 1


async def test_a_server_that_falls_silent_is_noticed(
    asyncua_server: Callable[..., AsyncuaServer], source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open connection: nothing arrives, not even keep-alives; read() ends with NotConnected."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 100_000_000)
    server = asyncua_server()
    press = source(server.url, {"x": "ns=2;s=Double"})
    await within(press.connect([]))
    await rows(press, 1)
    server.process.pause()
    try:
        with pytest.raises(NotConnected):
            await rows(press, 1)
    finally:
        server.process.resume()


async def test_ten_thousand_items_come_in_one_connect(milo: Callable[..., Milo], source: Make) -> None:
    """Ten calls of 1,000 items, no item lost, values of the right tags."""
    server = milo([Group("v", "double", 10_000, 1000)])
    press = source(server.url, {f"v{i}": f"ns=2;s=v{i}" for i in range(10_000)}, timeout="60s")
    await within(press.connect([]))
    batches = await rows(press, 10_000)
    assert sorted(int(tag) for batch in batches for tag in batch.tag) == list(range(10_000))
    assert max(map(len, batches)) <= 1000


async def test_encryption_by_default_and_trust_by_an_operator(
    node_opcua: NodeOpcua, source: Make, tmp_path: Path
) -> None:
    """Unknown certificate: Permanent, and the text says what to do; done, the same source connects."""
    auth = {"user": "operator", "password": "secret"}
    press = source(node_opcua.url, {"x": "ns=1;s=Double"}, security="best", auth=auth)
    with pytest.raises(Permanent, match="not trusted") as refused:
        await within(press.connect([]))
    assert "gateway trust approve press" in str(refused.value)
    move(tmp_path / "pki", "press", TRUSTED)
    await within(press.connect([]))
    [batch] = await rows(press, 1)
    assert batch.values() == [0.25]


async def test_a_wrong_password_is_permanent_and_not_in_the_text(
    node_opcua: NodeOpcua, source: Make, tmp_path: Path
) -> None:
    """Refused credentials are no network fault: the component is faulted, and the password stays secret."""
    auth = {"user": "operator", "password": "not-the-secret"}
    press = source(node_opcua.url, {"x": "ns=1;s=Double"}, auth=auth)
    with pytest.raises(Permanent, match=r"BadUserAccessDenied|BadIdentityTokenRejected") as refused:
        await within(press.connect([]))
    assert "not-the-secret" not in str(refused.value)


async def test_nothing_falls_back_to_insecure(plant: Server, source: Make) -> None:
    """A server with None only is refused unless the file says `security: none`."""
    press = source(url(plant), {"x": "ns=2;s=v1"}, security="best")
    with pytest.raises(Permanent, match="security: none"):
        await within(press.connect([]))


async def test_two_publishing_intervals_make_two_subscriptions(plant: Server, source: Make) -> None:
    """`every` per tag: one subscription for each interval; both deliver."""
    press = source(url(plant), {"fast": "ns=2;s=v1", "slow": {"node": "ns=2;s=v2", "every": "200ms"}})
    await within(press.connect([]))
    assert len(plant.iserver.subscription_service.subscriptions) == 2
    assert sum(map(len, await rows(press, 2))) == 2
    await within(press.close())
