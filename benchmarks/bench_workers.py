"""A worker is killed: how long its devices are away, and what the other worker notices of it.

Two workers: `bulk`, an OPC UA machine of 1,000 items (Eclipse Milo) and twenty Modbus devices (libmodbus) on a durable
route, and `fast`, one Modbus device on a `fast: true` route, with real-time priority where that is allowed. A
subscriber at Mosquitto sees when each of bulk's devices is back: the first sample that was taken after the kill. Beside
it the p99 of the fast route, by its own measure, in the seconds around each kill and, by turns, in as many without one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.measure import Bar, Figure, by_turns, report
from tests.e2e.gateway_process import SITE, Gateway
from tests.services.libmodbus import LibmodbusServer
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST

GROUP: Final = Group("v", "double", 1_000, 100)
METERS: Final = 20
ROUNDS: Final = 5
WINDOW_S: Final = 12
"""Longer than a worker has to run to be started again at once."""
DEADLINE_S: Final = 60.0
BACK_BAR: Final = Bar("at most", 2.0)
P99_BAR: Final = Bar("at most", 1.5, of="ratio")


def main() -> int:
    """Prints the table; the exit code."""
    with Milo([GROUP]) as machine, LibmodbusServer() as meter, Mosquitto() as broker:
        gateway = _gateway(machine, meter, broker)
        with _newest_samples(broker.port) as newest, gateway:
            gateway.wait_for(lambda: len(newest) == METERS + 2, "a sample of every device")
            machine.go()
            time.sleep(WINDOW_S)
            kills, quiet = by_turns(ROUNDS, lambda: _kill(gateway, newest), lambda: _quiet(gateway))
            granted = _worker(gateway, "fast")["host"]["realtime"]["granted"]
    away = [back for back, _ in kills]
    p99 = [took for _, took in kills]
    return report(
        f"kill -9 of one of two workers; the other has {'real-time' if granted else 'ordinary'} priority",
        [
            Figure(
                "away, the last of its devices", "s", [max(away)], bar=BACK_BAR, remark=f"slowest of {_texts(away)}"
            ),
            Figure(
                "the other's p99, median of the rounds",
                "ms",
                [median(p99)],
                [median(quiet)],
                P99_BAR,
                remark=f"received -> acknowledged; {_texts(p99)}; reference, no kill: {_texts(quiet)}",
            ),
        ],
    )


def _texts(rounds: list[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in rounds)


def _gateway(machine: Milo, meter: LibmodbusServer, broker: Mosquitto) -> Gateway:
    nodes = {f"v{index}": node for index, node in enumerate(GROUP.node_ids())}
    press = {"opcua": machine.url, "security": "none", "every": "100ms", "sampling": "0ms", "queue": 100}
    meters = {f"meter{number}": _meter(meter, "100ms") for number in range(METERS)}
    return Gateway(
        devices={"press": {**press, "tags": nodes}, **meters, "interlock": _meter(meter, "5ms")},
        send={
            "history": {"from": ["press", "meter*"], "to": "broker"},
            "alarm": {"from": "interlock", "to": "broker", "fast": True},
        },
        to={"broker": {"mqtt": broker.url}},
        workers={"fast": {"devices": "interlock", "realtime": 10}, "bulk": {"devices": ["press", "meter*"]}},
    )


def _meter(server: LibmodbusServer, every: str) -> dict[str, Any]:
    return {"modbus": server.url, "every": every, "tags": {"a": "holding 7 uint16"}}


def _kill(gateway: Gateway, newest: dict[str, int]) -> tuple[float, float]:
    """Seconds until the last of bulk's devices has a sample from after the kill; the other worker's p99, ms."""
    began_s, pid = time.monotonic(), int(_worker(gateway, "bulk")["pid"])
    killed_us = time.time_ns() // 1000
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for(lambda: _oldest(newest) > killed_us, "samples of every device")
    away_s = time.time() - killed_us / 1e6
    time.sleep(max(WINDOW_S - (time.monotonic() - began_s), 0.0))
    return away_s, _p99_ms(gateway)


def _quiet(gateway: Gateway) -> float:
    time.sleep(WINDOW_S)
    return _p99_ms(gateway)


def _oldest(newest: dict[str, int]) -> int:
    return min(at for device, at in newest.items() if device != "interlock")


def _p99_ms(gateway: Gateway) -> float:
    """Of the last WINDOW_S."""
    lanes = json.loads(gateway.page(f"/health?over={WINDOW_S}s")[1])["lanes"]
    [alarm] = [lane for lane in lanes if lane["name"] == "alarm"]
    return float(alarm["latency_ms"]["received_to_ack"]["p99"])


def _worker(gateway: Gateway, name: str) -> dict[str, Any]:
    [found] = [worker for worker in gateway.health()["workers"] if worker["name"] == name]
    return dict(found)


@contextmanager
def _newest_samples(port: int) -> Iterator[dict[str, int]]:
    """Device -> us since 1970 of its newest sample that has arrived."""
    newest: dict[str, int] = {}
    subscribed = threading.Event()

    def note(client: Client, userdata: Any, message: MQTTMessage) -> None:
        told = json.loads(message.payload)
        if "samples" in told:
            at = max(sample["t"] for sample in told["samples"])
            newest[told["device"]] = max(at, newest.get(told["device"], 0))

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_message = note
    client.on_connect = lambda *_: client.subscribe(f"{SITE}/#")
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect(HOST, port)
    client.loop_start()
    subscribed.wait(DEADLINE_S)
    try:
        yield newest
    finally:
        client.disconnect()
        client.loop_stop()


if __name__ == "__main__":
    sys.exit(main())
