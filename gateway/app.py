"""The running gateway: starts sinks, then sources; stops in reverse; one TaskGroup holds every task.

Stop, within `stop_timeout`: sources close, lanes drain while their sink is up, sinks close, journals sync. What a
memory lane still holds then is lost, counted and said in one line; what a disk lane holds is delivered after the next
start, so it is given a moment only. A second signal skips the rest of it, but for the journals.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from gateway.clock import ClockWatch
from gateway.drops import dropped_rows
from gateway.garbage import collect_between_steps
from gateway.health import Health
from gateway.http import HttpService
from gateway.latency import LatencyWatch
from gateway.ledger import GapLedger
from gateway.log import Log
from gateway.loopwatch import LoopWatch
from gateway.session import SinkSession, SourceSession
from gateway.status import Destination, StatusReporter
from gateway.supervisor import TO_SINKS, Session, State, Supervisor, worst
from pipelines.clock import Clock
from pipelines.contracts import Lane
from pipelines.errors import Permanent, Poisoned

LOOK_EVERY_S: Final = 0.02
"""How often a stop looks whether the lanes are empty."""
DURABLE_DRAIN_S: Final = 1.0
"""For what is in flight: it would be sent a second time after the next start."""
CLOSE_S: Final = 5.0

Tasks = Sequence[asyncio.Task[None]]
Told = Callable[[Callable[[], None]], AbstractContextManager[None]]
"""Inside of it the function is called at each request to stop."""


THREAD_TURN_S: Final = 0.0005
"""A thread that decodes a backlog gives way to the event loop after so long; Python's own 5 ms show in live latency."""


class Exit(IntEnum):
    """Exit codes of the process."""

    STOPPED = 0
    BAD_CONFIGURATION = 2
    STORAGE_FAILED = 3


@dataclass(frozen=True)
class Parts:
    """What the configuration file describes, ready to be supervised."""

    sources: Sequence[SourceSession]
    sinks: Sequence[SinkSession]
    lanes: Sequence[Lane]
    ledger: GapLedger | None = None
    brokers: Sequence[Session] = ()
    """Processes of the gateway's own that its sinks write to."""
    clock: ClockWatch | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)
    """Lane name -> ns, where a route has a `latency_budget`."""


class App:
    """Runs the parts until `request_stop`. Its `health` is there from the start."""

    def __init__(
        self, parts: Parts, gateway: str, clock: Clock, random: Callable[[], float], stop_timeout_s: float
    ) -> None:
        self.sinks = [Supervisor(s, clock, random, TO_SINKS, self._close_budget) for s in parts.sinks]
        self.sources = [Supervisor(s, clock, random, close_budget=self._close_budget) for s in parts.sources]
        self._brokers = [Supervisor(s, clock, random, close_budget=self._close_budget) for s in parts.brokers]
        self.health = Health(gateway, clock, [*self.sources, *self.sinks, *self._brokers], parts.lanes)
        self.status = StatusReporter(list(map(Destination, self.sinks, parts.sinks)), clock)
        pumps = [pair for sink in parts.sinks for pair in zip(sink.lanes, sink.pumps, strict=False)]
        self.latency = LatencyWatch(pumps, parts.budgets, clock, self.status.note_latency)
        self.health.latency = self.latency
        if parts.ledger:
            self.health.gaps = parts.ledger.latest
            parts.ledger.subscribe(self.status.note)
        if parts.clock:
            self.health.clock, parts.clock.tell = parts.clock, self.status.tell
        self.parts = parts
        self._clock = clock
        self._stop_timeout_s = stop_timeout_s
        self._deadline_ns: int | None = None
        self._signals = 0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._log = Log("gateway")

    def request_stop(self) -> None:
        """The first call stops in order, the second at once."""
        self._signals += 1
        if self._signals == 1:
            self._log.info("stopping", within_s=self._stop_timeout_s)
            self._stop.set()
        else:
            self._log.warning("stopping at once")
            self._hurry.set()

    async def run(self) -> Exit:
        """Returns when stopped, or when storage has failed."""
        code = Exit.STOPPED
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self.parts.ledger.run()) if self.parts.ledger else None
                brokers = [group.create_task(supervisor.run()) for supervisor in self._brokers]
                sinks = [group.create_task(supervisor.run()) for supervisor in self.sinks]
                sources = [group.create_task(supervisor.run()) for supervisor in self.sources]
                watched = (self.status, self.latency, self.health.drops, self.parts.clock)
                watching = [group.create_task(part.run()) for part in watched if part]
                await self._stop.wait()
                for task in watching:
                    task.cancel()
                self.health.phase = "stopping"
                self._deadline_ns = self._clock.mono_ns() + int(self._stop_timeout_s * 1e9)
                await self._stop_unless_hurried(group, sources, sinks, brokers)
                if writer:
                    writer.cancel()
        except BaseExceptionGroup as errors:
            error = worst(errors)
            if not isinstance(error, Poisoned):
                raise
            code = self._storage_failed(error)
        finally:
            for source in self.parts.sources:
                source.note_absence()
            for lane in self.parts.lanes:
                try:
                    await lane.close()
                except Poisoned as error:
                    code = code or self._storage_failed(error)
            if self.parts.ledger:
                await self.parts.ledger.close()
            self._say_what_is_lost()
        return code

    def _storage_failed(self, error: Poisoned) -> Exit:
        self.health.phase = "failed"
        self._log.error(f"storage failed, the gateway ends: {error}")
        return Exit.STORAGE_FAILED

    async def _stop_unless_hurried(
        self, group: asyncio.TaskGroup, sources: Tasks, sinks: Tasks, brokers: Tasks
    ) -> None:
        """The deadline is for all of it: what is not closed by then is cancelled once more, out of its clean-up."""
        in_order = group.create_task(self._stop_in_order(sources, sinks, brokers))
        hurry = group.create_task(self._hurry.wait())
        await asyncio.wait((in_order, hurry), timeout=self._stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (in_order, hurry, *sources, *sinks, *brokers):
            task.cancel()

    async def _stop_in_order(self, sources: Tasks, sinks: Tasks, brokers: Tasks) -> None:
        await _cancel(sources)
        reserve_s = min(2.0, self._stop_timeout_s / 4)
        began_s = self._remaining_s()
        while self._remaining_s() > reserve_s and self._draining(began_s - self._remaining_s() < DURABLE_DRAIN_S):
            await self._clock.sleep(LOOK_EVERY_S)
        await _cancel(sinks)
        await _cancel(brokers)

    def _draining(self, durable: bool) -> bool:
        """Some lane holds rows and its sink can take them; `durable` lanes count too, or not."""
        up = {supervisor.name for supervisor in self.sinks if supervisor.status.state is State.UP}
        lanes = [lane for sink in self.parts.sinks if sink.name in up for lane in sink.lanes]
        return any(lane.pending_rows for lane in lanes if durable or not lane.durable)

    def _close_budget(self) -> float:
        if self._hurry.is_set():
            return 0.0
        return CLOSE_S if self._deadline_ns is None else min(CLOSE_S, max(0.2, self._remaining_s() / 2))

    def _remaining_s(self) -> float:
        return ((self._deadline_ns or 0) - self._clock.mono_ns()) / 1e9

    def _say_what_is_lost(self) -> None:
        lost = {lane.name: lane.pending_rows for lane in self.parts.lanes if not lane.durable and lane.pending_rows}
        for lane in self.parts.lanes:
            if lane.name in lost:
                lane.counters.add("lost_rows", lost[lane.name])
        dropped = sum(map(dropped_rows, self.parts.lanes))
        more = {"dropped_before": dropped} if dropped else {}
        if lost:
            routes = ",".join(f"{name}={rows}" for name, rows in lost.items())
            rows = sum(lost.values())
            self._log.warning("stopped; rows that were not delivered are lost", rows=rows, routes=routes, **more)
        elif kept := sum(lane.pending_rows for lane in self.parts.lanes):
            self._log.info("stopped; rows that were not delivered are on disk", rows=kept, **more)
        elif dropped:
            self._log.warning("stopped; every row was delivered but those that a full buffer dropped", rows=dropped)
        else:
            self._log.info("stopped; every row was delivered")


@contextmanager
def by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """As `Told`: Ctrl-C and SIGTERM, on the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def serve(app: App, service: HttpService | None, watch: LoopWatch, told: Told = by_signals) -> Exit:
    """The whole life of the process: HTTP, loop watch, app. Raises Permanent where `listen` cannot be had."""
    with told(app.request_stop):
        try:
            if service:
                await service.start()
            collect_between_steps(asyncio.get_running_loop())
            sys.setswitchinterval(THREAD_TURN_S)
            watch.start()
            return await app.run()
        finally:
            watch.stop()
            if service:
                await service.close()


def exit_code(run: Callable[[], int]) -> int:
    """That of `run`, also where it cannot start."""
    try:
        return int(run())
    except Permanent as error:
        Log("gateway").error(f"cannot start: {error}")
        return Exit.BAD_CONFIGURATION
    except Poisoned as error:
        Log("gateway").error(f"cannot start: {error}")
        return Exit.STORAGE_FAILED


async def _cancel(tasks: Tasks) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
