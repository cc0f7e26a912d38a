"""When which poll class of a device is read. Pure: no I/O, no clock.

Each class has an absolute grid of its own. Classes that are due at once are one cycle where that saves a request: what
is read every 10 s comes along with its neighbours of every 1 s. The others take turns: what is due
longest first, then the shortest period. Their grids are moved apart within the shortest period, so that they seldom
meet: a class waits at most for the cycles of the others. Devices are moved apart in the same way. What fast routes want
is a class of its own, read before what is due with it, and never with others: a longer reply is a later one. Everything
is read once at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from connectors.modbus_poll import Poll

GOLDEN = 0.618_033_988_749_895
"""Multiples of it, less the whole part, lie apart from each other however many there are."""

MERGED_MAX = 16


class Schedule:
    """`plan` gives a class its reads, by what is known now; `merged` makes one class of several."""

    def __init__(
        self, polls: Sequence[Poll], plan: Callable[[Poll], None], merged: Callable[[Sequence[Poll]], Poll]
    ) -> None:
        self.polls = sorted(polls, key=lambda poll: poll.every_ns)
        self._plan = plan
        self._merged = merged
        self._was_apart = False
        self._joint: dict[tuple[Poll, ...], Poll] = {}
        """Those that are read together, as one."""

    def restart(self, now_ns: int, number: int) -> None:
        """Everything is due at once. `number` is the device's: others lie elsewhere in the period."""
        shortest_ns = self.polls[0].every_ns
        shift_ns = _spread(number, shortest_ns)
        alone = 0
        for at, poll in enumerate(self.polls):
            own_ns = 0
            if at and not self._saves((self.polls[0],), poll):
                alone += 1
                own_ns = _spread(alone, shortest_ns)
            poll.restart(now_ns, (shift_ns + own_ns) % shortest_ns)

    @property
    def due_ns(self) -> int:
        """When something is to be read next (monotonic)."""
        if len(self.polls) == 1:
            return self.polls[0].due_ns
        return min([poll.due_ns for poll in self.polls])

    def take(self, now_ns: int) -> tuple[Poll, int]:
        """What is to be read now, planned; and how many periods went by entirely without being read."""
        chosen = self.polls if len(self.polls) == 1 else self._due(now_ns)
        missed = sum([poll.advance(now_ns) for poll in chosen])
        poll = chosen[0] if len(chosen) == 1 else self._together(tuple(chosen))
        self._plan(poll)
        return poll, missed

    def _due(self, now_ns: int) -> list[Poll]:
        """The class that is due longest, then that of the shortest period; those that save a request come along.

        One that is read apart comes before all others, and alone; but of what is due longer one waits for one such
        cycle at most: a device that is too slow for its period is asked for the rest all the same.
        """
        first_ns = max(now_ns, self.due_ns)
        due = [poll for poll in self.polls if poll.due_ns <= first_ns]
        first = min(due, key=lambda poll: poll.due_ns)
        for poll in due:
            if poll.apart and not (self._was_apart and first.due_ns < poll.due_ns):
                first = poll
                break
        self._was_apart = first.apart
        chosen = [first]
        for poll in due:
            if poll is not first and self._saves(tuple(chosen), poll):
                chosen.append(poll)
        return [poll for poll in due if poll in chosen]

    def _saves(self, polls: tuple[Poll, ...], other: Poll) -> bool:
        """Read together with `polls` it takes fewer requests."""
        if other.apart or polls[0].apart:
            return False
        one = polls[0] if len(polls) == 1 else self._together(polls)
        both = self._together((*polls, other))
        for poll in (one, other, both):
            self._plan(poll)
        return len(both.blocks) < len(one.blocks) + len(other.blocks)

    def _together(self, polls: tuple[Poll, ...]) -> Poll:
        if (known := self._joint.get(polls)) is None:
            while len(self._joint) >= MERGED_MAX:
                self._joint.pop(next(iter(self._joint)))
            known = self._joint[polls] = self._merged(polls)
        return known


def _spread(number: int, period_ns: int) -> int:
    return int(number * GOLDEN % 1.0 * period_ns)
