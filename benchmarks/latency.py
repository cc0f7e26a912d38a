"""Latency of a `fast: true` route, beside the floor and a stock script, in one run.

A foreign OPC UA server (gopcua) writes the time into a variable 500 times a second and publishes each change in a
notification of its own; a foreign subscriber gets it from Mosquitto. Between them stand, by turns: the floor (a relay
of raw sockets, `gateway.latency_floor`), a script on asyncua's handler and paho, and the gateway as users run it.

Gateway-added time is taken from outside (`benchmarks.capture`), for all three alike: from the packet that brings a
value to the packet that takes it to the broker; values are recognised by what they say. The whole way is from the time
that the machine has written into the value to the packet that takes it to the subscriber. Quantiles are of the changes
of all rounds together: a tail that is looked at in its best round only is none.

    python -m benchmarks.latency [--realtime PRIORITY] [--seconds S] [--rounds N]

--realtime gives every one of the three that SCHED_FIFO priority. Root, for the capture.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from benchmarks.capture import Capture, Packet
from benchmarks.measure import Bar, Figure, by_turns, report
from benchmarks.runtime import ROUTE, SITE, GatewayProcess, mqtt, opcua
from benchmarks.subscriber import Subscriber
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST
from tests.services.process import ServerProcess
from tests.services.stamper import Stamper

PERIOD_US: Final = 2_000
SETTLE_S: Final = 2.0
ATTEMPTS: Final = 5
"""Now and then gopcua's server stops publishing for good although it has requests, whoever its client is."""
FLOOR_P99_US: Final = 100.0
"""Above this the machine was not quiet enough for figures in us; the ratios hold on any machine."""
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
LIMITS_US: Final = {"p50": 150.0, "p99": 500.0}
_DIGITS: Final = re.compile(rb"1[0-9]{15}")
_INT64: Final = re.compile(rb"(?=\x08(.{8}))", re.DOTALL)
_WINDOW_US: Final = 10_000_000


@dataclass(frozen=True)
class Times:
    """us; sorted."""

    added: Sequence[float]
    whole: Sequence[float]

    def at(self, quantile: float, whole: bool = False) -> float:
        """That quantile."""
        times = self.whole if whole else self.added
        return times[min(int(quantile * len(times)), len(times) - 1)]


def main() -> int:
    """Prints the table; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--realtime", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    with Stamper() as machine, Mosquitto() as broker, Subscriber(broker.port, "drain"):
        machine.go(PERIOD_US)

        def measured(start: Callable[[], AbstractContextManager[ServerProcess]]) -> Callable[[], Times]:
            return lambda: measure(start, machine.port, broker.port, asked.seconds, asked.realtime)

        floor, stock, ours = by_turns(
            asked.rounds,
            measured(lambda: Program("gateway.latency_floor", [machine.url, machine.node], broker)),
            measured(lambda: Program("benchmarks.latency_stock", [machine.url, machine.node], broker)),
            measured(lambda: _Gateway(machine, broker)),
        )
    quiet = _all(floor).at(QUANTILES["p99"]) < FLOOR_P99_US
    title = f"OPC UA to MQTT, {10**6 // PERIOD_US} changes/s, each in its own notification"
    how = f"SCHED_FIFO {asked.realtime}" if asked.realtime else "no real-time priority"
    changes = min(len(times.added) for times in (*floor, *stock, *ours))
    figures = [*_figures(floor, stock, ours, quiet), *_beside(floor, stock, ours)]
    code = report(f"{title}; {how}; {asked.rounds} rounds of at least {changes:,} changes", figures)
    if not quiet:
        print(
            f"  the floor's own p99 is above {FLOOR_P99_US:g} us: the machine is not quiet, limits in us do not count"
        )
    return code


def _figures(floor: list[Times], stock: list[Times], ours: list[Times], quiet: bool) -> Iterable[Figure]:
    for name, quantile in QUANTILES.items():
        us, theirs = [_all(ours).at(quantile)], [_all(stock).at(quantile)]
        bar = Bar("at most", 1 / 3, of="ratio") if name in LIMITS_US else None
        remark = f"rounds {_rounds(ours, quantile)}; stock script {_rounds(stock, quantile)}"
        yield Figure(f"added {name}, beside the stock script", "us", us, theirs, bar, remark=remark)
    for name, quantile in QUANTILES.items():
        us, theirs = [_all(ours).at(quantile)], [_all(floor).at(quantile)]
        bar = Bar("at most", LIMITS_US[name]) if quiet and name in LIMITS_US else None
        remark = f"floor's rounds {_rounds(floor, quantile)}"
        yield Figure(f"added {name}, beside the floor", "us", us, theirs, bar, remark=remark)


def _beside(floor: list[Times], stock: list[Times], ours: list[Times]) -> Iterable[Figure]:
    for name, quantile in QUANTILES.items():
        us, theirs = [_all(ours).at(quantile, whole=True)], [_all(floor).at(quantile, whole=True)]
        remark = f"stock script {_all(stock).at(quantile, whole=True):,.0f} us"
        yield Figure(f"whole way {name}, beside the floor", "us", us, theirs, remark=remark)


def _all(rounds: list[Times]) -> Times:
    return Times(
        *(sorted(chain.from_iterable(each)) for each in zip(*((one.added, one.whole) for one in rounds), strict=True))
    )


def _rounds(rounds: list[Times], quantile: float) -> str:
    return ", ".join(f"{times.at(quantile):,.0f}" for times in rounds) + " us"


def values_of(data: bytes) -> list[int]:
    """What may be one: decimal text, or an Int64 Variant of OPC UA."""
    return [int(text) for text in _DIGITS.findall(data)] + [struct.unpack("<q", raw)[0] for raw in _INT64.findall(data)]


def measure(
    start: Callable[[], AbstractContextManager[ServerProcess]],
    machine: int,
    broker: int,
    seconds: float,
    realtime: int,
    values: Callable[[bytes], list[int]] = values_of,
) -> Times:
    """Of what goes from one port to the other while a program runs, for some seconds. `values`: in a packet.

    Begins anew where the machine has sent nothing.
    """
    for _ in range(ATTEMPTS):
        with start() as process:
            if realtime:
                for task in Path(f"/proc/{process.pid}/task").iterdir():
                    os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(realtime))
            time.sleep(SETTLE_S)
            with Capture([machine, broker]) as capture:
                time.sleep(seconds)
                packets = list(capture.packets())
        if any(packet.source_port == machine for packet in packets):
            return _times(packets, machine, broker, values)
    raise RuntimeError(f"the machine sends nothing, {ATTEMPTS} times in a row")


def _times(packets: Iterable[Packet], machine: int, broker: int, values: Callable[[bytes], list[int]]) -> Times:
    """By the value: when it came from the machine, first went to the broker, first went to the subscriber."""
    came: dict[int, int] = {}
    sent: dict[int, int] = {}
    received: dict[int, int] = {}
    for packet in packets:
        if packet.source_port == machine:
            _note(came, _stamps(packet, values))
        elif packet.target_port == broker:
            _note(sent, _stamps(packet, values))
        elif packet.source_port == broker:
            _note(received, _stamps(packet, values))
    added = sorted((sent[stamp] - at_ns) / 1e3 for stamp, at_ns in came.items() if stamp in sent)
    whole = sorted(received[stamp] / 1e3 - stamp for stamp in sent if stamp in received)
    if len(added) < 0.95 * len(came) or not whole:
        raise RuntimeError(f"{len(added)} of {len(came)} values were sent, {len(whole)} received")
    return Times(added, whole)


def _note(times: dict[int, int], stamps: Iterable[tuple[int, int]]) -> None:
    for stamp, at_ns in stamps:
        times.setdefault(stamp, at_ns)


def _stamps(packet: Packet, values: Callable[[bytes], list[int]]) -> Iterable[tuple[int, int]]:
    """(value, when) of each value in the packet."""
    now_us = packet.at_ns // 1000
    return [(stamp, packet.at_ns) for stamp in values(packet.data) if 0 <= now_us - stamp < _WINDOW_US]


class Program:
    """A module as a process that relays from the machine to the broker; ready when it says so.

    `python -m MODULE *machine HOST PORT TOPIC`, with the broker's address.
    """

    def __init__(self, module: str, machine: Sequence[str], broker: Mosquitto) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mec-latency-")
        topic = f"{SITE}/machine"
        argv = [sys.executable, "-m", module, *machine, HOST, str(broker.port), topic]
        root = str(Path(__file__).resolve().parents[1])
        self._process = ServerProcess(module, argv, Path(self._folder.name) / "log", {"PYTHONPATH": root})

    def __enter__(self) -> ServerProcess:
        self._process.start()
        self._process.wait_line("^relaying$", 20.0)
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.stop()
        self._folder.cleanup()


class _Gateway:
    """`gateway run` with one `fast: true` route."""

    def __init__(self, machine: Stamper, broker: Mosquitto) -> None:
        device = opcua(machine.url, [machine.node], 1)
        self._gateway = GatewayProcess([device], {ROUTE: mqtt(broker.url)}, fast=True)

    def __enter__(self) -> ServerProcess:
        self._gateway.__enter__()
        self._gateway.wait_delivering(1)
        return self._gateway.process

    def __exit__(self, *_: object) -> None:
        self._gateway.__exit__(None, None, None)


if __name__ == "__main__":
    sys.exit(main())
