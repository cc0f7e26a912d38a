"""Which way to a destination is used: every one of its servers by every path that leads to it is a candidate.

The first one in the file's order that takes a session, but for the one whose session has just been lost: that is tried
last, behind those that were probed and did not work, or share a path that was given up (`network_paths`). While a later
one is in use, those before it are probed; when one of them has been healthy for `hold`, it is time to go back to it.
Why a preferred one is not in use stands in `faults`. Where there are paths, those behind it are probed, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from connectors.network_paths import PROBE_EVERY_S, PathState, PathSuspected, Patience, Watched, watch
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected, Permanent

REFUSED_EVERY_S: Final = 60.0
"""A server that refused credentials is asked no sooner: some lock accounts."""
_log = logging.getLogger(__name__)


class Candidate(Protocol):
    """Settings of one way."""

    @property
    def path(self) -> str:
        """The path's name; empty where there are none."""

    @property
    def way(self) -> str:
        """The server, and by which path: for messages."""


class Destination(Protocol):
    """Settings of all of them."""

    @property
    def paths(self) -> Iterable[str]:
        """Their names."""

    @property
    def hold(self) -> int:
        """In nanoseconds, as the next two."""

    @property
    def suspect_ns(self) -> int:
        """As the file says, or its default."""

    @property
    def ack_timeout(self) -> int:
        """Above all suspicion."""


C = TypeVar("C", bound=Candidate)
S = TypeVar("S")


class Choice(Generic[C, S]):
    """The candidates of one destination, the preferred one first.

    open_one: (candidate, whether no other one is left) -> a session that the far side has accepted. probe: (candidate,
    whether it comes before the one in use); returns where it works. Both raise NotConnected or Permanent.
    """

    def __init__(
        self,
        name: str,
        settings: Destination,
        candidates: Sequence[C],
        open_one: Callable[[C, bool], Awaitable[S]],
        probe: Callable[[C, bool], Awaitable[None]],
        clock: Clock,
        counters: Counters,
    ) -> None:
        self.faults: Mapping[str, str] = {}
        """Way -> why it is not in use, of those before the one that is."""
        self.paths = {path: PathState(name, path) for path in settings.paths}
        self._name = name
        self._all = candidates
        self._hold_ns = settings.hold
        self._open_one = open_one
        self._probe = probe
        self._clock = clock
        self._counters = counters
        self._number = 0
        self._lost: GatewayError | None = None
        self._broken: set[int] = set()
        """Of those not in use: what the last probe says."""
        self._patience = Patience(settings.suspect_ns, settings.ack_timeout)

    @property
    def used(self) -> C:
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

    async def open(self, planned: int | None = None) -> S:
        """A session with the best that takes one; `planned` is tried first. Raises NotConnected or Permanent.

        One's refusal does not hide that another works.
        """
        order = sorted(range(len(self._all)), key=lambda number: self._rank(number, planned))
        errors: dict[int, GatewayError] = {self._number: self._lost} if self._lost else {}
        self._lost = None
        for number in order:
            try:
                session = await self._open_one(self._all[number], number == order[-1])
            except (NotConnected, Permanent) as error:
                errors[number] = error
                self._note(number, error)
            else:
                self._use(number, errors, planned=number == planned)
                return session
        raise _together([errors[number] for number in sorted(errors)])

    async def keep(self, session: Watched, *beside: Coroutine[Any, Any, Any]) -> int | None:
        """Until the session ends, or is ended because another path is better, or one of `beside` ends or raises: None;
        or until it is time to go back to a better candidate: its number."""
        better = asyncio.ensure_future(self._better())
        await _first(session.ended.wait(), self._watch(session), better, *beside)
        return better.result() if better.done() and not better.cancelled() else None

    async def _watch(self, session: Watched) -> None:
        """For ever where there are no paths."""
        path, way = self.used.path, self.used.way
        if not path:
            await session.ended.wait()
            return
        others = {number for number, one in enumerate(self._all) if one.path != path}
        await watch(session, way, self.paths[path], self._patience, self._clock, lambda: bool(others - self._broken))

    async def _better(self) -> int:
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
                error = await self._probed(number)
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

    async def _probed(self, number: int) -> GatewayError | None:
        """Why that candidate does not work; None where it does."""
        try:
            await self._probe(self._all[number], number < self._number)
        except (NotConnected, Permanent) as error:
            return error
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
    """One error for all candidates: Permanent where every one refuses."""
    if len(errors) == 1:
        return errors[0]
    kind = Permanent if all(isinstance(error, Permanent) for error in errors) else NotConnected
    return kind("; ".join(map(str, errors)))


async def _first(*waits: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Until one of them ends; the others are cancelled. Raises what that one raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
