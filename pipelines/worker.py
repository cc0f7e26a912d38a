"""Work that waits for the disk, away from the event loop. The simulator runs it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipelines.errors import Poisoned

T = TypeVar("T")
Offload = Callable[[Callable[[], T]], Awaitable[T]]
"""Runs a function that waits for the disk."""


class Threads:
    """An `Offload`: two threads of one lane's own, so that a reader does not wait for a sync."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix=f"lane-{name}")

    async def __call__(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Without waiting for what is still being read."""
        self._executor.shutdown(wait=False)


class Worker:
    """Runs what reads, and what changes; the lane sees to it that one thing at a time changes."""

    def __init__(self, name: str, offload: Offload[Any] | None) -> None:
        self._offload: Offload[Any] = offload or Threads(name)

    async def read(self, work: Callable[[], T]) -> T:
        """May be given up."""
        result: T = await self._offload(work)
        return result

    async def change(self, work: Callable[[], T]) -> T:
        """Waited for even where the caller is cancelled: nothing else may begin before."""
        running = asyncio.ensure_future(self._offload(work))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        failure = running.exception()
        if cancelled and not isinstance(failure, Poisoned):
            raise cancelled from failure  # else who passes over the error would pass over the cancellation, too
        result: T = running.result()
        return result

    def close(self) -> None:
        """Idempotent; does not wait."""
        if isinstance(self._offload, Threads):
            self._offload.close()
