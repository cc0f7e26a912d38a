"""`gateway profile`: the commands, the JSON Schema, the example of the profiles' README."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from connectors.modbus_profile import ModbusProfile, resolve
from connectors.opcua_profile import OpcUaProfile
from connectors.profile import load_profiles, parsed, profile_files, raw_profile
from gateway.cli import main
from gateway.config import ConfigErrors, load
from gateway.profiles import json_schema, trial
from pipelines.errors import Permanent
from tests.services.asyncua_server import AsyncuaServer
from tests.unit.connectors.modbus_device import Device
from tests.unit.connectors.modbus_meter import Hurried, Meter

README = Path(__file__).parents[3] / "firmware_profiles" / "README.md"
KEBA = {
    "holding 1000": [0] * 16 + [64, 15697, 0, 10201, 0, 4000],
    "holding 1036": [0, 38101, 0, 0, 0, 230, 0, 231, 0, 229, 0, 990],
    "holding 1100": [0, 16000],
    "holding 1502": [0, 700],
}


def _plain(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _example(kind: str = "profile") -> str:
    [text] = re.findall(rf"^```yaml {kind}\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return str(text)


def test_example_of_the_readme() -> None:
    """It is a profile, and says what the text around it says."""
    profile = parsed(ModbusProfile, _plain(_example()), "README")
    old, new = resolve(profile, {"firmware": "b.9"}), resolve(profile, {"firmware": "b.10", "model": "M1"})
    assert (old.tags["energy"].point.address, new.tags["energy"].point.address) == (52, 0x500)
    assert (old.poll.max_block, new.poll.max_block) == (50, 125)
    assert "relay" in old.tags
    assert "relay" not in new.tags
    assert "current" not in resolve(profile, {"firmware": "b.10", "model": "M1 light"}).tags
    assert resolve(profile, {"firmware": "c.1"}).uncertain
    assert not new.uncertain


def test_every_shipped_profile_fits_the_schema() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    every = [profile_files(protocol) for protocol in ("modbus", "opcua")]
    contents = [raw_profile(file, known) for known in every for file in known.values()]
    contents += [_plain(_example(kind)) for kind in ("profile", "opcua")]
    plain = json.loads(json.dumps(contents, default=str))  # keys that are numbers are texts in JSON
    assert [error.message for one in plain for error in validator.iter_errors(one)] == []
    assert list(validator.iter_errors({**plain[0], "tag": {}}))


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(
        [*load_profiles(ModbusProfile), *load_profiles(OpcUaProfile)]
    )


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    """The same tag with two firmwares, and without one."""
    shown = []
    for firmware in (["--firmware", "1.2.0"], ["--firmware", "1.2.1"], []):
        assert main(["profile", "show", "keba-p40", *firmware]) == 0
        shown.append(re.sub(r" +", " ", capsys.readouterr().out))
    assert "active_energy_total holding 1036 uint32 W.h\n" in shown[0]
    assert "active_energy_total holding 1036 uint32 0.1 W.h\n" in shown[1]
    assert "active_energy_total holding 1036 uint32 W.h uncertain\n" in shown[2]


def test_no_such_profile(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["profile", "show", "keba-p4"]) == 1
    assert "did you mean `keba-p40`?" in capsys.readouterr().err
    file = tmp_path / "gateway.yaml"
    file.write_text(
        f"gateway: {{data_dir: {tmp_path}}}\ndevices:\n  m: {{modbus: tcp://10.0.0.7, profile: keba-p4}}\n"
        'send: {all: {from: "*", to: plant}}\nto: {plant: {mqtt: "mqtts://broker"}}\n'
    )
    with pytest.raises(ConfigErrors, match="3:40: there is no profile `keba-p4`: did you mean `keba-p40`"):
        load(file)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "keba-p4.yaml").write_text("profile: keba-p4\nextends: keba-p40\n")
    load(file)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "mine.yaml"
    file.write_text("profile: mine\nextends: keba-p40\ntags: {hertz: {register: holding 1018 uint32, unit: Hz}}\n")
    yield file


def test_trial(own: Path) -> None:
    """By name, by `auto` and from a file: what the device is, every value, and what is wrong with it."""

    async def tried(name: str) -> tuple[str, bool]:
        async with Device(Meter(KEBA)) as device:
            lines, failed = await trial(name, device.url, None, None, Hurried())
            return re.sub(r" +", " ", "\n".join(lines)), failed

    for name in ("keba-p40", "auto", str(own)):
        text, failed = asyncio.run(tried(name))
        assert "firmware: 1.2.1\n" in text
        assert "active_energy_total 3810.1 W.h\n" in text
        assert re.search(r"hw_revision holding 1700.* illegal data address", text)
        assert failed
        assert ("hertz 10201 Hz not plausible: 45 to 65 is" in text) == (name == str(own))


def test_trial_at_the_wrong_unit() -> None:
    """A Schneider gateway is unit 255 itself."""

    async def tried() -> None:
        meter = Meter({}, objects={0: b"Schneider Electric", 1: b"A9XMWD20", 2: b"V1.2.3"})
        async with Device(lambda request: meter(request) if request[6] == 255 else Meter({})(request)) as device:
            await trial("auto", device.url, None, None, Hurried())

    with pytest.raises(Permanent, match="unit 255 of that address says it is Schneider Electric A9XMWD20: try tcp://"):
        asyncio.run(tried())


def test_what_an_opcua_server_is(asyncua_server: Callable[..., AsyncuaServer]) -> None:
    """BuildInfo and namespaces, from a real server; nothing fits it. As a process: the command sets up the log."""
    argv = [sys.executable, "-m", "gateway", "profile", "test", "auto", asyncua_server().url, "--insecure"]
    done = subprocess.run(argv, capture_output=True, timeout=60, text=True)
    assert "product: " in done.stdout
    assert "namespaces: http://opcfoundation.org/UA/" in done.stdout
    assert "no profile fits" in done.stdout and done.returncode == 1
