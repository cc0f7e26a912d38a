"""How long a server may say nothing, and what it means when it does.

An idle subscription says that it is alive. One that was taken over from a former session has to show first that it
works: some servers hand them over and send nothing of them any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from connectors.opcua_link import Link
from pipelines.clock import Clock
from pipelines.errors import NotConnected

KEEP_ALIVES: Final = 3
"""Keep-alive times without any PublishResponse after which the connection counts as dead."""
LEFT_S: Final = 0.1
"""For what has arrived and was not looked at, after a long time without a read."""
PROOF_S: Final = 3.0
"""Beyond its keep-alive time: a subscription that was taken over and says nothing by then does not work."""
DISPROVED_MAX: Final = 3
"""Sessions in a row that ended before what they had taken over said anything."""


class Silence:
    """Lives as long as the source; `begin` and `end` for each session."""

    def __init__(self, clock: Clock) -> None:
        self.unproven: set[int] = set()
        """Ids of subscriptions that were taken over and not heard of yet. Always the same set: who hears of one takes
        it out."""
        self._clock = clock
        self._proof_by_ns: int | None = None
        self._disproved = 0

    def begin(self, taken_over: Iterable[int]) -> None:
        """Each of these subscriptions has to say something."""
        self.unproven.clear()
        self.unproven.update(taken_over)
        self._proof_by_ns = None

    def patience_s(self, link: Link, heard_ns: int) -> float:
        """How long nothing may come after `heard_ns`; not long where a subscription has yet to show that it works.

        Raises NotConnected where one of several has not.
        """
        assert link.session is not None and link.items is not None
        keep_alive_s = link.items.keep_alive_s
        if not self.unproven:
            silent_s = (self._clock.mono_ns() - heard_ns) / 1e9
            return max(keep_alive_s * KEEP_ALIVES - silent_s, LEFT_S)
        if self._proof_by_ns is None:
            self._proof_by_ns = self._clock.mono_ns() + int((keep_alive_s + PROOF_S) * 1e9)
        left_s = (self._proof_by_ns - self._clock.mono_ns()) / 1e9
        if left_s <= 0 and not link.session.waiting:
            raise self.broken(link)
        return max(left_s, 0.0)

    def broken(self, link: Link) -> NotConnected:
        """Nothing came for so long: gives up the connection, or what was taken over. What to raise."""
        assert link.session is not None and link.items is not None
        if self.unproven:
            link.forget()
            return NotConnected(
                f"{link.url}: the server handed over subscription {min(self.unproven)} and sends nothing of it; "
                "new ones are made"
            )
        silence = f"{link.url}: no publish response for {KEEP_ALIVES * link.items.keep_alive_s:.0f} s"
        link.session.lose(silence)  # not closed, which may arrive late: what it has is wanted
        return NotConnected(silence)

    def end(self) -> bool:
        """Whether so many sessions ended like that that what they took over is to be given up."""
        self._disproved = self._disproved + 1 if self.unproven else 0
        self.unproven.clear()
        return self._disproved >= DISPROVED_MAX
