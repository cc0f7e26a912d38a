"""Types, holes, dead units and writes against real servers: pymodbus, and a foreign one on libmodbus."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.modbus_link import ModbusLink
from connectors.modbus_register import parse_register
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_url import parse_url
from connectors.modbus_write import Written, write
from connectors.modbus_writer import ModbusWriter
from gateway.cli import main
from pipelines.batch import GOOD
from pipelines.clock import SystemClock
from pipelines.commands import Outcome, Refused
from pipelines.counters import Counters
from tests.integration.test_modbus import FRAMERS, ORDERS, Framer, connected
from tests.services import libmodbus
from tests.services.libmodbus import LibmodbusServer
from tests.services.pymodbus_server import Image, PymodbusServer

StartPymodbus = Callable[..., PymodbusServer]
ILLEGAL = 0x8034_0000
BAD_NO_DATA = 0x809B_0000


@pytest.mark.parametrize("framer", FRAMERS)
async def test_every_further_type_in_every_word_order(pymodbus_server: StartPymodbus, framer: Framer) -> None:
    values: list[tuple[str, bytes, Any]] = [
        ("float16", struct.pack(">e", 1.5), 1.5),
        ("bcd16", bytes.fromhex("1234"), 1234),
        ("bcd32", bytes.fromhex("98765432"), 98765432),
        ("unix32", struct.pack(">I", 1_795_442_709), 1_795_442_709 * 10**9),
        ("iec870", bytes.fromhex("001A0B370E0523BE"), 1_795_442_709_150 * 10**6),
    ]
    tags: dict[str, Any] = {}
    data, expected = b"", {}
    for order, arrange in ORDERS.items():
        for kind, raw, value in values:
            tags[f"{kind} {order}"] = {"register": f"holding {len(data) // 2} {kind}", "word_order": order}
            data += arrange(raw)
            expected[f"{kind} {order}"] = (value, GOOD)
    at = len(data) // 2
    data += struct.pack(">hhHhH3f", 231, -1, 0xFFFF, -5, 0x0702, 1.5, 2.5, -0.0) + "Öl".encode("latin-1") + b"\0\0"
    tags |= {
        "w": {"register": f"holding {at} int16", "scale_from": f"holding {at + 1} int16"},
        "none": {"register": f"holding {at + 2} uint16", "invalid": [0xFFFF]},
        "array": f"holding {at} int16[2]",
        "floats": f"holding {at + 5} float32[3]",
        "low": f"holding {at + 4} uint8",
        "high": f"holding {at + 4}.high int8",
        "state": {"register": f"holding {at + 4} uint16", "values": {0x0702: "RUN"}},
        "text": {"register": f"holding {at + 11} string 4", "encoding": "latin-1"},
    }
    expected |= {
        "w": (23.1, GOOD),
        "none": (None, BAD_NO_DATA),
        "array": ([231, -1], GOOD),
        "floats": ([1.5, 2.5, -0.0], GOOD),
        "low": (2, GOOD),
        "high": (7, GOOD),
        "state": (0x0702, GOOD),
        "text": ("Öl", GOOD),
    }
    image: Image = {"holding": {0: struct.unpack(f">{len(data) // 2}H", data)}}
    server = pymodbus_server(framer=framer, image=image)
    async with connected(server.url + "/1", tags) as setup:
        assert await setup.rows() == expected
        [state] = [tag for tag in setup.tags if tag.name == "state"]
        assert (state.labels, state.bits) == (((0x0702, "RUN"),), False)


async def test_holes_of_pymodbus_are_learnt(pymodbus_server: StartPymodbus) -> None:
    """Blocks 0-9, 12-19 and 25; tags on both sides of the holes, and one in a hole."""
    server = pymodbus_server(image={"holding": {0: [*range(10)], 12: [*range(12, 20)], 25: [25]}})
    here = [8, 9, 12, 13, 19, 25]
    tags = {f"h{at}": f"holding {at} uint16" for at in [*here, 22]}
    async with connected(server.url, tags) as setup:
        for _ in range(5):
            expected = {f"h{at}": (at, GOOD) for at in here} | {"h22": (None, ILLEGAL)}
            assert await setup.rows() == expected
        before = setup.source.counters.snapshot()
        await setup.rows()
        after = setup.source.counters.snapshot()
        assert (after["requests"] - before["requests"], after["exceptions"] - before["exceptions"]) == (3, 0)


async def test_the_end_of_a_foreign_server_is_met_once(libmodbus_server: LibmodbusServer) -> None:
    tags = {f"h{at}": f"holding {at} uint16" for at in range(1990, 2003)}
    async with connected(libmodbus_server.url, tags) as setup:
        for _ in range(3):
            rows = await setup.rows()
            assert [name for name, (_, status) in rows.items() if status] == ["h2000", "h2001", "h2002"]
        assert setup.source.counters.totals["exceptions"] <= 8
        refused = setup.source.counters.totals["exceptions"]
        await setup.rows()
        assert setup.source.counters.totals["exceptions"] == refused


VALUES: list[tuple[str, Any]] = [
    ("holding 3 int16", -5),
    ("holding 4 float32", 12.5),
    ("holding 6 uint16[4]", [1, 2, 3, 4]),
    ("holding 10 string 6", "abc"),
    ("holding 13.3 bool", True),
    ("holding 14.high uint8", 7),
    ("coil 9", True),
    ("coil 10 bool[10]", [True, False] * 5),
]


async def test_a_foreign_server_is_written() -> None:
    """One of its own: the shared one keeps its image."""
    with LibmodbusServer() as server:
        url = parse_url(server.url)
        link = ModbusLink(url, 60 * 10**9, SystemClock(), Counters("source", "m"))
        await link.connect()
        try:
            for register, value in VALUES:
                assert await write(link, url, parse_register(register, "p"), value) == Written(value, True)
            point = parse_register("holding 3 int16", "p")
            assert await write(link, url, point, 77, function=23) == Written(77, True)
        finally:
            await link.close()


async def test_commands_reach_a_foreign_server(tmp_path: Path) -> None:
    with LibmodbusServer() as server:
        tags = {"speed": "holding 3 int16", "far": "holding 5000 int16", "run": "coil 9", "seen": "input 3 int16"}
        settings = ModbusDevice.model_validate({"modbus": server.url, "timeout": "60s", "tags": tags})
        writer = ModbusWriter(settings, tmp_path)
        try:
            assert await writer.read("speed") == libmodbus.holding(3)
            assert await writer.write("speed", -7) == Outcome(0, value=-7)
            assert await writer.read("speed") == -7
            assert (await writer.write("run", True)).good
            for tag, value, status in [("far", 1, ILLEGAL), ("speed", 70_000, 0x803C_0000), ("seen", 1, 0x803C_0000)]:
                with pytest.raises(Refused) as caught:
                    await writer.write(tag, value)
                assert caught.value.status == status
            with pytest.raises(Refused, match="no methods"):
                await writer.call("start", [])
        finally:
            await writer.close()


def test_scan_and_try(libmodbus_server: LibmodbusServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["modbus", "scan", libmodbus_server.url, "--units", "1-3,9", "--pause", "1ms", "--timeout", "60s"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[1] for line in shown.out.splitlines()] == ["1", "2", "3", "9"]
    assert f"holding 0 = {libmodbus.holding(0)}" in shown.out
    assert "4 units of 4 tried" in shown.err
    assert main(["modbus", "try", libmodbus_server.url, "holding", "40", "4", "--timeout", "60s"]) == 0
    shown = capsys.readouterr()
    words = [libmodbus.holding(at) for at in range(40, 44)]
    long = struct.unpack(">q", struct.pack(">4H", *words))[0]
    lines = {tuple(line.split()[:3]) for line in shown.out.splitlines()}
    assert ("41", "uint16", str(words[1])) in lines
    assert ("40", "int64", str(long)) in lines
    assert main(["modbus", "try", libmodbus_server.url, "coil", "0", "3", "--timeout", "60s"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["0        1", "1        0", "2        0"]


def test_wrong_use_is_one_clear_line(libmodbus_server: LibmodbusServer, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, text in [
        (["try", libmodbus_server.url, "holdings", "0"], 2, "there is no table"),
        (["try", "http://x", "holding", "0"], 2, "is not a Modbus address"),
        (["try", libmodbus_server.url, "holding", "1999", "2"], 1, "illegal data address"),
        (["scan", libmodbus_server.url, "--units", "5-1"], 2, "the lower one first"),
        (["scan", libmodbus_server.url, "--units", "one"], 2, "write unit ids"),
        (["scan", "tcp://127.0.0.1:1"], 1, "connection refused"),
    ]:
        assert main(["modbus", *arguments]) == code
        assert text in capsys.readouterr().err
