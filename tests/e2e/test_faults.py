"""What is wrong is said once, clearly, in the log and in /health; everything else runs; what comes back is taken up."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import made
from tests.e2e.consumers import Subscriber, read_topic, values
from tests.e2e.gateway_process import COMPLAINTS, Gateway
from tests.services.asyncua_server import AsyncuaServer
from tests.services.kafka import Kafka
from tests.services.libmodbus import LIMIT, LibmodbusServer, holding
from tests.services.mosquitto import Mosquitto
from tests.services.node_opcua import NodeOpcua
from tests.services.ports import HOST
from tests.services.pymodbus_server import PymodbusServer
from tests.services.tls import Certificates

UP_AGAIN_S = 120.0
"""Longer than the longest pause between two attempts of a component that is down."""

# Component -> what its one line must hold beside its name: where, what, and what to do.
FAULTY_TAGS: dict[str, tuple[str, ...]] = {
    "machine": ("wrong_node", "ns=2;s=Nowhere", "BadNodeIdUnknown", "check the node id"),
    "meter": ("wrong_register", f"holding {LIMIT + 5}", "illegal data address", "check the address"),
}
REFUSED: dict[str, tuple[str, ...]] = {
    "stranger": ("faulted", "127.0.0.1:{port}", "certificate is not trusted", "gateway trust approve stranger"),
    "locked": ("faulted", "127.0.0.1:{port}", "does not authorize this client", "check auth"),
    "unproven": ("faulted", "localhost:{port}", "certificate is not trusted", "set tls: {{ca: FILE}}"),
}
OFF: dict[str, tuple[str, ...]] = {
    "machine_off": ("down", "127.0.0.1:{port}", "connection refused"),
    "meter_off": ("down", "127.0.0.1:{port}", "connection refused"),
    "log_off": ("down", "127.0.0.1:{port}", "connection refused"),
}


def test_faults_are_named_once_and_harm_nothing_else(
    asyncua_server: Callable[..., AsyncuaServer],
    libmodbus_server: LibmodbusServer,
    node_opcua: NodeOpcua,
    mosquitto_factory: Callable[..., Mosquitto],
    certificates: Certificates,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Eight faults at once in one gateway: see REFUSED, OFF and FAULTY_TAGS; then what was off is switched on."""
    machine, broker = asyncua_server(), mosquitto_factory()
    locked = mosquitto_factory(users={"gateway": "right"})
    unproven = mosquitto_factory(tls=certificates)
    machine_off, meter_off, log_off = made(AsyncuaServer), made(PymodbusServer), made(Kafka)
    for server in (machine_off, meter_off, log_off):
        request.addfinalizer(server.close)
    on = {"stranger": node_opcua.port, "locked": locked.port, "unproven": unproven.tls_port}
    off = {"machine_off": machine_off.port, "meter_off": meter_off.port, "log_off": log_off.port}
    topic = f"faults-{uuid.uuid4().hex[:8]}"
    gateway = Gateway(
        devices={
            "machine": _opcua(machine.url, {"good": "ns=2;s=Double", "wrong_node": "ns=2;s=Nowhere"}),
            "meter": _modbus(
                libmodbus_server.url, {"good": "holding 7 uint16", "wrong_register": f"holding {LIMIT + 5} uint16"}
            ),
            "machine_off": _opcua(machine_off.url, {"good": "ns=2;s=Double"}),
            "meter_off": _modbus(meter_off.url, {"good": "holding 7 uint16"}),
            "stranger": {"opcua": node_opcua.url, "tags": {"good": "ns=1;s=Double"}},
        },
        send={f"to-{name}": {"from": "*", "to": name} for name in ("broker", "locked", "unproven", "log_off")},
        to={
            "broker": {"mqtt": broker.url},
            "locked": {"mqtt": locked.url, "auth": {"user": "gateway", "password": "wrong"}},
            "unproven": {"mqtt": unproven.tls_url},
            "log_off": {"kafka": f"{HOST}:{log_off.port}", "topic": topic},
        },
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        _check_all(gateway, on | off)
        machine.set_value("Double", 4711.25)
        subscriber.wait_text("4711.25")
        assert set(values(subscriber.messages(), "meter", "good")) == {holding(7)}
        quiet = len(gateway.log_about("", *COMPLAINTS))
        for server in (machine_off, meter_off, log_off):
            server.start()
        _check_taken_up(gateway)
        machine_off.set_value("Double", 815.5)
        subscriber.wait_text("815.5")
        lines = gateway.log_about("", *COMPLAINTS)
        assert len(lines) == quiet == len(FAULTY_TAGS) + len(REFUSED) + len(OFF), "\n".join(lines)
        assert gateway.end() == 0
    recorded = read_topic(f"{HOST}:{log_off.port}", topic)
    assert set(values(recorded, "meter", "good")) == {holding(7)}
    assert 4711.25 in values(recorded, "machine", "good"), "reported while the log was off"


def _check_all(gateway: Gateway, ports: dict[str, int]) -> None:
    """Each fault is named, and the gateway goes on."""
    for name, wanted in REFUSED.items():
        _check_named(gateway, name, gateway.wait_state(name, "faulted"), wanted, ports[name])
    for name, wanted in OFF.items():
        _wait_attempts(gateway, name, 2)
        _check_named(gateway, name, gateway.component(name), wanted, ports[name])
    for name, wanted in FAULTY_TAGS.items():
        _check_faulty_tag(gateway, name, gateway.wait_state(name, "degraded"), wanted)
    assert gateway.health()["status"] == "degraded"
    assert gateway.page("/health")[0] == 200


def _check_taken_up(gateway: Gateway) -> None:
    """What is on now works, and the log says so once."""
    for name in OFF:
        gateway.wait_state(name, "up", UP_AGAIN_S)
    gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "to-log_off") > 0, "row in the log that was off")
    for name in OFF:
        assert len(gateway.log_about(f" {name}: up again", "info")) == 1


def _opcua(url: str, tags: dict[str, str]) -> dict[str, Any]:
    return {"opcua": url, "security": "none", "every": "100ms", "tags": tags}


def _modbus(url: str, tags: dict[str, str]) -> dict[str, Any]:
    return {"modbus": url, "every": "100ms", "tags": tags}


def _wait_attempts(gateway: Gateway, name: str, attempts: int) -> None:
    gateway.wait_for(lambda: gateway.component(name).get("attempts", 0) >= attempts, f"attempt {attempts} of {name}")


def _check_named(gateway: Gateway, name: str, shown: dict[str, Any], wanted: tuple[str, ...], port: int) -> None:
    """`/health` and exactly one line of the log say what is wrong with a component, where, and what to do."""
    state, *words = wanted
    assert shown["state"] == state
    lines = [line for line in gateway.log_about("", *COMPLAINTS) if line.split(":")[0].endswith(f" {name}")]
    assert len(lines) == 1, "\n".join(lines)
    for text in (shown["reason"], lines[0]):
        for word in words:
            assert word.format(port=port).lower() in text.lower()


def _check_faulty_tag(gateway: Gateway, device: str, shown: dict[str, Any], wanted: tuple[str, ...]) -> None:
    tag, *words = wanted
    assert list(shown["faults"]) == [tag]
    [line] = gateway.log_about(tag, *COMPLAINTS)
    assert device in line
    for word in words:
        assert word in shown["faults"][tag]
        assert word in line
