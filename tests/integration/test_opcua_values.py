"""Every value: structures, enumerations, matrices and units of real servers, as a JSON consumer gets them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from connectors.payload import Identity, make_format
from pipelines.clock import SystemClock
from pipelines.tags import TagTable
from tests.contract.source_suite import within
from tests.services import asyncua_types
from tests.services import node_opcua as node_opcua_types
from tests.services.asyncua_server import AsyncuaServer
from tests.services.node_opcua import NodeOpcua


class Reading:
    """A source and what a consumer of `format: json` gets of it."""

    def __init__(self, url: str, tags: dict[str, Any], folder: Path) -> None:
        settings = {"opcua": url, "security": "none", "every": "50ms", "timeout": "20s", "tags": tags}
        self.tags = TagTable()
        self.source = OpcUaSource("press", 0, OpcUaDevice.model_validate(settings), self.tags, SystemClock(), folder)
        self._format = make_format("json", Identity("gw"), self.tags)

    async def first(self) -> dict[str, dict[str, Any]]:
        """The first sample of each tag."""
        found: dict[str, dict[str, Any]] = {}
        await within(self.source.connect([]))
        while len(found) < len(self.tags):
            batch = await within(self.source.read())
            self.source.commit(batch.number)
            for sample in json.loads(self._format.message("s", batch, False))["samples"]:
                found.setdefault(sample["tag"], sample)
        return found

    def unit(self, tag: str) -> str:
        number = self.tags.id_of(f"press/{tag}")
        assert number is not None
        return self.tags[number].unit


Read = Callable[[str, dict[str, Any]], Reading]


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[Read]:
    """Makes them and closes their sources."""
    made: list[Reading] = []

    def make(url: str, tags: dict[str, Any]) -> Reading:
        made.append(Reading(url, tags, tmp_path))
        return made[-1]

    yield make
    for each in made:
        await each.source.close()


async def test_asyncua(asyncua_server: Callable[..., AsyncuaServer], reading: Read) -> None:
    """DataTypeDefinitions and a type dictionary; a type that nobody knows is whole, counted and in health."""
    server, expected = asyncua_server(types=True), asyncua_types.EXPECTED
    read = reading(server.url, {name: f"ns=2;s={name}" for name in expected})
    found = await read.first()
    assert {name: sample["v"] for name, sample in found.items()} == expected
    assert {name: sample["name"] for name, sample in found.items() if "name" in sample} == asyncua_types.NAMES
    assert read.unit("Temperature") == "°C"
    assert "1 structures were delivered as they came: of type ns=2;i=99999" in read.source.info
    assert read.source.counters.totals["unread_structures"] == 1


async def test_the_file_has_the_last_word(asyncua_server: Callable[..., AsyncuaServer], reading: Read) -> None:
    """A unit in the file stays; what was learned outlives a reconnect without being asked for again."""
    server = asyncua_server(types=True)
    read = reading(server.url, {"Temperature": {"node": "ns=2;s=Temperature", "unit": "degC"}, "Motor": "ns=2;s=Motor"})
    for _ in range(2):
        found = await read.first()
        assert found["Motor"]["v"] == asyncua_types.EXPECTED["Motor"]
        assert read.unit("Temperature") == "degC"
        await read.source.close()


async def test_node_opcua(node_opcua: NodeOpcua, reading: Read) -> None:
    """Another stack's encoder and its own definitions, all scalar types beside them."""
    scalars = ("Boolean", "Int64", "UInt64", "Float", "String", "Guid", "NodeId", "LocalizedText", "StringArray")
    read = reading(node_opcua.url, {name: f"ns=1;s={name}" for name in (*node_opcua_types.EXPECTED, *scalars)})
    found = await read.first()
    assert {name: found[name]["v"] for name in node_opcua_types.EXPECTED} == node_opcua_types.EXPECTED
    assert {name: sample["name"] for name, sample in found.items() if "name" in sample} == node_opcua_types.NAMES
    assert read.unit("Temperature") == "°C"
    assert found["UInt64"]["v"] == 12_800_000_000_000_000_000
