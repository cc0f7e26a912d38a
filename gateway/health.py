"""Health: one line per component, and the roll-up that `/health` answers with.

    ok        every component is up and every tag can be read
    degraded  something is down, faulted, late, cannot be read or drops samples, or the clock is bad; the rest goes on
    down      no source or no destination is up: nothing is collected or nothing is delivered
    stopping, failed    the process ends; storage failed

The answer is 200 while the process works, degraded and down included: a machine that is switched off is a state of
the plant, and restarting the gateway for it would only lose what is buffered. It is 503 when stopping or when storage
failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Protocol

from gateway.drops import DropWatch
from gateway.latency import LatencyWatch
from gateway.supervisor import State, Status
from gateway.version import version
from pipelines.clock import Clock
from pipelines.contracts import Lane
from pipelines.gaps import Gap
from pipelines.latency import KEPT_S
from pipelines.quantities import count

FAULTS_SHOWN_MAX = 20
"""Tag faults listed per component; all of them are counted."""
GAPS_SHOWN_MAX = 5
"""The newest; `gateway gaps` lists them all."""


class Component(Protocol):
    """What health wants to know of one source or sink."""

    @property
    def kind(self) -> str:
        """ "source" or "sink"."""

    @property
    def name(self) -> str:
        """The name in the file."""

    @property
    def status(self) -> Status:
        """The supervisor's view."""

    @property
    def server(self) -> str:
        """Which of its servers a sink uses now; else empty."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one line; of a sink: server -> why it is not used."""

    @property
    def info(self) -> str:
        """One line about the session that is up; may be empty."""


class ClockReport(Protocol):
    """What health wants to know of the host's clock."""

    @property
    def alarm(self) -> str:
        """One line while it is worse than it may be; else empty."""

    def report(self) -> dict[str, Any]:
        """Ready for JSON."""


class Health:
    """Answers `/health`. `phase` is set by the app: running, stopping or failed."""

    def __init__(
        self,
        gateway: str,
        clock: Clock,
        components: Sequence[Component],
        lanes: Sequence[Lane],
        started_ns: int | None = None,
    ) -> None:
        """`started_ns`: monotonic, where it was before this process."""
        self.components = components
        self.phase = "running"
        self.latency: LatencyWatch | None = None
        self.drops = DropWatch(lanes, clock)
        self.gaps: Sequence[Gap] = ()
        """Of the ledger, the newest last."""
        self.clock: ClockReport | None = None
        self.host: Mapping[str, Any] = {}
        """What the process asked of the host, and got; empty where it asks for nothing."""
        self._gateway = gateway
        self._clock = clock
        self._lanes = lanes
        self._started_ns = clock.mono_ns() if started_ns is None else started_ns

    @property
    def status(self) -> str:
        """The roll-up: ok, degraded, down, stopping or failed."""
        if self.phase != "running":
            return self.phase
        if all(word(component) == "up" for component in self.components):
            late = self.latency is not None and self.latency.late
            return "degraded" if late or self.drops.reasons or (self.clock and self.clock.alarm) else "ok"
        for kind in ("source", "sink"):
            states = [c.status.state for c in self.components if c.kind == kind]
            if states and State.UP not in states:
                return "down"
        return "degraded"

    @property
    def http_status(self) -> HTTPStatus:
        """200 while running, whatever the plant does; else 503."""
        return HTTPStatus.OK if self.phase == "running" else HTTPStatus.SERVICE_UNAVAILABLE

    async def answer(self, over_s: float) -> tuple[HTTPStatus, dict[str, Any]]:
        """As a `gateway.http.HealthPage`."""
        return self.http_status, self.report(over_s)

    def report(self, over_s: float = KEPT_S) -> dict[str, Any]:
        """The whole answer, ready for JSON; latencies of the last `over_s`."""
        return {
            "status": self.status,
            "gateway": self._gateway,
            "version": version(),
            "uptime_s": round((self._clock.mono_ns() - self._started_ns) / 1e9, 1),
            "components": [_component(component) for component in self.components],
            "lanes": [self._lane(lane, over_s) for lane in self._lanes],
            "clock": self.clock.report() if self.clock else {},
            "gaps": [_gap(gap) for gap in list(self.gaps)[-GAPS_SHOWN_MAX:]],
            **({"host": self.host} if self.host else {}),
        }

    def _lane(self, lane: Lane, over_s: float) -> dict[str, Any]:
        totals = lane.counters.totals
        return {
            "name": lane.name,
            "durable": lane.durable,
            "pending_rows": lane.pending_rows,
            "pending_bytes": lane.pending_bytes,
            "oldest_s": round(oldest_s(lane, self._clock), 1),
            "dropped_rows": totals.get("dropped_rows", 0),
            "corrupt_rows": totals.get("corrupt_rows", 0),
            **(self.latency.report(lane.name, over_s) if self.latency else {}),
            **({"state": "degraded", "reason": reason} if (reason := self.drops.reasons.get(lane.name)) else {}),
        }


def word(component: Component) -> str:
    """up, degraded (up, but something listed in its faults is not), connecting, down, faulted, restarting, stopped."""
    state = component.status.state
    return "degraded" if state is State.UP and component.faults else str(state)


def _component(component: Component) -> dict[str, Any]:
    status, faults = component.status, component.faults
    shown: dict[str, Any] = {
        "kind": component.kind,
        "name": component.name,
        "state": word(component),
        "since": utc(status.since_ns),
    }
    if component.server:
        shown["server"] = component.server
    what = ("tag", "cannot be read") if component.kind == "source" else ("preferred server", "cannot be used")
    reason = status.reason or (f"{count(len(faults), what[0])} {what[1]}" if faults else "")
    if reason:
        shown["reason"] = reason
    if status.state is State.UP and component.info:
        shown["info"] = component.info
    if status.attempts:
        shown["attempts"] = status.attempts
    if faults:
        shown["faults_total"] = len(faults)
        shown["faults"] = dict(sorted(faults.items())[:FAULTS_SHOWN_MAX])
    return shown


def _gap(gap: Gap) -> dict[str, Any]:
    return {
        "reason": str(gap.reason),
        "device": gap.device,
        "route": gap.route,
        "from": utc(gap.from_ns),
        "to": utc(gap.to_ns),
        "rows": gap.rows,
    }


def utc(ns: int) -> str:
    """Wall clock in ns -> 2026-11-23T03:28:50Z."""
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def oldest_s(lane: Lane, clock: Clock) -> float:
    """For how long the oldest pending row has been waiting; 0 where none is."""
    oldest_ns = lane.oldest_ns
    return 0.0 if oldest_ns is None else max(clock.wall_ns() - oldest_ns, 0) / 1e9
