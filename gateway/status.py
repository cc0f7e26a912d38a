"""What the gateway tells its brokers about itself: which server each destination uses, and what waits for it.

Announced to every sink that has a place for it (`contracts.Announcer`), the local ones included: at once when a state
or a server changes, and at most every few seconds while only what is pending changes. A gap becomes a notice of kind
`gap`; `note` is made to be a ledger's subscriber. docs/payloads.md shows both messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from gateway.health import oldest_s, word
from gateway.session import SinkSession
from gateway.supervisor import Supervisor
from pipelines.clock import Clock
from pipelines.contracts import Announcer
from pipelines.gaps import Gap

LOOK_EVERY_S: Final = 0.5
PENDING_EVERY_S: Final = 5.0

Entry = dict[str, Any]


class Destination(NamedTuple):
    """A sink, and what is known of it."""

    supervisor: Supervisor
    session: SinkSession


class StatusReporter:
    """Looks at the destinations and says what changed."""

    def __init__(self, destinations: Sequence[Destination], clock: Clock) -> None:
        sinks = [each.session.sink for each in destinations]
        self._announcers = [sink for sink in sinks if isinstance(sink, Announcer)]
        self._destinations = destinations
        self._clock = clock
        self._used: dict[str, tuple[str, str]] = {}
        self._since_us: dict[str, int] = {}
        self._announced: list[Entry] = []
        self._announced_ns = 0

    async def run(self) -> None:
        """Never returns."""
        while self._announcers:
            self.look()
            await self._clock.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Announces the status where it is time to."""
        changed = False
        for each in self._destinations:
            name, used = each.session.name, (word(each.supervisor), each.session.sink.server)
            if self._used.get(name) != used:
                self._used[name], self._since_us[name], changed = used, self._clock.wall_ns() // 1000, True
        entries, now_ns = [self._entry(each) for each in self._destinations], self._clock.mono_ns()
        late = now_ns - self._announced_ns >= PENDING_EVERY_S * 1e9
        if changed or (late and entries != self._announced):
            self._announced, self._announced_ns = entries, now_ns
            for announcer in self._announcers:
                announcer.announce("status", {"destinations": entries})

    def note(self, gap: Gap) -> None:
        """Tells every broker of a gap."""
        message = {
            "reason": str(gap.reason),
            "device": gap.device,
            "route": gap.route,
            "tags": list(gap.tags),
            "from": gap.from_ns // 1000,
            "to": gap.to_ns // 1000,
            "rows": gap.rows,
            "backfilled": gap.backfilled,
        }
        self.tell("gap", message)

    def tell(self, kind: str, message: Mapping[str, Any]) -> None:
        """A notice to every broker."""
        for announcer in self._announcers:
            announcer.announce(kind, message)

    def note_latency(self, message: Mapping[str, Any]) -> None:
        """Tells every broker that a route became late, or is in time again."""
        for announcer in self._announcers:
            announcer.announce("latency", message)

    def _entry(self, destination: Destination) -> Entry:
        session = destination.session
        state, server = self._used[session.name]
        return {
            "name": session.name,
            "state": state,
            "server": server or None,
            "since": self._since_us[session.name],
            "pending": {
                lane.name: {"rows": lane.pending_rows, "seconds": round(oldest_s(lane, self._clock), 1)}
                for lane in session.lanes
            },
        }
