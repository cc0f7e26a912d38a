"""Addresses and selections of OPC UA tags at real servers: what they mean, and that they follow the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from asyncua import Server, ua

from connectors import opcua_items, opcua_refresh, opcua_walk
from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import SystemClock
from pipelines.gaps import Reason
from pipelines.tags import TagTable
from tests.contract.source_suite import DEADLINE_S, settled, within
from tests.integration.opcua_plant import empty_server
from tests.integration.opcua_rig import Rig
from tests.services.milo import Group, Milo
from tests.services.node_opcua import NodeOpcua
from tests.services.ports import HOST, free_port

URI = "http://vendor.com/press/"
SELECTIONS: list[tuple[Any, set[str]]] = [
    ("/Objects/Press/*", {"Press.Temp"}),
    ("/Objects/Press/**", {"Press.Temp", "Press.Motor.Speed", "Press.Motor.Temp", "Press.Motor.Diag.Load"}),
    ("Motor/Temp", {"Press.Motor.Temp"}),
    (
        {"include": "/Objects/Press/**", "exclude": ["/Objects/*/Motor/Diag/**", "regex:.*Speed"]},
        {"Press.Temp", "Press.Motor.Temp"},
    ),
    ({"include": ["regex:/Objects/Press/M.*/S[a-z]+"]}, {"Press.Motor.Speed"}),
]
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Collected:
    """A source, and the newest value and status of each tag."""

    def __init__(self, folder: Path, settings: OpcUaDevice) -> None:
        self.tags = TagTable()
        self.source = OpcUaSource("press", 0, settings, self.tags, SystemClock(), folder)
        self.values: dict[str, Any] = {}
        self.status: dict[str, int] = {}
        self.rows: dict[str, int] = {}

    async def connect(self) -> None:
        await within(self.source.connect([]))

    async def until(self, done: Callable[[], Any]) -> None:
        """Reads and commits until `done`."""
        while not done():
            batch = await within(self.source.read())
            self.source.commit(batch.number)
            for tag, status, value in zip(batch.tag, batch.status, batch.values(), strict=True):
                name = self.tags[int(tag)].name
                self.values[name], self.status[name] = value, int(status)
                self.rows[name] = self.rows.get(name, 0) + 1

    async def until_tags(self, *names: str) -> None:
        """Reads until exactly these have a value."""
        await self.until(lambda: {name for name, value in self.values.items() if value is not None} == {*names})


Make = Callable[..., Collected]


def settings(url: str, **options: Any) -> OpcUaDevice:
    return OpcUaDevice.model_validate({"opcua": url, "security": "none", "every": "50ms", "timeout": "20s", **options})


@pytest_asyncio.fixture(loop_scope="module")
async def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes sources and closes them."""
    monkeypatch.setattr(opcua_refresh, "SETTLE_S", 0.05)
    monkeypatch.setattr(opcua_items, "RETRY_FIRST_S", 0.1)
    made: list[Collected] = []

    def make(url: str, **options: Any) -> Collected:
        made.append(Collected(tmp_path, settings(url, **options)))
        return made[-1]

    yield make
    for each in made:
        await each.source.close()


@asynccontextmanager
async def plant(port: int, *before: str) -> AsyncIterator[Server]:
    """Objects/Press/{Temp, Motor/{Speed, Temp}, Motor/Diag/Load} in the namespace URI; `before` it come others."""
    server = await empty_server(port)
    for uri in before:
        await server.register_namespace(uri)
    ns = await server.register_namespace(URI)
    press = await server.nodes.objects.add_object(ua.NodeId("Press", ns), f"{ns}:Press")
    motor = await press.add_object(ua.NodeId("Motor", ns), f"{ns}:Motor")
    diag = await motor.add_object(ua.NodeId("Diag", ns), f"{ns}:Diag")
    for parent, name, value in ((press, "Temp", 1.0), (motor, "Speed", 2.0), (motor, "Temp", 3.0), (diag, "Load", 4.0)):
        node = ua.NodeId(f"{parent.nodeid.Identifier}.{name}", ns)
        await parent.add_variable(node, f"{ns}:{name}", value)
    async with server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    """One for the module: an asyncua server takes seconds to start. A test adds what it needs below Objects."""
    async with plant(free_port()) as shared:
        await shared.register_namespace("urn:other")
        yield shared


def url(server: Server) -> str:
    return str(server.endpoint.geturl())


async def hall(server: Server, name: str) -> Any:
    """Objects/<name>, for one test."""
    return await server.nodes.objects.add_object(ua.NodeId(name, 2), f"2:{name}")


def node(server: Server, name: str, ns: int = 2) -> Any:
    return server.get_node(ua.NodeId(name, ns))


async def add(server: Server, parent: str, name: str, value: float, ns: int = 2) -> None:
    identifier = f"{parent}.{name}" if ns == 2 else f"{parent}.{name}.{ns}"
    await node(server, parent).add_variable(ua.NodeId(identifier, ns), f"{ns}:{name}", value)


async def say_changed(server: Server) -> None:
    """The event of Part 3, 9.32.7."""
    generator = await server.get_event_generator(ua.ObjectIds.GeneralModelChangeEventType)
    await generator.trigger()


async def test_every_form_of_address(server: Server, collected: Make) -> None:
    """Index, URI, path with indexes, with URIs and with neither; what is wrong is said, and is picked up when right."""
    await hall(server, "Forms")
    await add(server, "Forms", "Twice", 1.0)
    await add(server, "Forms", "Twice", 1.0, ns=3)
    tags = {
        "index": "ns=2;s=Press.Temp",
        "uri": f"nsu={URI};s=Motor.Speed",
        "path": "/Objects/Press/Motor/Temp",
        "indexes": "/Objects/2:Press/2:Motor/2:Speed",
        "uris": f"/Objects/nsu={URI};Press/nsu={URI};Temp",
        "mixed": f"/Objects/Press/nsu={URI};Temp",
        "gone": "nsu=http://gone/;s=a",
        "twice": "/Objects/Forms/Twice",
        "later": "/Objects/Forms/Later",
    }
    press = collected(url(server), tags=tags)
    await press.connect()
    await press.until_tags("index", "uri", "path", "indexes", "uris", "mixed")
    assert [press.values[name] for name in ("index", "uri", "path", "uris")] == [1.0, 2.0, 3.0, 1.0]
    faults = press.source.faults
    assert "http://gone/" in faults["gone"] and "no `Later`" in faults["later"]
    assert "means 2 nodes" in faults["twice"] and "2:Twice" in faults["twice"]
    await add(server, "Forms", "Later", 9.0)
    await press.until(lambda: press.values.get("later") == 9.0)
    assert "later" not in press.source.faults


async def test_a_node_that_comes_later_has_its_unit_at_once(server: Server, collected: Make) -> None:
    """In the session in which its address begins to mean something."""
    press = collected(url(server), tags={"later": "/Objects/Oven/Heat", "now": "ns=2;s=Press.Temp"})
    await press.connect()
    await press.until_tags("now")
    oven = await server.nodes.server.add_object(ua.NodeId("Oven", 2), "2:Oven")
    heat = await oven.add_variable(ua.NodeId("Oven.Heat", 2), "2:Heat", 180.5)
    degree = ua.EUInformation("http://www.opcfoundation.org/UA/units/un/cefact", 4408652, ua.LocalizedText("°C"))
    await heat.add_property(ua.NodeId("Oven.Heat.Unit", 2), "0:EngineeringUnits", degree)
    await server.nodes.objects.add_reference(oven, ua.ObjectIds.Organizes)
    await press.until(lambda: press.values.get("later") == 180.5)
    assert await settled(lambda: [tag.unit for tag in press.tags if tag.name == "later"] == ["°C"])


async def test_an_index_that_has_moved_is_followed(collected: Make) -> None:
    """The server is started again with another namespace in front: the same tags, the same names, and no other's."""
    port = free_port()
    press = collected(
        f"opc.tcp://{HOST}:{port}/",
        tags={"uri": f"nsu={URI};s=Press.Temp", "path": "/Objects/Press/Motor/Speed"},
        select="/Objects/Press/Motor/*",
    )
    async with plant(port):
        await press.connect()
        await press.until_tags("uri", "path", "Press.Motor.Temp")
    await press.source.close()
    press.values.clear()
    async with plant(port, "urn:a", "urn:b") as again:
        assert await again.get_namespace_index(URI) == 4
        await press.connect()
        await press.until_tags("uri", "path", "Press.Motor.Temp")
        assert press.values == {"uri": 1.0, "path": 2.0, "Press.Motor.Temp": 3.0} and not press.source.faults


async def test_selections(server: Server, collected: Make) -> None:
    """Wildcards, regular expressions, exclusion; the standard's own nodes are not meant."""
    for select, names in SELECTIONS:
        press = collected(url(server), select=select)
        await press.connect()
        await press.until_tags(*names)
        assert not press.source.faults and f"{len(names)} tags selected" in press.source.info
        await press.source.close()


async def test_instances_of_a_type_and_its_subtypes(server: Server, collected: Make) -> None:
    """Sub-paths per instance, by node id or path of the type; what no instance has is a fault."""
    pumps = await hall(server, "Pumps")
    base = await server.nodes.base_object_type.add_object_type(2, "PumpType")
    await (await base.add_variable(2, "Flow", 1.5)).set_modelling_rule(True)
    await (await base.add_variable(2, "Internal", 0.0)).set_modelling_rule(True)
    special = await base.add_object_type(2, "SpecialPumpType")
    await pumps.add_object(2, "Pump1", objecttype=base.nodeid)
    await pumps.add_object(2, "Pump2", objecttype=special.nodeid)
    types = [{"type": f"nsu={URI};i={base.nodeid.Identifier}", "paths": ["Flow", "Missing/*"]}]
    press = collected(url(server), select={"types": types})
    await press.connect()
    await press.until_tags("Pumps.Pump1.Flow", "Pumps.Pump2.Flow")
    assert [*press.source.faults] == ["select Missing/*"]
    by_path = {"type": "/Types/ObjectTypes/BaseObjectType/PumpType/SpecialPumpType"}
    other = collected(url(server), select={"types": [by_path]})
    await other.connect()
    await other.until_tags("Pumps.Pump2.Flow", "Pumps.Pump2.Internal")


async def test_a_selection_of_nothing_and_one_of_too_much(server: Server, collected: Make) -> None:
    """Both are faults with what to do; of too much, the first are collected, in order of depth and name."""
    include = ["/Objects/Press/**"]
    press = collected(url(server), select={"include": include, "limit": 2})
    await press.connect()
    await press.until_tags("Press.Temp", "Press.Motor.Speed")
    assert "more than 2 variables" in press.source.faults["select"]
    none = collected(url(server), tags={"a": "ns=2;s=Press.Temp"}, select={"include": ["/Objects/Press", *include]})
    await none.connect()
    await none.until_tags("a", "Press.Motor.Speed", "Press.Motor.Temp", "Press.Motor.Diag.Load")
    assert [*none.source.faults] == ["select /Objects/Press"] and "/**" in none.source.faults["select /Objects/Press"]


async def test_circles_and_names_that_are_there_twice(server: Server, collected: Make) -> None:
    """A reference back up ends; a node at two places is one tag; equal paths get names that are told apart for ever."""
    ring = await hall(server, "Ring")
    inner = await ring.add_object(ua.NodeId("Inner", 2), "2:Inner")
    await inner.add_reference(ring, ua.ObjectIds.Organizes)
    await add(server, "Inner", "Load", 4.0)
    await add(server, "Inner", "Load", 5.0, ns=3)
    await ring.add_reference(node(server, "Inner.Load"), ua.ObjectIds.Organizes)
    await add(server, "Inner", "Other", 6.0)
    await add(server, "Inner", "Other", 7.0, ns=3)
    press = collected(url(server), select="/Objects/Ring/**")
    await press.connect()
    await press.until(lambda: len(press.values) == 4)
    names = sorted(press.values)
    assert names[0] == "Ring.Inner.Load" and names[3] == "Ring.Load" and press.values["Ring.Load"] == 4.0
    assert [name.partition("~")[0] for name in names[1:3]] == ["Ring.Inner.Other"] * 2
    assert {press.values[name] for name in names[1:3]} == {6.0, 7.0}


async def test_a_model_change_is_followed(server: Server, collected: Make) -> None:
    """Says the server that it has changed: what is new is collected, what has left is a fault; the others go on."""
    parent = await hall(server, "Changing")
    await add(server, "Changing", "Stays", 1.0)
    await add(server, "Changing", "Leaves", 2.0)
    press = collected(url(server), select={"include": "/Objects/Changing/**", "refresh": 0})
    await press.connect()
    await press.until_tags("Changing.Stays", "Changing.Leaves")
    await add(server, "Changing", "New", 7.0)
    leaving = node(server, "Changing.Leaves")
    await parent.delete_reference(leaving, ua.ObjectIds.HasComponent)
    await say_changed(server)
    await press.until(lambda: press.values.get("Changing.New") == 7.0 and press.status["Changing.Leaves"])
    assert [*press.source.faults] == ["Changing.Leaves"] and press.rows["Changing.Stays"] == 1
    assert press.status["Changing.Leaves"] == ua.StatusCodes.BadNodeIdUnknown
    await parent.add_reference(leaving, ua.ObjectIds.HasComponent)
    await say_changed(server)
    await press.until(lambda: not press.status["Changing.Leaves"])
    assert not press.source.faults and press.values["Changing.Leaves"] == 2.0


async def test_a_server_that_says_nothing_is_looked_through(server: Server, collected: Make) -> None:
    """`refresh`: without any event a new node is found."""
    await hall(server, "Quiet")
    await add(server, "Quiet", "Old", 1.0)
    press = collected(url(server), select={"include": "/Objects/Quiet/*", "refresh": "100ms"})
    await press.connect()
    await press.until_tags("Quiet.Old")
    await add(server, "Quiet", "New", 7.0)
    await press.until_tags("Quiet.Old", "Quiet.New")


async def test_learnt_tags_outlive_the_process(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart takes the subscription over with the handles that it has; what came meanwhile is added behind them."""
    monkeypatch.setattr(opcua_refresh, "SETTLE_S", 0.05)
    await hall(server, "Kept")
    for value, name in enumerate(("b", "c")):
        await add(server, "Kept", name, float(value))
    device = settings(url(server), select="/Objects/Kept/**", timeout="5s")
    first = Rig(tmp_path / "first", device)
    await first.start()
    await first.has(1.0, "Kept.c")
    [kept] = first.source._link.state.subscriptions
    assert kept is not None
    before = [(item.handle, item.id) for item in kept.items]
    await first.kill(tmp_path / "second")
    await add(server, "Kept", "a", 5.0)
    second = Rig(tmp_path / "second", device)
    try:
        await second.start()
        await second.has(5.0, "Kept.a")
        await node(server, "Kept.c").write_value(22.0)
        await second.has(22.0, "Kept.c")
        assert second.source._known.names == ["Kept.b", "Kept.c", "Kept.a"]
        [taken] = second.source._link.state.subscriptions
        assert taken is not None and (taken.id, taken.model_changes) == (kept.id, kept.model_changes)
        assert [(item.handle, item.id) for item in taken.items][:2] == before
    finally:
        await second.stop()


async def test_learnt_tags_get_further_subscriptions(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one is full another one is made, while the session goes on; a restart takes all of them over."""
    monkeypatch.setattr(opcua_refresh, "SETTLE_S", 0.05)
    await hall(server, "Full")
    names = [f"Full.{letter}" for letter in "abcdefg"]
    for name in names[:3]:
        await add(server, "Full", name[-1], 1.0)
    tags = {"own": "ns=2;s=Press.Temp", "fast": {"node": "ns=2;s=Motor.Speed", "every": "40ms"}}
    select = {"include": "/Objects/Full/*", "refresh": 0}
    device = settings(url(server), tags=tags, select=select, items_per_subscription=2, timeout="5s")
    first = Rig(tmp_path / "first", device)
    await first.start()
    for name in names[:3]:
        await first.has(1.0, name)
    for name in names[3:5]:
        await add(server, "Full", name[-1], 1.0)
    await say_changed(server)
    for name in names[3:5]:
        await first.has(1.0, name)
    assert "recreated" not in first.counted
    kept = handles(first)
    assert [*kept.values()] == [[1], [0, 2], [3, 4], [5, 6]]
    await first.kill(tmp_path / "second")
    await add(server, "Full", "f", 1.0)
    second = Rig(tmp_path / "second", device)
    try:
        await second.start()
        await second.has(1.0, "Full.f")
        assert second.counted["reactivated"] == 1 and "recreated" not in second.counted and not second.notes
        assert [*handles(second)][:4] == [*kept] and [*handles(second).values()][4:] == [[7]]
        for name in names[:6]:
            await node(server, name).write_value(2.0)
            await second.has(2.0, name)
    finally:
        await second.stop()


def handles(rig: Rig) -> dict[int, list[int]]:
    """Subscription id -> its items' handles, in the order of the plan."""
    subscriptions = rig.source._link.state.subscriptions
    return {one.id: sorted(item.handle for item in one.items) for one in subscriptions if one is not None}


async def test_other_rules_begin_anew(server: Server, tmp_path: Path) -> None:
    """The old tags are forgotten, the old subscription is gone from the server, and the ledger has the gap."""
    await hall(server, "Ruled")
    await add(server, "Ruled", "a", 1.0)
    first = Rig(tmp_path / "first", settings(url(server), select="/Objects/Ruled/*", timeout="5s"))
    await first.start()
    await first.has(1.0, "Ruled.a")
    await first.kill(tmp_path / "second")
    second = Rig(tmp_path / "second", settings(url(server), select="/Objects/Ruled/a", timeout="5s"))
    try:
        await second.start()
        await second.until(lambda values: len(values) == 2, "Ruled.a")
        assert [(note.reason, note.tags) for note in second.notes] == [(Reason.DISCONNECTED, ())]
        assert len(second.source._link.state.subscriptions) == 1 and second.counted["recreated"] == 1
    finally:
        await second.stop()


async def test_node_opcua(node_opcua: NodeOpcua, collected: Make) -> None:
    """Units, paging, and its own model changes."""
    pages: list[int] = []

    browse_next = opcua_walk.browse_next

    def counted(header: Any, points: Any) -> bytes:
        pages.append(len(points))
        return browse_next(header, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opcua_walk, "REFERENCES_PER_NODE", 7)
        patch.setattr(opcua_walk, "browse_next", counted)
        press = collected(
            node_opcua.url,
            select={"include": ["/Objects/Hall/*", "/Objects/Plant/*"], "exclude": "*Array", "refresh": 0},
        )
        await press.connect()
        await press.until(lambda: len(press.values) == 33)
    assert pages
    pressure = press.tags.id_of("press/Hall.Pressure")
    assert pressure is not None
    async with asyncio.timeout(DEADLINE_S):
        while press.tags[pressure].unit != "bar":  # noqa: ASYNC110  learnt beside the values: no batch need come any more
            await asyncio.sleep(0.01)
    node_opcua.add("Flow")
    try:
        await press.until(lambda: press.values.get("Hall.Flow") == 2.5)
    finally:
        node_opcua.remove("Flow")
    await press.until(lambda: "Hall.Flow" in press.source.faults)


async def test_five_thousand_nodes(milo: Callable[..., Milo], collected: Make) -> None:
    """Of a foreign server, in pages; each tag has its own value."""
    server = milo([Group("v", "double", 5000, 1000)])
    press = collected(server.url, select="/Objects/v/*")
    await press.connect()
    await press.until(lambda: len(press.values) == 5000)
    assert all(press.values[f"v.v{i}"] == 7919 * i / 8.0 for i in range(0, 5000, 97))
