"""From the moment one of two paths fails to the first PUBACK by the other. Needs root (network namespaces).

A fast route and a durable one in one session, one value in 10 ms each, 5 ms each way, `suspect` as it is by default for
a fast route. The path falls silent (every packet is lost, nobody says so), also of an idle session, or its interface
goes down. The slowest of the rounds counts. A foreign subscriber (mosquitto_sub) at the far host counts what came:
nothing may be missing of the durable route. Reference: a plain paho client with keep-alive 10 s that publishes as
often, until it says that the connection is lost.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, NamedTuple

from benchmarks.measure import Bar, Figure, in_child, on_loop, report, until
from benchmarks.rows import tag_table
from benchmarks.stock import mqtt_notices_s
from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from gateway.session import SinkSession
from gateway.supervisor import Supervisor
from pipelines.batch import BatchBuilder, Kind
from pipelines.clock import SystemClock
from pipelines.contracts import Lane, Part
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump
from tests.e2e.consumers import Subscriber
from tests.e2e.gateway_process import SITE
from tests.services.far import FarMosquitto
from tests.services.paths import Paths

RUNS: Final = 5
EVERY_S: Final = 0.01
DELAY_S: Final = 0.005
STEADY_S: Final = 3.0
"""A session that is younger is not replaced at once (`gateway.supervisor.TO_SINKS`)."""
Fault = Literal["silent", "silent, idle", "interface down"]


class Round(NamedTuple):
    """Seconds to the other path's first PUBACK (idle: to its session); values of both routes; which never arrived."""

    taken_s: float
    made: int
    fast_missing: int
    durable_missing: int


def main() -> int:
    """Prints the table; the exit code."""
    faults: tuple[Fault, ...] = ("silent", "silent, idle", "interface down")
    ours = {fault: [in_child(switch, fault) for _ in range(RUNS)] for fault in faults}
    plain = [in_child(plain_s)]
    figures = [
        Figure(fault, "s", [max(each.taken_s for each in rounds)], plain, Bar("at most", 0.5), remark=_remark(rounds))
        for fault, rounds in ours.items()
    ]
    everything = [each for rounds in ours.values() for each in rounds]
    missing = sum(each.durable_missing for each in everything)
    made = sum(each.made for each in everything)
    figures.append(Figure("missing, durable", "values", [missing], [], Bar("at most", 0), remark=f"of {made} made"))
    return report("A path fails, fast route", figures)


def switch(fault: Fault) -> Round:
    """One round: a path works for a while, and fails; until both routes have delivered everything."""

    async def measure(sink: MqttSink, lanes: Sequence[Lane], paths: Paths) -> tuple[float, int]:
        clock = SystemClock()
        pumps = [Pump(lane, lane.reader(Part.ALL), sink, clock, _none, rows_max=1_000) for lane in lanes]
        supervisor = Supervisor(SinkSession(sink, "", lanes, pumps), clock, lambda: 0.5)
        session, feed, over = asyncio.create_task(supervisor.run()), None, asyncio.Event()
        await until(lambda: sink.server.endswith("(a)"))
        if fault != "silent, idle":
            feed = asyncio.create_task(_feed(lanes, over))
        await asyncio.sleep(STEADY_S)
        paths.pull("a") if fault == "interface down" else paths.links["a"].cut()
        began_s = time.monotonic()
        await until(lambda: sink.server.endswith("(b)"))
        before = sink.counters.totals["pubacks"]
        await until(lambda: feed is None or sink.counters.totals["pubacks"] > before)
        taken_s = time.monotonic() - began_s
        over.set()
        made = await feed if feed else 0
        await until(lambda: not any(lane.pending_rows for lane in lanes))
        session.cancel()
        await asyncio.wait([session])
        return taken_s, made

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = stack.enter_context(Paths("a", "b", delay_s=DELAY_S))
        broker = stack.enter_context(FarMosquitto(paths))
        subscriber = stack.enter_context(Subscriber(broker.port, folder, beyond=paths))
        ways = {name: {"bind": link.device} for name, link in paths.links.items()}
        settings = MqttTarget.model_validate({"mqtt": broker.url, "paths": ways, "topic": "{site}/{route}"})
        tags = tag_table()
        sink = MqttSink("plant", settings.by([*ways], True, first=True), Identity("gw", SITE), tags, SystemClock())

        async def run() -> tuple[float, int]:
            disk = DiskLane("durable", folder / "lane", SystemClock(), Limits(2**28), tags=tags, sources=["machine"])
            try:
                return await measure(sink, [MemoryLane("fast", bytes_max=2**28), disk], paths)
            finally:
                await disk.close()

        taken_s, made = on_loop(run())
        came: dict[str, set[float]] = {"fast": set(), "durable": set()}
        for message in subscriber.all_messages():
            came[message["stream"]].update(sample["v"] for sample in message["samples"])
    return Round(taken_s, made, made - len(came["fast"]), made - len(came["durable"]))


def plain_s() -> float:
    """Seconds until paho's `on_disconnect`."""
    with Paths("a", delay_s=DELAY_S) as paths, FarMosquitto(paths) as broker:
        return mqtt_notices_s(broker.address, broker.port, paths.links["a"].cut, EVERY_S)


async def _feed(lanes: Sequence[Lane], over: asyncio.Event) -> int:
    """Until it is over: how many values."""
    number = 0
    while not over.is_set():
        builder = BatchBuilder()
        builder.add(0, time.time_ns(), float(number), Kind.DOUBLE)
        batch = builder.build(source_id=0, number=number, received_ns=time.time_ns())
        for lane in lanes:
            await lane.append(batch)
        number += 1
        await asyncio.sleep(EVERY_S)
    return number


async def _none(*_: object) -> None:
    raise AssertionError("nothing is rejected here")


def _remark(rounds: Sequence[Round]) -> str:
    slowest = ", ".join(f"{each.taken_s:.3f}" for each in sorted(rounds))
    return f"slowest of {slowest}; fast route: {sum(each.fast_missing for each in rounds)} values missing"


if __name__ == "__main__":
    sys.exit(main())
