"""Latency of a fast worker while another worker of the same gateway moves 50,000 values a second.

As `benchmarks.latency`, by turns: the floor (a relay of raw sockets) and a fast worker with real-time priority, each
with nothing beside it, and each beside a worker that takes 1,000 values every 20 ms from Eclipse Milo to a Mosquitto of
its own over a durable route. Beside ours that worker is the same gateway's, beside the floor one of another gateway.

    python -m benchmarks.latency_workers [--realtime PRIORITY] [--seconds S] [--rounds N]

Root, for the capture and the priority.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from statistics import median
from typing import Any, Final

from benchmarks.latency import PERIOD_US, Program, Times, measure
from benchmarks.measure import Bar, Figure, by_turns, report
from benchmarks.runtime import SITE
from benchmarks.subscriber import Subscriber
from tests.e2e.gateway_process import Gateway
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto
from tests.services.process import ServerProcess
from tests.services.stamper import Stamper

GROUP: Final = Group("v", "double", 1_000, 20)
P50, P99 = 0.5, 0.99
BAR: Final = Bar("at most", 1.5, of="ratio")

Keys = Mapping[str, Any]


def main() -> int:
    """Prints the table; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--realtime", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    with Stamper() as machine, Milo([GROUP]) as load, Mosquitto() as broker, Mosquitto() as far:
        machine.go(PERIOD_US)
        load.go()
        fast, bulk = _fast(machine, broker, asked.realtime), _bulk(load, far)

        def measured(start: Callable[[], AbstractContextManager[ServerProcess]], priority: int) -> Callable[[], Times]:
            return lambda: measure(start, machine.port, broker.port, asked.seconds, priority)

        with Subscriber(broker.port, "drain"):
            floor, ours, floor_loaded, ours_loaded = by_turns(
                asked.rounds,
                measured(lambda: Program("gateway.latency_floor", [machine.url, machine.node], broker), asked.realtime),
                measured(lambda: _gateway(fast), 0),
                measured(
                    lambda: _beside(bulk, Program("gateway.latency_floor", [machine.url, machine.node], broker)),
                    asked.realtime,
                ),
                measured(lambda: _gateway(fast, bulk), 0),
            )
    apart = [_at(ours, P99) / _at(floor, P99)]
    beside = [_at(ours_loaded, P99) / _at(floor_loaded, P99)]
    floors = f"floor {_at(floor, P50):.0f} and {_at(floor_loaded, P50):.0f} us"
    remark = f"floor {_at(floor, P99):.0f} and {_at(floor_loaded, P99):.0f} us, ours {_at(ours, P99):.0f} and "
    remark += f"{_at(ours_loaded, P99):.0f} us"
    return report(
        f"OPC UA to MQTT, {10**6 // PERIOD_US} changes/s, SCHED_FIFO {asked.realtime}, beside 50,000 values/s",
        [
            Figure("added p50, reference: alone", "us", [_at(ours_loaded, P50)], [_at(ours, P50)], BAR, remark=floors),
            Figure("added p99 / the floor's, reference: alone", "", beside, apart, BAR, remark=remark),
        ],
    )


def _at(rounds: list[Times], quantile: float) -> float:
    """The median of the rounds, us."""
    return median(times.at(quantile) for times in rounds)


def _fast(machine: Stamper, broker: Mosquitto, realtime: int) -> Keys:
    device = {"opcua": machine.url, "security": "none", "every": "1ms", "sampling": 0, "tags": {"stamp": machine.node}}
    return {
        "devices": {"machine": device},
        "send": {"fast": {"from": "machine", "to": "broker", "fast": True}},
        "to": {"broker": {"mqtt": broker.url}},
        "workers": {"fast": {"devices": "machine", "realtime": realtime, "lock_memory": True}},
    }


def _bulk(load: Milo, far: Mosquitto) -> Keys:
    tags = {f"v{index}": node for index, node in enumerate(GROUP.node_ids())}
    device = {"opcua": load.url, "security": "none", "every": f"{GROUP.period_ms}ms", "sampling": 0, "tags": tags}
    return {
        "devices": {"load": device},
        "send": {"history": {"from": "load", "to": "far"}},
        "to": {"far": {"mqtt": far.url}},
        "workers": {"bulk": {"devices": "load"}},
    }


@contextmanager
def _gateway(*parts: Keys) -> Iterator[ServerProcess]:
    """With what all parts say, once every route delivers."""
    both: dict[str, Any] = {key: {} for key in ("devices", "send", "to", "workers")}
    for part in parts:
        for key, told in part.items():
            both[key] |= told
    with Gateway(**both, options={"site": SITE}) as gateway:
        gateway.wait_for(lambda: all(gateway.metric("gateway_pump_rows_total", r) > 0 for r in both["send"]), "rows")
        yield gateway.process


@contextmanager
def _beside(bulk: Keys, program: AbstractContextManager[ServerProcess]) -> Iterator[ServerProcess]:
    with _gateway(bulk), program as process:
        yield process


if __name__ == "__main__":
    sys.exit(main())
