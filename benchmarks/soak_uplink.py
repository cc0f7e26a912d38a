"""The uplink away for minutes at 10,000 values/s, a broker on site beside it: what the site and memory notice of that,
and how the backlog drains afterwards.

    python -m benchmarks.soak_uplink [--seconds 600]

Eclipse Milo, 1,000 Doubles every 100 ms; two Mosquittos, QoS 1; one route with its lane on disk, all settings as they
are by default. The uplink's broker is paused (SIGSTOP), which is a link that falls silent: connections stay, nothing
answers. Latency is source time to subscriber, of what comes live; the server publishes every 10 ms, so that little of
it is the server's. Its reference are the 30 s before the outage and the 30 s after the replay, the better of the two.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.measure import Bar, Figure, report
from benchmarks.runtime import ROUTE, GatewayProcess, mqtt, opcua
from benchmarks.subscriber import Seen, Subscriber
from tests.services.milo import Group, Milo, Started
from tests.services.mosquitto import Mosquitto

GROUP: Final = Group("v", "double", 1_000, 100)
RATE: Final = GROUP.count * 1000 // GROUP.period_ms
EVERY_MS: Final = 10
WARM_UP_S: Final = 20.0
NORMAL_S: Final = 30.0
WARM_UP_MEMORY_S: Final = 60
SECONDS_MIN: Final = 90
DRAIN_S: Final = 300.0
LOOK_S: Final = 1.0
MB: Final = 1e6
NOTHING: Final = Bar("at most", 0)
UNCHANGED: Final = Bar("at most", 1.25, "ratio")


@dataclass(frozen=True)
class Run:
    """What was seen, and the longest pause on site between the first moment and the last."""

    site: Seen
    uplink: Seen
    pause_ns: int
    moments: tuple[int, int, int, int, int]
    """UTC ns: the time before begins, uplink paused, resumed, backlog delivered, end."""
    ticks_us: list[int]
    resident: tuple[list[int], list[int], list[int]]
    """Bytes, each second: before, during, after the outage."""
    dropped: float


def main() -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    seconds: int = parser.parse_args().seconds
    if seconds < SECONDS_MIN:
        parser.error(f"--seconds: at least {SECONDS_MIN}, the first {WARM_UP_MEMORY_S} do not count for memory")
    with (
        Milo([GROUP]) as machine,
        Mosquitto() as far,
        Mosquitto() as near,
        Subscriber(far.port, "check") as uplink,
        Subscriber(near.port, "check") as site,
    ):
        device = opcua(machine.url, GROUP.node_ids(), EVERY_MS)
        with GatewayProcess([device], {ROUTE: mqtt(far.url, local=near.url)}) as gateway:
            run = _run(seconds, machine, far, gateway, uplink, site)
    return report(f"Uplink away for {seconds} s at {RATE:,} values/s", [*_site(run), *_memory(run), *_uplink(run)])


def _run(
    seconds: int, machine: Milo, far: Mosquitto, gateway: GatewayProcess, uplink: Subscriber, site: Subscriber
) -> Run:
    gateway.wait_delivering(GROUP.count)
    started = machine.go()[GROUP.prefix]
    _look_on(gateway, WARM_UP_S)
    site.seen()  # its longest pause counts from here
    began = time.time_ns()
    before = _look_on(gateway, NORMAL_S)
    paused = time.time_ns()
    far.process.pause()
    during = _look_on(gateway, seconds)
    far.process.resume()
    resumed = time.time_ns()
    after = _drained(gateway)
    drained = time.time_ns()
    after += _look_on(gateway, NORMAL_S)
    ended, pause_ns = time.time_ns(), site.seen().pause_ns
    last = machine.stop_ticking()[GROUP.prefix]
    _drained(gateway)
    found = gateway.metrics()
    dropped = sum(value for name, value in found.items() if name.startswith("gateway_lane_dropped_rows_total"))
    moments, resident = (began, paused, resumed, drained, ended), (before, during, after)
    return Run(site.seen(), uplink.seen(), pause_ns, moments, _ticks_us(started, last), resident, dropped)


def _look_on(gateway: GatewayProcess, seconds: float) -> list[int]:
    """Resident size every LOOK_S; a scrape each time, as in a plant."""
    resident, ends_s = [], time.monotonic() + seconds
    while time.monotonic() < ends_s:
        time.sleep(LOOK_S)
        gateway.metrics()
        resident.append(gateway.process.rss_bytes())
    return resident


def _drained(gateway: GatewayProcess) -> list[int]:
    """As `_look_on`, until no more waits for the uplink than what is on its way."""
    resident, deadline_s = [], time.monotonic() + DRAIN_S
    pending = f'gateway_lane_pending_rows{{name="{ROUTE}"}}'
    while gateway.metrics()[pending] > 2 * GROUP.count and time.monotonic() < deadline_s:
        resident += _look_on(gateway, LOOK_S)
    return resident


def _ticks_us(started: Started, last: int) -> list[int]:
    """Source times of all ticks."""
    return [started.source_ns(tick, GROUP.period_ms) // 1000 for tick in range(started.first_tick, last + 1)]


def _site(run: Run) -> list[Figure]:
    began, paused, resumed, drained, ended = run.moments
    outage, normal = (paused, resumed), ((began, paused), (drained, ended))
    return [
        Figure("on site: values missing", "values", [_missing(run.site, run.ticks_us)], (), NOTHING,
               remark=f"of {len(run.ticks_us) * GROUP.count:,}"),
        Figure("on site: messages missing", "messages", [run.site.missing_messages], (), NOTHING),
        Figure("on site: longest pause", "ms", [run.pause_ns / 1e6], [GROUP.period_ms], Bar("at most", 1000.0)),
        *(Figure(f"on site: latency p{q * 100:g} in the outage", "ms", _latencies(run.site, q, outage),
                 _latencies(run.site, q, *normal), UNCHANGED) for q in (0.99, 0.5)),
    ]  # fmt: skip


def _memory(run: Run) -> list[Figure]:
    before, during, after = run.resident
    later = during[WARM_UP_MEMORY_S:]
    return [
        Figure("largest resident size", "MB", [max(*before, *during, *after) / MB], [before[-1] / MB],
               Bar("at most", 150.0), remark="reference: at the end of the time before the outage"),
        Figure("largest in the outage over that after a minute", "%", [(max(later) / later[0] - 1) * 100], (),
               Bar("at most", 5.0)),
        Figure("rows dropped", "rows", [run.dropped], (), NOTHING),
    ]  # fmt: skip


def _uplink(run: Run) -> list[Figure]:
    began, paused, resumed, drained, ended = run.moments
    seen = run.uplink
    replay, normal = (resumed, seen.historical_last_ns), ((began, paused), (drained, ended))
    drain_s = (seen.historical_last_ns - seen.historical_first_ns) / 1e9
    back_s = (seen.historical_first_ns - resumed) / 1e9
    return [
        Figure("uplink: values missing", "values", [_missing(seen, run.ticks_us)], (), NOTHING),
        Figure("uplink: messages missing", "messages", [seen.missing_messages], (), NOTHING),
        Figure("uplink: backlog", "values/s", [seen.historical_samples / drain_s], [RATE],
               Bar("at least", 10.0, "ratio"), True,
               remark=f"{seen.historical_samples:,} values, the first {back_s:.1f} s after the broker answers again"),
        *(Figure(f"uplink: live p{q * 100:g} in the replay", "ms", _latencies(seen, q, replay),
                 _latencies(seen, q, *normal), Bar("at most", 2.0, "ratio")) for q in (0.99, 0.5)),
        Figure("on site: latency p99 in the replay", "ms", _latencies(run.site, 0.99, replay),
               _latencies(run.site, 0.99, *normal), remark="the part of the machine and of the gateway in the above"),
        Figure("uplink: messages twice", "messages", [seen.repeated_messages],
               remark="not acknowledged when it fell silent"),
    ]  # fmt: skip


def _latencies(seen: Seen, quantile: float, *phases: tuple[int, int]) -> list[float]:
    return [seen.latency_ms(quantile, *phase) for phase in phases]


def _missing(seen: Seen, ticks_us: list[int]) -> int:
    """Values of the ticks that never came, live or historical."""
    return sum(max(GROUP.count - seen.times.get(t_us, 0), 0) for t_us in ticks_us)


if __name__ == "__main__":
    sys.exit(main())
