"""`gateway buffer`: reads the disk lanes of a data folder, while a gateway may be writing them. Changes nothing.

What is pending is told by the cursor file, which may be a second old: a running gateway has delivered a little more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from gateway.health import utc
from pipelines import cursor as cursors
from pipelines.batch import Batch
from pipelines.cursor import Cursor
from pipelines.errors import Corrupt
from pipelines.files import RealFiles
from pipelines.frame import UnknownFormat
from pipelines.intervals import Intervals
from pipelines.journal import BROKEN, READ_BYTES, SUFFIX
from pipelines.segment import Content, load, read_batches, scan
from pipelines.segment_tables import Index

FILES: Final = RealFiles()


def lanes_folder(data_dir: Path) -> Path:
    """Where the lanes of a data folder are, a folder each."""
    return data_dir / "lanes"


def listing(data_dir: Path) -> Iterator[str]:
    """A line a lane, and a line a segment that is not plain."""
    for folder in _folders(data_dir):
        rows = pending = size = 0
        oldest: list[int] = []
        notes = []
        paths, segments, cursor = _paths(folder), list(_segments(folder)), _cursor(folder)
        read = {path for path, *_ in segments}
        unread = [path.name for path in paths if path not in read and path.exists()]
        notes += [f"  {name}: cannot be read, `gateway buffer verify` says why" for name in unread]
        for path, content, taken in segments:
            size += taken
            rows += sum(content.index.rows)
            waiting = _pending(cursor, content.index)
            pending += sum(content.index.rows[at] for at in waiting)
            oldest += [content.index.received_ns[at] for at in waiting[:1]]
            if path.suffix == BROKEN:
                notes.append(f"  {path.name}: set aside as damaged, {len(content.index)} batches readable")
        since = f", oldest {utc(min(oldest))}" if oldest else ""
        yield f"{folder.name}: {pending} rows pending of {rows}, {len(segments)} segments, {size} bytes{since}"
        yield from notes


def pending_rows(folder: Path) -> int | None:
    """What the lane in `folder` still has to deliver; None where a segment cannot be read."""
    cursor, paths = _cursor(folder), _paths(folder)
    known = [content.index for _, content, _ in _segments(folder)]
    rows = sum(index.rows[at] for index in known for at in _pending(cursor, index))
    return rows if len(known) == len(paths) else None


def verify(data_dir: Path) -> Iterator[str]:
    """A line for each segment or cursor with damage. The end of a segment that is being written is none."""
    for folder in _folders(data_dir):
        paths = _paths(folder)
        for path in paths:
            try:
                footer = load(FILES, path).index  # first: what is written meanwhile is in both, or in the scan only
                content = scan(FILES.read(path), 0 if path == paths[-1] else None)
            except FileNotFoundError:
                continue  # delivered meanwhile
            except (OSError, UnknownFormat) as error:
                yield f"{path}: {error}"
                continue
            missing = len(footer) - len(content.index)
            if content.damaged or missing > 0:
                yield f"{path}: damaged; {len(content.index)} batches readable, {max(missing, 0)} or more lost"
        try:
            cursors.load(FILES, folder)
        except (OSError, Corrupt) as error:
            yield f"{folder / cursors.NAME}: {error}; everything in the buffer counts as pending"


def samples(data_dir: Path, lane: str, everything: bool) -> Iterator[bytes]:
    """JSON lines: seq, device, tag, t (us since 1970), v, status. What is damaged is left out.

    Raises FileNotFoundError where there is no such buffer.
    """
    folder = lanes_folder(data_dir) / lane
    cursor = None if everything else _cursor(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no buffer {lane!r} in {data_dir}: `gateway buffer ls` shows those there are")
    for path, content, _ in _segments(folder):
        wanted = _pending(cursor, content.index)
        for batch in _batches(path, content.index, wanted):
            yield from _lines(batch, content)


def _lines(batch: Batch, content: Content) -> Iterator[bytes]:
    rows = zip(batch.tag.tolist(), batch.ts_ns.tolist(), batch.values(), batch.status.tolist(), strict=True)
    source = content.tables.sources.get(batch.source_id, str(batch.source_id))
    for number, ts_ns, value, status in rows:
        tag = content.tables.tags.get(number)
        device, name = (tag.device, tag.name) if tag else (source, str(number))
        shown = {"seq": batch.seq, "device": device, "tag": name, "t": ts_ns // 1000, "v": value, "status": status}
        yield _line(shown)


def _line(shown: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(shown, default=_text, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits, half a surrogate pair: as text
        text = repr(shown["v"]).encode("utf-8", "backslashreplace").decode()
        return orjson.dumps({**shown, "v": text}, option=orjson.OPT_APPEND_NEWLINE)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _batches(path: Path, index: Index, wanted: list[int]) -> Iterator[Batch]:
    chosen = {index.seqs[at] for at in wanted}
    at = 0
    while at < len(index):
        seqs, positions, end = index.part(at, index.seqs[-1] + 1, READ_BYTES)
        try:
            found = read_batches(FILES, path, seqs, positions, end)
        except (Corrupt, OSError):
            found = []
        yield from (batch for batch in found if batch.seq in chosen)
        at += max(len(found), 1)


def _pending(cursor: Cursor | None, index: Index) -> list[int]:
    """Which entries of the index are still to be delivered; all where there is no cursor."""
    if cursor is None:
        return list(range(len(index)))
    known = Intervals((low, high) for low, high in cursor.pending)
    return [at for at, seq in enumerate(index.seqs) if seq >= cursor.end or seq in known]


def _cursor(folder: Path) -> Cursor | None:
    try:
        return cursors.load(FILES, folder)
    except (OSError, Corrupt):
        return None


def _folders(data_dir: Path) -> list[Path]:
    """Raises PermissionError: what cannot be seen is not nothing."""
    try:
        return sorted(path for path in lanes_folder(data_dir).iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _paths(folder: Path) -> list[Path]:
    return [folder / name for name in FILES.names(folder) if name.removesuffix(BROKEN).endswith(SUFFIX)]


def _segments(folder: Path) -> Iterator[tuple[Path, Content, int]]:
    """Each with its bytes. A segment that the gateway removes or renames meanwhile is left out."""
    for path in _paths(folder):
        try:
            found = path, load(FILES, path), FILES.size(path)
        except (OSError, UnknownFormat):
            continue
        yield found
