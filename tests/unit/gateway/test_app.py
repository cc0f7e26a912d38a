"""Start and stop of the whole gateway, over sources and sinks in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.app import App, Exit, Parts
from gateway.session import SinkSession, SourceSession
from gateway.supervisor import State
from pipelines.batch import Batch
from pipelines.contracts import Part
from pipelines.errors import NotConnected, Poisoned
from pipelines.files import RealFiles
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane
from pipelines.route import Pump, Route
from tests.unit.gateway.fakes import FakeClock, FakeSink, FakeSource, batch, until

DEADLINE_S = 60.0


@dataclass
class Plant:
    """One source, one memory lane, one sink."""

    app: App
    source: FakeSource
    sink: FakeSink
    lane: MemoryLane
    clock: FakeClock


async def _no_dead_letter(lane: str, refused: Sequence[tuple[Batch, Sequence[int]]], reason: str) -> None:
    raise AssertionError("nothing is rejected here")


def plant(stop_timeout_s: float = 5.0) -> Plant:
    clock, source, sink, lane = FakeClock(), FakeSource(), FakeSink(), MemoryLane("live", bytes_max=2**20)
    pump = Pump(lane, lane.reader(Part.ALL), sink, clock, _no_dead_letter, rows_max=1000)
    sources = [SourceSession(source, "opc.tcp://10.0.0.5:4840", [Route("live", [], lane)], [])]
    parts = Parts(sources, [SinkSession(sink, "mqtt://broker", [lane], [pump])], [lane])
    return Plant(App(parts, "line1-gw", clock, lambda: 1.0, stop_timeout_s), source, sink, lane, clock)


def states(it: Plant) -> list[State]:
    return [component.status.state for component in it.app.health.components]


async def test_collects_delivers_and_stops() -> None:
    """Rows reach the sink; a stop closes source, then sink, ends with 0, and every row is delivered."""
    it = plant()
    it.sink.open.set()
    running = asyncio.create_task(it.app.run())
    it.source.queue.put_nowait(batch(0, rows=7))
    await until(lambda: it.sink.rows == 7)
    assert it.app.health.status == "ok"
    it.app.request_stop()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STOPPED
    assert it.source.events == ["connect", "commit 0", "close"]
    assert it.sink.events == ["connect", "close"]
    assert states(it) == [State.STOPPED, State.STOPPED]
    assert it.lane.counters.totals["lost_rows"] == 0


async def test_stop_drains_while_the_sink_takes(caplog: pytest.LogCaptureFixture) -> None:
    """The source is closed first; what the lane holds is delivered before the sink closes."""
    it = plant()
    running = asyncio.create_task(it.app.run())
    it.source.queue.put_nowait(batch(0, rows=7))
    await until(lambda: it.lane.pending_rows == 7 and states(it) == [State.UP, State.UP])
    it.app.request_stop()
    await it.source.closed.wait()  # at once: the fake clock's deadline is a few loop turns away
    assert "close" not in it.sink.events
    it.sink.open.set()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STOPPED
    assert (it.sink.rows, it.lane.counters.totals["lost_rows"]) == (7, 0)


async def test_stop_does_not_wait_for_a_sink_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be delivered is lost, counted, and said in one line."""
    caplog.set_level(logging.INFO, logger="gateway")
    it = plant(stop_timeout_s=3600)
    it.sink.connect_error = NotConnected("broker refuses")
    running = asyncio.create_task(it.app.run())
    it.source.queue.put_nowait(batch(0, rows=7))
    await until(lambda: it.lane.pending_rows == 7)
    it.app.request_stop()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STOPPED
    assert it.lane.counters.totals["lost_rows"] == 7
    lost = [record for record in caplog.records if "lost" in record.getMessage()]
    assert [record.__dict__["fields"] for record in lost] == [{"rows": 7, "routes": "live=7"}]


async def test_stop_ends_by_its_deadline() -> None:
    """A sink that is up and takes nothing costs `stop_timeout`, not more."""
    it = plant(stop_timeout_s=4)
    running = asyncio.create_task(it.app.run())
    it.source.queue.put_nowait(batch(0))
    await until(lambda: it.lane.pending_rows == 1 and states(it) == [State.UP, State.UP])
    it.app.request_stop()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STOPPED
    assert it.clock.now_ns <= 4e9
    assert it.lane.counters.totals["lost_rows"] == 1


async def test_a_clean_up_that_hangs_costs_the_deadline_and_no_more() -> None:
    """A connector that does not come back from a cancelled connect is cancelled again."""
    it = plant(stop_timeout_s=0.5)  # of real time: the first cancellation must have arrived by then
    connecting = asyncio.Event()

    async def hangs(resume: Sequence[bytes]) -> None:
        connecting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    it.source.connect = hangs  # type: ignore[method-assign]
    running = asyncio.create_task(it.app.run())
    await asyncio.wait_for(connecting.wait(), DEADLINE_S)
    it.app.request_stop()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STOPPED


async def test_second_signal_stops_at_once() -> None:
    """It neither drains nor waits for a close that hangs."""
    it = plant(stop_timeout_s=3600)
    hanging = asyncio.Event()
    it.source.close = hanging.wait  # type: ignore[assignment,method-assign]
    running = asyncio.create_task(it.app.run())
    await until(lambda: states(it) == [State.UP, State.UP])
    it.app.request_stop()
    await asyncio.sleep(0)
    it.app.request_stop()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STOPPED


async def test_storage_that_failed_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """Poisoned out of a lane: code 3, everything closed, health says failed."""
    it = plant()

    async def failed(batch: Batch) -> None:
        raise Poisoned("fsync failed")

    it.lane.append = failed  # type: ignore[method-assign]
    it.source.queue.put_nowait(batch(0))
    assert await asyncio.wait_for(it.app.run(), DEADLINE_S) is Exit.STORAGE_FAILED
    assert (it.app.health.status, it.app.health.http_status) == ("failed", 503)
    assert it.sink.events[-1] == "close"
    assert "storage failed, the gateway ends: fsync failed" in caplog.text


async def test_a_disk_that_fails_at_the_stop_is_no_clean_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last sync fails: code 3, and the other lanes are closed all the same."""
    it = plant()

    class Failing(RealFiles):
        broken = False

        def sync(self, handle: int) -> None:
            if self.broken:
                raise OSError(5, "Input/output error")
            super().sync(handle)

    files = Failing()
    lanes = [DiskLane(name, tmp_path / name, it.clock, Limits(10**6), files=files) for name in ("a", "b")]
    app = App(Parts([], [], lanes), "line1-gw", it.clock, lambda: 1.0, 5.0)
    running = asyncio.create_task(app.run())
    await lanes[0].append(batch(0))
    await lanes[0].sync()
    files.broken = True
    await lanes[0].append(batch(1))
    app.request_stop()
    assert await asyncio.wait_for(running, DEADLINE_S) is Exit.STORAGE_FAILED
    assert caplog.text.count("storage failed, the gateway ends: ") == 1
    with pytest.raises(RuntimeError, match="closed"):
        await lanes[1].append(batch(0))


async def test_a_disk_that_fails_ends_the_process(tmp_path: Path) -> None:
    """The sync behind a batch fails: nothing is acknowledged to the machine, code 3."""
    it = plant()

    class Failing(RealFiles):
        def sync(self, handle: int) -> None:
            raise OSError(5, "Input/output error")

    files = Failing()
    lane = DiskLane("history", tmp_path / "history", it.clock, Limits(10**6), files=files)
    session = SourceSession(it.source, "opc.tcp://10.0.0.5:4840", [Route("history", [], lane)], [])
    app = App(Parts([session], [], [lane]), "line1-gw", it.clock, lambda: 1.0, 5.0)
    it.source.queue.put_nowait(batch(0))
    assert await asyncio.wait_for(app.run(), DEADLINE_S) is Exit.STORAGE_FAILED
    assert it.source.events == ["connect", "close"]


async def test_acquisition_goes_on_while_the_sink_is_away() -> None:
    """A lost connection ends the sink's session only; the next one delivers what was collected meanwhile."""
    it = plant()
    running = asyncio.create_task(it.app.run())
    it.sink.open.set()
    await until(lambda: states(it) == [State.UP, State.UP])
    it.sink.connect_error = NotConnected("broker refuses")
    it.sink.lost.set()
    await until(lambda: states(it) == [State.UP, State.DOWN])
    for number in range(3):
        it.source.queue.put_nowait(batch(number, rows=10))
    await until(lambda: it.source.events[-1] == "commit 2")
    assert (it.sink.rows, it.lane.pending_rows) == (0, 30)
    it.sink.lost.clear()
    it.sink.connect_error = None
    await until(lambda: it.sink.rows == 30)
    it.app.request_stop()
    await asyncio.wait_for(running, DEADLINE_S)
