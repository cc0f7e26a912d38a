"""Origins: where a batch ends in a machine's own numbering. What a lane has of it is not offered to that lane again.

A machine may number several streams (an OPC UA subscription each) whose batches interleave, and a lane keeps one origin
per source only. So an origin is a vector: an entry for each live stream, the batch's own first, little-endian

    stream    u64   unique for the life of the stream, and never used again
    sequence  u32   1, 2, ... 2^32 - 1, 1, ... (OPC UA Part 4, 5.13.1.1); 0: nothing of this stream yet
    part      u32   of a notification that was cut into several batches; LAST_PART ends it
    ts_ns     i64   newest source time known of the stream, UTC ns; 0: none

Bytes that are no such vector hold nothing and cover nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

LAST_PART: Final = 2**32 - 1
SEQUENCES: Final = 2**32 - 1
"""How many sequence numbers there are."""

_ENTRY: Final = struct.Struct("<QIIq")


class Entry(NamedTuple):
    """One stream's place."""

    stream: int
    sequence: int
    part: int
    ts_ns: int


class Vector:
    """The origins of one source's batches: `after` is called for each batch, in order."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._packed = {entry.stream: _ENTRY.pack(*entry) for entry in entries}

    def after(self, stream: int, sequence: int, part: int, ts_ns: int) -> bytes:
        """The origin of the batch that ends there."""
        own = self._packed[stream] = _ENTRY.pack(stream, sequence, part, ts_ns)
        if len(self._packed) == 1:
            return own
        return own + b"".join([other for key, other in self._packed.items() if key != stream])


class Mark:
    """How far one lane is with one source: by the lane's newest origin, then by what was offered to it."""

    def __init__(self) -> None:
        self._held: bytes | None = None
        self.behind = False
        """Something of what the lane has may be offered once more."""

    def rewind(self, held: bytes | None) -> None:
        """The source begins a session and may repeat what the lane has; `held` is what the lane itself says."""
        if self._held is None:
            self._held = held
        elif held is not None:
            self._held = merged(held, self._held)
        self.behind = self._held is not None

    def has(self, origin: bytes | None) -> bool:
        """The lane has the batch with this origin."""
        return self.behind and covers(self._held, origin)

    def ahead(self, origin: bytes | None) -> bytes | None:
        """The origin to store with a batch that is offered: it never falls behind what the lane has."""
        if not self.behind or origin is None:
            return origin
        ahead = merged(self._held, origin)
        self.behind = ahead != origin
        return ahead if self.behind else origin

    def took(self, origin: bytes | None) -> None:
        """The lane has the batch with this origin, or the route has filtered it out."""
        if origin is not None:
            self._held = origin


def entries(origin: bytes | None) -> Iterator[Entry]:
    """What a vector holds; nothing where the bytes are none."""
    if origin is None or len(origin) % _ENTRY.size:
        return iter(())
    return map(Entry._make, _ENTRY.iter_unpack(origin))


def covers(held: bytes | None, origin: bytes | None) -> bool:
    """Whether who holds `held` has the batch with `origin`."""
    own = next(entries(origin), None)
    if own is None:
        return False
    return any(entry.stream == own.stream and not is_after(own, entry) for entry in entries(held))


def merged(held: bytes | None, origin: bytes) -> bytes:
    """`origin`, each of its streams as far as it or `held` is; streams that only `held` knows are no longer live."""
    known = {entry.stream: entry for entry in entries(held)}
    return (
        b"".join(
            _ENTRY.pack(*(known[entry.stream] if is_after(known.get(entry.stream), entry) else entry))
            for entry in entries(origin)
        )
        or origin
    )


def newest(origins: Iterable[bytes | None]) -> dict[int, Entry]:
    """Stream -> the place farthest along, and the newest time, in any of `origins`."""
    found: dict[int, Entry] = {}
    for origin in origins:
        for entry in entries(origin):
            before = found.get(entry.stream)
            ts_ns = max(entry.ts_ns, before.ts_ns if before else 0)
            found[entry.stream] = (entry if before is None or is_after(entry, before) else before)._replace(ts_ns=ts_ns)
    return found


def is_after(entry: Entry | None, other: Entry) -> bool:
    """Whether `entry` is farther along than `other`, of the same stream; None is nowhere."""
    if entry is None or not entry.sequence:
        return False
    if entry.sequence == other.sequence:
        return entry.part > other.part
    return not other.sequence or distance(other.sequence, entry.sequence) < SEQUENCES // 2


def distance(start: int, end: int) -> int:
    """Steps from one sequence number to another, 0 ... 2^32 - 2."""
    return (end - start) % SEQUENCES


def following(sequence: int) -> int:
    """The sequence number behind this one."""
    return sequence % SEQUENCES + 1
