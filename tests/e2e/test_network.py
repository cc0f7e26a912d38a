"""`network:` and `paths:` seen from the far side: each packet has the mark and comes the chosen way, and where one of
two ways fails, the other one is taken with nothing missing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import made
from tests.e2e.consumers import Subscriber, check_ticks, read_topic, without_repeats
from tests.e2e.gateway_process import Gateway
from tests.services.asyncua_server import AsyncuaServer
from tests.services.far import FarKafka, FarMosquitto
from tests.services.milo import Group, Milo
from tests.services.paths import Capture, Packet, Paths
from tests.services.pymodbus_server import PymodbusServer
from tests.services.relay import Relay, move

PREFERRED, CHOSEN = "a", "b"
DSCP = {"EF": 46, "AF41": 34, "AF31": 26, "CS1": 8, "CS2": 16, "AF21": 18, "AF11": 10, "AF12": 12, "AF13": 14}
PACKETS_MIN = 10


@pytest.fixture
def paths() -> Iterator[Paths]:
    with made(lambda: Paths(PREFERRED, CHOSEN)) as ways:
        yield ways


@pytest.fixture
def at_far(paths: Paths) -> Iterator[Callable[[Any], Any]]:
    """Starts a server there; one for 127.0.0.1 only gets a relay."""
    with ExitStack() as running:

        def start(server: Any) -> Any:
            if not isinstance(server, FarKafka | FarMosquitto):
                move(server, paths)
                running.enter_context(Relay(paths, server))
            return running.enter_context(server)

        yield start


def test_every_packet_has_the_mark_and_comes_the_chosen_way(paths: Paths, at_far: Callable[[Any], Any]) -> None:
    """MQTT, Kafka, OPC UA, Modbus TCP by IPv4 and IPv6, Modbus UDP, the SYN included; one that asks for nothing goes
    as routes say. One run for all: to start everything takes longer than it lasts."""
    broker, kafka = at_far(FarMosquitto(paths)), at_far(FarKafka(paths))
    machine, meter, bulb = at_far(AsyncuaServer()), at_far(PymodbusServer()), at_far(PymodbusServer(transport="udp"))
    plain = at_far(PymodbusServer())
    four, six = paths.address, f"[{paths.address6}]"

    def over(dscp: str | int, **more: Any) -> dict[str, Any]:
        return {"network": {"bind": paths.links[CHOSEN].device, "dscp": dscp, **more}}

    def modbus(url: str) -> dict[str, Any]:
        return {"modbus": f"{url}/1", "every": "100ms", "tags": {"level": "holding 1 int16"}}

    opcua = {"security": "none", "every": "100ms", "heartbeat": "500ms", "tags": {"load": "ns=2;s=Double"}}
    devices = {
        "press4": {"opcua": f"opc.tcp://{four}:{machine.port}", **opcua, **over("CS2")},
        "press6": {"opcua": f"opc.tcp://{six}:{machine.port}", **opcua, **over("AF21", priority=6)},
        "meter4": modbus(f"tcp://{four}:{meter.port}") | over("AF11"),
        "meter6": modbus(f"tcp://{six}:{meter.port}") | over(12),
        "bulb4": modbus(f"udp://{four}:{bulb.port}") | over("AF13", source=f"{paths.links[CHOSEN].net}.1"),
        "plain4": modbus(f"tcp://{four}:{plain.port}"),
    }
    to = {
        "mqtt4": {"mqtt": f"mqtt://{four}:{broker.port}", **over("EF")},
        "mqtt6": {"mqtt": f"mqtt://{six}:{broker.port}", **over("AF41")},
        "kafka4": {"kafka": kafka.bootstrap, **over("AF31")},
        "kafka6": {"kafka": kafka.bootstrap6, **over("CS1")},
    }
    send = {name: {"from": "*", "to": name} for name in to}
    kafka6 = int(kafka.bootstrap6.rpartition(":")[2])
    with Capture(paths) as capture:

        def session(port: int, version: int) -> list[Packet]:
            its = [packet for packet in capture.to(port) if packet.version == version]
            return [packet for packet in its if not packet.is_late_reset]

        sessions = {
            "EF": (broker.port, 4), "AF41": (broker.port, 6), "AF31": (kafka.port, 4), "CS1": (kafka6, 6),
            "CS2": (machine.port, 4), "AF21": (machine.port, 6), "AF11": (meter.port, 4), "AF12": (meter.port, 6),
            "AF13": (bulb.port, 4),
        }  # fmt: skip
        with Gateway(devices=devices, send=send, to=to) as gateway:
            gateway.wait_for(
                lambda: all(len(session(*place)) >= PACKETS_MIN for place in sessions.values()), "packets of all"
            )
            gateway.wait_for(lambda: len(session(plain.port, 4)) >= PACKETS_MIN, "packets of the plain one")
            gateway.wait_for(lambda: gateway.health()["status"] == "ok", "all well")
            assert gateway.end() == 0
        seen = {name: session(*place) for name, place in sessions.items()}
    for name, packets in seen.items():
        assert {(packet.dscp, packet.device) for packet in packets} == {(DSCP[name], paths.links[CHOSEN].far_device)}, (
            name
        )
        assert any(packet.is_syn for packet in packets) is (packets[0].protocol == "tcp"), name
    by_default = {(packet.dscp, packet.device) for packet in session(plain.port, 4)}
    assert by_default == {(0, paths.links[PREFERRED].far_device)}


GROUP = Group("v", "double", 100, 50)


def test_the_other_path_is_taken(
    paths: Paths, milo: Callable[..., Milo], at_far: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Two routes prefer different paths. One falls silent: its route takes the other, and goes back when it works
    again; then the interface of the other goes down. On both routes every tick arrives."""
    machine, broker = milo([GROUP]), at_far(FarMosquitto(paths))
    url = f"mqtt://{paths.address}:{broker.port}"
    gateway = Gateway(
        devices={"press": _press(machine)},
        send={
            "alarms": {"from": "*", "to": "plant", "fast": True},
            "history": {"from": "*", "to": "plant", "paths": ["b", "a"]},
        },
        to={"plant": {"mqtt": url, "paths": _ways(paths), "hold": "1s"}},
    )
    fast, bulk = "plant", "plant@b+a"

    def way(destination: str, name: str) -> Callable[[], bool]:
        return lambda: gateway.component(destination).get("server") == f"{url} ({name})"

    with Subscriber(broker.port, tmp_path, beyond=paths) as subscriber, gateway:
        gateway.wait_for(way(fast, "a"), "the fast route by its first path")
        gateway.wait_for(way(bulk, "b"), "the other route by its own")
        gateway.wait_for(lambda: min(_delivered(gateway)) >= GROUP.count, "first values")
        machine.go(0)
        _go_on(gateway)
        paths.links["a"].cut()
        gateway.wait_for(way(fast, "b"), "the fast route by its second path")
        assert "(a)" in next(iter(gateway.component(fast)["faults"]))
        _go_on(gateway)
        gateway.wait_for(way(bulk, "b"), "the other route still by its own")
        assert gateway.metric("gateway_path_works", "plant/a") == 0
        assert gateway.metric("gateway_path_rtt_seconds", "plant/b") > 0
        paths.links["a"].mend()
        gateway.wait_for(way(fast, "a"), "the fast route by its first path again")
        paths.pull("b")
        gateway.wait_for(way(bulk, "a"), "the other route by its second path")
        _go_on(gateway)
        paths.plug("b")
        gateway.wait_for(way(bulk, "b"), "the other route by its first path again")
        last = _stopped(machine, gateway)
        received = without_repeats(subscriber.all_messages())
    for route in ("alarms", "history"):
        check_ticks([message for message in received if message["stream"] == route], "press", GROUP, last)


def test_kafka_takes_the_other_path(paths: Paths, milo: Callable[..., Milo], at_far: Callable[[Any], Any]) -> None:
    """As above. Two sessions of an exactly-once destination do not shut one another out, and every tick is there once;
    with at-least-once every tick is there; an idle session goes the same ways."""
    machine, kafka = milo([GROUP]), at_far(FarKafka(paths))
    exactly = {"kafka": kafka.bootstrap, "topic": "{route}", "paths": _ways(paths), "hold": "1s"}
    at_least = {**exactly, "delivery": "at-least-once"}
    gateway = Gateway(
        devices={"press": _press(machine)},
        send={
            "alarms": {"from": "*", "to": "plant", "fast": True},
            "history": {"from": "*", "to": "plant", "paths": ["b", "a"]},
            "copies": {"from": "*", "to": "copy"},
            "quiet": {"from": "*", "to": "idle", "steps": [{"deadband": 1e12}]},
        },
        to={"plant": exactly, "copy": at_least, "idle": at_least},
    )
    prefer_a, prefers_b = ("plant", "copy", "idle"), "plant@b+a"

    def by(name: str, *destinations: str) -> Callable[[], bool]:
        server = f"{kafka.bootstrap} ({name})"
        return lambda: all(gateway.component(each).get("server") == server for each in destinations)

    with gateway:
        gateway.wait_for(by("a", *prefer_a), "these by their first path")
        gateway.wait_for(by("b", prefers_b), "the other one by its own")
        gateway.wait_for(lambda: min(_delivered(gateway)) >= GROUP.count, "first values")
        machine.go(0)
        _go_on(gateway)
        paths.links["a"].cut()
        gateway.wait_for(by("b", *prefer_a, prefers_b), "all by one path")
        assert "(a)" in next(iter(gateway.component("plant")["faults"]))
        assert gateway.metric("gateway_path_works", "plant/a") == 0
        _go_on(gateway)
        assert gateway.metric("gateway_path_rtt_seconds", "plant/b") > 0
        paths.links["a"].mend()
        gateway.wait_for(by("a", *prefer_a), "these by their first path again")
        _go_on(gateway)
        paths.pull("b")
        gateway.wait_for(by("a", prefers_b), "the other one by its second path")
        _go_on(gateway)
        paths.plug("b")
        gateway.wait_for(by("b", prefers_b), "the other one by its first path again")
        last = _stopped(machine, gateway)
    received = {route: read_topic(kafka.bootstrap, route) for route in ("alarms", "history", "copies")}
    received["copies"] = without_repeats(received["copies"])
    for messages in received.values():
        check_ticks(messages, "press", GROUP, last)


def _press(machine: Milo) -> dict[str, Any]:
    return {
        "opcua": machine.url,
        "security": "none",
        "every": f"{GROUP.period_ms}ms",
        "sampling": "0ms",
        "queue": 300,
        "tags": {f"v{index}": node_id for index, node_id in enumerate(GROUP.node_ids())},
    }


def _ways(paths: Paths) -> dict[str, Any]:
    return {name: {"bind": paths.links[name].device, "dscp": dscp} for name, dscp in (("a", "EF"), ("b", "AF31"))}


def _stopped(machine: Milo, gateway: Gateway) -> int:
    """Ends both once everything is delivered: the last tick."""
    last: int = machine.stop_ticking()["v"]
    gateway.wait_for(lambda: gateway.metric("gateway_source_rows_total", "press") >= GROUP.count * (last + 1), "all")
    gateway.wait_for(lambda: all(lane["pending_rows"] == 0 for lane in gateway.health()["lanes"]), "empty lanes")
    assert gateway.gaps() == []
    assert gateway.end() == 0
    return last


def _go_on(gateway: Gateway) -> None:
    """Waits until both routes have delivered a second's worth more."""
    wanted = [rows + GROUP.count * 1000 / GROUP.period_ms for rows in _delivered(gateway)]
    gateway.wait_for(lambda: all(rows >= more for rows, more in zip(_delivered(gateway), wanted, strict=True)), "rows")


def _delivered(gateway: Gateway) -> list[float]:
    numbers = gateway.metrics()
    return [numbers.get(("gateway_pump_rows_total", route), 0.0) for route in ("alarms", "history")]
