"""ModbusSource against real servers: pymodbus (TCP and RTU over TCP) and a foreign one on libmodbus, in processes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest

from connectors.modbus import ModbusSource
from connectors.modbus_settings import ModbusDevice
from pipelines.batch import BAD_TIMEOUT, GOOD
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected, Permanent
from pipelines.tags import TagTable
from tests.services import libmodbus
from tests.services.libmodbus import LibmodbusRtuServer, LibmodbusServer
from tests.services.pymodbus_server import Image, PymodbusServer
from tests.services.tls import Certificates

StartPymodbus = Callable[..., PymodbusServer]
Framer = Literal["socket", "rtu"]
FRAMERS: tuple[Framer, ...] = ("socket", "rtu")


class Setup:
    def __init__(self, url: str, tags: dict[str, Any], folder: Path, **settings: Any) -> None:
        self.tags = TagTable()
        model = ModbusDevice.model_validate(
            {"modbus": url, "tags": tags, "every": "20ms", "timeout": "60s", **settings}
        )
        self.source = ModbusSource("m", 0, model, self.tags, SystemClock(), folder)

    async def rows(self) -> dict[str, tuple[Any, int]]:
        """One cycle: tag name -> value, status."""
        batch = await self.source.read()
        names = [self.tags[tag].name for tag in batch.tag]
        return dict(zip(names, zip(batch.values(), batch.status.tolist(), strict=True), strict=True))

    async def rows_when(self, condition: Callable[[dict[str, tuple[Any, int]]], bool]) -> dict[str, tuple[Any, int]]:
        """The first cycle that fulfils the condition; the deadline is far away and fails the test."""
        async with asyncio.timeout(60):
            while not condition(rows := await self.rows()):
                continue
            return rows


@asynccontextmanager
async def connected(url: str, tags: dict[str, Any], **settings: Any) -> AsyncIterator[Setup]:
    with TemporaryDirectory() as folder:
        setup = Setup(url, tags, Path(folder), **settings)
        await setup.source.connect([])
        try:
            yield setup
        finally:
            await setup.source.close()


ADDRESSES = [*range(0, 300, 3), *range(1000, 1100), 1999]
TABLES = {f"{table}{at}": f"{table} {at} uint16" for table in ("holding", "input") for at in ADDRESSES}
TABLES |= {f"{table}{at}": f"{table} {at}" for table in ("coil", "discrete") for at in ADDRESSES}
CONTENT: dict[str, tuple[Any, int]] = {
    **{f"holding{at}": (libmodbus.holding(at), GOOD) for at in ADDRESSES},
    **{f"input{at}": (libmodbus.input_register(at), GOOD) for at in ADDRESSES},
    **{f"coil{at}": (libmodbus.coil(at), GOOD) for at in ADDRESSES},
    **{f"discrete{at}": (libmodbus.discrete_input(at), GOOD) for at in ADDRESSES},
}


async def test_all_four_tables_of_a_foreign_server(libmodbus_server: LibmodbusServer) -> None:
    async with connected(libmodbus_server.url + "/1", TABLES) as setup:
        assert await setup.rows() == CONTENT
        assert setup.source.counters.totals["requests"] < 20


@pytest.mark.parametrize("framer", FRAMERS)
async def test_all_four_tables_of_pymodbus(pymodbus_server: StartPymodbus, framer: Framer) -> None:
    server = pymodbus_server(framer=framer)
    async with connected(server.url + "/1", TABLES) as setup:
        assert await setup.rows() == CONTENT


async def test_beyond_a_foreign_server_only_the_wrong_register_fails(libmodbus_server: LibmodbusServer) -> None:
    tags = {f"h{at}": f"holding {at} uint16" for at in range(1990, 2001)}
    async with connected(libmodbus_server.url, tags) as setup:
        expected = {f"h{at}": (libmodbus.holding(at), GOOD) for at in range(1990, 2000)}
        assert await setup.rows() == expected | {"h2000": (None, 0x8034_0000)}
        assert list(setup.source.faults) == ["h2000"]


MBPOLL = {"coil": "0", "discrete": "1", "input": "3", "holding": "4"}
"""Table -> mbpoll's number of it."""


@pytest.mark.parametrize("table", MBPOLL)
@pytest.mark.parametrize("serial", [False, True])
async def test_mbpoll_reads_what_the_gateway_reads(
    libmodbus_server: LibmodbusServer, libmodbus_rtu_server: LibmodbusRtuServer, table: str, serial: bool
) -> None:
    server = libmodbus_rtu_server if serial else libmodbus_server
    tags = {f"{at}": f"{table} {at}" + ("" if table in {"coil", "discrete"} else " uint16") for at in range(40, 60)}
    async with connected(server.url + "/1", tags) as setup:
        ours = {int(name): int(value) for name, (value, _) in (await setup.rows()).items()}
    if isinstance(server, LibmodbusRtuServer):
        place = ["-m", "rtu", "-b", "19200", "-P", "none", str(server.line.gateway_port)]
    else:
        place = ["-p", str(server.port), "127.0.0.1"]
    theirs = await asyncio.to_thread(libmodbus.mbpoll, "-t", MBPOLL[table], "-r", "40", "-c", "20", *place)
    assert ours == {at: value % 65_536 for at, value in theirs.items()} and len(ours) == 20


ORDERS: dict[str, Callable[[bytes], bytes]] = {
    "big": lambda data: data,
    "little": lambda data: b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2)),
    "big-byte-swapped": lambda data: b"".join(data[at : at + 2][::-1] for at in range(0, len(data), 2)),
    "little-byte-swapped": lambda data: data[::-1],
}
VALUES: list[tuple[str, str, Any]] = [
    ("int16", ">h", -12345),
    ("uint16", ">H", 54321),
    ("int32", ">i", -123_456_789),
    ("uint32", ">I", 4_000_000_001),
    ("int64", ">q", -(2**63)),
    ("uint64", ">Q", 2**64 - 3),
    ("float32", ">f", 12.625),
    ("float64", ">d", 0.1),
]


@pytest.mark.parametrize("framer", FRAMERS)
async def test_every_type_in_every_word_order(pymodbus_server: StartPymodbus, framer: Framer) -> None:
    tags: dict[str, Any] = {"name": "holding 0 string 9", "bit": "holding 5.9 bool"}
    data = b"Motor 7\0\0\0" + bytes([0b10, 0])
    expected: dict[str, tuple[Any, int]] = {"name": ("Motor 7", GOOD), "bit": (True, GOOD)}
    for order, arrange in ORDERS.items():
        for kind, layout, value in VALUES:
            tags[f"{kind} {order}"] = {"register": f"holding {len(data) // 2} {kind}", "word_order": order}
            data += arrange(struct.pack(layout, value))
            expected[f"{kind} {order}"] = (value, GOOD)
    image: Image = {"holding": {0: struct.unpack(f">{len(data) // 2}H", data)}}
    server = pymodbus_server(framer=framer, image=image)
    async with connected(server.url + "/1", tags) as setup:
        assert await setup.rows() == expected


async def test_a_changed_register_comes_with_a_later_cycle(pymodbus_server: StartPymodbus) -> None:
    server = pymodbus_server(image={"holding": {100: [1, 2]}})
    async with connected(server.url, {"a": "holding 100 uint16", "b": "holding 101 uint16"}) as setup:
        assert await setup.rows() == {"a": (1, GOOD), "b": (2, GOOD)}
        await asyncio.to_thread(server.set_values, "holding", 101, [77])
        assert (await setup.rows())["b"] == (77, GOOD)


RIGHT = {"a": (libmodbus.holding(0), GOOD), "b": (libmodbus.holding(100), GOOD)}
LATE = {"a": (None, BAD_TIMEOUT), "b": (None, BAD_TIMEOUT)}
TWO_BLOCKS = {"a": "holding 0 uint16", "b": "holding 100 uint16"}
"""A late reply to the one request has the shape of the other's."""


@pytest.mark.parametrize("pipeline", [1, 4])
async def test_late_replies_of_a_foreign_server_arrive_nowhere(
    libmodbus_server: LibmodbusServer, pipeline: int
) -> None:
    async with connected(libmodbus_server.url, TWO_BLOCKS, timeout="500ms", pipeline=pipeline) as setup:
        assert await setup.rows_when(RIGHT.__eq__) == RIGHT
        libmodbus_server.process.pause()
        try:
            assert await setup.rows() == LATE
        finally:
            libmodbus_server.process.resume()
        for _ in range(5):
            rows = await setup.rows()
            assert all(rows[name] in (RIGHT[name], LATE[name]) for name in RIGHT)
        assert await setup.rows_when(RIGHT.__eq__) == RIGHT


async def test_late_replies_under_a_new_transaction_id_are_never_the_next_value(
    pymodbus_server: StartPymodbus,
) -> None:
    """pymodbus's server gives the reply to an old request the transaction id of the newest."""
    server = pymodbus_server()
    async with connected(server.url, TWO_BLOCKS, timeout="500ms") as setup:
        assert await setup.rows_when(RIGHT.__eq__) == RIGHT
        await asyncio.to_thread(server.set_delay, 750)
        assert await setup.rows() == LATE
        await asyncio.to_thread(server.set_delay, 0)
        for _ in range(5):
            rows = await setup.rows()
            assert all(rows[name] in (RIGHT[name], LATE[name]) for name in RIGHT)


async def test_late_replies_on_a_serial_line_are_never_the_next_value(pymodbus_server: StartPymodbus) -> None:
    server = pymodbus_server(framer="rtu")
    async with connected(server.url, TWO_BLOCKS, timeout="500ms") as setup:
        assert await setup.rows_when(RIGHT.__eq__) == RIGHT
        await asyncio.to_thread(server.set_delay, 750)
        assert await setup.rows() == LATE
        assert await setup.rows() == LATE
        await asyncio.to_thread(server.set_delay, 0)
        for _ in range(5):
            rows = await setup.rows()
            assert all(rows[name] in (RIGHT[name], LATE[name]) for name in RIGHT)
        assert await setup.rows_when(RIGHT.__eq__) == RIGHT


async def test_a_restarted_server_is_read_again_after_connect(pymodbus_server: StartPymodbus) -> None:
    server = pymodbus_server()
    async with connected(server.url, {"a": "holding 1 uint16"}) as setup:
        first = await setup.source.read()
        await asyncio.to_thread(server.kill)
        with pytest.raises(NotConnected):
            await setup.rows()
        with pytest.raises(NotConnected, match="connection refused"):
            await setup.source.connect([])
        await asyncio.to_thread(server.start)
        await setup.source.connect([])
        again = await setup.source.read()
        assert again.number == first.number + 1
        assert again.values() == first.values() == [libmodbus.holding(1)]


async def test_a_half_open_device_is_given_up(pymodbus_server: StartPymodbus) -> None:
    server = pymodbus_server(silent=True)
    async with connected(server.url, {"a": "holding 1 uint16"}, timeout="500ms") as setup:
        for _ in range(3):
            assert await setup.rows() == {"a": (None, BAD_TIMEOUT)}
        with pytest.raises(NotConnected, match="no reply in 3 poll cycles"):
            await setup.rows()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"ca": "ca"}, "most devices want a certificate of the gateway"),
        ({"cert": "client", "key": "client_key"}, "the device's certificate is not trusted"),
    ],
)
async def test_certificates_that_do_not_fit_are_one_clear_line(
    pymodbus_server: StartPymodbus, certificates: Certificates, files: dict[str, str], reason: str, tmp_path: Path
) -> None:
    """Modbus/TCP Security: both sides show one. With TLS 1.3 the client finds out when it reads."""
    server = pymodbus_server(transport="tls", tls=certificates)
    tls = {key: str(getattr(certificates, name)) for key, name in files.items()}
    setup = Setup(server.url, {"a": "holding 1 uint16"}, tmp_path, tls=tls)
    with pytest.raises((Permanent, NotConnected), match=reason):
        await setup.source.connect([])
    await setup.source.close()
