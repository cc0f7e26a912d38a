"""From the moment a broker's link falls silent to the first PUBACK of the second broker. Needs root (a namespace).

10,000 values/s in batches of 1,000, ack_timeout as it is by default. The slowest of the rounds counts. Reference: a
plain paho client that publishes one message in 100 ms, until it says that the connection is lost; keep-alive 10 s,
where its default is 60 s.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

from benchmarks.measure import Bar, Figure, in_child, on_loop, report, until
from benchmarks.rows import batch, tag_table
from benchmarks.stock import mqtt_notices_s
from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from gateway.session import SinkSession
from gateway.supervisor import Supervisor
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump
from tests.services.far import FarMosquitto
from tests.services.link import Link
from tests.services.mosquitto import Mosquitto

RUNS: Final = 5
EVERY_S: Final = 0.1


def main() -> int:
    """Prints the table; the exit code."""
    loaded = [in_child(silent_s, True) for _ in range(RUNS)]
    idle = [in_child(silent_s, False) for _ in range(RUNS)]
    plain = [in_child(plain_s)]
    return report(
        "MQTT failover, link silent",
        [
            Figure("10,000 values/s", "s", [max(loaded)], plain, Bar("at most", 3.0), remark=_rounds(loaded)),
            Figure("idle, until the second is up", "s", [max(idle)], bar=Bar("at most", 3.0), remark=_rounds(idle)),
        ],
    )


def silent_s(loaded: bool) -> float:
    """One blackhole: seconds to the second broker's first PUBACK, or idle to its session."""

    async def measure() -> float:
        with Link() as link, FarMosquitto(link) as first, Mosquitto() as second:
            target = MqttTarget.model_validate({"mqtt": [first.url, second.url]})
            sink = MqttSink("plant", target, Identity("gw"), tag_table(), SystemClock())
            lane = MemoryLane("all", bytes_max=2**28)
            pump = Pump(lane, lane.reader(Part.ALL), sink, SystemClock(), _none, rows_max=10_000)
            session = SinkSession(sink, "", [lane], [pump])
            tasks = [asyncio.create_task(Supervisor(session, SystemClock(), lambda: 0.5).run())]
            tasks += [asyncio.create_task(_feed(lane))] if loaded else []
            await until(lambda: sink.server == first.url and (not loaded or sink.counters.totals["pubacks"] > 10))
            link.cut()
            began_s = time.monotonic()
            await until(lambda: sink.server == second.url)
            before = sink.counters.totals["pubacks"]
            await until(lambda: not loaded or sink.counters.totals["pubacks"] > before)
            taken_s = time.monotonic() - began_s
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return taken_s

    return on_loop(measure())


def plain_s() -> float:
    """One blackhole: seconds until paho's `on_disconnect`."""
    with Link() as link, FarMosquitto(link) as broker:
        return mqtt_notices_s(broker.address, broker.port, link.cut, EVERY_S)


async def _feed(lane: MemoryLane) -> None:
    for number in range(10**9):
        await lane.append(batch(number))
        await asyncio.sleep(EVERY_S)


async def _none(*_: object) -> None:
    raise AssertionError("nothing is rejected here")


def _rounds(seconds: list[float]) -> str:
    return "slowest of " + ", ".join(f"{each:.2f}" for each in sorted(seconds))


if __name__ == "__main__":
    sys.exit(main())
