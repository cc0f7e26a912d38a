"""`profile:` of OPC UA devices at real servers: chosen by BuildInfo and nameplate, and followed when these change."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from asyncua import Server, ua

from connectors import opcua_items, opcua_refresh
from connectors.opcua import OpcUaSource
from connectors.opcua_limits import Service
from connectors.opcua_servers import DI
from connectors.opcua_settings import OpcUaDevice
from gateway.profiles import server_trial
from pipelines.batch import GOOD, SEVERITY_UNCERTAIN, Flag
from pipelines.clock import SystemClock
from pipelines.errors import Permanent
from pipelines.gaps import Gap, Reason
from pipelines.tags import TagTable
from tests.contract.source_suite import within
from tests.services.ports import HOST, free_port

URI = "http://acme.example/"
PROFILE = """
profile: acme-press
protocol: opcua
vendor: Acme
models: [Press]
grade: C
sources: [this test]
namespaces: {a: [http://acme.example/v2/, http://acme.example/]}
match: [{vendor: Acme*, product: Press*}]
covers: {firmware: '>=1.0, <3'}
limits: {read: 7}
below: /ua:Objects/a:Presses/*
nodes:
  temperature: {path: a:Status/a:Temp, unit: Cel}
  state: {path: a:Status/a:State, labels: {0: idle, 1: running}}
  change: [a:Status/a:ChangeInProcess, a:Status/a:ChangeInProgress]
overrides:
  - when: {firmware: '>=2.0'}
    note: Temp is another sensor, the temperature is at Oil.
    nodes:
      temperature: {path: a:Status/a:Oil}
      pressure: {path: a:Status/a:Pressure, unit: bar}
      change: null
"""
OLD = {"Temp": 20.5, "State": 1, "ChangeInProgress": False}
NEW = {"Temp": 99.0, "State": 1, "Oil": 21.5, "Pressure": 5.0, "ChangeInProgress": True}
PLATED = """
profile: acme-pump
protocol: opcua
vendor: Acme
models: [Pump]
grade: C
sources: [this test]
namespaces: {di: ['http://opcfoundation.org/UA/DI/'], a: ['http://acme.example/']}
match: [{manufacturer: Acme*, model: Pump*}]
below: /ua:Objects/di:DeviceSet/*
nodes: {flow: {path: a:Flow, unit: L/min}}
overrides:
  - {when: {software: '>=2'}, nodes: {flow: {path: a:Flow2}}}
"""
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Collected:
    """A source with a ledger: every value, and the newest status and flags of each tag."""

    def __init__(self, folder: Path, settings: OpcUaDevice) -> None:
        self.tags = TagTable()
        self.gaps: list[Gap] = []
        self.source = OpcUaSource("press", 0, settings, self.tags, SystemClock(), folder, self)
        self.values: dict[str, list[Any]] = {}
        self.status: dict[str, int] = {}
        self.flags: dict[str, int] = {}

    def note(self, gap: Gap) -> None:
        self.gaps.append(gap)

    async def connect(self) -> None:
        await within(self.source.connect([]))

    async def until(self, done: Callable[[], Any]) -> None:
        """Reads and commits until `done`."""
        while not done():
            batch = await within(self.source.read())
            self.source.commit(batch.number)
            rows = zip(batch.tag, batch.values(), batch.status.tolist(), batch.flags.tolist(), strict=True)
            for tag, value, status, flags in rows:
                name = self.tags[int(tag)].name
                self.status[name], self.flags[name] = status, flags
                if value is not None:
                    self.values.setdefault(name, []).append(value)

    async def until_tags(self, *names: str) -> None:
        await self.until(lambda: self.values.keys() >= {*names})

    def tag(self, name: str) -> Any:
        found = self.tags.id_of(f"press/{name}")
        assert found is not None
        return self.tags[found]

    @property
    def changes(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.reason is Reason.MAP_CHANGED]


Make = Callable[..., Collected]


@pytest_asyncio.fixture(loop_scope="module")
async def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes sources whose data folder has the profiles of this file, and closes them."""
    monkeypatch.setattr(opcua_refresh, "SETTLE_S", 0.05)
    monkeypatch.setattr(opcua_items, "RETRY_FIRST_S", 0.1)
    own = tmp_path / "profiles"
    own.mkdir()
    (own / "acme-press.yaml").write_text(PROFILE)
    (own / "acme-pump.yaml").write_text(PLATED)
    made: list[Collected] = []

    def make(url: str, **options: Any) -> Collected:
        device = {"opcua": url, "security": "none", "every": "50ms", "timeout": "20s", "profile": "auto", **options}
        made.append(Collected(tmp_path, OpcUaDevice.model_validate(device)))
        return made[-1]

    yield make
    for each in made:
        await each.source.close()


@asynccontextmanager
async def server(port: int, firmware: str = "", product: str = "Press 4") -> AsyncIterator[Server]:
    """A server of Acme, with one namespace of its own."""
    made = Server()
    await made.init()
    made.set_endpoint(f"opc.tcp://{HOST}:{port}/")
    made.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    assert await made.register_namespace(URI) == 2
    for name, text in {"ManufacturerName": "Acme Ltd", "ProductName": product, "SoftwareVersion": firmware}.items():
        node = getattr(ua.ObjectIds, f"Server_ServerStatus_BuildInfo_{name}")
        await made.get_node(ua.NodeId(ua.Int32(node))).write_value(text)
    async with made:
        yield made


async def add_press(made: Server, name: str, values: Mapping[str, Any]) -> None:
    """Objects/Presses/<name>/Status with these variables."""
    objects = made.nodes.objects
    if not any([(await one.read_browse_name()).Name == "Presses" for one in await objects.get_children()]):
        await objects.add_object(ua.NodeId("Presses", 2), "2:Presses")
    press = await made.get_node(ua.NodeId("Presses", 2)).add_object(ua.NodeId(name, 2), f"2:{name}")
    status = await press.add_object(ua.NodeId(f"{name}.Status", 2), "2:Status")
    for variable, value in values.items():
        await status.add_variable(ua.NodeId(f"{name}.{variable}", 2), f"2:{variable}", value)


@asynccontextmanager
async def press(port: int, firmware: str, values: Mapping[str, Any]) -> AsyncIterator[Server]:
    async with server(port, firmware) as made:
        await add_press(made, "P1", values)
        yield made


async def test_the_map_follows_the_firmware(collected: Make, caplog: pytest.LogCaptureFixture) -> None:
    """By BuildInfo, at each connection, in this process and the next; no value is wrong on either side."""
    port = free_port()
    url = f"opc.tcp://{HOST}:{port}/"
    caplog.set_level(logging.INFO)
    one = collected(url, tags={"own": "ns=2;s=P1.Temp", "P1.state": {"node": "ns=2;s=P1.State", "unit": "mine"}})
    async with press(port, "1.4", OLD) as made:
        await one.connect()
        await one.until_tags("own", "P1.state", "P1.change")
        assert "profile acme-press, because vendor is Acme Ltd and product is Press 4; firmware 1.4" in one.source.info
        assert one.source._link.limits.size(Service.READ) == 7
        assert one.tag("P1.state").unit == "mine"  # the file's
        assert "P1.temperature" not in one.values  # its node is the file's tag `own`
        await add_press(made, "P2", OLD)
        generator = await made.get_event_generator(ua.ObjectIds.GeneralModelChangeEventType)
        await generator.trigger()
        await one.until_tags("P2.temperature", "P2.state", "P2.change")
        assert (one.tag("P2.temperature").unit, one.tag("P2.state").labels) == ("Cel", ((0, "idle"), (1, "running")))
        assert not one.source.faults and not one.changes
    await one.source.close()
    one.values.clear()
    async with press(port, "2.1", NEW):
        await one.connect()
        await one.until_tags("P1.temperature", "P1.pressure")
        await one.until(lambda: one.status["P2.state"] != GOOD)
        [change] = one.changes
        assert change.detail.startswith("Acme Ltd Press 4 firmware 1.4 -> Acme Ltd Press 4 firmware 2.1: ")
        assert {"P1.temperature", "P1.pressure", "P1.change", "P2.temperature"} <= {*change.tags}
        assert "its tags follow" in caplog.text and "firmware 2.1" in one.source.info
        assert one.values["P1.temperature"] == [21.5] and "P1.change" not in one.values
        assert {"P1.change", "P2.temperature"} <= one.source.faults.keys()
    await one.source.close()
    other = collected(url)
    async with press(port, "4.0", NEW):
        await other.connect()
        await other.until_tags("P1.temperature", "P1.pressure", "P1.state")
        [change] = other.changes
        assert "firmware 2.1 -> Acme Ltd Press 4 firmware 4.0" in change.detail
        assert "uncertain: the profile does not cover firmware 4.0 (>=1.0, <3)" in other.source.info
        assert other.values["P1.temperature"] == [21.5]
        assert {other.status[name] for name in ("P1.temperature", "P1.state")} == {SEVERITY_UNCERTAIN}
        assert other.flags["P1.pressure"] & Flag.PROFILE_UNCERTAIN


async def add_pump(made: Server, di: int, name: str, software: str) -> None:
    """In the DeviceSet, with a nameplate."""
    devices = made.get_node(ua.NodeId("DeviceSet", di))
    pump = await devices.add_object(ua.NodeId(name, 2), f"2:{name}")
    plate = {"Manufacturer": "Acme", "Model": "Pump 7", "SoftwareRevision": software, "SerialNumber": f"no {name}"}
    for key, text in plate.items():
        value = ua.LocalizedText(text) if key in ("Manufacturer", "Model") else text
        await pump.add_property(ua.NodeId(f"{name}.{key}", 2), f"{di}:{key}", value)
    for key, flow in (("Flow", 1.0), ("Flow2", 2.0)):
        await pump.add_variable(ua.NodeId(f"{name}.{key}", 2), f"2:{key}", flow)


async def test_by_the_nameplate_of_its_devices(collected: Make, tmp_path: Path) -> None:
    """Several profiles fit; where devices do not say the same version, the oldest map is used, and flagged."""
    port = free_port()
    url = f"opc.tcp://{HOST}:{port}/"
    async with server(port, product="Controller") as made:
        di = await made.register_namespace(DI)
        await made.nodes.objects.add_object(ua.NodeId("DeviceSet", di), f"{di}:DeviceSet")
        await add_pump(made, di, "A", "2.3")
        one = collected(url)
        await one.connect()
        await one.until_tags("A.flow", "A.manufacturer", "A.serial_number")
        assert "profile acme-pump, because manufacturer is Acme and model is Pump 7; software 2.3" in one.source.info
        assert f"profile opcua-di, because it has {DI}" in one.source.info
        assert one.values["A.flow"] == [2.0] and one.status["A.flow"] == GOOD
        assert one.values["A.manufacturer"] == ["Acme"] and one.tag("A.flow").unit == "L/min"
        await one.source.close()
        await add_pump(made, di, "B", "1.9")
        one.values.clear()
        await one.connect()
        await one.until_tags("A.flow", "B.flow", "B.manufacturer")
        assert "the device does not tell its software: the oldest map is used" in one.source.info
        assert one.values["B.flow"] == [1.0] and one.flags["B.flow"] & Flag.PROFILE_UNCERTAIN
        assert one.status["A.flow"] == SEVERITY_UNCERTAIN and one.status["B.manufacturer"] == GOOD
        assert len(one.changes) == 1
        lines, failed = await server_trial("auto", url, None, True, tmp_path)
        assert not failed and "model: Pump 7" in lines
        assert any(line.split() == ["A.flow", "1.0", "L/min", "uncertain"] for line in lines)
        lines, failed = await server_trial(str(tmp_path / "profiles" / "acme-pump.yaml"), url, None, True, None)
        assert not failed and not any("manufacturer" in line.split() for line in lines)


async def test_by_name_and_firmware_of_the_file(collected: Make, tmp_path: Path) -> None:
    """The configuration is believed, and what fits nothing is refused where there is nothing else to collect."""
    port = free_port()
    url = f"opc.tcp://{HOST}:{port}/"
    async with server(port, "7", product="Oven") as made:
        await add_press(made, "P1", NEW)
        one = collected(url, profile="acme-press", firmware="2.0")
        await one.connect()
        await one.until_tags("P1.temperature")
        assert one.values["P1.temperature"] == [21.5] and one.status["P1.temperature"] == GOOD
        assert "because the configuration says so, although what it says does not fit; firmware 2.0" in one.source.info
        await one.source.close()
        (tmp_path / "profiles" / "acme-press.yaml").write_text(PROFILE.replace("unit: Cel", "unit: K"))
        await one.connect()
        await one.until_tags("P1.temperature_2")
        assert (one.tag("P1.temperature").unit, one.tag("P1.temperature_2").unit) == ("Cel", "K")
        await one.source.close()
        for profile, reason in (("auto", "no profile fits this server"), ("siemens-s7-1500", "has no tags")):
            with pytest.raises(Permanent, match=reason):
                await collected(url, profile=profile).connect()
