"""A journal: one lane's batches on disk, as ordered segments in a folder of their own.

Constraints, first to last:

1. What `sync` said is on disk is read again after any crash, in order, with the number that it had.
2. No damage stops it: what cannot be read is counted and set aside, and everything else is delivered.
3. It never takes more disk than it was given, and a full disk shows where room is reserved, not where data is written.
4. Nobody waits for it but the one who appends the batch that needs a new segment.

How: a segment (`pipelines.segment`) is reserved in full when it is made. The old one is sealed and synced, then `roll`
makes, syncs and names the new one (its folder is synced), and only then a batch goes into it: so only the last segment
can have a torn end. A start never continues an old segment: it cuts the torn end off and rolls. A damaged segment is
renamed to `.broken`; what is whole in it is read like any other, and the file stays as evidence until its room is
needed. The newest segment, which holds each source's newest origin, goes only where its room is needed.

A failed sync is never tried again, because the kernel has dropped the pages: `Poisoned`, and only a new start, which
reads what there really is, may go on.

    000000000042.segment   000000000041.segment.broken   cursor (`pipelines.cursor`)   lock
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

from pipelines.batch import Batch
from pipelines.counters import Counters
from pipelines.errors import Corrupt, Poisoned
from pipelines.files import Files
from pipelines.frame import UnknownFormat
from pipelines.segment import (
    FOOTER_BYTES,
    INDEX_BYTES,
    Content,
    Writer,
    finish,
    load,
    read_batches,
    salvaged,
    scan,
)
from pipelines.segment_tables import Header, Index, Tables
from pipelines.tags import TagTable
from pipelines.translation import Translation

SUFFIX: Final = ".segment"
BROKEN: Final = ".broken"
READ_BYTES: Final = 2**20
"""Read at a time: more than one batch costs, less than a step of a millisecond to decode."""
BATCHES_MAX: Final = 8192
"""In a segment: a start reads the last one batch by batch, some 40 us each, and machines wait for that."""
INDEXED_MAX: Final = 4
"""Sealed segments whose index is kept in memory; the others' are read again when they are needed."""
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR)
"""The process's trouble; anything else is the file's own (bad sector, permission, no file), and stays."""
_KEPT_BY_OTHERS = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EISDIR, errno.ENOTEMPTY, errno.ENOENT)
"""Why one file may be neither renamed nor removed while the disk is sound (ENOENT: somebody else removed it)."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoom(Exception):
    """The disk, or its reserve, has no room for another segment."""


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


@dataclass(slots=True)
class Identity:
    """Whose journal this is; goes into every segment."""

    lane: str
    uuid: bytes
    instance: int


@dataclass
class Journal:
    """Methods that wait for the disk say so: one of them at a time, but for those that are for any thread.

    `segments` is looked up on the event loop: a thread may add the newest to it, and nothing else.
    """

    files: Files
    folder: Path
    identity: Identity
    tags: TagTable
    sources: Sequence[str]
    counters: Counters
    segment_bytes: int
    reserve_bytes: int
    segments: list[Segment] = field(default_factory=list)
    origins: dict[str, bytes] = field(default_factory=dict)
    """Newest of each source, by its name; among what was appended."""
    active: Segment | None = None
    _indexed: list[Segment] = field(default_factory=list)
    _indexing: Lock = field(default_factory=Lock)
    _next_number: int = 0
    _previous: tuple[int, int] = (-1, 0)
    """The segment that was sealed last, and its rows."""
    _failure: str = ""

    @property
    def bytes(self) -> int:
        """What the segments take, reserved room included."""
        return sum(segment.bytes for segment in self.segments)

    @property
    def end(self) -> int:
        """Above every seq that was stored."""
        return max((segment.end for segment in self.segments), default=0)

    # --- writing ------------------------------------------------------------------------------------------------

    def append(self, batch: Batch, seq: int, synced: int) -> bool:
        """Writes to the page cache; False where a new segment is needed first. Raises Poisoned."""
        segment = self.active
        if segment is None or segment.writer is None:
            return False
        writer = segment.writer
        table, frame = writer.encode(batch, seq, synced)
        if len(writer.index) >= BATCHES_MAX or not writer.fits(len(table), len(frame)):
            return False
        try:
            writer.write(table, frame, batch, seq)
        except OSError as error:
            if error.errno in _FULL:  # a file system that does not keep what it reserved
                return False
            raise Poisoned(f"{segment.path} cannot be written: {error.strerror or error}") from error
        if len(writer.index) == 1:
            segment.first, segment.first_ns = seq, batch.received_ns
        segment.end, segment.last_ns = seq + 1, batch.received_ns
        return True

    def size_of(self, batch: Batch) -> int:
        """Bytes that `batch` takes in a segment of its own."""
        writer = Writer(self.files, self.folder, self.tags, self.sources)
        opening = writer.opening(self._header(2**40, 2**62), self.origins)  # the longest there may be
        table, frame = writer.encode(batch, 0, 0)
        return 2 * (len(opening) + len(table)) + len(frame) + INDEX_BYTES + FOOTER_BYTES

    def bytes_for(self, size: int) -> int:
        """What a new segment takes that must hold a batch of `size_of` bytes."""
        return max(self.segment_bytes, size)

    def sync(self) -> None:
        """Waits for the disk. Returned: all that was appended before the call is on it. Raises Poisoned."""
        if self.active and self.active.writer:
            self._never_twice(self.active.writer.sync)

    def roll(self, size: int, created_ns: int, first: int) -> None:
        """Waits for the disk. Makes the next segment, with room for `size` bytes; none is written any more (`sealing`).

        Raises NoRoom or Poisoned.
        """
        writer, number = self._created(size, created_ns)
        self._never_twice(lambda: self.files.sync_folder(self.folder))
        self.origins = writer.tables.origins
        content = Content(index=writer.index, tables=writer.tables)
        segment = Segment(number, writer.path, writer.reserved, first, first, content=content, writer=writer)
        self.segments.append(segment)
        self.active = segment

    def _created(self, size: int, created_ns: int) -> tuple[Writer, int]:
        """A new segment's writer and number; what is not ours and has that name is passed over."""
        wanted = self.bytes_for(size)
        while True:
            number = self._next_number
            self._next_number += 1
            writer = Writer(self.files, self.folder / f"{number:012d}{SUFFIX}", self.tags, self.sources)
            try:
                if self.files.free_bytes(self.folder) < wanted + self.reserve_bytes:
                    raise NoRoom(f"the disk of {self.folder} has no room beyond its reserve")
                writer.create(self._header(number, created_ns), self.origins, wanted)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno in _FULL:
                    raise NoRoom(f"no room for {writer.path}: {error.strerror}") from error
                raise Poisoned(f"{writer.path} cannot be made: {error.strerror or error}") from error
            return writer, number

    def sealing(self) -> Callable[[], None]:
        """Nothing more is appended before `roll`: decided here, on the event loop, because `append` is called there.

        What is returned waits for the disk: it seals the segment that was written. Raises Poisoned.
        """
        segment, self.active = self.active, None
        return partial(self._seal, segment)

    def _seal(self, segment: Segment | None) -> None:
        if segment and segment.writer:
            writer = segment.writer
            self._never_twice(writer.seal)
            self.origins = dict(writer.tables.origins)
            segment.writer = None
            segment.bytes = writer.reserved
            content = Content(index=writer.index)
            self._previous = segment.number, content.row_count
            self._keep_content(segment, content)

    def remove(self, path: Path) -> None:
        """Waits for the disk. The room of a file that is no longer in `segments` is free again."""
        try:
            self.files.remove(path)
        except FileNotFoundError:
            self.counters.add("missing_segments")
        except OSError as error:
            if error.errno not in _KEPT_BY_OTHERS:
                raise Poisoned(f"{path} cannot be removed: {error.strerror or error}") from error
            self.counters.add("unremoved_segments")

    def set_aside(self, segment: Segment) -> None:
        """Waits for the disk. Renames a damaged segment, counted once; one that cannot be renamed keeps its name."""
        if segment.broken or segment.writer:
            return
        segment.broken = True
        self.counters.add("broken_segments")
        path = segment.path.with_name(segment.path.name + BROKEN)
        try:
            self.files.rename(segment.path, path)
        except OSError as error:
            if error.errno not in _KEPT_BY_OTHERS:
                raise Poisoned(f"{segment.path} cannot be renamed: {error.strerror or error}") from error
            return
        segment.path = path

    def close(self) -> None:
        """Gives handles back, without the disk."""
        if self.active and self.active.writer:
            self.active.writer.close()

    # --- reading ------------------------------------------------------------------------------------------------

    def device_of(self, segment: Segment, source: int) -> str:
        """Name of a source by its number in `segment`, whose content is in memory."""
        if segment.foreign:
            return self.content(segment).tables.sources.get(source, "")
        return self.sources[source] if source < len(self.sources) else ""

    def segment_of(self, seq: int) -> Segment | None:
        """The segment that has `seq`, if any does."""
        at = bisect_right(self.segments, seq, key=lambda segment: segment.first) - 1
        return self.segments[at] if at >= 0 and seq < self.segments[at].end else None

    def between(self, low: int, high: int) -> list[tuple[Segment, int, int]]:
        """The segments with seqs in [low, high), each with its part of that."""
        active = self.active
        if active and active.first <= low < high <= active.end:  # as a rule
            return [(active, low, high)]
        at = max(bisect_right(self.segments, low, key=lambda segment: segment.first) - 1, 0)
        found = []
        for segment in self.segments[at:]:
            if segment.first >= high:
                break
            if max(segment.first, low) < min(segment.end, high):
                found.append((segment, max(segment.first, low), min(segment.end, high)))
        return found

    def content(self, segment: Segment) -> Content:
        """May wait for the disk: only a few are kept in memory. For any thread. Of an unreadable file: empty."""
        content = segment.content
        if content is None:
            try:
                content = load(self.files, segment.path)
            except UnknownFormat:
                content = Content()
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                content = Content()
            self._keep_content(segment, content)
        return content

    def parts(self, low: int, high: int) -> list[tuple[Segment, int, int]]:
        """Of [low, high), from `low` on, what `read` takes at a time."""
        found, size = list[tuple[Segment, int, int]](), 0
        for part in self.between(low, high):
            if part[1] == low or found:
                found.append(part)
                size += part[0].bytes
            if size >= READ_BYTES:
                break
        return found

    def read(self, parts: Sequence[tuple[Segment, int, int]]) -> list[tuple[Segment, Tables, list[Batch]]]:
        """Waits for the disk; for any thread. What stands in `parts`, in order: some 1 MiB, but at least one batch.

        Each with what the numbers in it mean. Raises Corrupt where the very first one cannot be read.
        """
        found = list[tuple[Segment, Tables, list[Batch]]]()
        for segment, low, high in parts:
            try:
                content = self.content(segment)
                found.append((segment, content.tables, self._read(segment, content.index, low, high)))
            except Corrupt:
                if not found:
                    raise
                break
        return found

    def _read(self, segment: Segment, index: Index, low: int, high: int) -> list[Batch]:
        at = index.between(low, high)
        if at.start >= at.stop or index.seqs[at.start] != low:
            raise Corrupt(f"{segment.path}: holds no batch {low}")
        seqs, positions, end = index.part(at.start, high, READ_BYTES)
        try:
            return read_batches(self.files, segment.path, seqs, positions, end)
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise Corrupt(f"{segment.path} cannot be read: {error.strerror or error}") from error

    def whole(self, segment: Segment) -> set[int]:
        """Waits for the disk; for any thread. The seqs of a damaged segment that can still be read."""
        try:
            return set(scan(salvaged(self.files, segment.path)).index.seqs)
        except UnknownFormat:
            return set()
        except OSError as error:
            if error.errno in _PASSING:
                raise
            return set()

    # --- start --------------------------------------------------------------------------------------------------

    def recover(self, synced: int, took: Callable[[Segment, Index], None]) -> None:
        """Waits for the disk. Takes over what a former process left, of which every seq below `synced` was on disk.

        `took` is told of each segment. Raises Poisoned where the folder cannot be used at all.
        """
        try:
            names = [name for name in self.files.names(self.folder) if name.removesuffix(BROKEN).endswith(SUFFIX)]
            numbered = sorted((int(name.split(".")[0]), name) for name in names if name.split(".")[0].isdecimal())
            self._next_number = numbered[-1][0] + 1 if numbered else 0
            before: tuple[int, Path, Content] | None = None
            for at, (number, name) in enumerate(numbered, start=1):
                content = self._found(self.folder / name, synced if at == len(numbered) else None)
                if content is None:
                    continue
                if before:
                    _count_lost_end(*before, content.header)
                    took(self._take_over(*before), before[2].index)
                before = number, self.folder / name, content
            if before:
                took(self._take_over(*before), before[2].index)
            self.files.sync_folder(self.folder)
        except OSError as error:
            raise Poisoned(f"{self.folder} cannot be used: {error.strerror or error}") from error

    def _found(self, path: Path, synced: int | None) -> Content | None:
        """What is in a file; `synced` is given for the last segment only: the others were on disk before it began."""
        content = Content(damaged=True)
        try:
            content = load(self.files, path, synced)
            if synced is not None:
                self._secure(path, content)
        except UnknownFormat:
            self.counters.add("unknown_segments")  # of a later version: left alone
            return None
        except OSError as error:
            if error.errno in _PASSING:
                raise
            content.damaged = True  # what of it was read is delivered
        return content

    def _secure(self, path: Path, content: Content) -> None:
        """The last segment: without its torn end, sealed, and on disk: after a kill it may have been in the page cache
        only."""
        handle = self.files.open(path)
        try:
            if not content.sealed:
                self.files.truncate(handle, content.index.end)
            self.files.sync(handle)
            if content.header and not content.sealed and not content.damaged:
                finish(self.files, handle, content.index, content.tables)
        finally:
            self.files.close(handle)
        if content.torn_bytes:
            self.counters.add("torn_bytes", content.torn_bytes)
            self.counters.add("torn_segments")

    def _take_over(self, number: int, path: Path, content: Content) -> Segment:
        end = self.end
        if len(content.index) and content.index.seqs[0] < end:
            content = Content(damaged=True)  # a copy of a file that somebody made: read already
        index = content.index
        self._previous = number, content.row_count
        segment = Segment(number, path, self.files.size(path), end, end, foreign=True, broken=path.suffix == BROKEN)
        if len(index):
            segment.first, segment.end = index.seqs[0], index.seqs[-1] + 1
            segment.first_ns, segment.last_ns = index.received_ns[0], index.received_ns[-1]
        if content.header:
            self.identity.uuid = content.header.uuid
        self.origins.update(content.tables.origins)
        self.segments.append(segment)
        self._keep_content(segment, content)
        if content.damaged and not segment.broken:
            segment.lost_rows = content.lost_rows
            self.counters.add("corrupt_rows", content.lost_rows)
            self.set_aside(segment)
        return segment

    def _keep_content(self, segment: Segment, content: Content) -> None:
        """For any thread. The least recently loaded one gives way."""
        with self._indexing:
            segment.content = content
            self._indexed = [*(kept for kept in self._indexed if kept is not segment), segment]
            while len(self._indexed) > INDEXED_MAX:
                self._indexed.pop(0).content = None

    def _header(self, number: int, created_ns: int) -> Header:
        return Header(
            self.identity.lane, self.identity.uuid, self.identity.instance, number, created_ns, *self._previous
        )

    def _never_twice(self, step: Callable[[], None]) -> None:
        """Once a step failed no other is taken: a footer would speak of frames that are not on disk."""
        if self._failure:
            raise Poisoned(self._failure)
        try:
            step()
        except OSError as error:
            self._failure = (
                f"{self.folder}: the disk did not take what was written ({error.strerror or error}); restart the "
                f"gateway when it works again: all that was acknowledged is read again"
            )
            raise Poisoned(self._failure) from error


def _count_lost_end(number: int, path: Path, content: Content, following: Header | None) -> None:
    """What was lost behind the last whole batch of a segment without its footer, from the header of the one behind."""
    if content.damaged and not content.sealed and following and following.previous == number:
        content.lost_rows = max(following.previous_rows - sum(content.index.rows), content.lost_rows)
