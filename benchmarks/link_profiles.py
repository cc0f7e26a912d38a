"""The gateway's sending side over four private 5G links, as a table for the documents. Needs root (a namespace).

    python -m benchmarks.link_profiles [--seconds 60] [--into docs/latency.md]

The links are emulated (tests/services/manner.py): delay, jitter, a Pareto tail, bursts of loss, rate and queue,
handovers; no radio was measured. Round trip, jitter (mean difference of neighbours, as RFC 3550 has it) and loss: ICMP
echoes, 100 a second, while nothing else is sent. Then two routes at once, each in a session of its own, QoS 1: fast,
one value in 20 ms; bulk, 2,000 values/s in batches of 200. The time is from the making of a batch to its arrival at a
foreign subscriber (mosquitto_sub) behind the link; missing are batches that never arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, quantiles
from typing import Final

from benchmarks.measure import in_child, on_loop
from benchmarks.rows import tag_table
from connectors.mqtt import MqttSink
from connectors.mqtt_settings import MqttTarget
from connectors.payload import Identity
from gateway.latency_host import host
from gateway.session import SinkSession
from gateway.supervisor import Supervisor
from pipelines.batch import BatchBuilder, Kind
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump
from tests.services.far import FarMosquitto
from tests.services.link import Link
from tests.services.manner import PRIVATE_5G
from tests.services.packages import program
from tests.services.ports import HOST

ROUTES: Final[dict[str, tuple[int, float]]] = {"fast": (1, 0.02), "bulk": (200, 0.1)}
"""Rows of a batch, and how often one is made, in seconds."""
ECHOES: Final = 2000
ECHO_EVERY_S: Final = 0.01
LAST_ECHO_S: Final = 1.0
DRAIN_S: Final = 30.0
BEGIN, END = "<!-- links: begin -->\n", "<!-- links: end -->\n"
_ARRIVED: Final = re.compile(r'^([\d.]+) (\w+)/x .*?"seq":(\d+).*?"t":(\d+)')


def main() -> int:
    """Prints the table, or writes it between the marks of a document; 1 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--into", type=Path)
    given = parser.parse_args()
    page = given.into.read_text() if given.into else BEGIN + END
    if END not in page.partition(BEGIN)[2]:
        parser.error(f"{given.into} has no {BEGIN.strip()} ... {END.strip()}")
    rows = [_row(name, given.seconds) for name in PRIVATE_5G]
    heads = "link | round trip p50 / p99, ms | jitter, ms | loss | fast p50 / p99, ms | bulk p50 / p99, ms | missing"
    lines = [_where(given.seconds), "", f"| {heads} |", "|---" * 7 + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    table = "\n".join(lines) + "\n"
    print(table)
    if given.into:
        before, _, rest = page.partition(BEGIN)
        given.into.write_text(before + BEGIN + table + END + rest.partition(END)[2])
    return int(any(row[-1] != "0" for row in rows))


def _where(seconds: float) -> str:
    facts = host()
    return f"{facts['machine']}, {facts['kernel']}, {facts['python']}, {facts['scheduling']}; {seconds:g} s a link."


def _row(name: str, seconds: float) -> list[str]:
    with Link() as link, FarMosquitto(link) as broker:
        link.shape(*PRIVATE_5G[name])
        trips_ms, lost = _echoes(link.address)
        arrived = _arrivals(link, broker, seconds)
    times_ms = {route: [ms for _, ms in came.values()] for route, came in arrived.came.items()}
    jitter_ms = mean(abs(one - other) for one, other in pairwise(trips_ms))
    missing = sum(made - len(arrived.came[route]) for route, made in arrived.made.items())
    return [
        name,
        _p50_p99(trips_ms),
        f"{jitter_ms:.1f}",
        f"{lost:.1%}",
        *(_p50_p99(times_ms[route]) for route in ROUTES),
        str(missing),
    ]


def _p50_p99(values: list[float]) -> str:
    cuts = quantiles(values, n=100, method="inclusive")
    return f"{cuts[49]:.1f} / {cuts[98]:.1f}"


class _Arrivals:
    """What was made, and what came: route -> seq -> (when, ms on the way)."""

    def __init__(self, made: dict[str, int]) -> None:
        self.made = made
        self.came: defaultdict[str, dict[int, tuple[float, float]]] = defaultdict(dict)


def _arrivals(link: Link, broker: FarMosquitto, seconds: float) -> _Arrivals:
    argv = [program("mosquitto_sub", "mosquitto-clients"), "-h", HOST, "-p", str(broker.port), "-q", "1"]
    with tempfile.TemporaryFile("w+") as file:
        topics = [word for route in ROUTES for word in ("-t", f"{route}/#")]
        with subprocess.Popen(link.beyond([*argv, *topics, "-F", "%U %t %p"]), stdout=file) as subscriber:
            time.sleep(1.0)  # it says nothing when it has subscribed
            arrived = _Arrivals(in_child(send, broker.url, seconds))
            time.sleep(1.0)
            subscriber.terminate()
        file.seek(0)
        for line in file:
            if match := _ARRIVED.match(line):
                when_s, route, seq, made_us = float(match[1]), match[2], int(match[3]), int(match[4])
                arrived.came[route].setdefault(seq, (when_s, when_s * 1e3 - made_us / 1e3))
    return arrived


def send(url: str, seconds: float) -> dict[str, int]:
    """Runs both routes for so long, until all is acknowledged; batches made of each."""

    async def run() -> dict[str, int]:
        lanes = {route: MemoryLane(route, bytes_max=2**28) for route in ROUTES}
        tasks = [asyncio.create_task(_supervisor(url, lane).run()) for lane in lanes.values()]
        made = await asyncio.gather(*(_feed(lane, *ROUTES[route], seconds) for route, lane in lanes.items()))
        async with asyncio.timeout(DRAIN_S):
            while any(lane.pending_rows for lane in lanes.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return dict(zip(ROUTES, made, strict=True))

    return on_loop(run())


def _supervisor(url: str, lane: MemoryLane) -> Supervisor:
    settings = MqttTarget.model_validate({"mqtt": url, "topic": "{route}/x", "status_topic": None})
    clock = SystemClock()
    sink = MqttSink(lane.name, settings, Identity("gw"), tag_table(), clock)
    pump = Pump(lane, lane.reader(Part.ALL), sink, clock, _none, rows_max=10_000)
    return Supervisor(SinkSession(sink, url, [lane], [pump]), clock, lambda: 0.5)


async def _feed(lane: MemoryLane, rows: int, every_s: float, seconds: float) -> int:
    number, begin_s = 0, time.monotonic()
    while number * every_s < seconds:
        now_ns = time.time_ns()
        builder = BatchBuilder()
        for tag in range(rows):
            builder.add(tag, now_ns, number / 8.0, Kind.DOUBLE)
        await lane.append(builder.build(source_id=0, number=number, received_ns=now_ns))
        number += 1
        await asyncio.sleep(max(0.0, begin_s + number * every_s - time.monotonic()))
    return number


async def _none(*_: object) -> None:
    raise AssertionError("nothing is rejected here")


def _echoes(address: str) -> tuple[list[float], float]:
    """Round trips in ms, in the order of sending, and the share without an answer (RFC 792)."""
    sent_s: list[float] = []
    trips: dict[int, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        begin_s = time.monotonic()
        while (now_s := time.monotonic() - begin_s) < ECHOES * ECHO_EVERY_S + LAST_ECHO_S:
            if len(sent_s) < ECHOES and now_s >= len(sent_s) * ECHO_EVERY_S:
                sent_s.append(now_s)
                sock.sendto(_echo(len(sent_s) - 1), (address, 0))
            if select.select([sock], [], [], 0.001)[0]:
                data, (sender, _) = sock.recvfrom(2048)
                kind, _, _, own, number = struct.unpack_from("!BBHHH", data, 4 * (data[0] & 15))
                if (sender, kind, own) == (address, 0, _OWN):
                    trips[number] = (time.monotonic() - begin_s - sent_s[number]) * 1e3
    return [trips[number] for number in sorted(trips)], 1 - len(trips) / ECHOES


_OWN: Final = 0x6A7E


def _echo(number: int) -> bytes:
    head = struct.pack("!BBHHH", 8, 0, 0, _OWN, number)
    total = sum(struct.unpack("!4H", head))
    return struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, _OWN, number)


if __name__ == "__main__":
    sys.exit(main())
