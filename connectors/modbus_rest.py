"""Blocks that stay unanswered while the device answers others: asked again after a back-off, not in every cycle.

A circuit breaker for each block: two time-outs in a row open it; then one request after each back-off is the probe, and
the back-off doubles, with jitter, up to `REST_MAX_NS`. For a device that answers nothing at all, see `modbus_breaker`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from connectors.modbus_frames import Reply, RequestFailed
from connectors.modbus_plan import Block, Range
from pipelines.batch import BAD_TIMEOUT

REST_MAX_NS = 60 * 10**9
UNANSWERED_MAX = 2


@dataclass(slots=True)
class _Rest:
    unanswered: int = 0
    until_ns: int = 0
    failure: RequestFailed | None = None


class Rests:
    """`random` gives 0..1."""

    def __init__(self, timeout_ns: int, random: Callable[[], float]) -> None:
        self._timeout_ns = timeout_ns
        self._random = random
        self._rests: dict[Range, _Rest] = {}

    def __len__(self) -> int:
        """Blocks with at least one time-out behind them."""
        return len(self._rests)

    def __contains__(self, block: Block) -> bool:
        """It was not answered when it was asked last."""
        return block.span in self._rests

    @property
    def resting(self) -> int:
        """Blocks that are asked again only after a back-off."""
        return sum(rest.unanswered >= UNANSWERED_MAX for rest in self._rests.values())

    def of(self, block: Block, now_ns: int) -> RequestFailed | None:
        """Why the block is not to be asked now; None where it is."""
        rest = self._rests.get(block.span)
        return rest.failure if rest and now_ns < rest.until_ns else None

    def note(self, blocks: Sequence[Block], replies: Sequence[Reply], now_ns: int) -> None:
        """What was asked in a cycle in which the device answered something."""
        for block, reply in zip(blocks, replies, strict=True):
            if is_silence(reply):
                self._unanswered(block, reply.failure, now_ns)
            else:
                self._rests.pop(block.span, None)

    def _unanswered(self, block: Block, failure: RequestFailed | None, now_ns: int) -> None:
        rest = self._rests.setdefault(block.span, _Rest())
        rest.unanswered += 1
        rest.failure = failure
        if rest.unanswered >= UNANSWERED_MAX:
            grown_ns = min(self._timeout_ns << min(rest.unanswered, 30), REST_MAX_NS)
            rest.until_ns = now_ns + int(grown_ns * (0.5 + self._random() / 2))


def is_silence(reply: Reply) -> bool:
    """Nobody answered: a time-out here, or (exceptions 10 and 11) at the gateway that the unit is behind."""
    failure = reply.failure
    return failure is not None and (failure.status == BAD_TIMEOUT or failure.exception_code in _NOBODY)


_NOBODY = (10, 11)
