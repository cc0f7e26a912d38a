"""The source contract on every kind of machine: three OPC UA stacks, each also secured, three Modbus ones on every
transport."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from connectors.modbus_settings import ModbusDevice
from connectors.opcua_settings import OpcUaDevice
from tests.conftest import made
from tests.contract.source_suite import DEADLINE_S, Machine, SourceSuite
from tests.services.asyncua_server import AsyncuaServer, Secured
from tests.services.libmodbus import LibmodbusRtuServer, LibmodbusServer, coil, holding, input_register
from tests.services.milo import Group, Milo
from tests.services.node_modbus import NodeModbus, NodeModbusRtu
from tests.services.node_opcua import NodeOpcua
from tests.services.opcua_certificates import make
from tests.services.process import Service
from tests.services.pymodbus_server import PymodbusRtuServer, PymodbusServer
from tests.services.tls import Certificates

UTC_2020_NS = 1_577_836_800_000_000_000
PLANT: dict[str, Any] = {
    "Boolean": True,
    "SByte": -8,
    "Byte": 8,
    "Int16": -16,
    "UInt16": 16,
    "Int32": -32,
    "UInt32": 32,
    "Int64": -6_400_000_000_000_000_000,
    "UInt64": 12_800_000_000_000_000_000,
    "Float": 0.5,
    "String": "text",
    "DateTime": UTC_2020_NS,
    "Guid": "72962b91-fa75-4ae6-8d28-b404dc7daf63",
    "ByteString": b"\x00\x01\x02",
    "LocalizedText": "local",
    "DoubleArray": [0.25, 0.5],
    "Int32Array": [-1, 0, 1],
    "StringArray": ["a", "", "b"],
}
"""What the asyncua server and node-opcua both hold; `Double` is what the tests change."""


def opcua(server: Any, nodes: dict[str, str], **options: Any) -> OpcUaDevice:
    """Unsecured, but where a thumbprint is pinned: then SignAndEncrypt with the best policy."""
    security = "best" if "trust" in options else "none"
    settings = {"opcua": server.url, "security": security, "every": "50ms", "timeout": "20s", "tags": nodes}
    return OpcUaDevice.model_validate(settings | options)


def running(make: Callable[[], Service]) -> Iterator[Any]:
    with made(make) as server:
        yield server


def plant(server: Any, address: str, **options: Any) -> Machine:
    counter = itertools.count(1)
    names = [*PLANT, "Double", "Missing"]
    settings = opcua(server, {name: address.format(name) for name in names}, **options)
    return Machine(
        "opcua", server, settings, PLANT, "Missing", lambda: server.set_value("Double", float(next(counter)))
    )


class TestAsyncua(SourceSuite):
    """asyncua's own server."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(AsyncuaServer):
            yield plant(server, "ns=2;s={}")


class TestNodeOpcua(SourceSuite):
    """node-opcua: the second stack; its nodes by browse path."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(NodeOpcua):
            yield plant(server, "/Objects/Plant/{}")


class TestMilo(SourceSuite):
    """Eclipse Milo: the third stack; its `run` variable starts what changes."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(milo):
            yield load(server)


class TestAsyncuaSecured(SourceSuite):
    """asyncua's own server, SignAndEncrypt; the user is known by a password."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        secured = Secured(make("asyncua"), users={"operator": "secret"})
        auth = {"user": "operator", "password": "secret"}
        for server in running(lambda: AsyncuaServer(secured=secured)):
            yield plant(server, "ns=2;s={}", trust=secured.certificate.thumbprint, auth=auth)


class TestNodeOpcuaSecured(SourceSuite):
    """node-opcua, SignAndEncrypt."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(NodeOpcua):
            yield plant(server, "ns=1;s={}", trust=server.thumbprint)


class TestMiloSecured(SourceSuite):
    """Eclipse Milo, SignAndEncrypt."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(milo):
            yield load(server, trust=server.certificate.thumbprint)


def milo() -> Milo:
    return Milo([Group("v", "double", 20, 50)], ticks=3)


def load(server: Milo, **options: Any) -> Machine:
    settings = opcua(server, {f"v{i}": f"ns=2;s=v{i}" for i in range(20)} | {"bad": "ns=2;s=nope"}, **options)
    expected = _Any(f"v{i}" for i in range(20))
    return Machine("opcua", server, settings, expected, "bad", partial(_tick, server))


def _tick(server: Milo) -> None:
    server.go()
    server.wait_finished(DEADLINE_S)


class _Any(dict[str, Any]):
    """Tags whose value is not known beforehand: equal to whatever was read."""

    def __init__(self, names: Iterator[str]) -> None:
        super().__init__(dict.fromkeys(names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and set(self) == set(other) and None not in other.values()

    __hash__ = None  # type: ignore[assignment]


REGISTERS = {
    "first": "holding 0 uint16",
    "next": "holding 1 uint16",
    "far": "holding 500 uint16",
    "input": "input 12 uint16",
    "coil": "coil 3",
    "bit": "holding 0.1",
    "beyond": "holding 5000 uint16",
}
HELD = {
    "first": holding(0),
    "next": holding(1),
    "far": holding(500),
    "input": input_register(12),
    "coil": coil(3),
    "bit": bool(holding(0) >> 1 & 1),
}


def modbus(server: Any, **keys: Any) -> Machine:
    """On a serial line a unit that owes a reply is not asked before twice the time-out: short there."""
    settings = ModbusDevice.model_validate(
        {"modbus": f"{server.url}/1", "every": "50ms", "timeout": "20s", "tags": REGISTERS, **keys}
    )
    return Machine(
        "modbus", server, settings, HELD, "beyond", transport="udp" if settings.url.scheme == "udp" else "tcp"
    )


class TestPymodbusTcp(SourceSuite):
    """pymodbus' own server, Modbus TCP."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(PymodbusServer):
            yield modbus(server)


class TestPymodbusRtuOverTcp(SourceSuite):
    """pymodbus' own server, RTU frames over TCP."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(lambda: PymodbusServer(framer="rtu")):
            yield modbus(server)


class TestPymodbusRtu(SourceSuite):
    """pymodbus' own server on a serial line."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(PymodbusRtuServer):
            yield modbus(server, timeout="3s")


class TestPymodbusUdp(SourceSuite):
    """pymodbus' own server, datagrams."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(lambda: PymodbusServer(transport="udp")):
            yield modbus(server)


class TestPymodbusTls(SourceSuite):
    """pymodbus' own server, Modbus/TCP Security: it wants a certificate of the gateway."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls, certificates: Certificates) -> Iterator[Machine]:
        tls = {"ca": certificates.ca, "cert": certificates.client, "key": certificates.client_key}
        for server in running(lambda: PymodbusServer(transport="tls", tls=certificates)):
            yield modbus(server, tls=tls)


class TestLibmodbus(SourceSuite):
    """A foreign stack: libmodbus in C."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(LibmodbusServer):
            yield modbus(server)


class TestLibmodbusPipelined(SourceSuite):
    """The same with several requests outstanding."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(LibmodbusServer):
            yield modbus(server, pipeline=4)


class TestLibmodbusRtu(SourceSuite):
    """libmodbus on a serial line."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(LibmodbusRtuServer):
            yield modbus(server, timeout="3s")


class TestNodeModbus(SourceSuite):
    """The second foreign stack: modbus-serial on Node.js."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(NodeModbus):
            yield modbus(server)


class TestNodeModbusRtu(SourceSuite):
    """modbus-serial on a serial line."""

    @pytest.fixture(scope="class")
    @classmethod
    def machine(cls) -> Iterator[Machine]:
        for server in running(NodeModbusRtu):
            yield modbus(server, timeout="3s")
