"""What a broker rejects is kept: with its reason, bounded, and never at the cost of what goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from connectors.payload import Identity, make_format
from gateway import dead_letter
from gateway.dead_letter import DeadLetter
from pipelines.tags import Tag, TagTable
from tests.unit.gateway.fakes import batch


def letters(folder: Path) -> DeadLetter:
    tags = TagTable()
    tags.add(Tag("press4", "temperature"))
    return DeadLetter(folder, make_format("json", Identity("line1-gw"), tags))


async def test_keeps_exactly_the_rejected_rows(tmp_path: Path) -> None:
    """One line a batch: the reason and the payload of those rows."""
    kept = letters(tmp_path)
    await kept("live", [(batch(rows=5), [1, 3]), (batch(rows=5), [0])], "too large")
    lines = [json.loads(line) for line in (tmp_path / "dead-letter" / "live.jsonl").read_text().splitlines()]
    assert [[sample["v"] for sample in line["message"]["samples"]] for line in lines] == [[1.0, 3.0], [0.0]]
    assert {line["reason"] for line in lines} == {"too large"}
    assert kept.counters.totals["rows"] == 3


async def test_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files at most; the newest letters are there."""
    monkeypatch.setattr(dead_letter, "FILE_BYTES_MAX", 1000)
    kept = letters(tmp_path)
    for number in range(20):
        await kept("live", [(batch(), [0])], f"reason {number}")
    files = sorted((tmp_path / "dead-letter").iterdir())
    assert [file.name for file in files] == ["live.1.jsonl", "live.jsonl"]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert json.loads(files[1].read_text().splitlines()[-1])["reason"] == "reason 19"


async def test_a_disk_that_refuses_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Delivery goes on; the loss is counted, and said once."""
    (tmp_path / "dead-letter").write_text("in the way")
    kept = letters(tmp_path)
    for _ in range(3):
        await kept("live", [(batch(rows=2), [0, 1])], "too large")
    assert kept.counters.totals["lost_rows"] == 6
    assert len([record for record in caplog.records if "cannot be kept" in record.getMessage()]) == 1
