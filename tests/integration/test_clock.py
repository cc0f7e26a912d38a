"""A clock that is set, on the whole way of the data: real machines, the gateway's own parts, payloads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack

from connectors.payload import FormatName, Identity, make_format
from gateway.build import build
from gateway.config import load
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.tags import TagTable
from tests.contract.source_suite import within
from tests.services.asyncua_server import AsyncuaServer
from tests.services.pymodbus_server import PymodbusServer

FILE = """
gateway: {{id: line1-gw, data_dir: {folder}/data, listen: null}}
devices:
  press: {{opcua: "{press}", security: none, every: 10ms, tags: {{count: "ns=2;s=Int32"}}}}
  meter: {{modbus: "{meter}/1", every: 20ms, tags: {{a: holding 0 uint16, far: holding 200 uint16, coil: coil 0}}}}
send: {{all: {{from: "*", to: broker, fast: true}}}}
to: {{broker: {{mqtt: "mqtt://127.0.0.1:1"}}}}
"""
STEPS_S = (3600.0, -7200.0, 1800.0)
JUMP_NS = 600 * 10**9
"""No two batches of a device are so far apart, on any machine."""


class SetClock(SystemClock):
    """The host's, and somebody who sets it."""

    ahead_ns = 0

    def wall_ns(self) -> int:  # type: ignore[override]
        return time.time_ns() + self.ahead_ns

    def step(self, seconds: float) -> None:
        self.ahead_ns += round(seconds * 1e9)


class Line:
    """Two devices collected into a lane that nobody empties but the test: what came, in order."""

    def __init__(self, tags: TagTable) -> None:
        self.tags = tags
        self.batches: list[Batch] = []

    def of(self, device: str) -> list[Batch]:
        return [batch for batch in self.batches if self.tags[int(batch.tag[0])].device == device]

    async def until(self, device: str, batches: int) -> None:
        """There are so many."""
        async with asyncio.timeout(60):
            while len(self.of(device)) < batches:  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.001)


@asynccontextmanager
async def line(file: Path, clock: SystemClock) -> AsyncIterator[Line]:
    """The sources and routes of a file run; its destinations do not."""
    built = build(load(file)[0], clock)
    parts, found = built.app.parts, Line(built.tags)
    [lane] = parts.lanes
    reader = lane.reader(Part.ALL)

    async def read() -> None:
        while True:
            span, batches = await reader.read(10_000)
            found.batches += batches
            reader.commit(span)

    for source in parts.sources:
        await within(source.connect())
    tasks = [asyncio.create_task(work) for work in (read(), *(source.run() for source in parts.sources))]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for source in parts.sources:
            await source.close()
        await lane.close()


async def test_exactly_what_a_step_touched_is_flagged(
    asyncua_server: Callable[..., AsyncuaServer], pymodbus_server: Callable[..., PymodbusServer], tmp_path: Path
) -> None:
    """Forward and back: of each device the first batch behind each step says so in every format, in every
    row, and no other batch does. Machines' own times stay what they are."""
    image = {"holding": {0: [1], 200: [2]}, "coils": {0: [1] * 16}}
    press, meter, clock = asyncua_server(), pymodbus_server(image=image), SetClock()
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE.format(folder=tmp_path, press=press.url, meter=meter.url))
    async with line(file, clock) as came:
        await _more(came, press)
        for step_s in STEPS_S:
            clock.step(step_s)
            await _more(came, press)
        tags, batches_of = came.tags, {device: came.of(device) for device in ("press", "meter")}
    assert [round(step.size_ns / 1e9, 3) for step in clock.steps] == list(STEPS_S)
    for name in ("json", "json-columns", "msgpack"):
        made = make_format(name, Identity("line1-gw"), tags)
        for device, batches in batches_of.items():
            flagged = [at for at, batch in enumerate(batches) if _stepped(name, made.message("all", batch, False))]
            jumps = _jumps([batch.received_ns for batch in batches])
            # A cycle whose last reply came before the step, and which was not finished then, is touched by it.
            may_be = ([at, at - 1] if device == "meter" else [at] for at in jumps)
            assert len(flagged) == len(STEPS_S)
            assert all(at in places for at, places in zip(flagged, may_be, strict=True)), f"{device} as {name}"
    assert not _jumps([int(batch.ts_ns[0]) for batch in batches_of["press"]])


async def _more(came: Line, press: AsyncuaServer) -> None:
    """Some batches more of each device: the meter is polled, the press has to be told."""
    for _ in range(3):
        have = {device: len(came.of(device)) for device in ("press", "meter")}
        await asyncio.to_thread(press.set_value, "Int32", have["press"] + 1)
        for device, batches in have.items():
            await came.until(device, batches + 1)


def _jumps(times_ns: Sequence[int]) -> list[int]:
    """Where two neighbours are too far apart: the place of the second one."""
    pairs = enumerate(pairwise(times_ns), start=1)
    return [at for at, (before, after) in pairs if abs(after - before) > JUMP_NS]


def _stepped(name: FormatName, message: bytes) -> bool:
    """The message says so, of all of its rows; else of none."""
    content: dict[str, Any] = msgpack.unpackb(message) if name == "msgpack" else json.loads(message)
    if name == "json":
        words = [sample.get("clock") for sample in content["samples"]]
    else:
        columns = content["samples"] if name == "msgpack" else content
        words = columns.get("clock", [None])
    assert len(set(words)) == 1
    return bool(words[0] == "stepped")
