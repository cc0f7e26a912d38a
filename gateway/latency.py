"""How long the routes take now: quantiles of the last minute, and `latency_budget`.

A route is late when the slowest hundredth of its samples took longer than the budget, over the last `LATE_OVER_S`: from
the machine's source time to the broker's acknowledgement, or from their arrival where the machine gives no usable time.
It is late, too, when samples wait longer than that and nothing is acknowledged at all. It is in time again when the
slowest hundredth takes nine tenths of the budget at most. Late or not is said once each: a log line, a notice to the
brokers, `/health`, `/metrics`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gateway.log import Log
from pipelines.clock import Clock
from pipelines.contracts import Lane
from pipelines.latency import (
    KEPT_S,
    LANE_TO_ACK,
    LEGS,
    RECEIVED_TO_ACK,
    RECEIVED_TO_LANE,
    SOURCE_TO_ACK,
    SOURCE_TO_RECEIVED,
    WAYS,
    Quantiles,
    Recent,
)
from pipelines.quantities import format_duration
from pipelines.route import Pump

LOOK_EVERY_S: Final = 1.0
LATE_OVER_S: Final = 10.0
IN_TIME: Final = 0.9
"""Of the budget: what a late route must come down to."""
WORDS: Final[Mapping[str, str]] = {
    SOURCE_TO_RECEIVED: "machine -> gateway",
    RECEIVED_TO_LANE: "gateway -> lane",
    LANE_TO_ACK: "lane -> acknowledged by the broker",
    RECEIVED_TO_ACK: "gateway -> acknowledged by the broker",
    SOURCE_TO_ACK: "machine -> acknowledged by the broker",
}

Tell = Callable[[Mapping[str, Any]], None]


class RouteLatency:
    """One lane's way to its sink."""

    def __init__(self, lane: Lane, pump: Pump, budget_ns: int | None, mono_ns: int) -> None:
        self.name = lane.name
        self.budget_ns = budget_ns
        self.reason = ""
        """Why it is late, one line; empty while it is not."""
        self.breaches = 0
        self.recent = Recent(pump.counters.histograms)
        self.slowest = ""
        """The leg with the highest p99 when it became late."""
        self.p99_ns = 0
        self._lane = lane
        self._pump = pump
        self._delivered = (0, mono_ns)

    @property
    def ahead_rows(self) -> int:
        """Samples so far whose source time is later than their arrival."""
        return self._pump.counters.histograms[SOURCE_TO_RECEIVED].negative

    def flush(self) -> None:
        """Brings the histograms up to date."""
        self._pump.latency.flush()

    def look(self, wall_ns: int, mono_ns: int) -> bool:
        """Brings everything up to date; true when it became late, or in time again."""
        self.flush()
        self.recent.note(mono_ns)
        rows = self._pump.counters.totals["rows"]
        if rows != self._delivered[0]:
            self._delivered = rows, mono_ns
        if self.budget_ns is None:
            return False
        before, self.reason = self.reason, self._judged(self.budget_ns, wall_ns, mono_ns)
        self.breaches += bool(self.reason and not before)
        return bool(before) != bool(self.reason)

    def quantiles(self, mono_ns: int, over_s: float = KEPT_S) -> dict[str, Quantiles]:
        """Of each way that some sample went in the last `over_s`."""
        self.flush()
        since_ns = mono_ns - int(over_s * 1e9)
        found = {way: self.recent.quantiles(way, since_ns) for way in WAYS}
        return {way: each for way, each in found.items() if each.rows or each.negative}

    def _judged(self, budget_ns: int, wall_ns: int, mono_ns: int) -> str:
        """The new reason."""
        still_ns, oldest_ns = mono_ns - self._delivered[1], self._lane.oldest_ns
        if oldest_ns is not None and still_ns >= LATE_OVER_S * 1e9 and wall_ns - oldest_ns > budget_ns:
            self.slowest, self.p99_ns = LANE_TO_ACK, wall_ns - oldest_ns
            return (
                f"late: nothing was acknowledged for {still_ns / 1e9:.0f} s, {self._lane.pending_rows} rows wait, the "
                f"oldest for {self.p99_ns / 1e9:.1f} s; budget {format_duration(budget_ns)}"
            )
        found = self.quantiles(mono_ns, LATE_OVER_S)
        whole = [found[way] for way in (SOURCE_TO_ACK, RECEIVED_TO_ACK) if way in found and found[way].rows]
        if not whole:
            return self.reason
        p99_ns = max(each.p99_ns for each in whole)
        if p99_ns <= budget_ns * (IN_TIME if self.reason else 1.0):
            self.slowest, self.p99_ns = "", p99_ns
            return ""
        legs = {leg: found[leg].p99_ns for leg in LEGS if leg in found}
        self.slowest, self.p99_ns = max(legs, key=legs.__getitem__, default=LANE_TO_ACK), p99_ns
        behind = ", unless its clock is behind" if self.slowest == SOURCE_TO_RECEIVED else ""
        return (
            f"late: p99 {_ms(p99_ns)} over the last {LATE_OVER_S:.0f} s, budget {format_duration(budget_ns)}; most of "
            f"it {WORDS[self.slowest]} (p99 {_ms(legs.get(self.slowest, p99_ns))}{behind})"
        )


class LatencyWatch:
    """Looks at all routes, and says which became late. `tell` takes the notice for the brokers."""

    def __init__(
        self, pumps: Sequence[tuple[Lane, Pump]], budgets: Mapping[str, int], clock: Clock, tell: Tell
    ) -> None:
        """`budgets`: lane name -> ns."""
        now_ns = clock.mono_ns()
        self.routes = {lane.name: RouteLatency(lane, pump, budgets.get(lane.name), now_ns) for lane, pump in pumps}
        self._clock = clock
        self._tell = tell

    @property
    def late(self) -> bool:
        """Some route is."""
        return any(route.reason for route in self.routes.values())

    async def run(self) -> None:
        """Never returns."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)  # a look, not a deadline: the clock says when it was

    def look(self) -> None:
        """Brings all routes up to date, says what changed."""
        for route in self.routes.values():
            if route.look(self._clock.wall_ns(), self._clock.mono_ns()):
                self._say(route)

    def flush(self) -> None:
        """Brings the histograms up to date."""
        for route in self.routes.values():
            route.flush()

    def report(self, name: str, over_s: float = KEPT_S) -> dict[str, Any]:
        """What `/health` says of one lane; empty where nothing is known."""
        route = self.routes.get(name)
        if route is None:
            return {}
        found = route.quantiles(self._clock.mono_ns(), over_s)
        shown: dict[str, Any] = {}
        if route.budget_ns is not None:
            shown = {"state": "degraded" if route.reason else "up", "latency_budget_ms": route.budget_ns / 1e6}
            shown |= {"reason": route.reason} if route.reason else {}
        ways = {way: _shown(each) for way, each in found.items() if each.rows}
        if ahead := found[SOURCE_TO_RECEIVED].negative if SOURCE_TO_RECEIVED in found else 0:
            ways["machine clock ahead"] = {"rows": ahead}
        return shown | ({"latency_ms": {"over_s": over_s, **ways}} if ways else {})

    def _say(self, route: RouteLatency) -> None:
        assert route.budget_ns is not None
        log, p99_ms = Log(f"route {route.name}"), round(route.p99_ns / 1e6, 3)
        if route.reason:
            log.warning(route.reason)
        else:
            log.info(f"in time again: p99 {_ms(route.p99_ns)}, budget {format_duration(route.budget_ns)}")
        message = {
            "route": route.name,
            "late": bool(route.reason),
            "t": self._clock.wall_ns() // 1000,
            "budget_ms": route.budget_ns / 1e6,
            "p99_ms": p99_ms,
            "leg": route.slowest or None,
            "reason": route.reason or None,
        }
        self._tell(message)


def _shown(found: Quantiles) -> dict[str, float]:
    figures = {"p50": found.p50_ns, "p99": found.p99_ns, "p99.9": found.p999_ns, "max": found.max_ns}
    return {"rows": found.rows, **{name: round(ns / 1e6, 3) for name, ns in figures.items()}}


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.3g} ms" if ns < 1e9 else f"{ns / 1e9:.3g} s"
