"""A segment: one append-only file of frames (`pipelines.frame`); written, sealed, read, scanned where damaged.

    HEADER, TABLE with the newest origins, then BATCH frames, each TABLE addition before the first batch that needs it,
    and at last, once sealed, a FOOTER that says where each batch is, so that nobody has to look for it.

While it is written the file is as large as its reservation and zeros follow the last frame. A sealed segment ends with
its footer. One without a valid footer was not finished or is damaged: `scan` finds what is whole in it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from pipelines.batch import Batch
from pipelines.errors import Corrupt
from pipelines.files import Files
from pipelines.frame import (
    TRAILER_BYTES,
    Frame,
    FrameKind,
    decode,
    decode_batch,
    decode_packed,
    encode_batch,
    encode_footer,
    encode_packed,
    footer_position,
    frames,
)
from pipelines.segment_tables import Header, Index, Tables
from pipelines.tags import Tag, TagTable
from pipelines.translation import Translation

INDEX_BYTES: Final = 40
"""What a footer holds for each batch."""
FOOTER_BYTES: Final = 256
"""What a footer holds beside that and the tables, at most."""
SALVAGE_BYTES: Final = 4096
"""What is given up of a file around a place that the disk cannot read."""
_ZEROS: Final = bytes(2**20)


@dataclass(slots=True)
class Content:
    """What was found in a segment file."""

    header: Header | None = None
    tables: Tables = field(default_factory=Tables)
    index: Index = field(default_factory=Index)
    synced: int = 0
    """Every seq below this was on disk: what the batches themselves say."""
    sealed: bool = False
    damaged: bool = False
    """Bytes that had been on disk are not what they were."""
    lost_rows: int = 0
    """Of damaged batches between whole ones."""
    torn_bytes: int = 0
    """At the end, never synced; to be cut off."""
    _row: int = 0

    @property
    def row_count(self) -> int:
        """Rows that were written to it, as far as it is known."""
        return sum(self.index.rows) + self.lost_rows

    def take(self, frame: Frame) -> bool:
        """Adds a whole frame; False where it is none of this segment, or makes no sense."""
        try:
            if frame.kind == FrameKind.BATCH:
                return self._take_batch(frame)
            packed = decode_packed(frame)
            if frame.kind == FrameKind.HEADER:
                self.header = Header.decoded(packed)
            else:
                self.tables.add(packed["tables"] if frame.kind == FrameKind.FOOTER else packed)
        except (Corrupt, KeyError, TypeError):
            return False
        self.sealed = frame.kind == FrameKind.FOOTER
        self.index.end = frame.start if self.sealed else frame.end
        return True

    def _take_batch(self, frame: Frame) -> bool:
        stored = decode_batch(frame)
        batch = stored.batch
        if stored.position != frame.start or (self.index.seqs and batch.seq <= self.index.seqs[-1]):
            return False
        self.lost_rows += max(stored.row - self._row, 0)
        self._row = stored.row + len(batch)
        self.synced = max(self.synced, stored.synced)
        self.index.add(batch, batch.seq, frame.start)
        self.index.end = frame.end
        self.tables.note(batch)
        return True


class Writer:
    """Appends to one segment. Its buffers and counts change only where the write has returned."""

    def __init__(self, files: Files, path: Path, tags: TagTable, sources: Sequence[str]) -> None:
        self.tables = Tables()
        self.index = Index()
        self.path = path
        self.reserved = 0
        self.dirty = False
        self._files = files
        self._tags = tags
        self._source_names = sources
        self._known = np.zeros(1, dtype=np.bool_)
        self._described = b""  # the tag column of a batch whose tags the table has
        self._version = tags.version
        self._rows = 0
        self._table_bytes = 0
        self._handle = -1

    def create(self, header: Header, origins: dict[str, bytes], size: int) -> None:
        """The file with room for `size` bytes, synced; not yet the folder. Raises OSError and leaves nothing behind."""
        opening = self.opening(header, origins)
        self.tables.origins.update(origins)
        self.reserved = size
        self._handle = self._files.create(self.path)
        try:
            self._files.reserve(self._handle, self.reserved)
            self._files.write(self._handle, 0, opening)
            self._files.sync(self._handle)
        except OSError:
            self._files.close(self._handle)
            self._files.remove(self.path)
            raise
        self.index.end = self._table_bytes = len(opening)

    @staticmethod
    def opening(header: Header, origins: dict[str, bytes]) -> bytes:
        """What a segment begins with."""
        return header.encode() + encode_packed(FrameKind.TABLE, Tables(origins=origins).packed())

    def encode(self, batch: Batch, seq: int, synced: int) -> tuple[bytes, bytes]:
        """A TABLE frame where one is needed (else nothing) and the batch's frame, as they would be appended now."""
        table = self._additions(batch)
        position = self.index.end + len(table)
        return table, encode_batch(batch, seq, synced, self._rows, position)

    def fits(self, table_bytes: int, frame_bytes: int) -> bool:
        """There is room for both, and the footer."""
        footer = FOOTER_BYTES + INDEX_BYTES * (len(self.index) + 1) + self._table_bytes + table_bytes
        return self.index.end + table_bytes + frame_bytes + footer <= self.reserved

    def write(self, table: bytes, frame: bytes, batch: Batch, seq: int) -> None:
        """Appends what `encode` gave. Raises OSError; then the segment is as before."""
        position = self.index.end
        self._files.write(self._handle, position, table + frame if table else frame)
        if table:
            self._describe(batch)
            self._table_bytes += len(table)
        self.index.add(batch, seq, position + len(table))
        self.index.end = position + len(table) + len(frame)
        self._rows += len(batch)
        self.tables.note(batch)
        self.dirty = True

    def sync(self) -> None:
        """Returned: all that was written before the call is on disk."""
        if self.dirty:
            self.dirty = False  # before the call: what is written meanwhile may or may not be part of it
            self._files.sync(self._handle)

    def seal(self) -> None:
        """Footer, unneeded room given back, synced, closed. Synced before, too: a footer proves what it speaks of."""
        self.sync()
        self.reserved = finish(self._files, self._handle, self.index, self.tables)
        self.close()

    def close(self) -> None:
        """Gives the handle back; idempotent."""
        if self._handle >= 0:
            self._files.close(self._handle)
            self._handle = -1

    def _additions(self, batch: Batch) -> bytes:
        if self._version != self._tags.version:
            self._look_again()
        tags = batch.tag.tobytes()
        if tags != self._described and self._known.take(batch.tag, mode="clip").all():
            self._described = tags
        if batch.source_id in self.tables.sources and tags == self._described:
            return b""
        new = Tables(self._new_tags(batch), {batch.source_id: self._source_name(batch.source_id)})
        return encode_packed(FrameKind.TABLE, new.packed()) if new.tags or new.sources else b""

    def _new_tags(self, batch: Batch) -> dict[int, Tag]:
        return {
            number: self._tags[number]
            for number in sorted(set(batch.tag.tolist()))
            if number < len(self._tags) and self.tables.tags.get(number) != self._tags[number]
        }

    def _look_again(self) -> None:
        """Tags whose description has changed are described once more."""
        ours = self.tables.tags
        changed = [
            tag for tag in self._tags.changed_since(self._version) if tag in ours and ours[tag] != self._tags[tag]
        ]
        self._known[changed] = False
        self._version = self._tags.version
        self._described = b""

    def _source_name(self, number: int) -> str:
        return self._source_names[number] if number < len(self._source_names) else str(number)

    def _describe(self, batch: Batch) -> None:
        """The table now names all that `batch` uses. The mask's last entry stands for tags that were added since."""
        new = self._new_tags(batch)
        self.tables.tags.update(new)
        self.tables.sources[batch.source_id] = self._source_name(batch.source_id)
        if len(self._known) <= len(self._tags):
            known = np.zeros(len(self._tags) + 1, dtype=np.bool_)
            known[: len(self._known)] = self._known
            self._known = known
        self._known[list(new)] = True


@dataclass(slots=True, eq=False)
class Segment:
    """What is known of a segment without reading it."""

    number: int
    path: Path
    bytes: int
    """On disk: the reservation while it is written."""
    first: int
    end: int
    """Its seqs are in [first, end)."""
    first_ns: int = 0
    last_ns: int = 0
    """Arrival of its first and last batch."""
    began_ns: int = 0
    touched_ns: int = 0
    """When its first and last batch were appended, by the clock that never steps; those of an earlier process by the
    wall clock at the start."""
    content: Content | None = None
    """Index and tables, where they are in memory; `Journal.content` brings them."""
    foreign: bool = False
    """Of an earlier process: its tag and source numbers are not ours."""
    translation: Translation | None = None
    """Of a foreign segment that was read."""
    writer: Writer | None = None
    broken: bool = False
    """Set aside: kept as evidence when all in it is delivered."""
    pending_batches: int = 0
    pending_rows: int = 0
    pins: int = 0
    """Reads in progress."""
    lost_rows: int = 0
    """Damaged, as was found at the start."""


def finish(files: Files, handle: int, index: Index, tables: Tables) -> int:
    """Ends a segment behind its last frame, with a footer; without room for one, it is scanned when it is read.

    Every frame must be on disk already. Returns the file's size. Raises OSError.
    """
    footer = encode_footer({"index": index.packed(), "end": index.end, "tables": tables.packed()}, index.end)
    size = index.end + len(footer)
    try:
        files.write(handle, index.end, footer)
    except OSError:
        size = index.end
    files.truncate(handle, size)
    files.sync(handle)
    return size


def salvaged(files: Files, path: Path) -> bytes:
    """All of a file; zeros stand for what the disk cannot read. Raises OSError where that is not the file's trouble."""
    try:
        return files.read(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    blocks = list[bytes]()
    size = files.size(path)
    for at in range(0, size, SALVAGE_BYTES):
        length = min(SALVAGE_BYTES, size - at)
        try:
            blocks.append(files.read(path, at, length))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            blocks.append(bytes(length))
    return b"".join(blocks)


def load(files: Files, path: Path, synced: int | None = None) -> Content:
    """A sealed segment by its footer, any other by `scan` of all of it. Raises OSError, UnknownFormat."""
    size = files.size(path)
    with suppress(Corrupt, OSError):  # then the rest of the file tells, and says what is wrong with it
        position = footer_position(files.read(path, max(size - TRAILER_BYTES, 0), TRAILER_BYTES))
        if position is not None and position < size:
            return _by_footer(files.read(path, position), files.read(path, 0, 4096), position)
    return scan(salvaged(files, path), synced)


def _by_footer(footer: bytes, opening: bytes, position: int) -> Content:
    content = Content(sealed=True)
    try:
        found = decode_packed(decode(footer))
        content.tables.add(found["tables"])
        content.index = Index.unpacked(found["index"], found["end"])
    except (ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"unreadable footer: {error!r}") from error
    try:
        content.header = Header.decoded(decode_packed(decode(opening)))
    except Corrupt:
        content.damaged = True
    return content


def scan(data: bytes, synced: int | None = None) -> Content:
    """Everything whole in the bytes of a segment, of which every seq below `synced` was on disk (None: all).

    Behind the first damage only what was on disk is believed; batches say themselves how far that was when they were
    written. The rest was never acknowledged and will be collected again; believing it would turn the damage before it
    into a silent gap. Where nothing behind the damage is believed, it is the torn end of what was being written.
    """
    content = Content()
    behind: list[Frame] = []
    for frame in frames(data):
        if behind or frame.start != content.index.end or not content.take(frame):
            behind.append(frame)
    for frame in behind[: _believed(behind, None if synced is None else max(synced, content.synced))]:
        content.damaged = True
        content.take(frame)
    if not content.sealed:
        content.torn_bytes = _written(data, content.index.end)
    return content


def _written(data: bytes, start: int) -> int:
    """How many bytes from `start` to the last that is not 0: what was reserved ahead is long, and all zeros."""
    end = len(data)
    while data.endswith(_ZEROS, start, end):
        end -= len(_ZEROS)
    return len(data[start:end].rstrip(b"\0"))


def _believed(found: list[Frame], synced: int | None) -> int:
    """How many of the frames behind a damage: up to the last that was on disk for certain."""
    stored = {at: decode_batch(frame) for at, frame in enumerate(found) if frame.kind == FrameKind.BATCH}
    if synced is None or any(frame.kind == FrameKind.FOOTER for frame in found):
        return len(found)
    below = max([synced, *(each.synced for each in stored.values())])
    return max((at + 1 for at, each in stored.items() if each.batch.seq < below), default=0)


def read_batches(files: Files, path: Path, seqs: Sequence[int], positions: Sequence[int], end: int) -> list[Batch]:
    """The batches at `positions`, which end at `end`, up to the first that is not what the index says.

    Raises Corrupt where that is the very first, and OSError where the disk cannot read even that.
    """
    start = positions[0]
    try:
        data = files.read(path, start, end - start)
    except OSError as error:
        if error.errno != errno.EIO or len(seqs) == 1:
            raise
        return read_batches(files, path, seqs[:1], positions[:1], positions[1])
    batches = list[Batch]()
    try:
        for seq, position in zip(seqs, positions, strict=True):
            stored = decode_batch(decode(data, position - start))
            if stored.batch.seq != seq or stored.position != position:
                raise Corrupt(f"{path}: another batch at {position} than the index says")
            batches.append(stored.batch)
    except Corrupt:
        if not batches:
            raise
    return batches
