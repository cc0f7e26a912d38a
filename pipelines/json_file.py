"""A JSON object on disk behind its CRC-32, written anew as a whole: what a component knows from one run to the next.

checksum (CRC-32 of what follows the line end, 8 hex digits) | line end | {"format": 1, ...}

The object alone is understood as well: so `modbus/<device>.json` was written once.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson

from pipelines.errors import Corrupt
from pipelines.files import RealFiles, replace_file

Content = TypeVar("Content")


class JsonFile:
    """One such file, of one `format`. Its methods wait for the disk, and may be called in any thread."""

    def __init__(self, path: Path, format: int) -> None:
        self.path = path
        self._format = format
        self._files = RealFiles()
        self._lock = threading.Lock()

    def load(self, understand: Callable[[Mapping[str, Any]], Content]) -> Content | None:
        """What `understand` makes of what was saved last; None where nothing was. Raises Corrupt, OSError."""
        try:
            written = self._files.read(self.path)
        except FileNotFoundError:
            return None
        checksum, _, body = written.partition(b"\n")
        if written.startswith(b"{"):
            body = written
        elif checksum != _checksum(body):
            raise Corrupt(f"{self.path} is damaged")
        try:
            content = orjson.loads(body)
            if content["format"] != self._format:
                raise Corrupt(f"{self.path} was written by another version")
            return understand(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Corrupt(f"{self.path} cannot be understood: {error!r}") from error

    def pack(self, content: Mapping[str, Any]) -> bytes:
        """The file as it will be."""
        body = orjson.dumps({"format": self._format, **content})
        return _checksum(body) + b"\n" + body

    def save(self, packed: bytes) -> None:
        """Keeps what `pack` made. Raises OSError; then what was saved before is still there."""
        with self._lock:
            self._files.make_folder(self.path.parent)
            replace_file(self._files, self.path, packed)

    def remove(self) -> None:
        """Also where there is none. Raises OSError."""
        with self._lock, suppress(FileNotFoundError):
            self._files.remove(self.path)


def _checksum(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x}".encode()
