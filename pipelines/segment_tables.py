"""What a segment says of itself: whose it is, what its numbers mean, and where each of its batches is."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, Self

import numpy as np

from pipelines.batch import Batch
from pipelines.errors import Corrupt
from pipelines.frame import FrameKind, encode_packed
from pipelines.tags import Tag

READ_BATCHES: Final = 500
"""Read at a time: the thread that decodes them takes the interpreter from the event loop."""
_TAG_FIELDS = tuple(field.name for field in fields(Tag))
_tag_values = attrgetter(*_TAG_FIELDS)


@dataclass(frozen=True, slots=True)
class Header:
    """Whose segment it is."""

    lane: str
    uuid: bytes
    instance: int
    number: int
    created_ns: int
    previous: int
    """Number of the segment that was written before; -1: none."""
    previous_rows: int
    """Rows in it: what is lost behind its last whole batch is known from here."""

    def encode(self) -> bytes:
        """As a frame."""
        return encode_packed(FrameKind.HEADER, {known: getattr(self, known) for known in self.__slots__})

    @classmethod
    def decoded(cls, packed: Any) -> Self:
        """From a HEADER frame. Raises Corrupt."""
        try:
            return cls(**{known.name: packed[known.name] for known in fields(cls)})
        except (KeyError, TypeError) as error:
            raise Corrupt(f"unreadable header: {error!r}") from error


@dataclass(slots=True)
class Tables:
    """What the numbers in a segment's batches mean, and each source's newest origin."""

    tags: dict[int, Tag] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    origins: dict[str, bytes] = field(default_factory=dict)

    def packed(self) -> dict[str, Any]:
        """For a TABLE frame or a footer."""
        tags = {number: _tag_values(tag) for number, tag in self.tags.items()}
        return {"fields": _TAG_FIELDS if tags else (), "tags": tags, "sources": self.sources, "origins": self.origins}

    def add(self, packed: Any) -> None:
        """What a TABLE frame or a footer holds. Keys of a later version are left out. Raises Corrupt."""
        try:
            for number, values in packed["tags"].items():
                known = zip(packed["fields"], values, strict=True)
                self.tags[number] = Tag(**{key: _frozen(value) for key, value in known if key in _TAG_FIELDS})
            self.sources.update(packed["sources"])
            self.origins.update(packed["origins"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Corrupt(f"unreadable table: {error!r}") from error

    def note(self, batch: Batch) -> None:
        """A batch was stored: its origin is the newest of its source."""
        if batch.origin is not None:
            source = self.sources.get(batch.source_id)
            self.origins[str(batch.source_id) if source is None else source] = batch.origin


@dataclass(slots=True)
class Index:
    """Where each batch of a segment is, by ascending seq; `end` is where the frames end."""

    seqs: array[int] = field(default_factory=lambda: array("q"))
    positions: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    received_ns: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("q"))
    end: int = 0

    def __len__(self) -> int:
        return len(self.seqs)

    def add(self, batch: Batch, seq: int, position: int) -> None:
        """One batch more; `end` is the caller's. The seq last: a thread that reads meanwhile counts by it."""
        self.positions.append(position)
        self.rows.append(len(batch))
        self.received_ns.append(batch.received_ns)
        self.sources.append(batch.source_id)
        self.seqs.append(seq)

    def between(self, low: int, high: int) -> slice:
        """Which entries have a seq in [low, high)."""
        return slice(bisect_left(self.seqs, low), bisect_left(self.seqs, high))

    def rows_between(self, low: int, high: int) -> int:
        """Rows of the batches with a seq in [low, high)."""
        return sum(self.rows[self.between(low, high)])

    def by_source(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """Source number, rows, first and last arrival of the batches with a seq in [low, high), a line a source."""
        at = self.between(low, high)
        sources, rows, received_ns = (np.array(column[at]) for column in (self.sources, self.rows, self.received_ns))
        for source in sorted(set(sources.tolist())):
            its = sources == source
            yield source, int(rows[its].sum()), int(received_ns[its].min()), int(received_ns[its].max())

    def runs(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The seqs that there are in [low, high), as intervals."""
        chosen = self.seqs[self.between(low, high)]
        if chosen and chosen[-1] - chosen[0] == len(chosen) - 1:
            yield chosen[0], chosen[-1] + 1
        else:
            yield from ((seq, seq + 1) for seq in chosen)

    def part(self, at: int, limit: int, bytes_max: int) -> tuple[Sequence[int], Sequence[int], int]:
        """seqs and positions of consecutive batches from entry `at` on below seq `limit`; their end.

        At least one, at most `bytes_max` of them together, and no more than are decoded in a few milliseconds.
        """
        last = max(bisect_left(self.positions, self.positions[at] + bytes_max), at + 1)
        last = min(max(bisect_left(self.seqs, limit), at + 1), last, at + READ_BATCHES)
        end = self.positions[last] if last < len(self) else self.end
        return self.seqs[at:last].tolist(), self.positions[at:last].tolist(), end

    def packed(self) -> list[bytes]:
        """For a footer."""
        columns = (self.seqs, self.positions, self.rows, self.received_ns, self.sources)
        return [_little(column).tobytes() for column in columns]

    @classmethod
    def unpacked(cls, columns: Sequence[bytes], end: int) -> Self:
        """What `packed` gave. Raises ValueError or TypeError."""
        seqs, positions, rows, received_ns, sources = (_little(array("q", column)) for column in columns)
        if not len(seqs) == len(positions) == len(rows) == len(received_ns) == len(sources):
            raise ValueError("columns of different lengths")
        return cls(seqs, positions, rows, received_ns, sources, end)


def _frozen(value: Any) -> Any:
    """Lists as the tuples that they were before they were packed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _little(column: array[int]) -> array[int]:
    """As it is on disk; columns of the index are little-endian there."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column
