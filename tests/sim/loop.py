"""An event loop with nothing but its queue: the simulator has no sockets, no timers and no threads, only turns."""

from __future__ import annotations

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class SimLoop(asyncio.AbstractEventLoop):
    """Runs what is ready, in order, until `main` is done."""

    def __init__(self) -> None:
        self._ready: deque[Any] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Returns or raises what `main` does; a loop that has nothing left to do meanwhile is a deadlock."""
        events._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._turn()
            for left in asyncio.all_tasks(self):
                left.cancel()
            while self._ready:
                self._turn()
            task.result()
        finally:
            events._set_running_loop(None)

    def _turn(self) -> None:
        assert self._ready, "everybody waits"
        for _ in range(len(self._ready)):
            callback, args = self._ready.popleft()
            callback(*args)

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        self._ready.append((callback, args))

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tasks of a process that is gone."""
