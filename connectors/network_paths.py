"""What the sinks know of their paths (`paths:`), and when one is suspicious; which one is used is each protocol's own.

The path in use is looked at 20 times a second: TCP_INFO of its connection. Where the far system acknowledges nothing
for `suspect` although something waits for it, the session is given up for the next path; what was not acknowledged is
sent again. A suspicion may be wrong: one that comes soon after the last switch doubles the bound, and no path is given
up while every other one is known not to work.
"""

from __future__ import annotations

from typing import Final

from connectors.tcp_path import TcpInfo
from pipelines.counters import Counters
from pipelines.errors import NotConnected

SAMPLE_EVERY_S: Final = 0.05
PROBE_EVERY_S: Final = 5.0
STEADY_NS: Final = 10 * 10**9
"""A session that lasted this long was no mistake: the bound is `suspect` again."""


class PathSuspected(NotConnected):
    """The far system has acknowledged nothing for too long."""


class Patience:
    """How long a path may be silent now; longer after each session that was given up early, up to `ack_timeout`."""

    def __init__(self, suspect_ns: int, ack_timeout_ns: int) -> None:
        self._first_ns, self._most_ns = suspect_ns, ack_timeout_ns
        self._given_up_early = 0

    @property
    def bound_ns(self) -> int:
        return min(self._first_ns << self._given_up_early, max(self._first_ns, self._most_ns))

    def given_up(self, lasted_ns: int) -> None:
        """A session was, after so long."""
        self._given_up_early = 0 if lasted_ns >= STEADY_NS else min(self._given_up_early + 1, 16)


class PathState:
    """What is known of one path. Gauges and totals of kind `path`, named DESTINATION/PATH."""

    def __init__(self, destination: str, name: str) -> None:
        self.name = name
        self.counters = Counters("path", f"{destination}/{name}")
        self.works: bool | None = None
        """None: nobody has looked."""
        self.used = False
        self._resent_before = 0

    def begin(self) -> None:
        """A session over it starts."""
        self._resent_before = 0
        self.note(True)
        self.use(True)

    def use(self, used: bool) -> None:
        """Whether it is the one in use."""
        self.used = used
        self.counters.set("used", int(used))

    def note(self, works: bool, probe_ns: int | None = None) -> None:
        """What a look or a probe has found."""
        self.works = works
        self.counters.set("works", int(works))
        if probe_ns is not None:
            self.counters.set("probe_seconds", probe_ns / 1e9)

    def look(self, info: TcpInfo, silent_ns: int, waited_ns: int) -> None:
        """Takes note of its connection: for how long nothing was acknowledged by the far system, by the broker."""
        counters = self.counters
        counters.set("rtt_seconds", info.rtt_us / 1e6)
        counters.set("rtt_deviation_seconds", info.rtt_deviation_us / 1e6)
        counters.set("unacked_segments", info.unacked_segments)
        counters.set("notsent_bytes", info.notsent_bytes)
        counters.set("silent_seconds", silent_ns / 1e9)
        counters.set("acknowledgement_age_seconds", waited_ns / 1e9)
        counters.add("resent_segments", max(info.resent_segments - self._resent_before, 0))
        self._resent_before = info.resent_segments

    def __str__(self) -> str:
        gauges, word = self.counters.gauges, {None: "not tried", True: "works", False: "does not work"}[self.works]
        if not self.used:
            probe = f" ({gauges['probe_seconds'] * 1e3:.1f} ms)" if self.works and "probe_seconds" in gauges else ""
            return f"{self.name} {word}{probe}"
        resent = self.counters.totals["resent_segments"]
        return f"{self.name} in use (rtt {gauges.get('rtt_seconds', 0.0) * 1e3:.1f} ms, {resent} segments resent)"
