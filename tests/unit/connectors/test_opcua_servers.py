"""Profiles of servers: every file is valid, and the right one is found by what BuildInfo says."""

from __future__ import annotations

import pytest

from connectors.opcua_limits import Service
from connectors.opcua_profile import ROOM, LimitName, OpcUaProfile, build_facts
from connectors.opcua_servers import product
from connectors.profile import load_profiles


def found(manufacturer: str, name: str) -> str | None:
    facts = build_facts({"ManufacturerName": manufacturer, "ProductName": name}, [])
    known = product(load_profiles(OpcUaProfile), facts)
    return known.profile if known else None


def test_every_file_is_valid_and_named_by_its_id() -> None:
    known = load_profiles(OpcUaProfile)
    assert len(known) >= 10
    assert all(one.sources for one in known.values())


def test_every_service_can_be_limited() -> None:
    assert {service.name.lower() for service in Service} == set(LimitName.__args__) - ROOM  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("manufacturer", "name", "id_"),
    [
        ("Siemens AG", "SIMATIC S7-1200", "siemens-s7-1200"),
        ("SIEMENS AG", "S7-1500 CPU 1513-1 PN", "siemens-s7-1500"),
        ("Beckhoff Automation", "TwinCAT OPC UA Server", "beckhoff-tf6100"),
        ("PTC", "KEPServerEX 6", "kepserverex"),
        ("Prosys OPC Ltd", "SimulationServer", "prosys-simulation"),
        ("B&R Industrial Automation", "Automation Runtime", "br-automation-runtime"),
        ("Siemens AG", "WinCC", None),
        ("", "", None),
    ],
)
def test_matching(manufacturer: str, name: str, id_: str | None) -> None:
    assert found(manufacturer, name) == id_


def test_both_conditions_hold() -> None:
    assert found("Other", "1200") is None
