"""The tags that a device's selection has found, kept on disk: their names and handles stay when the gateway restarts.

`data_dir/opcua/learnt/<device>.json`: one JSON object behind its CRC-32, written anew as a whole. It belongs to the
device's address and its rules: when these change, or the file is damaged, the server is looked through as if new.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from pipelines.errors import Corrupt
from pipelines.files import RealFiles, replace_file

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
        self.path = data_dir / "opcua" / "learnt" / f"{device}.json"
        self._rules = hashlib.sha256(orjson.dumps(rules)).hexdigest()
        self._files = RealFiles()

    def load(self) -> list[Learnt]:
        """What was saved last for these rules. Raises Corrupt, OSError."""
        try:
            data = self._files.read(self.path)
        except FileNotFoundError:
            return []
        checksum, _, body = data.partition(b"\n")
        if checksum != _checksum(body):
            raise Corrupt(f"{self.path} is damaged")
        try:
            packed = orjson.loads(body)
            if packed["format"] != FORMAT or packed["rules"] != self._rules:
                return []
            return [Learnt(*map(str, fields)) for fields in packed["tags"]]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Corrupt(f"{self.path} cannot be understood: {error!r}") from error

    def save(self, tags: list[Learnt]) -> None:
        """Raises OSError; then what was saved before is still there."""
        rows = [(tag.name, tag.node) for tag in tags]
        body = orjson.dumps({"format": FORMAT, "rules": self._rules, "tags": rows})
        self._files.make_folder(self.path.parent)
        replace_file(self._files, self.path, _checksum(body) + b"\n" + body)


def _checksum(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x}".encode()
