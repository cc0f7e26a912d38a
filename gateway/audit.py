"""The record of commands: `audit/commands.jsonl` in the data folder, a line for each attempt and each outcome.

Only appended to, on disk before the machine hears of it, two files of a bounded size (`gateway.jsonl`). It is the
memory of the rate limits too, so that they hold over restarts and between processes: a lock file makes looking and
recording one step. `step` is `attempt`, then, under the same `id`, `done` and what became of it; or `refused` alone.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from gateway import jsonl
from pipelines.commands import BAD_REQUEST_NOT_ALLOWED, Rate

FILE_BYTES_MAX: Final = 16 * 2**20
"""Of two: some 100,000 commands in all."""


class AuditFile:
    """A `pipelines.commands.Audit`."""

    def __init__(self, data_dir: Path) -> None:
        self._file = _file(data_dir)
        self._admitted: set[str] = set()

    async def admit(self, entry: Mapping[str, Any], rate: Rate | None) -> bool:
        admitted = await asyncio.to_thread(self._admit, entry, rate)
        if admitted:
            self._admitted.add(entry["id"])
        return admitted

    async def finish(self, entry: Mapping[str, Any]) -> None:
        step = "done" if entry["id"] in self._admitted else "refused"
        self._admitted.discard(entry["id"])
        await asyncio.to_thread(self._append, {**entry, "step": step})

    def _admit(self, entry: Mapping[str, Any], rate: Rate | None) -> bool:
        with self._alone():
            if rate is not None and self._attempts(entry["target"], entry["t"] - rate.per_ns) >= rate.commands:
                reason = f"more often than {rate.commands} times in {rate.per_ns / 1e9:g} s"
                self._write({**entry, "step": "refused", "status": BAD_REQUEST_NOT_ALLOWED, "reason": reason})
                return False
            self._write({**entry, "step": "attempt"})
            return True

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._alone():
            self._write(entry)

    def _write(self, entry: Mapping[str, Any]) -> None:
        jsonl.append(self._file, orjson.dumps(entry, default=str) + b"\n", FILE_BYTES_MAX)

    def _attempts(self, target: str, since_ns: int) -> int:
        """Newest first, as far as `since_ns`."""
        count = 0
        for line in reversed(list(jsonl.read(self._file))):
            entry = _parsed(line)
            if entry.get("t", since_ns) < since_ns:
                break
            count += entry.get("target") == target and entry.get("step") == "attempt"
        return count

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process looks or writes meanwhile. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with (self._file.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def entries(data_dir: Path) -> Iterator[dict[str, Any]]:
    """What is recorded, oldest first. Raises OSError."""
    return filter(None, map(_parsed, jsonl.read(_file(data_dir))))


def listing(data_dir: Path, as_json: bool) -> Iterator[str]:
    """A line for people (or the line itself) for each attempt and outcome."""
    for entry in entries(data_dir):
        if as_json:
            yield orjson.dumps(entry).decode()
            continue
        when = datetime.fromtimestamp(entry["t"] // 10**9, UTC).isoformat().replace("+00:00", "Z")
        what = f"{when}  {entry['who']}  {entry['command']} {entry['target']} {orjson.dumps(entry['value']).decode()}"
        if entry["step"] == "attempt":
            yield f"{what}  attempt"
            continue
        before, result = (orjson.dumps(entry.get(key)).decode() for key in ("before", "result"))
        yield f"{what}  {entry['step']}  {entry['status']:#010x}  {before} -> {result}  {entry['reason']}".rstrip()


def _parsed(line: bytes) -> dict[str, Any]:
    """Empty where a power cut left half a line."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return entry if isinstance(entry, dict) and {"t", "target", "step"} <= entry.keys() else {}


def _file(data_dir: Path) -> Path:
    return data_dir / "audit" / "commands.jsonl"
