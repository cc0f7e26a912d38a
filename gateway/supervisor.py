"""One state machine for any component: connect, run until an error, close, back off, again.

    connecting -> up -> down | faulted | restarting -> up ...      stopped (cancelled)

down: NotConnected or Transient; the first attempt after a good session follows at once, because another server or path
may work. faulted: Permanent, tried again slowly, or when what was wrong has been put right (`cured`). restarting: an
error that no contract names, so a bug of ours: its traceback is logged once. A component stays in the state of its last
failure while it is tried again, so one outage is one line in the log when it begins and one when it ends; what fails in
the same way meanwhile is counted (`attempts`) and logged at debug. Poisoned and cancellation pass through: the first
ends the process, the second is a stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from gateway.log import Log
from pipelines.clock import Clock
from pipelines.errors import NotConnected, Permanent, Poisoned, Transient

LOOK_EVERY_S: Final = 1.0
"""How often a component that is faulted looks whether somebody has put right what it lacks."""


class State(StrEnum):
    """Where a component is; the words of the log, of `/health` and of the metrics."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    FAULTED = "faulted"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Session(Protocol):
    """What is supervised: a source with its routes, a sink with its pumps."""

    @property
    def kind(self) -> str:
        """ "source" or "sink"."""

    @property
    def name(self) -> str:
        """The component's name in the file."""

    @property
    def address(self) -> str:
        """Where the far side is; without credentials."""

    @property
    def server(self) -> str:
        """Which of several servers is used now; empty where there is no choice or no connection."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Tag name -> one line, for tags that cannot be read now; of a sink: server -> why it is not used."""

    @property
    def info(self) -> str:
        """One line for people about the session that is up; may be empty."""

    async def connect(self) -> None:
        """Raises what `pipelines.errors` names."""

    async def run(self) -> None:
        """Ends only with an error; a return counts as NotConnected."""

    async def close(self) -> None:
        """Idempotent, also after a failed or cancelled `connect`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait before what. Full jitter: a wait is anything between 0 and the figure that has grown so far."""

    first_s: float = 0.5
    most_s: float = 30.0
    faulted_s: float = 60.0
    stable_s: float = 10.0
    """A session that lasted this long was a good one: waits start at `first_s` again."""
    transient_most_s: float = 300.0
    close_s: float = 5.0


TO_SINKS = Patience(stable_s=2.0)
"""Over a link that comes and goes every few seconds no session lasts longer, and each delivers: a back-off that grows
would sleep through the times when it works. Machines are treated more gently: to be connected to costs them much."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a component now."""

    state: State
    since_ns: int
    """Wall clock, when `state` was entered."""
    reason: str = ""
    """One line; empty while up."""
    attempts: int = 0
    """Failed sessions since it was last up."""


class Supervisor:
    """Runs one session again and again. `random` gives 0..1; `close_budget` says how long a close may take now."""

    def __init__(
        self,
        session: Session,
        clock: Clock,
        random: Callable[[], float],
        patience: Patience = Patience(),
        close_budget: Callable[[], float] | None = None,
    ) -> None:
        self.status = Status(State.CONNECTING, clock.wall_ns())
        self._session = session
        self._clock = clock
        self._random = random
        self._patience = patience
        self._close_budget = close_budget or (lambda: patience.close_s)
        self._log = Log(f"{session.kind} {session.name}")
        self._failures = 0
        self._was_good = False
        self._lost_ns = 0
        self._seen: set[str] = set()  # reasons logged in this outage
        self._bugs: set[str] = set()  # tracebacks logged since the start

    @property
    def kind(self) -> str:
        return self._session.kind

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def server(self) -> str:
        return self._session.server

    @property
    def faults(self) -> Mapping[str, str]:
        return self._session.faults

    @property
    def info(self) -> str:
        return self._session.info

    async def run(self) -> None:
        """Never returns. Raises Poisoned; cancelled, it closes the session and is stopped."""
        try:
            while True:
                ended = await self._once()
                await self._wait(self._after(ended), ended)
        except asyncio.CancelledError:
            self._enter(State.STOPPED, "")
            self._log.info("stopped")
            raise

    async def _once(self) -> BaseException:
        """One session from connect to close; what ended it."""
        up_since_ns: int | None = None
        self._was_good = False
        try:
            await self._session.connect()
            up_since_ns = self._clock.mono_ns()
            self._came_up()
            await self._session.run()
            ended: BaseException = NotConnected("the session ended")
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            ended = NotConnected("the connection was given up by its client library")
        except Exception as error:  # the one place that must see them all
            ended = worst(error)
            if isinstance(ended, Poisoned):
                raise ended from error
        finally:
            await self._close()
        if _is_being_cancelled():  # the session answered a cancellation with an error of its own
            raise asyncio.CancelledError
        if up_since_ns is not None and self._clock.mono_ns() - up_since_ns >= self._patience.stable_s * 1e9:
            self._failures = 0
        self._was_good = up_since_ns is not None and not self._failures
        return ended

    async def _wait(self, wait_s: float, ended: BaseException) -> None:
        """Until the next session; less where what made this one impossible is put right meanwhile."""
        cured = ended.cured if isinstance(ended, Permanent) else None
        if cured is None:
            await self._clock.sleep(wait_s)
            return
        until_ns = self._clock.mono_ns() + int(wait_s * 1e9)
        while (left_s := (until_ns - self._clock.mono_ns()) / 1e9) > 0 and not cured():
            await self._clock.sleep(min(LOOK_EVERY_S, left_s))

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(self._close_budget()):
                await self._session.close()
        except TimeoutError:
            self._log.warning("did not close in time and was left behind")
        except Exception as error:  # noqa: BLE001  # a failed close must not stop the next connect
            self._log.bug(f"failed to close: {describe(error)}", error)

    def _after(self, error: BaseException) -> float:
        """Takes note of why a session ended; how many seconds to wait before the next."""
        self._failures += 1
        if isinstance(error, Permanent):
            self._failed(State.FAULTED, error)
            return self._patience.faulted_s
        if isinstance(error, Transient):
            self._failed(State.DOWN, error)
            return min(max(error.retry_after_s, 0.0), self._patience.transient_most_s)
        self._failed(State.DOWN if isinstance(error, NotConnected) else State.RESTARTING, error)
        if self._was_good and isinstance(error, NotConnected):
            return 0.0
        grown = self._patience.first_s * 2.0 ** min(self._failures - 1, 16)
        return self._random() * min(grown, self._patience.most_s)

    def _came_up(self) -> None:
        attempts, lost_ns = self.status.attempts, self._lost_ns
        self._enter(State.UP, "")
        self._seen.clear()
        self._lost_ns = 0
        if attempts:
            away_s = round((self._clock.wall_ns() - lost_ns) / 1e9, 1)
            self._log.info("up again", address=self._session.address, after_s=away_s, attempts=attempts + 1)
        else:
            self._log.info("up", address=self._session.address)

    def _failed(self, state: State, error: BaseException) -> None:
        before, reason = self.status, describe(error)
        attempts = before.attempts + 1
        self._lost_ns = self._lost_ns or self._clock.wall_ns()
        self._enter(state, reason, attempts)
        if before.state is state and reason in self._seen:
            self._log.debug(f"still {state}: {reason}", attempts=attempts)
        elif state is State.RESTARTING and reason not in self._bugs:
            self._log.bug(f"bug in this component, it is restarted: {reason}", error)
            self._bugs.add(reason)
        elif before.state is state:
            self._log.info(f"still {state}: {reason}", attempts=attempts)
        elif state is State.FAULTED:
            self._log.error(f"{state}: {reason}", retry_every_s=self._patience.faulted_s)
        else:
            self._log.warning(f"{state}: {reason}")
        self._seen.add(reason)

    def _enter(self, state: State, reason: str, attempts: int = 0) -> None:
        since_ns = self.status.since_ns if state is self.status.state else self._clock.wall_ns()
        self.status = Status(state, since_ns, reason, attempts)


def worst(error: BaseException) -> BaseException:
    """The leaf of an exception group that decides: Poisoned, then a bug, Permanent, NotConnected, Transient."""
    return max(_leaves(error), key=_severity)


def describe(error: BaseException) -> str:
    """One line: our own errors by their text, any other with its type."""
    text = " ".join(str(error).split())
    ours = isinstance(error, NotConnected | Transient | Permanent | Poisoned)
    return text if ours and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _severity(error: BaseException) -> int:
    for rank, kind in enumerate((Transient, NotConnected, Permanent)):
        if isinstance(error, kind):
            return rank
    return 4 if isinstance(error, Poisoned) else 3


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _is_being_cancelled() -> bool:
    """A client library's own cancelled future raises CancelledError too; only a task's own cancellation is a stop."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
