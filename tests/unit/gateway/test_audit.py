"""The record of commands: on disk, bounded, and the memory of the rate limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway import audit
from gateway.audit import AuditFile, entries, listing
from pipelines.commands import Rate

SECOND = 10**9
NOW = 1_795_343_713 * SECOND


def entry(number: int = 1, t: int = NOW, target: str = "press/speed") -> dict[str, Any]:
    return {"t": t, "id": f"id{number}", "who": "me", "command": "write", "target": target, "value": number}


def done(given: dict[str, Any], status: int = 0) -> dict[str, Any]:
    return {**given, "before": 0, "result": given["value"], "status": status, "reason": "why" if status else ""}


async def test_attempts_outcomes_and_refusals(tmp_path: Path) -> None:
    """An attempt and its outcome are two lines under one id; what was never admitted is one."""
    record = AuditFile(tmp_path / "data")
    assert await record.admit(entry(1), None)
    await record.finish(done(entry(1)))
    await record.finish(done(entry(2), 0x803C0000))
    assert [(found["id"], found["step"]) for found in entries(tmp_path / "data")] == [
        ("id1", "attempt"), ("id1", "done"), ("id2", "refused")
    ]  # fmt: skip
    assert list(listing(tmp_path / "data", False)) == [
        "2026-11-22T10:35:13Z  me  write press/speed 1  attempt",
        "2026-11-22T10:35:13Z  me  write press/speed 1  done  0x00000000  0 -> 1",
        "2026-11-22T10:35:13Z  me  write press/speed 2  refused  0x803c0000  0 -> 2  why",
    ]
    assert json.loads(next(listing(tmp_path / "data", True)))["value"] == 1


async def test_the_rate_holds_over_processes(tmp_path: Path) -> None:
    """Any `count` within any time, by target; counted from the file, so another process goes on where one stopped."""
    rate = Rate(2, 10 * SECOND)
    times = [0, 4, 5, 9, 10, 13, 14, 15]
    admitted = [await AuditFile(tmp_path).admit(entry(n, NOW + t * SECOND), rate) for n, t in enumerate(times)]
    assert admitted == [True, True, False, False, False, True, False, True]
    assert await AuditFile(tmp_path).admit(entry(99, NOW + 15 * SECOND, "press/other"), rate)
    refused = [found for found in entries(tmp_path) if found["step"] == "refused"]
    assert len(refused) == admitted.count(False) and "2 times in 10 s" in refused[0]["reason"]


async def test_it_is_bounded_and_survives_half_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files; a line that a power cut left is passed over."""
    monkeypatch.setattr(audit, "FILE_BYTES_MAX", 1000)
    record = AuditFile(tmp_path)
    for number in range(50):
        await record.admit(entry(number), None)
    folder = tmp_path / "audit"
    assert sorted(file.name for file in folder.iterdir()) == ["commands.1.jsonl", "commands.jsonl", "lock"]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2000
    with (folder / "commands.jsonl").open("ab") as file:
        file.write(b'{"t": 17953437130000')
    await record.admit(entry(50), None)
    assert [found["value"] for found in entries(tmp_path)][-2:] == [49, 50]


async def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The command is not done then."""
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(OSError, match="audit"):
        await AuditFile(tmp_path).admit(entry(), None)
