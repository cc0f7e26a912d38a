"""What of a lane is pending, and what of that is unread: two sets of offsets. The rest of it, readers have in hand."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

from pipelines.contracts import Part, Span
from pipelines.errors import Corrupt
from pipelines.intervals import Intervals


class Pending:
    """An offset is a batch's seq. `end` is above every offset that was given out."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.pending = Intervals()
        self.unread = Intervals()
        self._live_from = end

    def start(self, end: int) -> None:
        """What a former process left is in `pending`; nothing of it is LIVE."""
        self.end = self._live_from = end

    def add(self, offset: int) -> None:
        """A batch was appended."""
        self.pending.add(offset, offset + 1)
        self.unread.add(offset, offset + 1)

    def forget(self, low: int, high: int) -> None:
        """Delivered or dropped."""
        self.pending.remove(low, high)
        self.unread.remove(low, high)

    def first_unread(self, part: Part, below: int) -> tuple[int, int] | None:
        """The first interval of what `part` has not read, as far as it is below `below`."""
        low, high = self._bounds(part)
        return self.unread.first_in(low, min(high, below))

    def in_hand(self, low: int, high: int) -> bool:
        """Some of [low, high) is in a reader's hand."""
        return self.pending.within(low, high) != self.unread.within(low, high)

    def rewind(self, part: Part) -> None:
        """All of `part` that is pending is unread again; what was LIVE becomes BACKLOG."""
        low, high = self._bounds(part)
        for start, end in self.pending.within(low, high):
            self.unread.add(start, end)
        if part is Part.LIVE:
            self._live_from = self.end

    def position(self, uuid: bytes, span: Span | None) -> bytes:
        """As `contracts.Lane.position`."""
        pending = self.pending
        if span:
            pending = pending.copy()
            pending.remove(span.start, span.end)
        packed: bytes = msgpack.packb([uuid, self.end, list(pending)])
        return packed

    def delivered(self, uuid: bytes, position: bytes) -> Iterator[tuple[int, int]]:
        """What is pending here and not in `position`. Raises Corrupt where it is another lane's, or unreadable."""
        try:
            whose, end, pairs = msgpack.unpackb(position)
            pending = Intervals((int(start), int(stop)) for start, stop in pairs)
            end = int(end)
        except (ValueError, TypeError, OverflowError) as error:
            raise Corrupt(f"unreadable position: {error}") from error
        if whose != uuid:
            raise Corrupt("the position belongs to another lane and is not believed")
        delivered = self.pending.copy()
        delivered.remove(end, self.end)
        for start, stop in pending:
            delivered.remove(start, stop)
        return iter(delivered)

    def _bounds(self, part: Part) -> tuple[int, int]:
        low = self._live_from if part is Part.LIVE else 0
        return low, self._live_from if part is Part.BACKLOG else self.end
