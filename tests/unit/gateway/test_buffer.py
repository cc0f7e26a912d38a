"""`gateway buffer`: beside a lane that is being written, and over damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import orjson
import pytest

from gateway import buffer
from gateway.buffer import lanes_folder, listing, samples, verify
from gateway.cli import main
from pipelines.batch import Kind
from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.files import RealFiles
from pipelines.lane_disk import DiskLane, Limits
from pipelines.segment import load
from pipelines.tags import Tag, TagTable
from tests.unit.pipelines.fakes import make_batch


def lane_in(data_dir: Path) -> DiskLane:
    tags = TagTable()
    for name in ("temperature", "pressure", "flow"):
        tags.add(Tag("press4", name))
    limits = Limits(10**7, segment_bytes=5000, fsync_every_ns=1_000_000)
    return DiskLane("history", lanes_folder(data_dir) / "history", SystemClock(), limits, tags=tags, sources=["press4"])


async def test_reads_while_the_gateway_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What waits is listed and shown with its names; nothing is changed, and nothing is damaged."""
    lane = lane_in(tmp_path)
    for number in range(50):
        await lane.append(make_batch(number, 3))
    [line] = listing(tmp_path)
    assert line.startswith("history: 150 rows pending of 150,")
    assert list(verify(tmp_path)) == []
    assert main(["buffer", "verify", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "ok\n"
    shown = [orjson.loads(line) for line in samples(tmp_path, "history", everything=False)]
    assert [row["v"] for row in shown] == [float(number) for number in range(50) for _ in range(3)]
    assert (shown[1]["device"], shown[1]["tag"], shown[1]["seq"]) == ("press4", "pressure", 0)
    await lane.close()


async def test_what_is_written_while_a_segment_is_verified_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway appends between two looks at the file: each sees what was there then."""
    lane, seen = lane_in(tmp_path), list[bytes]()
    segment = lanes_folder(tmp_path) / "history" / "000000000000.segment"
    for number in range(2):
        await lane.append(make_batch(number))
        seen.append(segment.read_bytes())
    await lane.close()

    def grown(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*arguments: Any) -> Any:
            if seen:
                segment.write_bytes(seen.pop(0))
            return look(*arguments)

        return looked

    read = buffer.FILES.read
    monkeypatch.setattr(buffer, "FILES", SimpleNamespace(names=buffer.FILES.names, read=grown(read)))
    monkeypatch.setattr(buffer, "load", lambda _, path: grown(load)(RealFiles(), path))
    assert list(verify(tmp_path)) == []
    assert not seen


async def test_what_is_delivered_is_shown_on_demand(tmp_path: Path) -> None:
    """Pending as the cursor says; `--all` shows what is still in the files."""
    lane = lane_in(tmp_path)
    for number in range(5):
        await lane.append(make_batch(number))
    reader = lane.reader(Part.ALL)
    span, _ = await reader.read(2)
    reader.commit(span)
    await lane.close()
    assert [orjson.loads(line)["seq"] for line in samples(tmp_path, "history", everything=False)] == [2, 3, 4]
    assert len(list(samples(tmp_path, "history", everything=True))) == 5


async def test_a_segment_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not as if it were not there."""
    lane = lane_in(tmp_path)
    await lane.append(make_batch(0))
    await lane.close()

    def refused(*_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(buffer, "load", refused)
    assert "  000000000000.segment: cannot be read, `gateway buffer verify` says why" in list(listing(tmp_path))


async def test_damage_is_named(tmp_path: Path) -> None:
    """Each segment with damage, and a damaged cursor; code 1."""
    lane = lane_in(tmp_path)
    for number in range(50):
        await lane.append(make_batch(number, 3))
    await lane.close()
    segments = sorted((lanes_folder(tmp_path) / "history").glob("*.segment"))
    data = bytearray(segments[1].read_bytes())
    data[1000] ^= 1
    segments[1].write_bytes(data)
    (lanes_folder(tmp_path) / "history" / "cursor").write_bytes(b"nonsense")
    damaged, cursor = verify(tmp_path)
    assert segments[1].name in damaged and "1 or more lost" in damaged
    assert "everything in the buffer counts as pending" in cursor
    assert main(["buffer", "verify", "--data-dir", str(tmp_path)]) == 1


async def test_what_vanishes_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that the running gateway removes between the listing and the reading is left out."""
    lane = lane_in(tmp_path)
    for number in range(50):
        await lane.append(make_batch(number, 3))
    await lane.close()
    known = buffer.FILES.names
    monkeypatch.setattr(buffer.FILES, "names", lambda folder: [*known(folder), "000000000777.segment"])
    assert list(verify(tmp_path)) == []
    assert len(list(listing(tmp_path))) == 1
    assert len(list(samples(tmp_path, "history", everything=True))) == 150


async def test_values_that_json_lacks_are_shown_as_text(tmp_path: Path) -> None:
    """An integer beyond 64 bits does not end the export."""
    lane = lane_in(tmp_path)
    await lane.append(make_batch(0, tag=[0], value=[float("nan")], kind=Kind.UINT64, extra={0: 2**70}))
    await lane.close()
    [line] = samples(tmp_path, "history", everything=True)
    assert orjson.loads(line)["v"] == str(2**70)


def test_a_route_without_a_buffer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and code 1, no traceback."""
    assert main(["buffer", "cat", "typo", "--data-dir", str(tmp_path)]) == 1
    assert "no buffer 'typo'" in capsys.readouterr().err
