"""Tuning per server: what it takes at a time, what it reports, what it refuses: asyncua, node-opcua and Milo."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

import pytest
from asyncua import Server, ua
from asyncua.ua.uaerrors import BadServiceUnsupported, BadTooManyOperations

from connectors import opcua_items
from tests.contract.source_suite import settled, within
from tests.integration.opcua_plant import NODES, Make, rows, url, values, write_standard
from tests.services.asyncua_server import AsyncuaServer
from tests.services.milo import Group, Milo
from tests.services.node_opcua import NodeOpcua

TAGS = {f"v{i}": node for i, node in enumerate(NODES)}


async def test_a_server_that_takes_less_than_it_says_is_asked_for_less(plant: Server, source: Make) -> None:
    """It states nothing and refuses more than 3 items a call: 10, 5, then 2 at a time; remembered for the next
    connection."""
    calls: list[int] = []
    create = plant.iserver.subscription_service.create_monitored_items

    async def counted(params: Any) -> Any:
        calls.append(len(params.ItemsToCreate))
        if len(params.ItemsToCreate) > 3:
            raise BadTooManyOperations
        return await create(params)

    plant.iserver.subscription_service.create_monitored_items = counted
    press = source(url(plant), TAGS)
    await within(press.connect([]))
    assert sum(map(len, await rows(press, 10))) == 10
    assert calls == [10, 5, 2, 2, 2, 2, 2]
    await within(press.close())
    calls.clear()
    await within(press.connect([]))
    assert calls == [2, 2, 2, 2, 2]


async def test_requests_fit_into_what_the_server_receives(plant: Server, source: Make) -> None:
    """Its Acknowledge allows requests of 1,200 bytes: more of them, and its larger answers are taken all the same."""
    sizes: list[int] = []
    create = plant.iserver.subscription_service.create_monitored_items

    async def counted(params: Any) -> Any:
        sizes.append(len(params.ItemsToCreate))
        return await create(params)

    plant.iserver.subscription_service.create_monitored_items = counted
    plant.limits.max_message_size = 1200  # read by each new connection
    press = source(url(plant), {f"{name}_{i}": node for i in range(12) for name, node in TAGS.items()})
    await within(press.connect([]))
    assert sum(map(len, await rows(press, 120))) == 120
    assert sum(sizes) == 120 and max(sizes) < 40


async def test_more_tags_than_a_subscription_takes_make_several(plant: Server, source: Make) -> None:
    """`items_per_subscription`, or what the server states (1.05)."""
    press = source(url(plant), TAGS, items_per_subscription=4)
    await within(press.connect([]))
    found = plant.iserver.subscription_service.subscriptions.values()
    assert sorted(len(one.monitored_item_srv._monitored_items) for one in found) == [2, 4, 4]
    assert sum(map(len, await rows(press, 10))) == 10


async def test_an_absolute_deadband_is_the_servers(node_opcua: NodeOpcua, source: Make) -> None:
    """node-opcua filters: 100.4 is not reported, 100.6 is; text and Booleans beside it are as ever."""
    tags = {"x": "ns=1;s=Analog", "text": "ns=1;s=String", "flag": "ns=1;s=Boolean"}
    press = source(node_opcua.url, tags, server_deadband=0.5)
    node_opcua.set_value("Analog", 100.0)
    await within(press.connect([]))
    await rows(press, 3)
    node_opcua.set_value("Analog", 100.4)
    node_opcua.set_value("Analog", 100.6)
    assert await values(press, 1) == [100.6]
    assert not press.faults and "refuses" not in press.info


async def test_a_deadband_in_percent_is_of_eurange(node_opcua: NodeOpcua, source: Make) -> None:
    """1 % of 0 ... 200: 101 is not reported, 103 is. A variable without EURange: refused, said, done by the gateway."""
    press = source(node_opcua.url, {"x": "ns=1;s=Analog", "y": "ns=1;s=Double"}, server_deadband="1%")
    node_opcua.set_value("Analog", 100.0)
    node_opcua.set_value("Double", 100.0)
    await within(press.connect([]))
    await rows(press, 2)
    node_opcua.set_value("Analog", 101.0)
    node_opcua.set_value("Analog", 103.0)
    assert await values(press, 1) == [103.0]
    assert "refuses the filter of 1 tags" in press.info and "the gateway applies" in press.info
    assert "percent of the last value sent for 1 without EURange" in press.info
    node_opcua.set_value("Double", 100.9)
    node_opcua.set_value("Double", 102.0)
    assert await values(press, 1) == [102.0]
    node_opcua.set_value("Double", 0.25)


def refuse_filters(plant: Server) -> None:
    """As S7-1200: BadFilterNotAllowed for every filter."""
    create = plant.iserver.subscription_service.create_monitored_items

    async def refusing(params: Any) -> Any:
        wanted = [item.RequestedParameters.Filter for item in params.ItemsToCreate]
        results = await create(params) if not any(wanted) else None
        refused = ua.MonitoredItemCreateResult(ua.StatusCode(ua.StatusCodes.BadFilterNotAllowed))
        return results or [refused for _ in wanted]

    plant.iserver.subscription_service.create_monitored_items = refusing


async def test_learnt_tags_are_filtered_too(plant: Server, source: Make) -> None:
    """By the gateway, where the server refuses it; one value may be sent before it knows that."""
    refuse_filters(plant)
    press = source(url(plant), {}, select={"include": "/Objects/v1", "refresh": 0}, server_deadband=0.5)
    await within(press.connect([]))
    assert await values(press, 1) == [1.0]
    assert await settled(lambda: press._make._unfiltered is not None)  # it may come right behind the first value
    for value in (1.1, 1.2, 1.3, 1.4, 9.0):
        await plant.get_node(ua.NodeId("v1", 2)).write_value(value)
    found = await values(press, 1)
    while found[-1] != 9.0:
        found += await values(press, 1)
    assert len(found) <= 2
    assert "refuses the filter of 1 tags" in press.info


async def test_a_server_without_filters_loses_nothing_but_the_filter(
    plant: Server, source: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """As S7-1200: BadFilterNotAllowed for every filter. The gateway applies the deadband, also of EURange where it can
    be read, and a notification of which nothing is left is acknowledged."""
    span = ua.Range(Low=0.0, High=50.0)
    await plant.get_node(ua.NodeId("v2", 2)).add_property(ua.NodeId("r", 2), "0:EURange", span)
    refuse_filters(plant)
    tags = {"x": NODES[1], "y": {"node": NODES[2], "server_deadband": "10%"}}
    press = source(url(plant), tags, server_deadband=0.5)
    await within(press.connect([]))
    await rows(press, 2)
    assert "BadFilterNotAllowed" in press.info and "refuses the filter of 2 tags" in caplog.text
    x, y = (plant.get_node(ua.NodeId(name, 2)) for name in ("v1", "v2"))
    for value in (1.3, 1.4, 1.6):
        await x.write_value(value)
    assert await values(press, 1) == [1.6]
    await y.write_value(6.9)
    await y.write_value(7.1)
    assert await values(press, 1) == [7.1]
    await x.write_value(1.7)
    await y.write_value(20.0)
    await rows(press, 1)
    assert not press._streams._unacknowledged


async def test_a_server_that_tells_no_eurange_either(
    plant: Server, source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no TranslateBrowsePathsToNodeIds: percent are those of the last value, for a tag that comes later, too."""
    monkeypatch.setattr(opcua_items, "RETRY_FIRST_S", 0.05)
    refuse_filters(plant)

    def unsupported(_: object) -> NoReturn:
        raise BadServiceUnsupported

    monkeypatch.setattr(plant.iserver.view_service, "translate_browsepaths_to_nodeids", unsupported)
    press = source(url(plant), {"x": NODES[1], "later": "ns=2;s=later"}, server_deadband="10%")
    await within(press.connect([]))
    await rows(press, 2)
    assert "percent of the last value sent for 2 without EURange" in press.info
    later = await plant.nodes.objects.add_variable(ua.NodeId("later", 2), "2:later", 10.0)
    assert await values(press, 1) == [10.0]
    for value in (10.5, 12.0):
        await later.write_value(value)
    assert await values(press, 1) == [12.0]


async def test_the_trigger_is_the_servers(
    asyncua_server: Callable[..., AsyncuaServer], source: Make, node_opcua: NodeOpcua
) -> None:
    """status-value-timestamp: the same value with a new source time is reported; with status-value it is not."""
    tags = {
        "each": {"node": "ns=1;s=Double", "trigger": "status-value-timestamp"},
        "changed": {"node": "ns=1;s=Double"},
    }
    press = source(node_opcua.url, tags, sampling=0)
    await within(press.connect([]))
    await rows(press, 2)
    node_opcua.set_value("Double", 0.25, source_ms=1_700_000_000_000)
    node_opcua.set_value("Double", 0.5, source_ms=1_700_000_000_001)
    found = [int(tag) for batch in await rows(press, 3) for tag in batch.tag]
    assert sorted(found) == [0, 0, 1]
    node_opcua.set_value("Double", 0.25)


async def test_milo_takes_filters_and_types_stay_together(milo: Callable[..., Milo], source: Make) -> None:
    """Mixed types with a deadband asked for all: nothing refused, no fault, every tag has its value; items of a
    type are created in a row within their interval."""
    server = milo([Group("v", "mixed", 190, 50)])
    tags = {f"v{i}": {"node": f"ns=2;s=v{i}", "every": "50ms" if i % 2 else "100ms"} for i in range(190)}
    press = source(server.url, tags, server_deadband=0.01)
    await within(press.connect([]))
    batches = await rows(press, 190)
    assert sorted({int(tag) for batch in batches for tag in batch.tag}) == list(range(190))
    assert not press.faults and "refuses" not in press.info
    assert press._link.items is not None
    for subscription in press._link.items.subscriptions:
        kinds = [item.handle % 19 for item in subscription.items]
        assert len([1 for a, b in pairwise(kinds) if a != b]) == len(set(kinds)) - 1


async def test_stated_capacity_shapes_the_plan(plant: Server, source: Make) -> None:
    """MaxMonitoredItemsPerSubscription where the server has that node."""
    capabilities = plant.get_node(ua.NodeId(ua.Int32(ua.ObjectIds.Server_ServerCapabilities)))
    node = ua.NodeId(ua.Int32(24104))
    try:
        await write_standard(plant, 24104, 6, ua.VariantType.UInt32)
    except ua.UaStatusCodeError:
        await capabilities.add_property(
            node, "0:MaxMonitoredItemsPerSubscription", ua.Variant(6, ua.VariantType.UInt32)
        )
    press = source(url(plant), TAGS)
    await within(press.connect([]))
    assert len(plant.iserver.subscription_service.subscriptions) == 2
    assert sum(map(len, await rows(press, 10))) == 10


async def test_a_known_server_is_treated_as_such(plant: Server, source: Make, caplog: pytest.LogCaptureFixture) -> None:
    """BuildInfo says S7-1200: at most 100 items a call, no filter is even asked for; health names it."""
    for node, text in ((2263, "Siemens AG"), (2261, "SIMATIC S7-1200"), (2264, "V4.6")):
        await write_standard(plant, node, text, ua.VariantType.String)
    calls: list[tuple[int, bool]] = []
    create = plant.iserver.subscription_service.create_monitored_items

    async def counted(params: Any) -> Any:
        items = params.ItemsToCreate
        calls.append((len(items), any(item.RequestedParameters.Filter for item in items)))
        return await create(params)

    plant.iserver.subscription_service.create_monitored_items = counted
    press = source(
        url(plant), {f"{name}_{i}": node for i in range(12) for name, node in TAGS.items()}, trigger="status"
    )
    await within(press.connect([]))
    assert calls == [(100, False), (20, False)]
    assert "server Siemens AG SIMATIC S7-1200 V4.6 (known as siemens-s7-1200)" in press.info
    assert "refuses the filter of 120 tags" in press.info
