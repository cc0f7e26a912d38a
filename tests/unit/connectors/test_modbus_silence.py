"""What units that do not answer, or not now, cost: time-outs are counted on a line without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import connectors.modbus
from connectors.modbus import ModbusSource
from connectors.modbus_breaker import SILENT_CYCLES_MAX, SILENT_REQUESTS_MAX
from connectors.modbus_frames import EXCEPTIONS, Query, Reply, RequestFailed
from connectors.modbus_rest import REST_MAX_NS
from connectors.modbus_settings import ModbusDevice
from gateway.supervisor import Patience, Supervisor
from pipelines.batch import BAD_TIMEOUT, GOOD, Batch
from pipelines.errors import NotConnected
from pipelines.tags import TagTable
from tests.unit.connectors.modbus_device import registers
from tests.unit.connectors.test_modbus_source import StoppedClock

SECOND = 10**9
SILENT = -1


class Line:
    """A `ModbusLink` where `answer(address)` is 0, an exception's code, or SILENT: that takes the time-out's time."""

    def __init__(self, answer: Callable[[int], int], clock: StoppedClock) -> None:
        self.answer, self.clock, self.lost = answer, clock, "not connected"
        self.asked: list[int] = []

    async def connect(self, first: Sequence[Query] = ()) -> None:
        self.lost = ""

    async def close(self) -> None:
        self.lost = self.lost or "not connected"

    def give_up(self, reason: str) -> str:
        self.lost = reason
        return reason

    async def read(self, queries: Sequence[Query], before_ns: int = 0, arrived: None = None) -> list[Reply]:
        return [self._reply(query) for query in queries]

    def _reply(self, query: Query) -> Reply:
        start, count = int.from_bytes(query.frame[-4:-2], "big"), int.from_bytes(query.frame[-2:], "big")
        self.asked.append(start)
        code = self.answer(start)
        if not code:
            return Reply(registers(*range(start, start + count)), self.clock.now_ns)
        self.clock.now_ns += SECOND if code == SILENT else 0
        failure = RequestFailed(BAD_TIMEOUT, "no reply within 1 s") if code == SILENT else None
        failure = failure or RequestFailed(*EXCEPTIONS[code], code)
        return Reply(bytes(query.reply_bytes), self.clock.now_ns, failure)


class Setup:
    def __init__(
        self, answer: Callable[[int], int], folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
    ) -> None:
        self.clock, self.tags = StoppedClock(), TagTable()
        self.line = Line(answer, self.clock)
        monkeypatch.setattr(connectors.modbus, "ModbusLink", lambda *_: self.line)
        model = ModbusDevice.model_validate({"modbus": "tcp://127.0.0.1/7", **settings})
        self.source = ModbusSource("m", 0, model, self.tags, self.clock, folder)

    async def cycle(self) -> dict[str, int]:
        """Tag name -> StatusCode."""
        batch = await self.source.read()
        return {self.tags[tag].name: code for tag, code in zip(batch.tag, batch.status.tolist(), strict=True)}


FAR_APART = {f"h{at}": f"holding {100 * at} uint16" for at in range(10)}
"""Ten blocks."""


async def test_a_unit_that_dies_costs_few_time_outs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten blocks, and a unit that goes dark: not ten time-outs a cycle."""
    dark = False
    setup = Setup(lambda _: SILENT if dark else 0, tmp_path, monkeypatch, tags=FAR_APART)
    await setup.source.connect([])
    assert set((await setup.cycle()).values()) == {GOOD}
    dark = True
    setup.line.asked.clear()
    for _ in range(SILENT_CYCLES_MAX):
        assert set((await setup.cycle()).values()) == {BAD_TIMEOUT}
    with pytest.raises(NotConnected, match="no reply in 3 poll cycles"):
        await setup.cycle()
    assert len(setup.line.asked) == SILENT_REQUESTS_MAX + SILENT_CYCLES_MAX - 1


async def test_a_dead_unit_costs_one_time_out_per_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the real supervisor: one small read per attempt, of another block each time; then all is read at once."""
    dark = True
    setup = Setup(lambda _: SILENT if dark else 0, tmp_path, monkeypatch, tags=FAR_APART)
    attempts: list[int] = []
    batches: list[Batch] = []

    class Session:
        kind, name, server, address, info = "source", "m", "", "", ""
        faults: dict[str, str] = {}  # noqa: RUF012

        async def connect(self, first: Sequence[Query] = ()) -> None:
            nonlocal dark
            attempts.append(len(setup.line.asked))
            dark = len(attempts) < 20
            await setup.source.connect([])

        async def run(self) -> None:
            while True:
                batches.append(await setup.source.read())
                if not batches[-1].status.any():
                    raise KeyboardInterrupt

        async def close(self) -> None:
            await setup.source.close()

    supervisor = Supervisor(Session(), setup.clock, lambda: 1.0, Patience())
    with pytest.raises(KeyboardInterrupt):
        await supervisor.run()
    costs = [after - before for before, after in pairwise(attempts)]
    assert costs == [SILENT_REQUESTS_MAX + SILENT_CYCLES_MAX - 1, *[1] * 18]
    assert len(set(setup.line.asked[costs[0] : costs[0] + 9])) == 9
    waits_s = [wait_s for wait_s in setup.clock.sleeps_s if wait_s >= 0.5]
    assert max(waits_s) == Patience().most_s
    assert len(setup.line.asked) == sum(costs) + 1 + 10


async def test_silent_blocks_of_a_unit_that_answers_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some devices say nothing at all to addresses that they have not got. The others' period does not suffer."""
    setup = Setup(lambda at: SILENT if at >= 500 else 0, tmp_path, monkeypatch, tags=FAR_APART)
    await setup.source.connect([])
    silent = {f"h{at}" for at in range(5, 10)}
    for _ in range(600):
        status = await setup.cycle()
        assert {name for name, code in status.items() if code} == silent
        assert {status[name] for name in silent} == {BAD_TIMEOUT}
    late_s = setup.clock.now_ns / SECOND - 1_000 - 599
    unanswered = sum(at >= 500 for at in setup.line.asked)
    assert 5 * 10 < unanswered < 5 * 25, "not 5 * 600"
    assert late_s < 60
    assert setup.source.counters.snapshot()["resting_blocks"] == 5
    assert set(setup.source.faults) == silent


async def test_a_unit_of_which_the_first_blocks_are_silent_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up at most until a probe meets a block that answers; then the silent ones rest."""
    setup = Setup(lambda at: SILENT if at < 800 else 0, tmp_path, monkeypatch, tags=FAR_APART)
    for _ in range(20):
        try:
            await setup.source.connect([])
            while (await setup.cycle())["h8"]:
                continue
            break
        except NotConnected:
            continue
    for _ in range(100):
        status = await setup.cycle()
        assert {name for name, code in status.items() if not code} == {"h8", "h9"}


async def test_a_block_that_answers_again_is_read_in_every_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dark = True
    setup = Setup(lambda at: SILENT if at == 100 and dark else 0, tmp_path, monkeypatch, tags=FAR_APART)
    await setup.source.connect([])
    for _ in range(100):
        assert (await setup.cycle())["h1"] == BAD_TIMEOUT
    dark = False
    deadline_ns = setup.clock.now_ns + REST_MAX_NS + SECOND
    while (await setup.cycle())["h1"]:
        assert setup.clock.now_ns < deadline_ns
    setup.line.asked.clear()
    await setup.cycle()
    assert setup.line.asked.count(100) == 1
    assert not setup.source.faults
    assert setup.source.counters.snapshot()["resting_blocks"] == 0


@pytest.mark.parametrize("code", [5, 6])
async def test_a_busy_device_is_asked_once_more(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([code, 0, code, code])
    setup = Setup(lambda at: next(busy) if at == 100 else 0, tmp_path, monkeypatch, tags=FAR_APART)
    await setup.source.connect([])
    assert set((await setup.cycle()).values()) == {GOOD}
    assert setup.line.asked.count(100) == 2
    assert (await setup.cycle())["h1"] == 0x8004_0000
    assert setup.line.asked.count(100) == 4


@pytest.mark.parametrize("code", [10, 11])
async def test_a_gateway_that_speaks_for_a_silent_unit_counts_as_silence(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such answer took the gateway's own time-out on the line that the others share."""
    dark = True
    setup = Setup(lambda _: code if dark else 0, tmp_path, monkeypatch, tags=FAR_APART)
    await setup.source.connect([])
    for _ in range(SILENT_CYCLES_MAX):
        assert set((await setup.cycle()).values()) == {0x8031_0000}
    with pytest.raises(NotConnected):
        await setup.cycle()
    setup.line.asked.clear()
    with pytest.raises(NotConnected, match=f"the unit is silent: gateway .* .exception {code}."):
        await setup.source.connect([])
    assert len(setup.line.asked) == 1
    dark = False
    await setup.source.connect([])
    assert set((await setup.cycle()).values()) == {GOOD}
