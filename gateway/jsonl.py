"""Files of JSON lines that are only appended to: two of a bounded size, the older one with `.1` in its name.

Several processes may append to one. A line that was cut off by a power cut costs itself and no other: the next one
begins on a line of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.files import alone


def append(file: Path, lines: bytes, bytes_max: int) -> None:
    """Waits for the disk; for a thread. Returned: `lines`, each with its end, are on it. Raises OSError."""
    file.parent.mkdir(exist_ok=True)
    with alone(file.parent):
        if file.exists() and file.stat().st_size + len(lines) > bytes_max:
            file.replace(older(file))
        _append(file, lines)


def read(file: Path) -> Iterator[bytes]:
    """Every line, oldest first, also while another process appends; none where there is no file. Raises OSError."""
    for path in (older(file), file):
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            continue
        yield from lines


def older(file: Path) -> Path:
    """Where `file` goes when it is full."""
    return file.with_suffix(f".1{file.suffix}")


def _append(file: Path, lines: bytes) -> None:
    with file.open("a+b") as handle:
        if handle.tell() and os.pread(handle.fileno(), 1, handle.tell() - 1) != b"\n":
            lines = b"\n" + lines
        handle.write(lines)
        handle.flush()
        os.fsync(handle.fileno())
