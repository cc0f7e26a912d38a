"""What is done beside reading, at intervals, for as long as a session is up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from asyncua import ua

from connectors.opcua_binary import DecodeError
from connectors.opcua_requests import ServiceError
from connectors.opcua_resume import Log
from pipelines.clock import Clock
from pipelines.errors import NotConnected, Transient


class Chores:
    """`start` each of them when the session is there, `stop` them all at its end."""

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._log = log
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, every_s: float, chore: Callable[[], Awaitable[None]], wake: Callable[[], None]) -> None:
        """Runs `chore` again and again, the first time after `every_s`. What a server refuses is tried again then.

        `wake` is called when it has come to an end: `check` is due.
        """
        task = asyncio.create_task(self._run(every_s, chore), name=name)
        task.add_done_callback(lambda _: wake())
        self._tasks.append(task)

    def check(self) -> None:
        """Raises what ended a chore: NotConnected, Transient, or a bug of ours."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, every_s: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._clock.sleep(every_s)
            try:
                await chore()
            except (NotConnected, Transient):
                raise
            except (TimeoutError, ServiceError, DecodeError, ua.UaError, OSError) as error:
                self._log.debug("tried again in %g s: %s", every_s, error)
