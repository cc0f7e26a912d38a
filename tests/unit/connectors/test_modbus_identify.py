"""What a device says of itself: functions 43/14 and 17, registers; over TCP and RTU."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from connectors.modbus_identify import GRAMMARS, Interview, device_identification, probed, server_id
from connectors.modbus_link import ModbusLink
from connectors.modbus_profile import Probe
from connectors.modbus_url import parse_url
from pipelines.counters import Counters
from tests.unit.connectors.modbus_device import Device, registers, rtu_frame
from tests.unit.connectors.modbus_meter import KBR, Hurried, Meter, without_pauses

SECOND = 10**9


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What connections were told to leave between requests, in ns; they leave none."""
    return without_pauses(monkeypatch)


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


def test_registers() -> None:
    """The double counts as the wire does."""
    assert Meter({"holding 5": [7]}).reply(b"\3\0\5\0\1") == b"\3\2" + registers(7)
