"""Fixtures: the real servers. A server that cannot be had skips its tests loudly, and fails them where CI is set."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from connectors.network import new_loop
from gateway.log import ROOMS
from tests.services.asyncua_server import AsyncuaServer
from tests.services.faketime import FakeTime
from tests.services.far import FarMosquitto
from tests.services.kafka import Kafka
from tests.services.libmodbus import LibmodbusRtuServer, LibmodbusServer
from tests.services.link import Link
from tests.services.milo import Milo
from tests.services.milo_plant import MiloPlant
from tests.services.mosquitto import Mosquitto
from tests.services.node_opcua import NodeOpcua
from tests.services.node_opcua_plant import NodePlant
from tests.services.paths import Paths
from tests.services.process import Service, ServiceMissing
from tests.services.pymodbus_server import PymodbusServer
from tests.services.tls import Certificates, make_certificates

# A test's JVM lives for seconds: the second compiler costs more than it gives.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ServiceT = TypeVar("ServiceT", bound=Service | Link | Paths)
Made = TypeVar("Made")
Factory = Callable[..., ServiceT]


class _ByClass(LoadScopeScheduling):  # type: ignore[misc]  # xdist says nothing about its types
    """Tests of one class share a server: they stay on one worker. Any other goes to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, inside = nodeid.partition("::")
        name = inside.partition("[")[0]
        return f"{file}::{name.partition('::')[0]}" if "::" in name else nodeid


def pytest_configure() -> None:
    """Processes inherit what is ignored, and a shell lets what it runs in the background ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByClass:
    """The biggest classes come first, then test by test in the order of the files."""
    return _ByClass(config, log)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every async test runs on the loop that the gateway runs on."""
    return {"uvloop": new_loop}


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that runs in the test's process sets up the log: for itself, not for the tests that follow."""
    loggers = [logging.getLogger(), *map(logging.getLogger, ROOMS)]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA with a server's and a client's certificate."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Mosquitto]:
    """A plain broker, shared: use topics of your own. A test that stops its broker makes one by mosquitto_factory."""
    with made(Mosquitto) as broker:
        yield broker


@pytest.fixture
def mosquitto_factory() -> Iterator[Factory[Mosquitto]]:
    """Starts brokers of one's own: mosquitto_factory(users=..., tls=..., ...)."""
    yield from _factory(Mosquitto)


@pytest.fixture
def fake_time(tmp_path: Path) -> FakeTime:
    """The wall clock of a process that gets its `env`."""
    return made(lambda: FakeTime(tmp_path))


@pytest.fixture
def link() -> Iterator[Link]:
    """A link of one's own, to a network where `far_mosquitto` is."""
    with made(Link) as bad:
        yield bad


@pytest.fixture
def far_mosquitto(link: Link) -> Iterator[FarMosquitto]:
    """A broker of one's own behind a link that can be cut."""
    with made(lambda: FarMosquitto(link)) as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A plain broker, shared: use topics of your own. A test that stops its broker makes one by kafka_factory."""
    with made(Kafka) as broker:
        yield broker


@pytest.fixture
def kafka_factory() -> Iterator[Factory[Kafka]]:
    """Starts brokers of one's own: kafka_factory(users=..., tls=..., ...)."""
    yield from _factory(Kafka)


@pytest.fixture
def milo() -> Iterator[Factory[Milo]]:
    """Starts foreign OPC UA load generators: milo([Group("v", "double", 1000, 10)], ticks=...)."""
    yield from _factory(Milo)


@pytest.fixture(scope="session")
def node_opcua() -> Iterator[NodeOpcua]:
    """The second foreign OPC UA server, shared, with user "operator" and password "secret"."""
    with made(lambda: NodeOpcua(user="operator", password="secret")) as server:
        yield server


@pytest.fixture(scope="session")
def node_plant() -> Iterator[NodePlant]:
    """node-opcua with events, an alarm, variables to write and methods, shared."""
    with made(NodePlant) as plant:
        yield plant


@pytest.fixture(scope="session")
def milo_plant() -> Iterator[MiloPlant]:
    """Eclipse Milo with events, variables to write and a method, shared."""
    with made(MiloPlant) as plant:
        yield plant


@pytest.fixture
def asyncua_server() -> Iterator[Factory[AsyncuaServer]]:
    """Starts asyncua servers: asyncua_server(doubles=...)."""
    yield from _factory(AsyncuaServer)


@pytest.fixture
def pymodbus_server() -> Iterator[Factory[PymodbusServer]]:
    """Starts pymodbus servers: pymodbus_server(framer="rtu", image=..., delay_ms=..., silent=...)."""
    yield from _factory(PymodbusServer)


@pytest.fixture(scope="session")
def libmodbus_server() -> Iterator[LibmodbusServer]:
    """The foreign Modbus server, shared; coils and holding registers can be written."""
    with made(LibmodbusServer) as server:
        yield server


@pytest.fixture(scope="session")
def libmodbus_rtu_server() -> Iterator[LibmodbusRtuServer]:
    """The same on a serial line, shared."""
    with made(LibmodbusRtuServer) as server:
        yield server


def made(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except ServiceMissing as error:
        if os.environ.get("CI"):
            pytest.fail(f"no skips in CI: {error}", pytrace=False)
        pytest.skip(f"NOT TESTED: {error}")


def _factory(kind: type[ServiceT]) -> Iterator[Factory[ServiceT]]:
    with ExitStack() as servers:

        def start(*args: Any, **kwargs: Any) -> ServiceT:
            server = made(lambda: kind(*args, **kwargs))
            servers.enter_context(server)
            return server

        yield start
