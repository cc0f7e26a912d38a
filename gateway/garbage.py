"""Garbage collection between the steps of the event loop, not in the middle of one that has a value to send.

CPython collects wherever the next object happens to be made. A full collection over all loaded modules takes 50 ms and
more: what lives as long as the process is taken out of its view for good. The rest is looked at by a timer.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

LOOK_EVERY_S: Final = 0.25
LIMITS: Final = 5_000, 20, 50
"""By generation: new objects, then collections of the generation below, before it is collected. A step of 0.5 ms."""
FROZEN_AFTER_S: Final = 30.0
"""By then what lives as long as the process has been made."""


def collect_between_steps(loop: asyncio.AbstractEventLoop) -> None:
    """From now on, as long as the loop runs."""
    gc.disable()
    gc.collect()
    gc.freeze()
    loop.call_later(FROZEN_AFTER_S, gc.freeze)
    loop.call_later(LOOK_EVERY_S, _look, loop)


def _look(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_later(LOOK_EVERY_S, _look, loop)
    due = [generation for generation, count in enumerate(gc.get_count()) if count > LIMITS[generation]]
    if due:
        gc.collect(due[-1])
