"""Profiles of servers: every file is valid, and the right one is found by what BuildInfo says."""

from __future__ import annotations

import pytest

from connectors.opcua_limits import Service
from connectors.opcua_servers import LimitName, Match, profiles


def test_every_file_is_valid_and_named_by_its_id() -> None:
    ids = [one.id for one in profiles()]
    assert len(ids) == len(set(ids)) >= 10 and all(one.source for one in profiles())


def test_every_service_can_be_limited() -> None:
    assert {service.name.lower() for service in Service} < set(LimitName.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("manufacturer", "product", "id_"),
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
def test_matching(manufacturer: str, product: str, id_: str | None) -> None:
    found = next((one.id for one in profiles() if one.match.fits(manufacturer, product)), None)
    assert found == id_


def test_both_conditions_hold() -> None:
    assert not Match(manufacturer=("siemens",), product=("1200",)).fits("Other", "1200")
