"""The numbering of a device's subscriptions: what comes next, where a batch ends, what may be acknowledged. Pure.

The notifications of a subscription are numbered (`pipelines.origin`); its stream is our name for one life of it. What
the server has sent it keeps until it is acknowledged, for as long as its queue has room (Part 4, 5.13.1.1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.opcua_response import PublishResponse
from connectors.opcua_state import Subscription
from pipelines.origin import LAST_PART, SEQUENCES, Entry, Vector, covers, distance, following, newest

LATE_MAX: Final = 1000
"""A notification this far behind is one that overtook another, or came twice; farther, it is not our subscription."""


@dataclass(slots=True)
class _Stream:
    subscription: Subscription
    next: int | None
    """The next sequence number; None: whatever comes first."""
    ts_ns: int
    """Newest source time so far, never ahead of its arrival."""
    received: bool = False
    """By this process, in a former session."""
    unlisted: bool = False
    """What the server keeps of a former process is not known before its first response."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a response's number says, before its rows are taken."""

    ask: Sequence[int] = ()
    """Sequence numbers to be asked for by Republish first."""
    lost: int = 0
    """Notifications that the server no longer keeps."""
    late: bool = False
    """It was delivered already."""
    foreign: bool = False
    """It belongs to no subscription of ours."""


class Streams:
    """Lives as long as the source; `begin` for each session."""

    def __init__(self) -> None:
        self._by_id: dict[int, _Stream] = {}
        self._vector = Vector(())
        self._resume: Sequence[bytes] = ()
        self._unacknowledged: deque[tuple[int, int, int]] = deque()  # batch number, subscription id, sequence number
        self._acks: list[tuple[int, int]] = []
        self._asked: dict[tuple[int, int], None] = {}  # (subscription id, sequence number), in order, without an answer

    @property
    def newest_ns(self) -> int:
        """The newest source time of all streams; 0 where none is known."""
        return max((stream.ts_ns for stream in self._by_id.values()), default=0)

    def newest_of(self, subscription_id: int) -> int:
        """The newest source time of this one's stream; 0 where none is known."""
        stream = self._by_id.get(subscription_id)
        return stream.ts_ns if stream is not None else 0

    def __len__(self) -> int:
        return len(self._by_id)

    def begin(self, subscriptions: Sequence[Subscription], resume: Sequence[bytes]) -> dict[int, list[int]]:
        """These are live now; `resume` is what the lanes hold.

        Returns what this process has of each subscription id without having it acknowledged, in order: asked for again
        when the session before ended, or received.
        """
        held = newest(resume)
        before = {stream.subscription.stream: stream for stream in self._by_id.values()}
        self._resume = resume
        self._by_id = {one.id: self._stream(one, before.get(one.stream), held.get(one.stream)) for one in subscriptions}
        self._vector = Vector(Entry(stream.subscription.stream, 0, 0, stream.ts_ns) for stream in self._by_id.values())
        known = {id_ for id_, stream in self._by_id.items() if stream.subscription.stream in before}
        pending: dict[int, list[int]] = {}
        received = [(id_, number) for _, id_, number in self._unacknowledged]
        for id_, number in dict.fromkeys([*self._asked, *received]):
            if id_ in known:
                pending.setdefault(id_, []).append(number)
        self._unacknowledged.clear()
        self._asked.clear()
        self._acks = [ack for ack in self._acks if ack[0] in known]
        return pending

    def add(self, subscription: Subscription) -> bool:
        """A further one, made in the same session. False: it is known."""
        if subscription.id in self._by_id:
            return False
        self._by_id[subscription.id] = self._stream(subscription, None, None)
        return True

    def resume(self, subscription_id: int, pending: Sequence[int], available: Sequence[int] | None) -> Step:
        """A subscription goes on: what has to be asked for of what was sent and not acknowledged.

        `available` is what its server says that it keeps, None where it was not asked.
        """
        stream = self._by_id[subscription_id]
        stream.unlisted = available is None and not pending and not stream.received
        kept = _in_order(pending if available is None else available)
        ask = []
        for number in kept:
            if self._held_by_all(stream, number):
                self._acks.append((subscription_id, number))
            else:
                ask.append(number)
        lost = sum(number not in kept and not self._held_by_all(stream, number) for number in pending)
        if kept:
            if stream.next is not None:
                lost += _steps_ahead(stream.next, kept[0])
            after = following(kept[-1])
            if stream.next is None or _steps_ahead(stream.next, after):
                stream.next = after
        return self._asking(subscription_id, ask, lost)

    def step(self, response: PublishResponse) -> Step:
        """What comes before this response; with something to ask for, it has to be given again afterwards.

        A keep-alive carries the next notification's number and takes none.
        """
        stream = self._by_id.get(response.subscription_id)
        if stream is None:
            return Step(foreign=True)
        number, expected = response.sequence_number, stream.next
        takes = response.changes or response.numbered  # the first is quicker, and most have some
        missing = 0
        if expected is not None and number != expected:
            missing = _steps_ahead(expected, number)
            if not missing:
                late = distance(number, expected) <= LATE_MAX
                return Step(late=late and bool(takes), foreign=not late)
        stream.next = following(number) if takes else number
        if not missing and not stream.unlisted:
            return _PLAIN
        return self._hole(stream, response, expected or number, missing)

    def origin(self, subscription_id: int, number: int, part: int, ts_ns: int) -> bytes:
        """Of the batch that ends there and whose source times go up to about `ts_ns`."""
        stream = self._by_id[subscription_id]
        stream.ts_ns = max(stream.ts_ns, ts_ns)
        return self._vector.after(stream.subscription.stream, number, part, stream.ts_ns)

    def delivered(self, batch_number: int, subscription_id: int, number: int) -> None:
        """The notification ends with this batch."""
        self._unacknowledged.append((batch_number, subscription_id, number))

    def answered(self, subscription_id: int, number: int) -> None:
        """What was asked for has come, or never will."""
        self._asked.pop((subscription_id, number), None)

    def acknowledge(self, subscription_id: int, number: int) -> None:
        """There is nothing in it to keep."""
        self._acks.append((subscription_id, number))

    def commit(self, batch_number: int) -> None:
        """Every batch up to this one is safe."""
        while self._unacknowledged and self._unacknowledged[0][0] <= batch_number:
            _, subscription_id, number = self._unacknowledged.popleft()
            self._acks.append((subscription_id, number))

    def take_acks(self) -> list[tuple[int, int]]:
        """(subscription id, sequence number) of what may be acknowledged now."""
        acks, self._acks = self._acks, []
        return acks

    def _hole(self, stream: _Stream, response: PublishResponse, expected: int, missing: int) -> Step:
        """What of `missing` notifications the server still has; the first time after a takeover, of all before them."""
        number = response.sequence_number
        ask = [one for one in _in_order(response.available) if distance(expected, one) < missing]
        lost = missing - len(ask)
        if stream.unlisted:
            stream.unlisted = False
            ask = [
                one
                for one in _in_order(response.available)
                if _steps_ahead(one, number) and not self._held_by_all(stream, one)
            ]
        if ask:
            stream.next = number
        return self._asking(response.subscription_id, ask, lost)

    def _asking(self, subscription_id: int, ask: Sequence[int], lost: int) -> Step:
        self._asked.update(dict.fromkeys((subscription_id, number) for number in ask))
        return Step(ask, lost)

    def _stream(self, subscription: Subscription, before: _Stream | None, held: Entry | None) -> _Stream:
        if before is not None:
            return _Stream(subscription, before.next, before.ts_ns, received=True)
        after = following(held.sequence) if held is not None and held.sequence else None
        return _Stream(subscription, after, held.ts_ns if held is not None else 0)

    def _held_by_all(self, stream: _Stream, number: int) -> bool:
        own = Vector(()).after(stream.subscription.stream, number, LAST_PART, 0)
        return bool(self._resume) and all(covers(held, own) for held in self._resume)


_PLAIN: Final = Step()


def _steps_ahead(expected: int, number: int) -> int:
    """How far `number` is ahead of what is expected; 0 where it is not."""
    steps = distance(expected, number)
    return steps if steps < SEQUENCES // 2 else 0


def _in_order(numbers: Iterable[int]) -> list[int]:
    """Sequence numbers as they were sent, also over the wrap from 2^32 - 1 to 1."""
    found = list(numbers)
    low = (found[0] - SEQUENCES // 2) % SEQUENCES if found else 0
    return sorted(found, key=lambda number: (number - low) % SEQUENCES)
