"""The fixtures of the tests of one OPC UA source; `opcua_plant.py` has what goes with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asyncua import Server

from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import SystemClock
from pipelines.tags import TagTable
from tests.integration import opcua_plant, opcua_rig
from tests.integration.opcua_rig import Rig


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[opcua_plant.Make]:
    """Makes sources and closes them: source(url, tags, **settings)."""
    made: list[OpcUaSource] = []

    def make(url: Any, tags: dict[str, Any], **options: Any) -> OpcUaSource:
        settings = {"opcua": url, "security": "none", "every": "50ms", "timeout": "20s", "tags": tags, **options}
        made.append(OpcUaSource("press", 0, OpcUaDevice.model_validate(settings), TagTable(), SystemClock(), tmp_path))
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
async def plant() -> AsyncIterator[Server]:
    async with opcua_plant.plant_server() as server:
        yield server


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[opcua_rig.Make]:
    """Makes gateway processes and stops them."""
    rigs: list[Rig] = []

    def make(settings: OpcUaDevice, folder: str = "first", **how: Any) -> Rig:
        rigs.append(Rig(tmp_path / folder, settings, **how))
        return rigs[-1]

    yield make
    for each in rigs:
        await each.stop()
