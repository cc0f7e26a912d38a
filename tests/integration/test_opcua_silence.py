"""Silence: of a whole server, and of single items whose changes it does not report."""

from __future__ import annotations

from typing import Any

import pytest
from asyncua import Server, ua

from connectors import opcua_heartbeat, opcua_plan
from pipelines.errors import NotConnected
from tests.contract.source_suite import within
from tests.integration.opcua_plant import NODES, Make, rows, url, values

TAGS = {"x": NODES[1], "y": NODES[2]}


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcua_heartbeat, "GRACE_NS", 10_000_000)


def change_silently(server: Server, name: str, value: Any, status: int = 0) -> None:
    """A Read sees it, no monitored item does."""
    node = server.iserver.aspace[ua.NodeId(name, 2)]
    node.attributes[ua.AttributeIds.Value].value = ua.DataValue(
        value if isinstance(value, ua.Variant) else ua.Variant(value),
        ua.StatusCode(status),
        SourceTimestamp=ua.DateTime.now(),
    )


async def test_a_change_that_the_server_does_not_report_is_read(plant: Server, source: Make) -> None:
    """Once, counted; what is reported as usual goes on beside it, and what did not change is no news."""
    press = source(url(plant), TAGS, heartbeat="200ms")
    await within(press.connect([]))
    await rows(press, 2)
    change_silently(plant, "v1", 7.5)
    [batch] = await rows(press, 1)
    assert batch.values() == [7.5] and batch.tag.tolist() == [0] and not batch.flags.any()
    assert press.counters.totals["missed_by_server"] == 1
    change_silently(plant, "v1", 8.5, 0x8009_0000)
    [batch] = await rows(press, 1)
    assert batch.status.tolist() == [0x8009_0000]
    await plant.get_node(ua.NodeId("v2", 2)).write_value(9.5)
    assert await values(press, 1) == [9.5]
    assert press.counters.totals["missed_by_server"] == 2


async def test_learnt_tags_are_read_too(plant: Server, source: Make) -> None:
    """With the device's heartbeat."""
    select = {"include": ["/Objects/v1", "/Objects/v2"], "refresh": 0}
    press = source(url(plant), {"own": NODES[0]}, heartbeat="200ms", select=select)
    await within(press.connect([]))
    await rows(press, 3)
    change_silently(plant, "v2", 7.5)
    [batch] = await rows(press, 1)
    assert batch.values() == [7.5] and batch.tag.tolist() == [2]
    assert press.counters.totals["missed_by_server"] == 1


async def test_what_the_server_was_told_not_to_report_is_not_missed(plant: Server, source: Make) -> None:
    """Within the deadband; text; and a tag without a heartbeat."""
    await plant.nodes.objects.add_variable(ua.NodeId("text", 2), "2:text", "first")
    tags = {"x": {"node": NODES[1], "server_deadband": 0.5}, "y": {"node": NODES[2], "heartbeat": 0}}
    press = source(url(plant), {**tags, "text": "ns=2;s=text"}, heartbeat="100ms")
    await within(press.connect([]))
    await rows(press, 3)
    change_silently(plant, "v1", 1.4)
    change_silently(plant, "v2", 70.0)
    change_silently(plant, "text", "second")
    assert await values(press, 1) == ["second"]
    change_silently(plant, "v1", 1.6)
    change_silently(plant, "text", "third")
    assert sorted(map(str, await values(press, 2))) == ["1.6", "third"]
    assert press.counters.totals["missed_by_server"] == 3


async def test_the_publish_watchdog_survives_a_busy_heartbeat(
    plant: Server, source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose publishing has died while Reads work: noticed, however often the chores wake the reader."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 100_000_000)
    press = source(url(plant), TAGS, heartbeat="50ms")
    await within(press.connect([]))
    await rows(press, 2)
    for one in plant.iserver.subscription_service.subscriptions.values():

        async def silent(*_: Any) -> None:
            return

        one.pub_result_callback = silent
    number = first = 100

    async def read_on() -> None:
        nonlocal number
        while True:
            number += 1
            change_silently(plant, "v1", float(number))
            press.commit((await press.read()).number)

    with pytest.raises(NotConnected, match="no publish response"):
        await within(read_on())
    assert number > first + 1
