"""What is known of a destination's paths (`paths:`), and when one is suspicious; which is used: `network_choice`.

The path in use is looked at 20 times a second: TCP_INFO of the session's connections. Where the far system acknowledges
nothing on one of them for `suspect` although something waits for it, the session is given up for the next path; what
was not acknowledged is sent again. An idle session is pinged every quarter of that time, so that there is something
that can stay without acknowledgement. A suspicion may be wrong: one that comes soon after the last switch doubles the
bound, and no path is given up while every other one is known not to work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from socket import socket
from typing import Final, NamedTuple

from connectors.tcp_path import Silence, TcpInfo, tcp_info
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected

SAMPLE_EVERY_S: Final = 0.05
PROBE_EVERY_S: Final = 5.0
STEADY_NS: Final = 10 * 10**9
"""A session that lasted this long was no mistake: the bound is `suspect` again."""


class PathSuspected(NotConnected):
    """The far system has acknowledged nothing for too long."""


class Watched(NamedTuple):
    """What is looked at of a session, and what is done to it."""

    waiting: Callable[[], Mapping[socket, object | None]]
    """Its connections, each with what waits longest there for the far side's answer (compare with ==), or None."""
    ping: Callable[[], None]
    """Sends something small that is answered, on one connection: all of them take the same path."""
    end: Callable[[GatewayError], None]
    ended: asyncio.Event


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
        """Takes note of its connections: for how long nothing was acknowledged by the far system, by the broker."""
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


async def watch(
    session: Watched, way: str, state: PathState, patience: Patience, clock: Clock, another: Callable[[], bool]
) -> None:
    """Until the session ends, or is ended because its path is suspicious and `another` may work."""
    began_ns = pinged_ns = clock.mono_ns()
    connections: dict[socket, _Connection] = {}
    while not session.ended.is_set():
        await clock.sleep(SAMPLE_EVERY_S)
        now_ns = clock.mono_ns()
        waiting = session.waiting()
        connections = {sock: connections.get(sock) or _Connection(now_ns) for sock in waiting}
        looks = [look for sock, one in connections.items() if (look := one.look(sock, waiting[sock], now_ns))]
        silent_ns = max((look.silent_ns for look in looks), default=0)
        if looks:
            state.look(_together([look.info for look in looks]), silent_ns, max(look.waited_ns for look in looks))
        if silent_ns >= patience.bound_ns and another():
            patience.given_up(now_ns - began_ns)
            state.note(False)
            text = f"nothing acknowledged for {silent_ns / 1e6:.0f} ms (suspect): the next path is tried"
            session.end(PathSuspected(f"{way}: {text}"))
        elif now_ns - pinged_ns >= patience.bound_ns // 4 and not any(map(_is_there, waiting.values())):
            pinged_ns = now_ns
            session.ping()


class _Look(NamedTuple):
    info: TcpInfo
    silent_ns: int
    waited_ns: int


class _Connection:
    """For how long the far system, and the far side itself, have not answered on one connection."""

    def __init__(self, now_ns: int) -> None:
        self._silence = Silence()
        self._oldest: object | None = None
        self._oldest_ns = now_ns

    def look(self, sock: socket, oldest: object | None, now_ns: int) -> _Look | None:
        """None where the system does not say."""
        if oldest is None or oldest != self._oldest:
            self._oldest, self._oldest_ns = oldest, now_ns
        info = tcp_info(sock)
        return info and _Look(info, self._silence.age_ns(info, now_ns), now_ns - self._oldest_ns)


def _is_there(oldest: object | None) -> bool:
    return oldest is not None


def _together(infos: list[TcpInfo]) -> TcpInfo:
    """Of several connections by one path: sums, and the newest round trip."""
    return min(infos, key=lambda info: info.last_ack_ms)._replace(
        unacked_segments=sum(info.unacked_segments for info in infos),
        notsent_bytes=sum(info.notsent_bytes for info in infos),
        resent_segments=sum(info.resent_segments for info in infos),
    )
