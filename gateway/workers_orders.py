"""What the supervising process tells its own: lines of a pipe. Lost where nobody reads them; a later one says more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

STOP: Final = b"stop"
"""In order; a second time: at once."""


def send(pipe: int, line: bytes) -> None:
    """Never waits: `pipe` does not block. To a process that has ended, or does not read, nothing is said."""
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(pipe, line + b"\n")


@contextmanager
def heard(pipe: int, tell: Callable[[bytes], None]) -> Iterator[None]:
    """Inside of it `tell` gets each line, on the running loop; the end of the pipe counts as two STOPs."""
    loop, rest = asyncio.get_running_loop(), b""

    def read() -> None:
        nonlocal rest
        more = os.read(pipe, 65_536)
        if not more:
            loop.remove_reader(pipe)
        *lines, rest = (rest + (more or b"\n".join((STOP, STOP, b"")))).split(b"\n")
        for line in lines:
            tell(line)

    loop.add_reader(pipe, read)
    try:
        yield
    finally:
        loop.remove_reader(pipe)
