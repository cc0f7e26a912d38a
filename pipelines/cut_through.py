"""A pump's short way: what is appended while the route is idle is sent in the step that appended it.

The lane has it as everything else, and the pump awaits the acknowledgement as of every write: number, bound, rewind,
what is rejected and what is counted are the same. Only while no write of the pump is under way may a batch be sent so:
one that was begun may still have to wait for its turn, and nothing overtakes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipelines.batch import Batch
from pipelines.contracts import Acknowledged, CutThroughReader, CutThroughSink, Span

Deliver = Callable[[Span, Sequence[Batch], Acknowledged], None]
"""Sees that what was sent is awaited; ends with `CutThrough.ended`, or `stop` where that has failed."""


class CutThrough:
    """One pump's, for its life; works between `start` and `stop`."""

    def __init__(self, lane: str, reader: CutThroughReader, sink: CutThroughSink) -> None:
        self._held = 0
        self._lane = lane
        self._reader = reader
        self._sink = sink
        self._sent = 0
        self._deliver: Deliver

    def start(self, deliver: Deliver) -> None:
        """From now on; nothing is under way."""
        self._held = self._sent = 0
        self._deliver = deliver
        self._reader.hand_over(self._take)

    def ended(self) -> None:
        """One that was sent is acknowledged."""
        self._sent -= 1

    def hold(self, release: Callable[[], None]) -> Callable[[], None]:
        """A write of the pump is under way until what is returned is called, which calls `release`."""
        self._held += 1

        def released() -> None:
            self._held -= 1
            release()

        return released

    def stop(self) -> None:
        """Idempotent. Something has failed: nothing may overtake what has to be written again."""
        self._reader.hand_over(None)

    def _take(self, offset: int, batch: Batch) -> bool:
        if self._held or self._sent >= self._sink.sent_max:
            return False
        acknowledged = self._sink.send(self._lane, batch)
        if acknowledged is None:
            return False
        self._sent += 1
        self._deliver(Span(offset, offset + 1), [batch], acknowledged)
        return True
