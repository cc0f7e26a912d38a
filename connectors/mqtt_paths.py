"""The paths of a destination (`paths:`): how each does, and whether the one in use is to be given up.

The path in use is looked at 20 times a second: TCP_INFO of the session's connection, and for how long the oldest
message has waited for the broker. Where the far system acknowledges nothing for `suspect` the path is suspicious: the
session ends, and the next candidate is tried; what was not acknowledged is sent again. This needs something under way,
so an idle session is pinged every quarter of `suspect`. A suspicion may be wrong: one that comes soon after the last
switch doubles the bound, and no path is given up while every other one is known not to work.

The paths not in use are probed with a TCP connection to their broker, one after the other (`mqtt_servers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from connectors.mqtt_errors import place
from connectors.mqtt_session import Session
from connectors.mqtt_settings import MqttTarget
from connectors.tcp_path import Silence, tcp_info
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected

SAMPLE_EVERY_S: Final = 0.05
STEADY_NS: Final = 10 * 10**9
"""A session that lasted this long was no mistake: the bound is `suspect` again."""


class PathSuspected(NotConnected):
    """The far system has acknowledged nothing for too long."""


class Patience:
    """How long a path may be silent now; longer after each session that was given up early, up to `ack_timeout`."""

    def __init__(self, settings: MqttTarget) -> None:
        self._first_ns, self._most_ns = settings.suspect_ns, settings.ack_timeout
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

    def look(self, session: Session, silence: Silence, waited_ns: int, now_ns: int) -> int:
        """Reads TCP_INFO of the session; for how long nothing was acknowledged, in ns."""
        info = tcp_info(session.socket)
        if info is None:
            return 0
        age_ns = silence.age_ns(info, now_ns)
        counters = self.counters
        counters.set("rtt_seconds", info.rtt_us / 1e6)
        counters.set("rtt_deviation_seconds", info.rtt_deviation_us / 1e6)
        counters.set("unacked_segments", info.unacked_segments)
        counters.set("notsent_bytes", info.notsent_bytes)
        counters.set("silent_seconds", age_ns / 1e9)
        counters.set("acknowledgement_age_seconds", waited_ns / 1e9)
        counters.add("resent_segments", info.resent_segments - self._resent_before)
        self._resent_before = info.resent_segments
        return age_ns

    def __str__(self) -> str:
        gauges, word = self.counters.gauges, {None: "not tried", True: "works", False: "does not work"}[self.works]
        if not self.used:
            probe = f" ({gauges['probe_seconds'] * 1e3:.1f} ms)" if self.works and "probe_seconds" in gauges else ""
            return f"{self.name} {word}{probe}"
        resent = self.counters.totals["resent_segments"]
        return f"{self.name} in use (rtt {gauges.get('rtt_seconds', 0.0) * 1e3:.1f} ms, {resent} segments resent)"


async def watch(
    session: Session,
    target: MqttTarget,
    state: PathState,
    patience: Patience,
    clock: Clock,
    another: Callable[[], bool],
) -> None:
    """Until the session ends, or is ended because its path is suspicious and `another` may work."""
    silence, began_ns = Silence(), clock.mono_ns()
    oldest, oldest_ns, pinged_ns = session.oldest, began_ns, began_ns
    while session.error is None:
        await clock.sleep(SAMPLE_EVERY_S)
        now_ns = clock.mono_ns()
        if (now_oldest := session.oldest) is None or now_oldest != oldest:
            oldest, oldest_ns = now_oldest, now_ns
        silent_ns = state.look(session, silence, now_ns - oldest_ns, now_ns)
        if silent_ns >= patience.bound_ns and another():
            patience.given_up(now_ns - began_ns)
            state.note(False)
            text = f"nothing acknowledged for {silent_ns / 1e6:.0f} ms (suspect): the next path is tried"
            session.end(PathSuspected(f"{place(target)}: {text}"))
        elif oldest is None and now_ns - pinged_ns >= patience.bound_ns // 4:
            pinged_ns = now_ns
            session.ping()
