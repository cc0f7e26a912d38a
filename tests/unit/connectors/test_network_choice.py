"""Which of several ways is used: order, what comes behind a loss, and when it is time to go back."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest

from connectors.network_choice import Choice
from connectors.network_paths import PathSuspected, Watched
from pipelines.counters import Counters
from pipelines.errors import GatewayError, NotConnected, Permanent
from tests.unit.pipelines.fakes import FakeClock, until


class Way(NamedTuple):
    """A candidate."""

    path: str

    @property
    def way(self) -> str:
        return f"k ({self.path})"


class Plant(NamedTuple):
    """A destination."""

    paths: tuple[str, ...] = ("a", "b", "c")
    hold: int = 20 * 10**9
    suspect_ns: int = 10**9
    ack_timeout: int = 2 * 10**9


class Rig:
    """`down`: what does not work, and why."""

    def __init__(self) -> None:
        self.down: dict[str, GatewayError] = {}
        self.opened: list[tuple[str, bool]] = []
        self.probed: list[tuple[str, bool]] = []
        self.clock = FakeClock()
        self.counters = Counters("sink", "plant")
        ways = [Way(path) for path in Plant().paths]
        self.choice = Choice("plant", Plant(), ways, self._open, self._probe, self.clock, self.counters)

    async def _open(self, way: Way, last: bool) -> str:
        self.opened.append((way.path, last))
        self._look(way)
        return way.path

    async def _probe(self, way: Way, preferred: bool) -> None:
        self.probed.append((way.path, preferred))
        self._look(way)

    def _look(self, way: Way) -> None:
        if way.path in self.down:
            raise self.down[way.path]

    async def keep(self, enough: Callable[[], bool] = lambda: False) -> int | None:
        """As `Choice.keep`, of a session that ends when the test says."""
        watched = Watched(dict, lambda: None, lambda _: None, asyncio.Event())
        task = asyncio.create_task(self.choice.keep(watched))
        await until(lambda: task.done() or enough())
        watched.ended.set()
        return await task


async def test_the_first_that_works() -> None:
    """Why those before it are not used is said; the last one knows that it is the last."""
    rig = Rig()
    rig.down = {"a": NotConnected("no answer"), "b": Permanent("refused")}
    assert await rig.choice.open() == "c"
    assert rig.opened == [("a", False), ("b", False), ("c", True)]
    assert rig.choice.faults == {"k (a)": "no answer", "k (b)": "refused"}
    assert rig.choice.info.startswith("a does not work; b does not work; c in use")
    rig.down["c"] = NotConnected("no answer either")
    with pytest.raises(NotConnected, match="no answer; refused; no answer either"):
        await rig.choice.open()


@pytest.mark.parametrize("error", [NotConnected("reset"), PathSuspected("silent")])
async def test_what_was_lost_is_tried_last(error: GatewayError) -> None:
    """Once; after that the order is the file's again, but what is known not to work comes behind."""
    rig = Rig()
    assert await rig.choice.open() == "a"
    rig.choice.lost(error)
    assert rig.choice.info.startswith("a does not work; b not tried")
    assert await rig.choice.open() == "b"
    assert rig.choice.faults == {"k (a)": str(error)}
    rig.choice.lost(error)
    assert await rig.choice.open() == "c"
    assert rig.counters.totals["failovers"] == 2


async def test_back_to_a_preferred_one() -> None:
    """Once it has been healthy for `hold` without a break; where it takes no session then, the present one stays."""
    rig = Rig()
    rig.down = {"a": NotConnected("no answer"), "b": NotConnected("no answer")}
    assert await rig.choice.open() == "c"
    del rig.down["b"]
    began_ns = rig.clock.now_ns
    assert await rig.keep() == 1
    assert rig.clock.now_ns - began_ns >= Plant().hold
    assert {("a", True), ("b", True)} == {*rig.probed}
    assert rig.choice.faults["k (b)"] == "works again, used after hold"
    rig.down["b"] = NotConnected("gone again")
    rig.opened.clear()
    assert await rig.choice.open(1) == "c"
    assert [path for path, _ in rig.opened] == ["b", "c"]


async def test_those_behind_are_probed_too() -> None:
    """To say how they do; they are not gone to."""
    rig = Rig()
    assert await rig.choice.open() == "a"
    assert await rig.keep(lambda: len(rig.probed) >= 8) is None
    assert {("b", False), ("c", False)} == {*rig.probed}
