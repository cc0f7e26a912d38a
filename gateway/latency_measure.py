"""`gateway latency`: how long a value takes on this host, by the floor and by the gateway.

A machine (an OPC UA server that stamps a variable) and a broker run as processes of their own, or are the user's. By
turns stand between them the floor (`latency_floor`: a relay of raw sockets, as quick as a Python process can be) and a
real gateway with one `fast: true` route: half of the floor, the gateway, the other half. What the halves differ by is
the host's unrest: a difference to the gateway that is no larger means nothing. This process is the subscriber, on a raw
socket. It takes the time when a message has arrived, and subtracts the source time that the machine gave the value: the
whole way, alike for both. The legs inside the gateway are what its own `/health` says of the same seconds.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from connectors.mqtt_wire import variable_byte_integer
from connectors.opcua_binary import DecodeError
from connectors.opcua_channel import HEADERS
from connectors.opcua_decode import decode_changes
from connectors.opcua_response import parse_response
from gateway.demo import free_ports
from gateway.demo_machines import mosquitto
from gateway.latency_machine import HOST, NODE
from pipelines.batch import Flag

START_S: Final = 60.0
"""What does not listen, or deliver, by then has failed."""
WARM_UP_S: Final = 2.0
TERM_S: Final = 2.0
FLOOR_TOPIC: Final = "mec-latency/floor"
SITE: Final = "mec-latency/gateway"
QUANTILES: Final[Mapping[str, float]] = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
OVER_MAX_S: Final = 60.0
"""The gateway itself remembers no more."""
RUN_AS_CHILD: Final = (
    "import runpy, sys; from gateway.child import end_with_parent; end_with_parent(int(sys.argv[1])); "
    "sys.argv = sys.argv[2:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


class MeasureFailed(Exception):
    """Its text says what did not work, and why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure; without `broker` or `opcua` they are started here."""

    rate: float
    seconds: float
    broker: str = ""
    """mqtt://host:port"""
    opcua: str = ""
    node: str = NODE


@dataclass(frozen=True, slots=True)
class Broker:
    """Where it is."""

    host: str
    port: int
    kind: str

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"


def measure(asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs both; times in us. Raises MeasureFailed."""
    with tempfile.TemporaryDirectory(prefix="gateway-latency-") as name, ExitStack() as stack:
        folder = Path(name)
        broker = _broker(asked, folder, stack)
        url = asked.opcua or _machine(asked.rate, folder, stack)
        say(f"the floor, {asked.seconds / 2:g} s")
        before = _floor(asked, url, broker, folder)
        say(f"the gateway, {asked.seconds:g} s")
        ours, legs = _gateway(asked, url, broker, folder)
        say(f"the floor again, {asked.seconds / 2:g} s")
        after = _floor(asked, url, broker, folder)
    floor = [*before, *after]
    return {
        "rate": round(len(ours) / asked.seconds, 1) if asked.opcua else asked.rate,
        "seconds": asked.seconds,
        "machine": asked.opcua or "asyncua on loopback",
        "broker": broker.kind,
        "floor": _quantiles(floor),
        "gateway": _quantiles(ours),
        "difference": _differences(ours, floor),
        "unrest": {name: abs(us) for name, us in _differences(after, before).items()},
        "legs": legs,
    }


def _quantiles(whole_us: Sequence[float]) -> dict[str, float]:
    return {"samples": len(whole_us), **{name: round(_at(whole_us, q), 1) for name, q in QUANTILES.items()}}


def _differences(ones_us: Sequence[float], others_us: Sequence[float]) -> dict[str, float]:
    return {name: round(_at(ones_us, q) - _at(others_us, q), 1) for name, q in QUANTILES.items()}


def _at(whole_us: Sequence[float], q: float) -> float:
    return float(np.quantile(whole_us, q, method="inverted_cdf"))


def _broker(asked: Asked, folder: Path, stack: ExitStack) -> Broker:
    if asked.broker:
        return _own_broker(asked.broker)
    what, [port] = "mosquitto" if mosquitto() else "amqtt", free_ports(1)
    argv = [sys.executable, "-m", "gateway.demo_machines", what, str(port), str(os.getpid()), str(folder)]
    stack.enter_context(_process(argv, folder / "broker.log", port))
    return Broker(HOST, port, f"{'Mosquitto' if what == 'mosquitto' else 'amqtt'} on loopback")


def _own_broker(url: str) -> Broker:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        if parts.hostname and parts.scheme in ("", "mqtt") and not parts.username:
            return Broker(parts.hostname, parts.port or 1883, url)
    except ValueError:
        """A port beyond 65535, half a bracket."""
    raise MeasureFailed(f"--broker {url}: write mqtt://host:port, without TLS and without a user")


def _machine(rate: float, folder: Path, stack: ExitStack) -> str:
    [port] = free_ports(1)
    argv = [sys.executable, "-m", "gateway.latency_machine", str(port), str(rate), str(os.getpid())]
    stack.enter_context(_process(argv, folder / "machine.log", port))
    return f"opc.tcp://{HOST}:{port}"


def _floor(asked: Asked, url: str, broker: Broker, folder: Path) -> Sequence[float]:
    argv = ["gateway.latency_floor", url, asked.node, broker.host, str(broker.port), FLOOR_TOPIC]
    with _subscribed(broker, FLOOR_TOPIC) as subscriber, _process(_as_child(argv), folder / "floor.log") as process:
        subscriber.first(process, folder / "floor.log")
        subscriber.receive(WARM_UP_S)
        return _whole_ways(subscriber.receive(asked.seconds / 2), _source_of_notification, "the floor")


def _gateway(asked: Asked, url: str, broker: Broker, folder: Path) -> tuple[Sequence[float], dict[str, Any]]:
    [listen] = free_ports(1)
    file, log = folder / "gateway.yaml", folder / "gateway.log"
    file.write_text(configuration(asked, url, broker, folder, listen), "utf-8")
    argv = _as_child(["gateway", "run", str(file)])
    with _subscribed(broker, f"{SITE}/#") as subscriber, _process(argv, log) as process:
        subscriber.first(process, log)
        subscriber.receive(WARM_UP_S)
        received = subscriber.receive(asked.seconds)
        legs = _legs(listen, min(asked.seconds, OVER_MAX_S))
    return _whole_ways(received, _source_of_payload, "the gateway"), legs


def configuration(asked: Asked, url: str, broker: Broker, folder: Path, listen: int) -> str:
    """The gateway's file, as a person would write it."""
    version = ", protocol: 3.1.1" if broker.kind.startswith("amqtt") else ""  # the most that amqtt speaks
    return f"""\
gateway:
  id: latency
  site: {SITE}
  data_dir: {folder / "data"}
  listen: {HOST}:{listen}
  stop_timeout: 1s
  log: {{format: text, level: warning}}
devices:
  machine:
    opcua: {url}
    security: none
    every: 1ms
    sampling: 0
    tags: {{stamp: "{asked.node}"}}
send:
  fast: {{from: "*", to: broker, fast: true}}
to:
  broker: {{mqtt: "{broker.url}", topic: "{{site}}/{{device}}"{version}}}
"""


def _legs(port: int, over_s: float) -> dict[str, Any]:
    """Leg -> quantiles in us, of the last `over_s`."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", f"/health?over={over_s:g}s")
    [lane] = json.loads(connection.getresponse().read())["lanes"]
    connection.close()
    found = {way: each for way, each in lane.get("latency_ms", {}).items() if isinstance(each, dict)}
    return {
        way: {"samples": each["rows"], **{name: round(each[name] * 1e3, 1) for name in QUANTILES if name in each}}
        for way, each in found.items()
    }


Source = Callable[[bytes], list[int]]
"""The source times in a message, ns."""


def _whole_ways(received: Sequence[tuple[int, bytes]], sources: Source, who: str) -> Sequence[float]:
    found = [(at_ns - ts_ns) / 1e3 for at_ns, payload in received for ts_ns in sources(payload)]
    if not found:
        raise MeasureFailed(f"{who} delivered no value in the time of the measurement: does the node's value change?")
    return found


def _source_of_payload(payload: bytes) -> list[int]:
    return [sample["t"] * 1000 for sample in json.loads(payload)["samples"]]


def _source_of_notification(payload: bytes) -> list[int]:
    """Of a message of OPC UA as it came from the socket; none of what is no notification, or was cut in two."""
    try:
        response = parse_response(payload[HEADERS:])
        parts = list(decode_changes(payload[HEADERS:], response, 0, 1000))
    except (DecodeError, struct.error):
        return []
    return [int(ts) for part in parts for ts, flags in zip(part.ts_ns, part.flags, strict=True) if not flags & _OURS]


_OURS: Final = Flag.ARRIVAL_TIME


class Subscriber:
    """A session of MQTT 3.1.1 at QoS 0 on a blocking socket: nothing stands between the bytes and the clock."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def first(self, process: subprocess.Popen[bytes], log: Path) -> None:
        """Returns when a message has come. Raises MeasureFailed with what the process has written."""
        deadline_s = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline_s:
            if self.receive(0.1):
                return
        raise MeasureFailed(_failure(process, log))

    def receive(self, seconds: float) -> list[tuple[int, bytes]]:
        """(when, payload) of what comes in so long."""
        end_ns, chunks = time.monotonic_ns() + int(seconds * 1e9), []
        while (left_s := (end_ns - time.monotonic_ns()) / 1e9) > 0:
            self._connection.settimeout(left_s)
            try:
                data = self._connection.recv(1 << 16)
            except TimeoutError:
                break
            chunks.append((time.time_ns(), data))
            if not data:
                raise MeasureFailed("the broker closed the subscriber's connection")
        return [(at_ns, payload) for at_ns, data in chunks for payload in self._payloads(data)]

    def _payloads(self, data: bytes) -> Iterator[bytes]:
        """Of the PUBLISH packets that are complete with `data`."""
        self._rest += data
        while len(self._rest) >= 2:
            size, shift, at = 0, 0, 1
            while at < len(self._rest):
                byte, at = self._rest[at], at + 1
                size, shift = size | (byte & 0x7F) << shift, shift + 7
                if byte < 0x80:
                    break
            else:
                return
            if len(self._rest) < at + size:
                return
            packet, kind, self._rest = self._rest[at : at + size], self._rest[0], self._rest[at + size :]
            if kind & 0xF0 == 0x30:
                yield packet[2 + int.from_bytes(packet[:2], "big") + (2 if kind & 0x06 else 0) :]


@contextmanager
def _subscribed(broker: Broker, topic: str) -> Iterator[Subscriber]:
    """Raises MeasureFailed."""
    name, wanted = f"mec-latency-{os.getpid()}".encode(), topic.encode()
    connect = struct.pack(">H4sBBHH", 4, b"MQTT", 4, 2, 0, len(name)) + name
    subscribe = struct.pack(">HH", 1, len(wanted)) + wanted + b"\x00"
    try:
        with socket.create_connection((broker.host, broker.port), START_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"\x10" + variable_byte_integer(len(connect)) + connect)
            connack = connection.recv(4, socket.MSG_WAITALL)
            connection.sendall(b"\x82" + variable_byte_integer(len(subscribe)) + subscribe)
            suback = connection.recv(5, socket.MSG_WAITALL)
            if connack[3:] != b"\x00" or suback[4:] != b"\x00":
                raise MeasureFailed(f"{broker.url} refused the subscriber: {connack.hex()} {suback.hex()}")
            yield Subscriber(connection)
    except OSError as error:
        raise MeasureFailed(f"{broker.url}: {error}") from error


def _as_child(module: Sequence[str]) -> list[str]:
    """A module as a process that ends with this one."""
    return [sys.executable, "-c", RUN_AS_CHILD, str(os.getpid()), *module]


@contextmanager
def _process(argv: Sequence[str], log: Path, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs it, after it listens on `port`; on the way out it is gone. Raises MeasureFailed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        if port is not None:
            _wait_listening(process, log, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(TERM_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_listening(process: subprocess.Popen[bytes], log: Path, port: int) -> None:
    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise MeasureFailed(_failure(process, log))


def _failure(process: subprocess.Popen[bytes], log: Path) -> str:
    tail = log.read_text(errors="replace").splitlines()[-10:]
    code = process.poll()
    how = f"ended with code {code}" if code is not None else f"did nothing for {START_S:g} s"
    return "\n  ".join([f"{log.stem}: {how}; the end of its log:", *tail])
