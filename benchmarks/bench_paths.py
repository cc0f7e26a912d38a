"""From the moment one of two paths fails to the first PUBACK by the other. Needs root (network namespaces).

A fast route, one value in 10 ms, 5 ms each way, `suspect` as it is by default for such a route. The path falls silent
(every packet is lost, nobody says so), also of an idle session, or its interface goes down. The slowest of the rounds
counts. Nothing may be missing: every message has a PUBACK in the end. Reference: a plain paho client with keep-alive
10 s that publishes as often, until it says that the connection is lost.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.measure import Bar, Figure, in_child, on_loop, report
from benchmarks.rows import tag_table
from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from gateway.session import SinkSession
from gateway.supervisor import Supervisor
from pipelines.batch import BatchBuilder, Kind
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump
from tests.services.far import FarMosquitto
from tests.services.paths import Paths

RUNS: Final = 5
EVERY_S: Final = 0.01
DELAY_S: Final = 0.005
STEADY_S: Final = 3.0
"""A session that is younger is not replaced at once (`gateway.supervisor.TO_SINKS`)."""
DEADLINE_S: Final = 60.0
Fault = Literal["silent", "silent, idle", "interface down"]


def main() -> int:
    """Prints the table; the exit code."""
    faults: tuple[Fault, ...] = ("silent", "silent, idle", "interface down")
    ours = {fault: [in_child(switch_s, fault) for _ in range(RUNS)] for fault in faults}
    plain = [in_child(plain_s)]
    figures = [
        Figure(fault, "s", [max(taken_s)], plain, Bar("at most", 0.5), remark=_rounds(taken_s))
        for fault, taken_s in ours.items()
    ]
    return report("A path fails, fast route", figures)


def switch_s(fault: Fault) -> float:
    """Seconds to the other path's first PUBACK, or idle to its session. RuntimeError: something is missing."""

    async def measure(paths: Paths, broker: FarMosquitto) -> float:
        ways = {name: {"bind": link.device} for name, link in paths.links.items()}
        settings = MqttTarget.model_validate({"mqtt": broker.url, "paths": ways})
        clock = SystemClock()
        sink = MqttSink("plant", settings.by([*ways], True, first=True), Identity("gw"), tag_table(), clock)
        lane = MemoryLane("fast", bytes_max=2**28)
        pump = Pump(lane, lane.reader(Part.ALL), sink, clock, _none, rows_max=1_000)
        supervisor = Supervisor(SinkSession(sink, "", [lane], [pump]), clock, lambda: 0.5)
        tasks = [asyncio.create_task(supervisor.run())]
        await _until(lambda: sink.server.endswith("(a)"))
        if fault != "silent, idle":
            tasks.append(asyncio.create_task(_feed(lane)))
        await asyncio.sleep(STEADY_S)
        paths.pull("a") if fault == "interface down" else paths.links["a"].cut()
        began_s = time.monotonic()
        await _until(lambda: sink.server.endswith("(b)"))
        before = sink.counters.totals["pubacks"]
        await _until(lambda: fault == "silent, idle" or sink.counters.totals["pubacks"] > before)
        taken_s = time.monotonic() - began_s
        for task in tasks[1:]:
            task.cancel()
        await _until(lambda: not lane.pending_rows)
        if lane.counters.totals["dropped_rows"]:
            raise RuntimeError("rows were dropped")
        tasks[0].cancel()
        await asyncio.wait(tasks)
        return taken_s

    with Paths("a", "b", delay_s=DELAY_S) as paths, FarMosquitto(paths) as broker:
        return on_loop(measure(paths, broker))


def plain_s() -> float:
    """Seconds until paho's `on_disconnect`."""
    with Paths("a", delay_s=DELAY_S) as paths, FarMosquitto(paths) as broker:
        connected, lost = threading.Event(), threading.Event()
        client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect = lambda *_: connected.set()
        client.on_disconnect = lambda *_: lost.set()
        client.connect(broker.address, broker.port, keepalive=10)
        client.loop_start()
        connected.wait(DEADLINE_S)
        paths.links["a"].cut()
        began_s = time.monotonic()
        while not lost.wait(EVERY_S) and time.monotonic() < began_s + DEADLINE_S:
            client.publish("x", b"x", qos=1)
        return time.monotonic() - began_s


async def _feed(lane: MemoryLane) -> None:
    for number in range(10**9):
        builder = BatchBuilder()
        builder.add(0, time.time_ns(), float(number), Kind.DOUBLE)
        await lane.append(builder.build(source_id=0, number=number, received_ns=time.time_ns()))
        await asyncio.sleep(EVERY_S)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def _none(*_: object) -> None:
    raise AssertionError("nothing is rejected here")


def _rounds(seconds: list[float]) -> str:
    return "slowest of " + ", ".join(f"{each:.3f}" for each in sorted(seconds))


if __name__ == "__main__":
    sys.exit(main())
