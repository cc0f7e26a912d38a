"""What a device says of itself: functions 43/14 and 17, registers; over TCP and RTU. What a source makes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from connectors.modbus import ModbusSource
from connectors.modbus_identify import GRAMMARS, Interview, device_identification, probed, server_id
from connectors.modbus_link import ModbusLink
from connectors.modbus_profile import Probe
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_url import parse_url
from pipelines.batch import GOOD, Flag
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Permanent
from pipelines.gaps import Gap, Reason
from pipelines.tags import TagTable
from tests.unit.connectors.modbus_device import Device, registers, rtu_frame, set_timeout
from tests.unit.connectors.modbus_meter import Hurried, Meter, without_pauses

SECOND = 10**9


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What connections were told to leave between requests, in ns; they leave none."""
    return without_pauses(monkeypatch)


KBR = {0: b"KBR GmbH", 1: b"multicomp F144-3  ", 2: b" 2.00r016"}
"""The example of the vendor's manual (KBR multicomp F144, p. 64): blanks on either side."""
KEBA_OLD = {"holding 1000": [0] * 16 + [64, 15697, 0, 10200, 0, 0], "holding 1036": [0, 3810], "holding 1502": [0, 70]}
KEBA_NEW = {
    "holding 1000": [0] * 16 + [64, 15697, 0, 10201, 0, 0],
    "holding 1036": [0, 38101],
    "holding 1502": [0, 700],
}


def over_rtu(meter: Meter) -> Callable[[bytes], bytes]:
    return lambda request: rtu_frame(request[0], meter.reply(request[1:-2]))


async def interview(device: Device) -> tuple[ModbusLink, Interview]:
    url = parse_url(device.url)
    link = ModbusLink(url, 60 * SECOND, Hurried(), Counters("source", "m"))
    await link.connect()
    return link, Interview(link, url)


@pytest.mark.parametrize("objects", [KBR, KBR | {4: b"F144", 5: b"F144-3"}])
async def test_device_identification(objects: Mapping[int, bytes]) -> None:
    """Texts are trimmed on both sides; the product code is the model where there is no name of it."""
    async with Device(Meter({}, objects=objects)) as device:
        link, asked = await interview(device)
        facts = await device_identification(asked)
        await link.close()
    assert facts["vendor"] == "KBR GmbH"
    assert facts["firmware"] == "2.00r016"
    assert facts["model"] == ("F144-3" if 5 in objects else "multicomp F144-3")


async def test_device_identification_over_rtu() -> None:
    """Nobody knows beforehand how long the reply is: it says so itself, and may come in pieces."""
    meter = Meter({}, objects=KBR)

    class Rtu(Device):
        async def _request(self, reader: asyncio.StreamReader) -> bytes:
            head = await reader.readexactly(2)
            return head + await reader.readexactly(5 if head[1] == 43 else 6)

    async with Rtu(over_rtu(meter), rtu=True) as device:
        link, asked = await interview(device)
        facts = await device_identification(asked)
        number = await asked.value("holding 5 uint16", "big")
        await link.close()
    assert facts == {
        "vendor": "KBR GmbH",
        "code": "multicomp F144-3",
        "firmware": "2.00r016",
        "model": "multicomp F144-3",
    }
    assert number is None


class Stream(Meter):
    """Objects one by one in each part, as devices with little memory do; or single objects only."""

    def __init__(self, objects: Mapping[int, bytes], codes: set[int]) -> None:
        super().__init__({}, objects=objects)
        self.codes = codes

    def _identification(self, code: int, number: int) -> bytes:
        known = [one for one in sorted(self.objects) if one >= number and one < 3]
        if code not in self.codes or not known:
            return bytes([43 | 0x80, 3])
        more = len(known) > 1 and code != 4
        head = bytes([43, 14, code, 1, 0xFF if more else 0, known[1] if more else 0, 1])
        return head + bytes([known[0], len(self.objects[known[0]])]) + self.objects[known[0]]


@pytest.mark.parametrize("codes", [{1}, {4}, {0}])
async def test_device_identification_in_parts_or_single_objects_or_as_abb_prints_it(codes: set[int]) -> None:
    async with Device(Stream(KBR, codes)) as device:
        link, asked = await interview(device)
        facts = await device_identification(asked)
        await link.close()
    assert facts == {
        "vendor": "KBR GmbH",
        "code": "multicomp F144-3",
        "firmware": "2.00r016",
        "model": "multicomp F144-3",
    }


async def test_report_server_id() -> None:
    class Drive(Meter):
        def reply(self, pdu: bytes) -> bytes:
            return b"\x11\x09\x01\xffFC-302\x00" if pdu == b"\x11" else super().reply(pdu)

    async with Device(Drive({})) as device:
        link, asked = await interview(device)
        assert await server_id(asked) == {"server_id": "FC-302"}
        assert await device_identification(asked) == {}
        await link.close()


async def test_probes() -> None:
    """A value that means nothing gives no fact, nor does a register that is not there; the first fact counts."""
    probes = [
        {"gives": "model", "read": "holding 0 uint16", "values": {5: "five"}},
        {"gives": "model", "read": "holding 1 uint16", "values": {7: "seven"}},
        {"gives": "model", "read": "holding 1 uint16"},
        {"gives": "firmware", "read": ["holding 0 uint16", "holding 1 uint16"], "grammar": "letter-revision"},
        {"gives": "plausible", "read": "holding 1 uint16", "between": [0, 6]},
        {"gives": "missing", "read": "holding 9 uint16"},
        {"gives": "exact", "read": "holding 41 uint16", "within": "holding 40-42"},
    ]
    meter = Meter({"holding 0": [1, 7]}, alone={"holding 40 3": [1, 2, 3]})
    async with Device(meter) as device:
        link, asked = await interview(device)
        facts = await probed(asked, [Probe.model_validate(probe) for probe in probes], "big")
        await link.close()
    assert facts == {"model": "seven", "firmware": "b.7", "plausible": "no", "exact": "2"}
    assert len(meter.reads) == 4


@pytest.mark.parametrize(
    ("grammar", "raw", "text"),
    [
        ("decimal-pairs", [10201], "1.2.1"),
        ("hundredths", [102], "1.02"),
        ("two-bytes", [0x010A], "1.10"),
        ("four-bytes", [0x000105FF], "0.1.5.255"),
        ("letter-three-bytes", [0x56020301], "2.3.1"),
        ("nibbles", [0x1803], "1.8.3"),
        ("letter-revision", [1, 10], "b.10"),
        ("sma", [0x01050A04], "1.05.10.R"),
        ("hex-digits", [0x4B, 0x00], "4B00"),
        ("dotted", [1, 12, 4], "1.12.4"),
    ],
)
def test_versions_as_vendors_write_them(grammar: Any, raw: list[int], text: str) -> None:
    assert GRAMMARS[grammar](raw) == text


class Notes:
    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    def note(self, gap: Gap) -> None:
        self.gaps.append(gap)


class Setup:
    """A source with a profile, and its parts."""

    def __init__(self, device: Device, folder: Path, **settings: Any) -> None:
        self.tags, self.ledger = TagTable(), Notes()
        model = ModbusDevice.model_validate({"modbus": device.url, "timeout": "60s", "every": "10ms"} | settings)
        self.source = ModbusSource("m", 0, model, self.tags, Hurried(), folder, self.ledger)

    async def values(self) -> dict[str, Any]:
        batch = await self.source.read()
        return dict(zip([self.tags[tag].name for tag in batch.tag], batch.values(), strict=True))


async def test_another_firmware_after_a_reconnect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """KEBA below 1.2.1 counts Wh, from there on tenths: the value goes on, tag and id are the same, it is said once."""
    caplog.set_level(logging.WARNING)
    meter = Meter(KEBA_OLD)
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="keba-p40")
        await setup.source.connect([])
        assert (await setup.values())["active_energy_total"] == 3810.0
        ids = {tag.path: at for at, tag in enumerate(setup.tags)}
        await setup.source.close()
        meter.become(KEBA_NEW)
        await setup.source.connect([])
        assert (await setup.values())["active_energy_total"] == 3810.1
        assert {tag.path: at for at, tag in enumerate(setup.tags)} == ids
        [gap] = setup.ledger.gaps
        assert (gap.reason, gap.rows) == (Reason.MAP_CHANGED, 0)
        assert gap.tags == ("active_energy_total", "session_energy")
        assert "firmware 1.2.0 -> firmware 1.2.1" in gap.detail
        assert sum("its tags follow" in line for line in caplog.messages) == 1
        await setup.source.close()
        await setup.source.connect([])
        assert len(setup.ledger.gaps) == 1
        await setup.source.close()


async def test_another_firmware_after_a_silence_without_a_reconnect(tmp_path: Path) -> None:
    """A time-out, after which the line dials anew by itself: nobody calls `connect`, yet it is asked what it is."""
    meter = Meter(KEBA_OLD)
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="keba-p40")
        await setup.source.connect([])
        assert (await setup.values())["active_energy_total"] == 3810.0
        answer, dropped = device.answer, 0

        def once_silent(request: bytes) -> bytes | None:
            nonlocal dropped
            dropped += 1
            device.answer = answer
            meter.become(KEBA_NEW)
            return b""

        device.answer = once_silent
        set_timeout(setup.source._link, 0.2)
        found = await setup.values()
        set_timeout(setup.source._link, 60)
        while found["active_energy_total"] is None or not setup.ledger.gaps:
            found = await setup.values()
        assert dropped == 1
        assert found["active_energy_total"] == 3810.1
        assert device.connections == 2
        await setup.source.close()


async def test_a_unit_that_became_silent_costs_one_request_a_connect(tmp_path: Path) -> None:
    """Others may share its line: it is asked what it is only after it has answered something."""
    meter = Meter(KEBA_OLD)
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="keba-p40", timeout="1s")
        await setup.source.connect([])
        assert (await setup.values())["active_energy_total"] == 3810.0
        meter.silent = True
        assert (await setup.values())["active_energy_total"] is None
        with pytest.raises(NotConnected, match="while it was asked what it is"):
            await setup.source.read()
        asked = len(device.requests)
        with pytest.raises(NotConnected, match="the unit is silent"):
            await setup.source.connect([])
        assert len(device.requests) == asked + 1
        meter.silent = False
        await setup.source.connect([])
        assert (await setup.values())["active_energy_total"] == 3810.0
        await setup.source.close()


async def test_a_silent_device_is_not_taken_for_another(tmp_path: Path) -> None:
    meter = Meter(KEBA_OLD)
    meter.silent = True
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="auto", timeout="50ms")
        with pytest.raises(NotConnected, match="no reply"):
            await setup.source.connect([])
        await setup.source.close()


async def test_no_profile_fits(tmp_path: Path) -> None:
    """What the device said is in the one line."""
    async with Device(Meter({}, objects=KBR)) as device:
        setup = Setup(device, tmp_path, profile="auto")
        with pytest.raises(Permanent, match=r"no profile fits this device \(vendor 'KBR GmbH'.*write `profile:`"):
            await setup.source.connect([])
        await setup.source.close()


async def test_the_file_s_tags_and_firmware_come_first(tmp_path: Path) -> None:
    """A tag of the file takes the place of the profile's; `firmware:` is believed more than the device."""
    async with Device(Meter(KEBA_NEW)) as device:
        tags = {"session_energy": "holding 1503 uint16", "spare": "holding 1001 uint16"}
        setup = Setup(device, tmp_path, profile="keba-p40", firmware="1.2.0", tags=tags, every="1h")
        await setup.source.connect([])
        values = await setup.values()
        assert (values["session_energy"], values["spare"]) == (700, 0)
        assert values["active_energy_total"] == 38101.0
        assert "as configured" in setup.source.info
        await setup.source.close()


async def test_a_gateway_that_starts_while_the_device_is_away_knows_its_tags(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Device(Meter(KEBA_OLD)) as device:
        setup = Setup(device, tmp_path, profile="auto")
        await setup.source.connect([])
        before = list(setup.tags)
        await setup.source.close()
        again = Setup(device, tmp_path, profile="auto")
        assert list(again.tags) == before
        assert list(Setup(device, tmp_path, profile="keba-p40").tags) == []  # other settings: learnt anew
        kept = tmp_path / "modbus" / "m.json"
        kept.write_bytes(kept.read_bytes().partition(b"\n")[2])  # as it was written before it had a checksum
        assert list(Setup(device, tmp_path, profile="auto").tags) == before
        kept.write_bytes(kept.read_bytes()[:-5])
        assert list(Setup(device, tmp_path, profile="auto").tags) == []
        assert "what the device was is lost" in caplog.text


async def test_unknown_firmware_is_flagged(tmp_path: Path) -> None:
    """The device does not tell it: the oldest map; only what other firmware counts otherwise is uncertain."""
    image = dict(KEBA_OLD)
    image["holding 1000"] = KEBA_OLD["holding 1000"][:18]
    async with Device(Meter(image)) as device:
        setup = Setup(device, tmp_path, profile="keba-p40")
        await setup.source.connect([])
        batch = await setup.source.read()
        flagged = {setup.tags[tag].name for tag in batch.tag[batch.flags & Flag.PROFILE_UNCERTAIN != 0]}
        good = {setup.tags[tag].name for tag in batch.tag[batch.status == GOOD]}
        assert flagged == {"active_energy_total", "session_energy"}
        assert not good & flagged
        assert "does not tell its firmware" in setup.source.info
        await setup.source.close()


def test_registers() -> None:
    """The double counts as the wire does."""
    assert Meter({"holding 5": [7]}).reply(b"\3\0\5\0\1") == b"\3\2" + registers(7)


async def test_the_profile_s_manners(tmp_path: Path, pauses: list[int]) -> None:
    """KEBA: one value a request, half a second between two; SMA: a time-out of 10 s, where the file has none."""
    meter = Meter(KEBA_OLD)
    async with Device(meter) as device:
        settings = ModbusDevice.model_validate({"modbus": device.url, "timeout": "60s", "profile": "keba-p40"})
        source = ModbusSource("m", 0, settings, TagTable(), Hurried(), tmp_path)
        await source.connect([])
        assert pauses[-1] == SECOND // 2
        asked = len(meter.reads)
        batch = await source.read()
        assert {count for _, _, count in meter.reads[asked:]} <= {1, 2}
        assert len({block[1] for block in meter.reads[asked:]}) == len(batch)
        await source.close()
        sma = ModbusDevice.model_validate({"modbus": device.url, "profile": "sma-inverter"})
        source = ModbusSource("m", 0, sma, TagTable(), Hurried(), tmp_path / "sma")
        assert source._link._timeout_s == 1.0
        await source.connect([])
        assert source._link._timeout_s == 10.0
        await source.close()


ONE = """
profile: one
protocol: modbus
vendor: Acme
models: [One]
grade: C
sources: [this test]
identify: [{gives: model, read: holding 0 uint16, values: {1: One}}]
match: [{model: One}]
tags: {power: {register: holding 1 uint16, unit: W}, state: {register: holding 2 uint16, labels: {1: run}}}
"""


async def test_another_device_at_the_same_place(tmp_path: Path) -> None:
    """A name never gets another unit: the new tag has a number behind its name, after a restart too; and back again."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "one.yaml").write_text(ONE)
    two = ONE.replace("one", "two").replace("One", "Two").replace("1: Two", "2: Two").replace("unit: W", "unit: kW")
    (tmp_path / "profiles" / "two.yaml").write_text(two)
    meter = Meter({"holding 0": [1, 500, 1]})
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="auto")
        await setup.source.connect([])
        assert await setup.values() == {"power": 500, "state": 1}
        meter.become({"holding 0": [2, 3, 1]})
        await setup.source.connect([])
        assert await setup.values() == {"power_2": 3, "state": 1}
        assert {tag.name: tag.unit for tag in setup.tags} == {"power": "W", "state": "", "power_2": "kW"}
        assert "profile one -> two" in setup.ledger.gaps[0].detail
        await setup.source.close()
        again = Setup(device, tmp_path, profile="auto")
        assert [tag.name for tag in again.tags] == ["power_2", "state"]
        meter.become({"holding 0": [1, 400, 1]})
        await again.source.connect([])
        assert await again.values() == {"power": 400, "state": 1}
        await again.source.close()


async def test_holes_are_those_of_one_device(tmp_path: Path) -> None:
    """Another one has the register that the former did not have."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "one.yaml").write_text(ONE)
    two = ONE.replace("one", "two").replace("One", "Two").replace("1: Two", "2: Two")
    (tmp_path / "profiles" / "two.yaml").write_text(two)
    meter = Meter({"holding 0": [1], "holding 2": [1]})
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="auto")
        await setup.source.connect([])
        assert [await setup.values() for _ in range(2)] == [{"power": None, "state": 1}] * 2
        assert list(setup.source.faults) == ["power"]
        meter.become({"holding 0": [2, 3, 1]})
        await setup.source.connect([])
        assert await setup.values() == {"power": 3, "state": 1}
        assert not setup.source.faults
        await setup.source.close()


async def test_a_profile_without_a_tag_for_this_device(tmp_path: Path) -> None:
    async with Device(Meter({"holding 0": [1]})) as device:
        setup = Setup(device, tmp_path, profile="sunspec")
        with pytest.raises(Permanent, match="profile sunspec has no tag for this device"):
            await setup.source.connect([])
        await setup.source.close()


async def test_two_profiles_that_fit_equally_well(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    for name in ("one", "other"):
        (tmp_path / "profiles" / f"{name}.yaml").write_text(ONE.replace("profile: one", f"profile: {name}"))
    async with Device(Meter({"holding 0": [1, 500, 1]})) as device:
        setup = Setup(device, tmp_path, profile="auto")
        with pytest.raises(Permanent, match="`one` and `other` fit this device equally well"):
            await setup.source.connect([])
        await setup.source.close()


SDM = {"holding 0xFC00": [0, 7, 112, 1], "input 52": [0, 0], "input 0": [0x4366, 0x8000]}


async def test_the_mains_go_off(tmp_path: Path) -> None:
    """A meter that was known by its frequency is still that meter when there is none; its word order stays, too."""
    meter = Meter(SDM | {"input 70": [0, 0x4248]})
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="auto")
        await setup.source.connect([])
        assert setup.source.identity["swapped"] == "yes"
        meter.become(SDM | {"input 70": [0, 0]})
        await setup.source.connect([])
        assert setup.source.identity["swapped"] == "yes"
        meter.become(SDM | {"input 70": [0x4248, 0]})
        await setup.source.connect([])
        assert setup.source.identity["swapped"] == "no"
        assert len(setup.ledger.gaps) == 1
        await setup.source.close()


async def test_a_question_that_is_not_answered_this_time(tmp_path: Path) -> None:
    """Half an identity is none: nothing is read by the map of an unknown firmware because one reply was lost."""
    meter = Meter(KEBA_OLD)
    async with Device(meter) as device:
        setup = Setup(device, tmp_path, profile="keba-p40", timeout="1s")
        await setup.source.connect([])
        await setup.source.close()
        device.answer = lambda request: b"" if request[8:10] == (1018).to_bytes(2, "big") else meter(request)
        with pytest.raises(NotConnected, match="does not answer all that it answered before"):
            await setup.source.connect([])
        device.answer = meter
        await setup.source.connect([])
        assert setup.source.identity["firmware"] == "1.2.0"
        assert setup.ledger.gaps == []
        await setup.source.close()


async def test_a_device_that_is_busy_is_not_one_without_a_version(tmp_path: Path) -> None:
    meter = Meter(KEBA_OLD)

    def busy(request: bytes) -> bytes:
        return request[:4] + b"\0\3" + request[6:7] + bytes([request[7] | 0x80, 6])

    async with Device(busy) as device:
        setup = Setup(device, tmp_path, profile="keba-p40")
        with pytest.raises(NotConnected, match="busy"):
            await setup.source.connect([])
        device.answer = meter
        await setup.source.connect([])
        assert setup.source.identity["firmware"] == "1.2.0"
        await setup.source.close()
