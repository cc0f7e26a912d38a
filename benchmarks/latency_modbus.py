"""Latency of a `fast: true` route from Modbus, beside the floor and a stock script, in one run.

A foreign server (libmodbus) has the time of each request in its registers, which are read 500 times a second; a foreign
subscriber gets them from Mosquitto. Between them stand, by turns: the floor (a loop on raw sockets), a script on
pymodbus and paho (both in `benchmarks.latency_modbus_peers`), and the gateway as users run it. What is measured is what
`benchmarks.latency` measures: from the packet with the reply to the packet with its PUBLISH.

    python -m benchmarks.latency_modbus [--registers N] [--realtime PRIORITY] [--seconds S] [--rounds N]

--registers: so many are read, the time is in the first four. Root, for the capture.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from benchmarks.latency import QUANTILES, Program, Times, measure
from benchmarks.measure import Figure, by_turns, report
from benchmarks.runtime import DEVICE, ROUTE, GatewayProcess, mqtt
from benchmarks.subscriber import Subscriber
from tests.services.libmodbus import LibmodbusServer
from tests.services.mosquitto import Mosquitto
from tests.services.process import ServerProcess

PERIOD_MS: Final = 2
STAMP_REGISTERS: Final = 4
_DIGITS: Final = re.compile(rb"1[0-9]{15}")
_INT64: Final = re.compile(rb"(?=(\x00[\x05-\x0f].{6}))", re.DOTALL)
"""Registers with a time in us of these years, in a reply or as the floor sends it on."""


def main() -> int:
    """Prints the table; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--registers", type=int, default=STAMP_REGISTERS)
    arguments.add_argument("--realtime", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    with LibmodbusServer(stamps=True) as machine, Mosquitto() as broker, Subscriber(broker.port, "drain"):

        def measured(start: Callable[[], AbstractContextManager[ServerProcess]]) -> Callable[[], Times]:
            return lambda: measure(start, machine.port, broker.port, asked.seconds, asked.realtime, values_of)

        def peer(name: str) -> Program:
            place = [name, str(machine.port), str(asked.registers), str(PERIOD_MS)]
            return Program("benchmarks.latency_modbus_peers", place, broker)

        floor, stock, ours = by_turns(
            asked.rounds,
            measured(lambda: peer("floor")),
            measured(lambda: peer("stock")),
            measured(lambda: _Gateway(machine, broker, asked.registers)),
        )
    how = f"SCHED_FIFO {asked.realtime}" if asked.realtime else "no real-time priority"
    replies = min(len(times.added) for times in (*floor, *stock, *ours))
    title = f"Modbus to MQTT, {1000 // PERIOD_MS} polls/s of {asked.registers} registers; {how}"
    return report(
        f"{title}; {asked.rounds} rounds of at least {replies:,} replies",
        [*_figures("added", floor, stock, ours, whole=False), *_figures("whole way", floor, stock, ours, whole=True)],
    )


def values_of(data: bytes) -> list[int]:
    """What may be one: decimal text, or four registers."""
    return [int(text) for text in _DIGITS.findall(data)] + [struct.unpack(">q", raw)[0] for raw in _INT64.findall(data)]


def _figures(
    name: str, floor: Sequence[Times], stock: Sequence[Times], ours: Sequence[Times], *, whole: bool
) -> Iterable[Figure]:
    for quantile, share in QUANTILES.items():
        of_floor, of_stock, of_ours = ([one.at(share, whole) for one in times] for times in (floor, stock, ours))
        remark = "floor " + ", ".join(f"{us:,.0f}" for us in of_floor) + " us"
        yield Figure(f"{name} {quantile}, beside the stock script", "us", of_ours, of_stock, remark=remark)


class _Gateway:
    """`gateway run` with one `fast: true` route."""

    def __init__(self, machine: LibmodbusServer, broker: Mosquitto, registers: int) -> None:
        tags = "      stamp: input 0 int64\n"
        tags += "".join(f"      r{at}: input {at} uint16\n" for at in range(STAMP_REGISTERS, registers))
        device = f"  {DEVICE}:\n    modbus: {machine.url}/1\n    every: {PERIOD_MS}ms\n    tags:\n{tags}"
        self._gateway = GatewayProcess([device], {ROUTE: mqtt(broker.url)}, fast=True)

    def __enter__(self) -> ServerProcess:
        self._gateway.__enter__()
        self._gateway.wait_delivering(1)
        return self._gateway.process

    def __exit__(self, *_: object) -> None:
        self._gateway.__exit__(None, None, None)


if __name__ == "__main__":
    sys.exit(main())
