"""The tags that a device's selection has found, kept on disk: their names and handles stay when the gateway restarts.

`data_dir/opcua/learnt/<device>.json`: see `pipelines/json_file.py`. It belongs to the
device's address and its rules: when these change, or the file is damaged, the server is looked through as if new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from pipelines.json_file import JsonFile

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Learnt:
    """One tag, by its place behind those of the file."""

    name: str
    node: str
    """With the namespace's URI."""


class LearntFile:
    """The file of one device. Its methods wait for the disk."""

    def __init__(self, data_dir: Path, device: str, rules: Any) -> None:
        self._file = JsonFile(data_dir / "opcua" / "learnt" / f"{device}.json", FORMAT)
        self.path = self._file.path
        self._rules = hashlib.sha256(orjson.dumps(rules)).hexdigest()

    def load(self) -> list[Learnt]:
        """What was saved last for these rules. Raises Corrupt, OSError."""
        return self._file.load(self._of_these_rules) or []

    def save(self, tags: list[Learnt]) -> None:
        """Raises OSError; then what was saved before is still there."""
        rows = [(tag.name, tag.node) for tag in tags]
        self._file.save(self._file.pack({"rules": self._rules, "tags": rows}))

    def _of_these_rules(self, content: Mapping[str, Any]) -> list[Learnt]:
        return [Learnt(*map(str, row)) for row in content["tags"]] if content["rules"] == self._rules else []
