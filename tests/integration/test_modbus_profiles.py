"""Profiles on a real Modbus server: identification by registers and by function 43, SunSpec, over TCP and RTU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from ruamel.yaml import YAML

from connectors.modbus import ModbusSource
from connectors.modbus_identify import Interview, device_identification
from connectors.modbus_link import ModbusLink
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_url import parse_url
from gateway.cli import main
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from pipelines.tags import TagTable
from tests.services.pymodbus_server import Image, PymodbusServer

RECORDED = Path(__file__).parents[1] / "profiles"
StartPymodbus = Callable[..., PymodbusServer]


def _image(registers: dict[str, list[int]]) -> Image:
    found: dict[Any, dict[int, list[int]]] = {}
    for place, values in registers.items():
        table, start = place.split()
        found.setdefault(table, {})[int(start, 0)] = values
    return found


@pytest.mark.parametrize("framer", ["socket", "rtu"])
@pytest.mark.parametrize("name", ["sunspec", "eastron-sdm630", "victron-vm3p75ct"])
async def test_recorded_registers_on_a_real_server(
    pymodbus_server: StartPymodbus, framer: Literal["socket", "rtu"], name: str, tmp_path: Path
) -> None:
    recorded = YAML(typ="safe", pure=True).load((RECORDED / f"{name}.yaml").read_text("utf-8"))[0]
    server, tags = pymodbus_server(framer=framer, image=_image(recorded["registers"])), TagTable()
    settings = ModbusDevice.model_validate({"modbus": f"{server.url}/1", "profile": "auto", "timeout": "60s"})
    source = ModbusSource("m", 0, settings, tags, SystemClock(), tmp_path)
    await source.connect([])
    batch = await source.read()
    await source.close()
    values = dict(zip([tags[tag].name for tag in batch.tag], batch.values(), strict=True))
    assert values == recorded["values"] | dict.fromkeys(recorded.get("absent", ()))


@pytest.mark.parametrize("framer", ["socket", "rtu"])
async def test_device_identification_of_a_real_server(pymodbus_server: StartPymodbus, framer: str) -> None:
    """pymodbus answers function 43 with what it was given: see IDENTITY of its service."""
    url = parse_url(f"{pymodbus_server(framer=framer).url}/1")
    clock = SystemClock()
    link = ModbusLink(url, 60 * 10**9, clock, Counters("source", "m"))
    await link.connect()
    facts = await device_identification(Interview(link, url))
    await link.close()
    assert facts == {
        "vendor": "Acme",
        "code": "PM-1",
        "firmware": "1.2.3",
        "product": "Power meter",
        "model": "PM-1 light",
    }


def test_scan_shows_what_a_unit_says_it_is(pymodbus_server: StartPymodbus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["modbus", "scan", pymodbus_server().url, "--units", "1", "--pause", "1ms", "--timeout", "60s"]) == 0
    assert capsys.readouterr().out.endswith("  (Acme PM-1 light firmware 1.2.3)\n")
