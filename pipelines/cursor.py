"""The cursor file: what of a lane is still pending. It may lag what was delivered, and never leads it.

Written anew as a whole: another file, synced, renamed over the old one, the folder synced. After a crash there is the
old one or the new one; a damaged one is as good as none, and then all that the journal holds is pending.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from pipelines.errors import Corrupt
from pipelines.files import Files, replace_file
from pipelines.frame import FrameKind, decode, decode_packed, encode_packed

NAME: Final = "cursor"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A lane as it was at one moment."""

    uuid: bytes
    instance: int
    end: int
    """Every seq from here on was appended later: pending by itself."""
    synced: int
    """Every seq below was on disk."""
    pending: list[tuple[int, int]]
    """Intervals [start, end), ascending."""
    origins: dict[str, bytes]
    """Newest of each source, by name, among what is synced."""


def load(files: Files, folder: Path) -> Cursor | None:
    """The cursor in `folder`; None where there is none yet. Raises Corrupt, OSError."""
    try:
        data = files.read(folder / NAME)
    except FileNotFoundError:
        return None
    packed = decode_packed(decode(data))
    try:
        return Cursor(
            bytes(packed["uuid"]),
            int(packed["instance"]),
            int(packed["end"]),
            int(packed["synced"]),
            [(int(low), int(high)) for low, high in packed["pending"]],
            {str(source): bytes(origin) for source, origin in packed["origins"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Corrupt(f"unreadable cursor: {error!r}") from error


def save(files: Files, folder: Path, cursor: Cursor) -> None:
    """Waits for the disk. Returned: it is on disk. Raises OSError; then the old one is still there."""
    content = {known.name: getattr(cursor, known.name) for known in fields(Cursor)}
    replace_file(files, folder / NAME, encode_packed(FrameKind.CURSOR, content))
