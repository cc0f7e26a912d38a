"""Every shipped Modbus profile against recorded registers: what identification finds, and what each tag's value is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from connectors.modbus import ModbusSource
from connectors.modbus_decode import BAD_NO_DATA
from connectors.modbus_plan import WordOrder
from connectors.modbus_profile import ModbusProfile, resolve
from connectors.modbus_reads import describe_plan
from connectors.modbus_settings import ModbusDevice
from connectors.profile import ProfileError, fits, load_profiles, parsed
from pipelines.batch import GOOD, SEVERITY_UNCERTAIN, Flag
from pipelines.tags import TagTable
from tests.unit.connectors.modbus_device import Device
from tests.unit.connectors.modbus_meter import Hurried, Meter, without_pauses

RECORDED = Path(__file__).parents[2] / "profiles"
PROFILES = load_profiles(ModbusProfile)
UCUM = "1 % A V W V.A var kW kvar kV.A W.h kW.h var.h kvar.h V.A.h kV.A.h A.h Hz Cel deg h s kOhm {rpm}"


def _recorded() -> Iterator[Any]:
    for file in sorted(RECORDED.glob("*.yaml")):
        for number, test in enumerate(YAML(typ="safe", pure=True).load(file.read_text("utf-8")), start=1):
            for profile in (file.stem, "auto") if test.get("auto", True) else (file.stem,):
                yield pytest.param(file.stem, profile, test, id=f"{file.stem}-{number}-{profile}")


@pytest.mark.parametrize(("family", "profile", "recorded"), list(_recorded()))
async def test_registers_become_values(
    family: str, profile: str, recorded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name and by `auto`: the same identity, every tag with the value that it should have, none beside them."""
    without_pauses(monkeypatch)
    objects = {int(number): text.encode() for number, text in recorded.get("identification", {}).items()}
    meter = Meter(recorded["registers"], recorded.get("alone"), objects)
    tags = TagTable()
    async with Device(meter) as device:
        settings = ModbusDevice.model_validate({"modbus": device.url, "timeout": "60s", "profile": profile})
        source = ModbusSource("m", 0, settings, tags, Hurried(), tmp_path)
        await source.connect([])
        batch = await source.read()
        await source.close()
    identity = source._follower.identity  # type: ignore[union-attr]
    assert identity is not None
    assert identity.profile == family
    assert {name: identity.facts.get(name) for name in recorded["facts"]} == recorded["facts"]
    names = [tags[tag].name for tag in batch.tag]
    absent = dict.fromkeys(recorded.get("absent", ()))
    assert dict(zip(names, batch.values(), strict=True)) == recorded["values"] | absent
    flagged = {name for name, flags in zip(names, batch.flags.tolist(), strict=True) if flags & Flag.PROFILE_UNCERTAIN}
    assert flagged == (set(names) if recorded.get("uncertain") else set())
    statuses = dict(zip(names, batch.status.tolist(), strict=True))
    assert statuses == dict.fromkeys(names, GOOD) | dict.fromkeys(flagged, SEVERITY_UNCERTAIN) | dict.fromkeys(
        absent, BAD_NO_DATA
    )


@pytest.mark.parametrize("name", PROFILES)
def test_profile_has_recorded_registers(name: str) -> None:
    """Every profile is tested, both sides of each version that an override names."""
    tests = YAML(typ="safe", pure=True).load((RECORDED / f"{name}.yaml").read_text("utf-8"))
    for override in PROFILES[name].overrides:
        sides = {fits(override.when, test["facts"]) for test in tests}
        assert sides == {True, False}, override.when


@pytest.mark.parametrize("name", PROFILES)
def test_units_are_ucum(name: str) -> None:
    profile = PROFILES[name]
    points = [point for model in profile.sunspec for point in model.points.values()]
    assert {tag.unit for tag in [*profile.tags.values(), *points]} <= {"", *UCUM.split()}


def _profile(tag: dict[str, Any]) -> ModbusProfile:
    content = {
        "profile": "p",
        "protocol": "modbus",
        "vendor": "Acme",
        "models": ["One"],
        "grade": "C",
        "sources": ["me"],
    }
    scale = {"register": "holding 2 int16", "hidden": True}
    return parsed(ModbusProfile, content | {"word_order": "little", "tags": {"a": tag, "sf": scale}}, "p.yaml")


def test_a_scale_is_a_part_of_the_point_that_it_scales() -> None:
    found = resolve(_profile({"register": "holding 5 uint32", "scale_from": "sf", "invalid": [7]}), {})
    assert list(found.tags) == ["a"]
    point = found.tags["a"].point
    assert point.invalid == (7,)
    assert point.scale_from is not None
    assert (point.scale_from.name, point.scale_from.address) == ("", 2)


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ({"register": "holding 1 int16", "scale_from": "other"}, "tag a: scale_from: there is no tag 'other'"),
        ({"register": "input 1 int16", "scale_from": "sf"}, "must be a input register"),
        ({"register": "holding 1 string 4", "scale_from": "sf"}, "for single numbers"),
    ],
)
def test_a_scale_that_cannot_be_one(tag: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        _profile(tag)


def test_strings_have_the_byte_order_of_the_device_but_not_its_word_order() -> None:
    tags = resolve(_profile({"register": "holding 5 string 4"}), {}).tags
    assert tags["a"].point.order is WordOrder.BIG


OWN = """
profile: acme-m1
protocol: modbus
vendor: Acme
models: [M1]
grade: C
sources: [this test]
identify:
  - {gives: model, read: holding 0 uint16, values: {4711: M1}}
  - {gives: firmware, read: holding 1 uint16, grammar: hundredths}
match: [{model: M1}]
tags: {voltage: holding 10 uint16, energy: holding 12 uint16}
overrides:
  - {when: {firmware: '>=2.0'}, tags: {voltage: holding 30 uint16, energy: holding 32 uint16}}
"""


async def test_the_plan_is_that_of_the_device_as_it_was(tmp_path: Path) -> None:
    """`gateway plan` without the device: the map of its firmware, the holes that it has shown."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "acme-m1.yaml").write_text(OWN)
    meter = Meter({"holding 0": [4711, 210], "holding 30": [2305]})
    async with Device(meter) as device:
        settings = ModbusDevice.model_validate({"modbus": device.url, "timeout": "60s", "profile": "auto"})
        assert describe_plan(settings, tmp_path, "m") == ["profile auto: known when the device was asked"]
        source = ModbusSource("m", 0, settings, TagTable(), Hurried(), tmp_path)
        await source.connect([])
        for _ in range(3):
            await source.read()
        await source.close()
    lines = describe_plan(settings, tmp_path, "m")
    assert lines[:2] == ["every 1s: holding 30 (1 register, 1 tag)", "hole: holding 32, no value for energy"]
    assert lines[-1].startswith("M1 firmware 2.10, as it was when it was asked last: profile acme-m1, because model is")
    named = settings.model_copy(update={"profile": "acme-m1", "firmware": "1.0"})
    assert describe_plan(named, tmp_path, "m") == ["every 1s: holding 10-12 (3 registers, 2 tags, 1 gap bridged)"]
