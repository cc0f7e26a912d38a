"""Garbage is collected, and only between steps of the loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from weakref import ref

import pytest

from gateway import garbage
from gateway.garbage import LIMITS, collect_between_steps


class Knot:
    """Refers to itself: no count of references frees it."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


async def test_garbage_waits_for_the_end_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_EVERY_S", 0.01)
    collect_between_steps(asyncio.get_running_loop())
    first = ref(Knot())
    for _ in range(2 * LIMITS[0]):
        Knot()
    assert first() is not None
    async with asyncio.timeout(10):
        while first() is not None:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


async def test_what_lives_long_is_collected_more_rarely_but_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(garbage, "LIMITS", (10, 2, 2))
    collect_between_steps(asyncio.get_running_loop())
    knot = Knot()
    old = ref(knot)
    gc.collect(1)  # it survives: from now on only a full collection looks at it
    del knot
    kept = []
    async with asyncio.timeout(10):
        while old() is not None:
            kept.append([Knot() for _ in range(20)])
            await asyncio.sleep(0.001)
