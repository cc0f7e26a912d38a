"""The event loop at 50,000 values/s, and how long a start takes; both in the gateway as users run it, to MQTT JSON.

Loop: the largest figures of `/metrics`, scraped each second. `lag_cpu`, the bar, is what the gateway's own steps took;
`lag` is wall time and stands beside the same timer in a process that does nothing else. Start: wall time from starting
the process to the first value of every tag at a subscriber; beside it asyncua alone, to its handler.
"""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks import stock
from benchmarks.measure import ROUNDS, Bar, Figure, by_turns, in_child, on_loop, report
from benchmarks.runtime import ROUTE, GatewayProcess, mqtt, opcua
from benchmarks.subscriber import Subscriber
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto

LARGE: Final = Group("v", "double", 5_000, 100)
SMALL: Final = Group("s", "double", 1_000, 20)
SECONDS: Final = 6
"""Of one round."""
SETTLE_S: Final = 5.0
TICK_S: Final = 0.010
IDLE: Final = "reference: a loop that is idle"
LIVE_S: Final = {1_000: 3.0, 10_000: 10.0}


def main() -> int:
    """Prints the table; the exit code."""
    with Milo([LARGE, SMALL, Group("t", "double", max(LIVE_S), 100)]) as server, Mosquitto() as broker:
        figures = [_live(server, broker, tags, Bar("at most", limit_s)) for tags, limit_s in LIVE_S.items()]
        server.go()
        for group in (LARGE, SMALL):
            figures += _blocked(server, broker, group)
    return report("Event loop and start", figures)


def idle_lag_ms(seconds: float) -> float:
    """The largest lateness of a timer on a loop that has nothing else to do."""

    async def watch() -> float:
        worst_s, end_s = 0.0, time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s:
            await asyncio.sleep(TICK_S)
            worst_s = max(worst_s, time.monotonic() - now_s - TICK_S)
        return worst_s * 1e3

    return on_loop(watch())


def _blocked(server: Milo, broker: Mosquitto, group: Group) -> list[Figure]:
    device = opcua(server.url, group.node_ids(), group.period_ms)
    with Subscriber(broker.port, "drain"), GatewayProcess([device], {ROUTE: mqtt(broker.url)}) as gateway:
        gateway.wait_delivering(group.count)
        time.sleep(SETTLE_S)
        with ThreadPoolExecutor(1) as beside:
            idle = beside.submit(in_child, idle_lag_ms, ROUNDS * SECONDS)
            lags = [_worst_ms(gateway) for _ in range(ROUNDS)]
            idle_ms = idle.result()
    name = f"{group.count:,} values every {group.period_ms} ms"
    return [
        Figure(f"longest step, {name}", "ms CPU", [cpu_ms for cpu_ms, _ in lags], (), Bar("at most", 5.0)),
        Figure(f"latest timer, {name}", "ms wall", [wall_ms for _, wall_ms in lags], [idle_ms], remark=IDLE),
    ]


def _worst_ms(gateway: GatewayProcess) -> tuple[float, float]:
    """The largest `lag_cpu` and `lag` of one round; scrapes each second, as Prometheus might."""
    gateway.metrics()
    cpu_ms, wall_ms = [], []
    for _ in range(SECONDS):
        time.sleep(1.0)
        found = gateway.metrics()
        cpu_ms.append(found['gateway_loop_lag_cpu_max_seconds{name="main"}'] * 1e3)
        wall_ms.append(found['gateway_loop_lag_max_seconds{name="main"}'] * 1e3)
    return max(cpu_ms), max(wall_ms)


def _live(server: Milo, broker: Mosquitto, tags: int, bar: Bar) -> Figure:
    nodes = [f"ns=2;s=t{tag}" for tag in range(tags)]
    rounds, reference = by_turns(
        ROUNDS,
        lambda: _seconds_until_live(server, broker, nodes),
        lambda: stock.seconds_until_live(server.url, nodes),
    )
    return Figure(f"{tags:,} tags live", "s wall", rounds, reference, bar, remark="reference: asyncua to its handler")


def _seconds_until_live(server: Milo, broker: Mosquitto, nodes: list[str]) -> float:
    device = opcua(server.url, nodes, 100)
    with Subscriber(broker.port, "tags") as subscriber:
        with GatewayProcess([device], {ROUTE: mqtt(broker.url)}) as gateway:
            # Asked rarely and for little: the subscriber notes the time itself.
            gateway.process.wait_until(
                lambda: _saw(subscriber, len(nodes)), 30.0, f"value of each of {len(nodes)} tags"
            )
        return (subscriber.seen().newest_tag_ns - gateway.spawned_ns) / 1e9


def _saw(subscriber: Subscriber, tags: int) -> bool:
    time.sleep(0.2)
    return subscriber.seen().tags >= tags


if __name__ == "__main__":
    sys.exit(main())
