"""Which of a destination's brokers is used, and by which of its paths: every pair is a candidate.

The first one in the file's order that takes a session, but for the one whose session has just been lost: that is tried
last, behind those that were probed and did not work, or share a path that was given up (`mqtt_paths`). While a later
one is in use, those before it are probed with sessions of their own client id; when one of them has been healthy for
`hold`, it is time to go back to it. Why a preferred broker is not in use stands in `faults`. Where there are paths,
those behind it are probed, too, with no more than a TCP connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from connectors.mqtt_errors import opening_error
from connectors.mqtt_link import reach
from connectors.mqtt_paths import watch
from connectors.mqtt_session import Session
from connectors.mqtt_settings import MqttTarget
from connectors.network_paths import PROBE_EVERY_S, PathState, PathSuspected, Patience
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected, Permanent

REFUSED_EVERY_S: Final = 60.0
"""A broker that refused credentials is asked no sooner: some lock accounts."""
_log = logging.getLogger(__name__)

Open = Callable[[MqttTarget, bool], Awaitable[Session]]
"""(one broker's settings, whether only to probe it): a session that the broker has accepted."""


class Servers:
    """The brokers of one destination, the preferred one first."""

    def __init__(self, name: str, settings: MqttTarget, open_one: Open, clock: Clock, counters: Counters) -> None:
        self.faults: Mapping[str, str] = {}
        """Address -> why it is not in use, of those before the one that is."""
        self._name = name
        self._all = settings.servers
        self._hold_ns = settings.hold
        self._open_one = open_one
        self._clock = clock
        self._counters = counters
        self._number = 0
        self._lost: GatewayError | None = None
        self._broken: set[int] = set()
        """Of those not in use: what the last probe says."""
        self._patience = Patience(settings.suspect_ns, settings.ack_timeout)
        self.paths = {path: PathState(name, path) for path in settings.paths}

    @property
    def used(self) -> MqttTarget:
        """The one in use, or that was used last."""
        return self._all[self._number]

    @property
    def info(self) -> str:
        """One line about the paths; empty where there are none."""
        return "; ".join(map(str, self.paths.values()))

    def lost(self, error: GatewayError) -> None:
        """The session with the one in use has broken."""
        self._lost = error
        self._note(self._number, error)
        if path := self.paths.get(self.used.path):
            path.use(False)

    async def open(self, planned: int | None = None) -> Session:
        """A session with the best that takes one; `planned` is tried first. Raises NotConnected or Permanent.

        One broker's refusal does not hide that another works. Each but the last has little time.
        """
        order = sorted(range(len(self._all)), key=lambda number: self._rank(number, planned))
        errors: dict[int, GatewayError] = {self._number: self._lost} if self._lost else {}
        self._lost = None
        for number in order:
            try:
                session = await self._limited(number, last=number == order[-1])
            except (NotConnected, Permanent) as error:
                errors[number] = error
                self._note(number, error)
            else:
                self._use(number, errors, planned=number == planned)
                return session
        raise _together([errors[number] for number in sorted(errors)])

    async def watch(self, session: Session) -> None:
        """Until the session ends, or is ended because another path is better; for ever where there are no paths."""
        target = self.used
        if not target.path:
            await session.ended.wait()
            return
        others = {number for number, one in enumerate(self._all) if one.path != target.path}
        await watch(
            session, target, self.paths[target.path], self._patience, self._clock, lambda: bool(others - self._broken)
        )

    async def better(self) -> int:
        """Waits until one before the one in use has been healthy for `hold`: its number. For ever if there is none."""
        healthy_since_ns: dict[int, int] = {}
        probed = [number for number in range(len(self._all) if self.paths else self._number) if number != self._number]
        not_before_ns = dict.fromkeys(probed, 0)
        while probed:
            await self._clock.sleep(min(PROBE_EVERY_S, self._hold_ns / 4e9))
            for number in probed:
                now_ns = self._clock.mono_ns()
                if now_ns < not_before_ns[number]:
                    continue
                error = await self._probe(number)
                self._note(number, error, self._clock.mono_ns() - now_ns)
                if number > self._number:
                    continue
                if error:
                    healthy_since_ns.pop(number, None)
                    not_before_ns[number] = now_ns + int(isinstance(error, Permanent) * REFUSED_EVERY_S * 1e9)
                elif now_ns - healthy_since_ns.setdefault(number, now_ns) >= self._hold_ns:
                    return number
                self.faults = {**self.faults, self._all[number].way: str(error or "works again, used after hold")}
        await asyncio.Event().wait()
        raise AssertionError

    def _rank(self, number: int, planned: int | None) -> tuple[bool, bool, bool, int]:
        if planned is None:
            shared = isinstance(self._lost, PathSuspected) and self._all[number].path == self.used.path
            return bool(self._lost) and number == self._number, shared, number in self._broken, number
        return number != planned, number != self._number, False, number

    async def _limited(self, number: int, *, last: bool, probe: bool = False) -> Session:
        target = self._all[number]
        if last:
            return await self._open_one(target, probe)
        try:
            async with asyncio.timeout(max(1.0, 2 * target.ack_timeout / 1e9)):
                return await self._open_one(target, probe)
        except TimeoutError as error:
            raise opening_error(target, error) from error

    async def _probe(self, number: int) -> GatewayError | None:
        """Why that broker takes no session (one behind that in use: no connection); None where it does."""
        try:
            if number > self._number:
                await reach(self._all[number], PROBE_EVERY_S)
                return None
            session = await self._limited(number, last=False, probe=True)
        except (NotConnected, Permanent) as error:
            return error
        await session.close()
        return None

    def _note(self, number: int, error: GatewayError | None, probe_ns: int | None = None) -> None:
        """Whether a candidate works."""
        if error:
            self._broken.add(number)
        else:
            self._broken.discard(number)
        if path := self.paths.get(self._all[number].path):
            path.note(not error, None if error else probe_ns)

    def _use(self, number: int, errors: Mapping[int, GatewayError], *, planned: bool) -> None:
        before, self._number = self._number, number
        self.faults = {self._all[n].way: str(errors[n]) for n in range(number) if n in errors}
        self._broken.discard(number)
        if path := self.paths.get(self.used.path):
            path.begin()
        self._counters.set("server_number", number + 1)
        if number == before:
            return
        self._counters.add("failbacks" if planned else "failovers")
        where, why = self.used.way, "; ".join(self.faults.values())
        if number < before:
            _log.info("destination %s: %s is used again", self._name, where)
        else:
            _log.warning("destination %s: %s is used now: %s", self._name, where, why)


def _together(errors: list[GatewayError]) -> GatewayError:
    """One error for all brokers: Permanent where every one refuses."""
    if len(errors) == 1:
        return errors[0]
    kind = Permanent if all(isinstance(error, Permanent) for error in errors) else NotConnected
    return kind("; ".join(map(str, errors)))
