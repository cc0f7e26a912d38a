"""Events and alarms of three independent servers: delivered once, kept over a kill, refreshed, acknowledged."""

from __future__ import annotations

import asyncio
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asyncua import Server, ua

from connectors import opcua_items
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_write import OpcUaWriter
from tests.integration.opcua_plant import empty_server
from tests.integration.opcua_rig import DEVICE, Make, Rig
from tests.services.milo_plant import MiloPlant
from tests.services.node_opcua_plant import NodePlant

Plant = NodePlant | MiloPlant
OPERATOR = {"auth": {"user": "operator", "password": "secret"}}


@pytest.fixture(params=["node_plant", "milo_plant"])
def plant(request: pytest.FixtureRequest) -> Plant:
    found: Plant = request.getfixturevalue(request.param)
    return found


def device(url: str, events: dict[str, Any], **more: Any) -> OpcUaDevice:
    settings = {"opcua": url, "security": "none", "every": "50ms", "timeout": "10s", "tags": {"clock": "i=2258"}}
    return OpcUaDevice.model_validate({**settings, "events": events, **more})


def texts(events: list[Any]) -> list[str]:
    """Messages of what is no refresh."""
    return [event["Message"] for event in events if not event.get("refresh")]


async def refreshed(first: Rig, *streams: str) -> None:
    """The server has said that the refresh after the connect is over."""
    for stream in streams:
        await first.until(lambda events: any(e and e["EventType"] == "i=2788" for e in events), stream)


async def test_events_are_filtered_by_type_and_severity(plant: Plant, rig: Make) -> None:
    """What each stream asks for, in order; with a server that takes the where clause and with one that does not."""
    streams = {
        "all": {},
        "system": {"types": ["SystemEventType"], "fields": ["Message"]},
        "grave": {"severity": 500, "fields": ["Message", "SourceName"]},
        "alarms": {"types": ["AlarmConditionType"]},
    }
    first = rig(device(plant.url, streams))
    await first.start()
    await refreshed(first, *streams)
    for text, severity in (("one", 300), ("two", 800), ("three", 499), ("four", 500)):
        await asyncio.to_thread(plant.raise_event, text, severity)
    await first.until(lambda events: "four" in texts(events), "all")
    await first.until(lambda events: "four" in texts(events), "system")
    grave = await first.until(lambda events: "four" in texts(events), "grave")
    everything = await first.values("all")
    assert texts(everything)[-4:] == ["one", "two", "three", "four"] == texts(await first.values("system"))
    assert texts(grave) == ["two", "four"]
    assert texts(await first.values("alarms")) == [] and not first.source.faults
    last = everything[-1]
    assert last["Severity"] == 500 and last["EventType"] == "i=2130" and last["Time"].endswith("Z")
    assert isinstance(last["EventId"], bytes)
    assert set(grave[-1]) == {"EventId", "EventType", "Time", "Severity", "Message", "SourceName"}


async def test_a_kill_loses_no_event_and_none_comes_twice(plant: Plant, rig: Make, tmp_path: Path) -> None:
    """kill -9 while one lane's disk hangs: what was not acknowledged is sent again (Republish) and skipped in the lane
    that has it; what came meanwhile is delivered."""
    more = OPERATOR if isinstance(plant, NodePlant) else {}
    settings = device(plant.url, {"events": {"fields": ["Message"]}}, **more)
    first = rig(settings, lanes=2)
    await first.start()
    await refreshed(first, "events")
    expected = [f"kill {number}" for number in range(30)]
    for text in expected[:10]:
        await asyncio.to_thread(plant.raise_event, text)
    await first.until(lambda events: expected[9] in texts(events), "events", 1)
    first.durable[1].hangs = True
    shutil.copytree(tmp_path / "first" / "lanes" / "lane1", tmp_path / "before")
    for text in expected[10:20]:
        await asyncio.to_thread(plant.raise_event, text)
    await first.until(lambda events: expected[19] in texts(events), "events")
    await first.kill(tmp_path / "second", {"lane1": tmp_path / "before"})
    for text in expected[20:]:
        await asyncio.to_thread(plant.raise_event, text)
    second = rig(settings, "second", lanes=2)
    await second.start()
    for lane in (0, 1):
        found = texts(await second.until(lambda events: expected[-1] in texts(events), "events", lane))
        assert [text for text in found if text.startswith("kill")] == expected, f"lane {lane}"
    assert second.counted["republished_notifications"] > 0 and second.skipped(0) > second.skipped(1)
    assert second.counted.get("transferred", 0) + second.counted.get("reactivated", 0) == 1 and not second.notes
    await refreshed(second, "events")


async def test_an_alarm_is_followed_from_active_to_acknowledged(
    node_plant: NodePlant, rig: Make, tmp_path: Path
) -> None:
    """Active, acknowledged by an operator, inactive; who connects meanwhile is told by a refresh, marked as such."""
    methods = {"acknowledge": {"object": "ns=1;s=GuardOpen", "method": "i=9111"}}
    settings = device(node_plant.url, {"alarms": {"types": ["AlarmConditionType"]}}, methods=methods)
    first = rig(settings)
    await first.start()
    await refreshed(first, "alarms")
    await asyncio.to_thread(node_plant.set_alarm, True)
    active = await first.until(lambda events: any(is_live(e) and e["ActiveState/Id"] for e in events), "alarms")
    alarm = active[-1]
    assert alarm["ConditionId"] == "ns=1;s=GuardOpen" and alarm["ConditionName"] == "GuardOpen" and alarm["Retain"]
    assert alarm["AckedState/Id"] is False and alarm["Message"] == "guard open" and "BranchId" not in alarm
    await acknowledge(settings, tmp_path, alarm)
    acked = await first.until(lambda events: any(is_live(e) and e["AckedState/Id"] for e in events), "alarms")
    assert acked[-1]["Comment"] == "seen"
    other = rig(settings, "other")
    await other.start()
    await refreshed(other, "alarms")
    [start, retained, end] = await other.values("alarms")
    assert (start["EventType"], end["EventType"]) == ("i=2787", "i=2788")
    assert retained["refresh"] and retained["ActiveState/Id"] and retained["AckedState/Id"]
    await asyncio.to_thread(node_plant.set_alarm, False)
    await first.until(lambda events: is_live(events[-1]) and not events[-1]["ActiveState/Id"], "alarms")


def is_live(event: dict[str, Any]) -> bool:
    return not event.get("refresh") and "ActiveState/Id" in event


async def acknowledge(settings: OpcUaDevice, folder: Path, alarm: dict[str, Any]) -> None:
    """As docs/events.md says, with what a consumer has of the alarm (Part 9, 5.7.3)."""
    writer = OpcUaWriter(settings, folder)
    try:
        outcome = await writer.call("acknowledge", [b64encode(alarm["EventId"]).decode(), "seen"])
    finally:
        await writer.close()
    assert outcome.good, outcome.reason


async def test_a_server_that_forgets_leaves_a_gap_with_the_streams_name(node_plant: NodePlant, rig: Make) -> None:
    """Restarted: new subscriptions, the ledger says that events may be missing, and collection goes on."""
    first = rig(device(node_plant.url, {"events": {"severity": 2}}))
    await first.start()
    await first.until(bool, "clock")
    await refreshed(first, "events")
    await asyncio.to_thread(node_plant.kill)
    await first.ended()
    await asyncio.to_thread(node_plant.start)
    await first.start()
    await asyncio.to_thread(node_plant.raise_event, "again")
    await first.until(lambda events: "again" in texts(events), "events")
    assert [gap.tags for gap in first.notes if gap.tags == ("events",)]


@asynccontextmanager
async def asyncua_plant() -> AsyncIterator[tuple[Server, ua.NodeId]]:
    """A server in this process with an event type of its own: a field `2:Station`."""
    server = await empty_server()
    await server.register_namespace("urn:test")
    kind = await server.create_custom_event_type(
        2, "StationEvent", ua.ObjectIds.BaseEventType, [("Station", ua.VariantType.Int32)]
    )
    async with server:
        yield server, kind.nodeid


async def test_fields_of_a_companion_types_own(rig: Make) -> None:
    """asyncua: a custom type, its own field, and the severity as where clause."""
    async with asyncua_plant() as (server, kind):
        events = {"types": [kind.to_string()], "severity": 200, "fields": ["Message", "Station", "ReceiveTime"]}
        first = rig(device(str(server.endpoint.geturl()), {"station": events}))
        await first.start()
        await first.until(bool, "clock")
        generator = await server.get_event_generator(kind, server.nodes.server)
        for station, severity in ((1, 100), (2, 200), (3, 900)):
            generator.event.Station, generator.event.Severity = station, severity
            await generator.trigger(message=f"station {station}")
        found = await first.until(lambda events: len(events) == 2, "station")
        assert [(event["Message"], event["Station"]) for event in found] == [("station 2", 2), ("station 3", 3)]
        rows = [batch for batch in await first.batches() if batch.tag[0] == first.tags.id_of(f"{DEVICE}/station")]
        assert int(rows[-1].ts_ns[-1]) == int(generator.event.Time.timestamp() * 1e6) * 1000


async def test_a_bad_notifier_is_a_fault_and_tried_again(rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row says so, health names it, the values and the other events go on; when it is there its events come."""
    monkeypatch.setattr(opcua_items, "RETRY_FIRST_S", 0.2)
    async with asyncua_plant() as (server, _):
        first = rig(device(str(server.endpoint.geturl()), {"later": "ns=2;s=Later", "now": {}}))
        await first.start()
        await first.until(bool, "clock")
        assert await first.until(bool, "later") == [None]
        assert "ns=2;s=Later: Bad" in first.source.faults["later"] and len(first.source.faults) == 1
        later = await server.nodes.objects.add_object(ua.NodeId("Later", 2), "2:Later")
        generator = await server.get_event_generator(ua.ObjectIds.BaseEventType, later)
        async with asyncio.timeout(30):
            while first.source.faults:  # noqa: ASYNC110  what is waited for happens elsewhere
                await asyncio.sleep(0.05)
        await generator.trigger(message="here")
        assert (await first.until(lambda events: len(events) == 2, "later"))[-1]["Message"] == "here"
