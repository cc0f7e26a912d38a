"""Start, pages and stop of the process: what operators, supervisors and scrapers of it rely on."""

import re
import signal
import socket
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from connectors.opcua_pki import TRUSTED, move
from tests.e2e.consumers import Subscriber, missing_seqs, values, without_repeats
from tests.e2e.gateway_process import COMPLAINTS, DEADLINE_S, ID, Gateway
from tests.services.asyncua_server import AsyncuaServer
from tests.services.kafka import Kafka
from tests.services.mosquitto import Mosquitto
from tests.services.node_opcua import NodeOpcua
from tests.services.ports import HOST, free_port
from tests.services.pymodbus_server import PymodbusServer

BAD_CONFIGURATION = 2
STORAGE_FAILED = 3
PATIENT = {"ack_timeout": "10m", "keep_alive": "10m"}
"""A broker that is silent this long counts as alive."""


def test_sigterm_delivers_what_is_pending(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """The broker hangs, values wait; SIGTERM, the broker answers again: all is delivered, and the exit code is 0."""
    machine, broker = asyncua_server(), mosquitto_factory()
    gateway = _gateway(machine, {"mqtt": broker.url} | PATIENT, fast=True, stop_timeout="1m")
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        _leave_pending(gateway, machine, broker, 40)
        gateway.signal(signal.SIGTERM)
        gateway.process.wait_line('"subject":"source press","message":"stopped"', DEADLINE_S)
        broker.process.resume()
        assert gateway.wait_end() == 0
        assert gateway.log_about("every row was delivered")
        assert not gateway.log_about("", *COMPLAINTS)
        messages = subscriber.all_messages()
    assert missing_seqs(messages) == {}
    assert values(messages, "press", "count")[1:] == list(range(1, 41))


def test_a_stop_ends_in_time_and_says_what_is_lost(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto]
) -> None:
    """A broker that stays silent holds a stop for `stop_timeout` at most; the rows that it never took are counted."""
    machine, broker = asyncua_server(), mosquitto_factory()
    gateway = _gateway(machine, {"mqtt": broker.url} | PATIENT, fast=True, stop_timeout="1s")
    with gateway:
        _leave_pending(gateway, machine, broker, 5)
        assert gateway.end() == 0
        [line] = [line for line in gateway.log_lines() if "not delivered are lost" in line["message"]]
        assert (line["level"], line["rows"], line["routes"]) == ("warning", 5, "all=5")


def test_what_a_stop_leaves_on_disk_comes_after_the_next_start(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """A broker that stays silent costs a durable route nothing: the stop says what is kept, the next start sends it."""
    machine, broker = asyncua_server(), mosquitto_factory()
    gateway = _gateway(machine, {"mqtt": broker.url} | PATIENT, stop_timeout="1s")
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        _leave_pending(gateway, machine, broker, 5)
        assert gateway.end() == 0
        [line] = [line for line in gateway.log_lines() if "are on disk" in line["message"]]
        assert (line["level"], line["rows"]) == ("info", 5)
        broker.process.resume()
        gateway.start()
        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= 5, "kept rows")
        assert gateway.end() == 0
        once = without_repeats(subscriber.all_messages())
    assert set(range(1, 6)) <= set(values(once, "press", "count"))


def test_a_second_signal_stops_at_once(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto]
) -> None:
    """After the first it answers as stopping and waits for its sinks; after the second it waits for nothing."""
    machine, broker = asyncua_server(), mosquitto_factory()
    gateway = _gateway(machine, {"mqtt": broker.url} | PATIENT, fast=True, stop_timeout="10m")
    with gateway:
        _leave_pending(gateway, machine, broker, 5)
        gateway.signal(signal.SIGINT)
        gateway.wait_for(lambda: gateway.health()["status"] == "stopping", "stopping in /health")
        assert gateway.page("/health")[0] == 503
        gateway.signal(signal.SIGINT)
        assert gateway.wait_end() == 0
        assert gateway.log_about("stopping at once", "warning")
        assert gateway.log_about("not delivered are lost", "warning")


def test_stops_while_nobody_answers() -> None:
    """Machines and brokers that accept connections and are silent: a stop in the middle of connecting is a stop."""
    with ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(4)]
        gateway = Gateway(
            devices={
                "press": {"opcua": f"opc.tcp://{HOST}:{ports[0]}", "timeout": "1m", "tags": {"count": "ns=2;s=Int32"}},
                "meter": {"modbus": f"tcp://{HOST}:{ports[1]}", "timeout": "1m", "tags": {"count": "holding 7 uint16"}},
            },
            send={"scada": {"from": "*", "to": "broker"}, "history": {"from": "*", "to": "log"}},
            to={
                "broker": {"mqtt": f"mqtt://{HOST}:{ports[2]}"},
                "log": {"kafka": f"{HOST}:{ports[3]}", "request_timeout": "1m"},
            },
        )
        stack.enter_context(gateway)
        assert gateway.health()["status"] == "down"
        assert gateway.end() == 0
        assert not gateway.log_about("", "error")


def test_bad_configuration_is_code_2_and_a_line_for_each_mistake(tmp_path: Path) -> None:
    """`file:line:column: message`, no traceback; and a secret in the wrong place stays one."""
    secret = tmp_path / "secret"
    secret.write_text("tell-nobody-31\n")
    mistakes = {4: 11, 6: 5, 7: 11, 10: 11, 11: 11, 13: 16, 15: 19}
    text = f"""\
devices:
  press:
    opcua: opc.tcp://127.0.0.1:4840
    every: soon
    security: none
    sercurity: none
    queue: many
    tags:
      a: ns=2;s=A
      b: not a node id
      c: ns=2;i=
send:
  all: {{from: [pres], to: broker}}
to:
  broker: {{mqtt: "${{file:{secret}}}"}}
"""
    with closing(_idle_gateway()) as gateway:
        gateway.file.write_text(text)
        gateway.process.start()
        assert gateway.wait_end() == BAD_CONFIGURATION
        output = gateway.log_text()
    found = re.findall(rf"^{re.escape(str(gateway.file))}:(\d+):(\d+): \S", output, re.MULTILINE)
    assert [int(line) for line, _ in found] == list(mistakes), output
    assert "Traceback" not in output
    assert "tell-nobody-31" not in output


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        ("data_dir is a file", BAD_CONFIGURATION, ("data_dir", "cannot be written", "set gateway.data_dir")),
        ("instance count is unreadable", STORAGE_FAILED, ("instance", "restore it")),
        ("port is taken", BAD_CONFIGURATION, ("listen", "cannot be used")),
    ],
)
def test_what_keeps_it_from_starting_is_one_line_and_a_code(trouble: str, code: int, words: tuple[str, ...]) -> None:
    """One error that says where and what to do, and no traceback."""
    with ExitStack() as stack:
        gateway = stack.enter_context(closing(_idle_gateway()))
        if trouble == "data_dir is a file":
            gateway.data_dir.write_text("in the way")
        elif trouble == "instance count is unreadable":
            gateway.data_dir.mkdir()
            (gateway.data_dir / "instance").write_text("seven")
        else:
            stack.enter_context(socket.create_server((HOST, gateway.port)))
        gateway.process.start()
        assert gateway.wait_end() == code
        [line] = gateway.log_about("", *COMPLAINTS)
        assert line.startswith("gateway: cannot start: ")
        for word in words:
            assert word in line
        assert "Traceback" not in gateway.log_text()


def test_metrics_and_health_tell_how_it_is(
    asyncua_server: Callable[..., AsyncuaServer],
    pymodbus_server: Callable[..., PymodbusServer],
    mosquitto_factory: Callable[..., Mosquitto],
) -> None:
    """Rows, lanes, loop lag and states for Prometheus; and the roll-up ok, degraded, down."""
    machine, meter, broker = asyncua_server(), pymodbus_server(), mosquitto_factory()
    devices = _devices(machine) | {
        "meter": {"modbus": meter.url, "every": "50ms", "tags": {"count": "holding 7 uint16"}}
    }
    gateway = Gateway(devices=devices, send={"all": {"from": "*", "to": "target"}}, to={"target": {"mqtt": broker.url}})
    with gateway:
        for name in ("press", "meter", "target"):
            gateway.wait_state(name, "up")
        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") > 5, "delivered rows")
        report = gateway.health()
        assert (report["status"], report["gateway"]) == ("ok", ID)
        assert {(part["kind"], part["name"]) for part in report["components"]} == {
            ("source", "press"),
            ("source", "meter"),
            ("sink", "target"),
        }
        metrics = gateway.metrics()
        assert metrics["gateway_source_rows_total", "press"] >= 1
        assert metrics["gateway_lane_rows_total", "all"] > 5  # no snapshot: rows come while the page is written
        assert metrics["gateway_pump_rows_total", "all"] > 5
        assert metrics["gateway_lane_pending_rows", "all"] >= 0
        assert metrics["gateway_loop_lag_seconds_count", "main"] > 0
        assert metrics["gateway_loop_lag_cpu_seconds_count", "main"] > 0
        assert metrics["gateway_pump_received_to_ack_seconds_count", "all"] > 0
        assert metrics["process_resident_memory_bytes", ""] > 0
        types = Counter(re.findall(r"^# TYPE (\S+)", gateway.page("/metrics")[1], re.MULTILINE))
        assert set(types.values()) == {1}, "Prometheus refuses a family that is there twice"

        meter.kill()
        gateway.wait_state("meter", "down")
        assert (gateway.health()["status"], gateway.page("/health")[0]) == ("degraded", 200)
        broker.kill()
        gateway.wait_state("target", "down")
        machine.set_value("Int32", 1)
        gateway.wait_for(lambda: gateway.metric("gateway_lane_pending_rows", "all") >= 1, "row that waits in its lane")
        report = gateway.health()
        assert (report["status"], gateway.page("/health")[0]) == ("down", 200)
        assert report["lanes"][0]["pending_rows"] >= 1
        assert gateway.end() == 0


def test_secured_machines_share_one_certificate(
    node_opcua: NodeOpcua, mosquitto_factory: Callable[..., Mosquitto]
) -> None:
    """Six at once at the first start: the server's certificate is trusted once, the gateway's own is made once."""
    broker = mosquitto_factory()
    names = [f"press{number}" for number in range(6)]
    gateway = Gateway(
        devices={name: _secured(node_opcua, "secret") for name in names},
        send={"all": {"from": "*", "to": "target"}},
        to={"target": {"mqtt": broker.url}},
    )
    with gateway:
        _trust_as_told(gateway, names)
        gateway.start()
        for name in names:
            gateway.wait_state(name, "up")
        gateway.wait_for(
            lambda: gateway.metric("gateway_pump_rows_total", "all") >= len(names), "value of every machine"
        )
        assert gateway.end() == 0
        complaints = gateway.log_about("", *COMPLAINTS)
        assert len(complaints) == len(names), "\n".join(complaints)


def test_secrets_stay_secret(
    node_opcua: NodeOpcua,
    mosquitto_factory: Callable[..., Mosquitto],
    kafka_factory: Callable[..., Kafka],
    tmp_path: Path,
) -> None:
    """Passwords, right and wrong ones, of every protocol at log level debug: in no log, no page. And they are used."""
    secrets = {name: f"s3cret-{name}-f00" for name in ("broker", "locked", "log", "stranger")}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n")
    broker = mosquitto_factory(users={"gateway": secrets["broker"]})
    kafka = kafka_factory(users={"gateway": "right"})
    gateway = Gateway(
        devices={
            "press": _secured(node_opcua, "secret"),
            "stranger": _secured(node_opcua, f"${{file:{tmp_path}/stranger}}") | {"security": "none"},
        },
        send={f"to-{name}": {"from": "*", "to": name} for name in ("broker", "locked", "log")},
        to={
            "broker": {"mqtt": broker.url, "auth": {"user": "gateway", "password": "${env:E2E_PASSWORD}"}},
            "locked": {"mqtt": broker.url, "auth": {"user": "gateway", "password": f"${{file:{tmp_path}/locked}}"}},
            "log": {
                "kafka": kafka.sasl_bootstrap,
                "auth": {"user": "gateway", "password": f"${{file:{tmp_path}/log}}"},
            },
        },
        options={"log": {"level": "debug"}},
        env={"E2E_PASSWORD": secrets["broker"]},
    )
    with gateway:
        _trust_as_told(gateway, ["press"])
        gateway.start()
        for name in ("press", "broker"):
            gateway.wait_state(name, "up")
        for name in ("stranger", "locked", "log"):
            gateway.wait_state(name, "faulted")
        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "to-broker") >= 1, "row at the broker")
        pages = gateway.page("/health")[1] + gateway.page("/metrics")[1]
        assert gateway.end() == 0
        output = gateway.log_text() + pages
    for secret in secrets.values():
        for form in (secret, b64encode(secret.encode()).decode(), secret.encode().hex()):
            assert form not in output


def _trust_as_told(gateway: Gateway, names: list[str]) -> None:
    """The server's certificate is not trusted at first; the operator does what the log says. The gateway is stopped."""
    for name in names:
        shown = gateway.wait_state(name, "faulted")
    assert re.search(rf"`gateway trust approve {names[-1]}`", shown["reason"])
    assert gateway.end() == 0
    kept = move(gateway.data_dir / "pki", names[-1], TRUSTED)
    assert {one.device for one in kept} == {*names}


def _devices(machine: AsyncuaServer) -> dict[str, Any]:
    return {
        "press": {
            "opcua": machine.url,
            "security": "none",
            "every": "50ms",
            "sampling": "0ms",
            "tags": {"count": "ns=2;s=Int32"},
        }
    }


def _secured(server: NodeOpcua, password: str) -> dict[str, Any]:
    auth = {"user": "operator", "password": password}
    return {"opcua": server.url, "auth": auth, "every": "100ms", "tags": {"value": "ns=1;s=Double"}}


def _gateway(machine: AsyncuaServer, target: dict[str, str], *, fast: bool = False, **options: str) -> Gateway:
    """One that sends each change of the machine's Int32."""
    send = {"all": {"from": "*", "to": "target", "fast": fast}}
    return Gateway(devices=_devices(machine), send=send, to={"target": target}, options=options)


def _idle_gateway() -> Gateway:
    """One whose machine and broker are not there; not started."""
    return Gateway(
        devices={"press": {"opcua": f"opc.tcp://{HOST}:{free_port()}", "tags": {"count": "ns=2;s=Int32"}}},
        send={"all": {"from": "*", "to": "target"}},
        to={"target": {"mqtt": f"mqtt://{HOST}:{free_port()}"}},
    )


def _leave_pending(gateway: Gateway, machine: AsyncuaServer, broker: Mosquitto, rows: int) -> None:
    """Machine and broker are up; then the broker hangs and the values 1 ... rows wait for it."""
    gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") == 1, "first value")
    broker.process.pause()
    for number in range(1, rows + 1):
        machine.set_value("Int32", number)
    gateway.wait_for(lambda: gateway.metric("gateway_lane_pending_rows", "all") == rows, f"{rows} rows that wait")
