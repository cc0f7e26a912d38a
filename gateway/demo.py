"""`gateway demo`: two machines and a broker in processes of their own; in this one the gateway, and a subscriber.

All of it listens on 127.0.0.1 and free ports and keeps its files in a folder that is gone afterwards. It ends with
Ctrl-C, SIGTERM or after `--seconds`, within 2 s, and leaves nothing running: children get SIGTERM, then SIGKILL, and
on Linux they die with this process even when it is killed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from gateway.app import serve
from gateway.build import Built, build
from gateway.config import load
from gateway.demo_machines import HOST, METER, PRESS, mosquitto
from gateway.demo_table import Moment, View, line, table
from gateway.log import setup
from gateway.settings import GatewayFile

START_S: Final = 60.0
"""A child that does not listen by then has failed."""
TERM_S: Final = 0.3
"""What a child may take after SIGTERM before it gets SIGKILL."""
TABLE_EVERY_S: Final = 0.25
LOG_TAIL_LINES: Final = 12
CHILDREN: Final[Mapping[str, str]] = {"broker": "MQTT broker", "opcua": "OPC UA machine", "modbus": "Modbus machine"}


class DemoFailed(Exception):
    """Its text says what did not start, and why."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process of the demo."""

    what: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def failure(self) -> str:
        """Which one it is, and the end of what it wrote."""
        tail = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        code = self.process.poll()
        how = "is not listening" if code is None else f"ended with code {code}"
        return "\n  ".join([f"the {CHILDREN[self.what]} did not start ({how}); the end of its log:", *tail])


async def demo(seconds: float | None) -> int:
    """Runs until it is told to stop, or for `seconds` after the gateway has started; the exit code."""
    if not mosquitto() and importlib.util.find_spec("amqtt") is None:
        print("no MQTT broker: install Mosquitto, or pip install 'mec-gateway[broker]'", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gateway-demo-") as name:
        folder = Path(name)
        try:
            with _children(folder) as children:
                for child in children:
                    await _listening(child)
                return await _gateway(folder, {child.what: child.port for child in children}, seconds)
        except DemoFailed as failed:
            print(failed, file=sys.stderr)
            return 1


def configuration(folder: Path, ports: Mapping[str, int], listen: int) -> str:
    """The demo's file, as a person would write it."""
    press = "\n".join(f"      {name}: {_press_tag(name, tag.unit)}" for name, tag in PRESS.items())
    version = "" if mosquitto() else ", protocol: 3.1.1"  # the most that amqtt speaks
    meter = "\n".join(f"      {name}: {_meter_tag(name, *place)}" for name, place in METER.items())
    return f"""\
# Written by `gateway demo`. Copy it to start a file of your own: `gateway check FILE`, `gateway run FILE`.
gateway:
  id: demo-gw
  site: demo
  data_dir: {folder / "data"}
  listen: {HOST}:{listen}
  stop_timeout: 1s

devices:
  press4:
    opcua: opc.tcp://{HOST}:{ports["opcua"]}
    security: none            # insecure, so it has to be written out; real machines: leave this line out
    every: 100ms
    tags:
{press}
  meter7:
    modbus: tcp://{HOST}:{ports["modbus"]}/1
    every: 500ms
    tags:
{meter}

send:
  live: {{from: "*", to: broker}}

to:
  broker: {{mqtt: "mqtt://{HOST}:{ports["broker"]}", topic: "{{site}}/{{device}}", format: json{version}}}
"""


def _press_tag(name: str, unit: str) -> str:
    node = f"ns=2;s=Press4.{name}"
    return f'{{node: "{node}", unit: "{unit}"}}' if unit else node


def _meter_tag(name: str, register: str, unit: str) -> str:
    scale = ", scale: 0.1" if name == "cabinet_temperature" else ""
    return f'{{register: {register}, unit: "{unit}"{scale}}}' if unit else register


@contextmanager
def _children(folder: Path) -> Iterator[list[Child]]:
    """Starts every child; on the way out none is left."""
    children: list[Child] = []
    try:
        for what, port in zip(CHILDREN, free_ports(len(CHILDREN)), strict=True):
            children.append(_start(what, port, folder))
        yield children
    finally:
        for child in children:
            child.process.terminate()
        deadline = time.monotonic() + TERM_S
        for child in children:
            _end(child.process, deadline)


def _start(what: str, port: int, folder: Path) -> Child:
    log = folder / f"{what}.log"
    program = what if what != "broker" else "mosquitto" if mosquitto() else "amqtt"
    command = [sys.executable, "-m", "gateway.demo_machines", program, str(port), str(os.getpid()), str(folder)]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal is for this process only, which ends its children in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Child(what, port, process, log)


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


async def _listening(child: Child) -> None:
    """Returns when the child accepts connections. Raises DemoFailed."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and child.process.poll() is None:
        try:
            _, writer = await asyncio.open_connection(HOST, child.port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise DemoFailed(child.failure())


async def _gateway(folder: Path, ports: Mapping[str, int], seconds: float | None) -> int:
    file = folder / "gateway.yaml"
    file.write_text(configuration(folder, ports, free_ports(1)[0]), encoding="utf-8")
    settings, _ = load(file)
    with (folder / "gateway.log").open("w", encoding="utf-8") as log:
        setup("text", settings.gateway.log.level, log)
        built = build(settings)
        with _subscriber(ports["broker"]) as received:
            show = _show(_Look(built, received), settings, _footer(folder, settings, ports["broker"]))
            async with asyncio.TaskGroup() as group:
                showing = group.create_task(show)
                if seconds is not None:
                    asyncio.get_running_loop().call_later(seconds, built.app.request_stop)
                code = await serve(built.app, built.service, built.watch)
                showing.cancel()
    return int(code)


def _footer(folder: Path, settings: GatewayFile, broker: int) -> str:
    kind = "Mosquitto" if mosquitto() else "amqtt"
    return (
        f"health   http://{settings.gateway.listen}/health   metrics  http://{settings.gateway.listen}/metrics\n"
        f"broker   {kind}: mosquitto_sub -h {HOST} -p {broker} -t 'demo/#' -v\n"
        f"files    {folder}/: gateway.yaml, gateway.log\n"
        f"Ctrl-C stops all of it."
    )


@contextmanager
def _subscriber(port: int) -> Iterator[deque[tuple[int, bytes]]]:
    """A client of its own, as a consumer would have: (received_ns, payload) in order; in paho's own thread."""
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.enums import CallbackAPIVersion

    received: deque[tuple[int, bytes]] = deque(maxlen=100_000)

    def subscribe(client: Client, *_: Any) -> None:
        client.subscribe("demo/#")

    def note(client: Client, userdata: Any, message: MQTTMessage) -> None:
        received.append((time.time_ns(), bytes(message.payload)))

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect, client.on_message = subscribe, note
    client.connect_async(HOST, port)
    client.loop_start()
    try:
        yield received
    finally:
        client.disconnect()
        client.loop_stop()


class _Look:
    """One look at everything: the view brought up to date, the rates since the last look, health."""

    def __init__(self, built: Built, received: deque[tuple[int, bytes]]) -> None:
        self.view = View()
        self._report: Callable[[], dict[str, Any]] = built.app.health.report
        self._received = received

    def moment(self) -> Moment:
        self.view.take(self._received.popleft() for _ in range(len(self._received)))
        values, messages = self.view.rates(time.monotonic_ns())
        return Moment(values, messages, self._report(), time.time_ns() // 1000)


async def _show(look: _Look, settings: GatewayFile, footer: str) -> None:
    """Shows what arrives until it is cancelled."""
    if sys.stdout.isatty():
        await _show_table(look, settings, footer)
    print(footer, flush=True)
    look.moment()
    while True:
        await asyncio.sleep(1.0)
        print(line(look.view, look.moment()), flush=True)


async def _show_table(look: _Look, settings: GatewayFile, footer: str) -> NoReturn:
    from rich.live import Live

    units = {(device, tag): of.unit for device, at in settings.devices.items() for tag, of in at.tags.items()}
    draw = partial(table, look.view, units=units, footer=footer)
    with Live(draw(look.moment()), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(TABLE_EVERY_S)
            live.update(draw(look.moment()), refresh=True)
