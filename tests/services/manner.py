"""How one direction of an emulated link treats packets: when each arrives, or that it never does. Pure.

In order, as a 5G radio bearer delivers (TS 38.322 acknowledged mode, TS 38.323): a packet that is late keeps back those
behind it. Bursts of loss: E. N. Gilbert, "Capacity of a burst-noise channel" (1960), with losses in the bad state only.
"""

import random
from dataclasses import dataclass
from typing import Final

TAIL_ALPHA: Final = 2.5
"""Of the Pareto distribution; its mean is 5/3 of the scale."""
TAIL_MAX: Final = 20.0
"""In scales: a tail that has an end."""


@dataclass(frozen=True)
class Manner:
    """One way. The defaults: at once, whole, without limit."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Standard deviation around `delay_s`."""
    tail: float = 0.0
    """Share of packets that take longer, by a Pareto-distributed time..."""
    tail_s: float = 0.0
    """...of this scale."""
    loss: float = 0.0
    """Share of packets lost, each by itself."""
    burst_begin: float = 0.0
    """Chance per packet that a bad time begins..."""
    burst_end: float = 1.0
    """...that it ends..."""
    burst_loss: float = 0.0
    """...and that it takes a packet meanwhile."""
    rate_bit_s: float = 0.0
    """0: no limit."""
    queue_s: float = 0.2
    """What would wait longer than this for the rate is dropped."""
    hold_every_s: float = 0.0
    """A handover so often (0: never)..."""
    hold_s: float = 0.0
    """...that keeps everything back for so long."""


class Direction:
    """One way at work. Times are monotonic, in seconds."""

    def __init__(self, manner: Manner, chance: random.Random) -> None:
        self.manner = manner
        self._chance = chance
        self._bad = False
        self._free_s = self._last_s = 0.0

    def due_s(self, now_s: float, size_bytes: int) -> float | None:
        """When a packet that was sent now arrives; None: never."""
        manner = self.manner
        if self._lost(manner):
            return None
        begin_s = now_s
        if manner.rate_bit_s:
            begin_s = max(now_s, self._free_s)
            if begin_s - now_s > manner.queue_s:
                return None
            begin_s = self._free_s = begin_s + size_bytes * 8 / manner.rate_bit_s
        due_s = begin_s + self._delay_s(manner)
        if manner.hold_every_s and (since_s := due_s % manner.hold_every_s) < manner.hold_s:
            due_s += manner.hold_s - since_s
        self._last_s = max(self._last_s, due_s)
        return self._last_s

    def _lost(self, manner: Manner) -> bool:
        if manner.burst_begin:
            changes = self._chance.random() < (manner.burst_end if self._bad else manner.burst_begin)
            self._bad ^= changes
            if self._bad and self._chance.random() < manner.burst_loss:
                return True
        return self._chance.random() < manner.loss

    def _delay_s(self, manner: Manner) -> float:
        delay_s = manner.delay_s
        if manner.jitter_s:
            delay_s = max(0.0, self._chance.gauss(delay_s, manner.jitter_s))
        if manner.tail and self._chance.random() < manner.tail:
            delay_s += min(self._chance.paretovariate(TAIL_ALPHA), TAIL_MAX) * manner.tail_s
        return delay_s


MS, MBIT = 1e-3, 1e6
PRIVATE_5G: Final[dict[str, tuple[Manner, Manner]]] = {
    "urllc": (
        Manner(3 * MS, 0.6 * MS, tail=0.001, tail_s=4 * MS, loss=1e-5, rate_bit_s=50 * MBIT),
        Manner(2.5 * MS, 0.5 * MS, tail=0.001, tail_s=4 * MS, loss=1e-5, rate_bit_s=200 * MBIT),
    ),
    "embb": (
        Manner(8 * MS, 2.5 * MS, tail=0.01, tail_s=10 * MS, loss=1e-4, rate_bit_s=60 * MBIT, queue_s=0.1),
        Manner(7 * MS, 1.5 * MS, tail=0.01, tail_s=8 * MS, loss=1e-4, rate_bit_s=300 * MBIT, queue_s=0.1),
    ),
    "edge": (
        Manner(18 * MS, 7 * MS, 0.03, 30 * MS, 0.0, 0.01, 0.3, 0.3, 6 * MBIT, 0.3),
        Manner(10 * MS, 3 * MS, 0.02, 20 * MS, 0.0, 0.005, 0.4, 0.3, 40 * MBIT, 0.2),
    ),
    "handover": (
        Manner(9 * MS, 2.5 * MS, 0.01, 10 * MS, 5e-4, rate_bit_s=60 * MBIT, hold_every_s=5.0, hold_s=60 * MS),
        Manner(7 * MS, 1.5 * MS, 0.01, 8 * MS, 2e-4, rate_bit_s=300 * MBIT, hold_every_s=5.0, hold_s=60 * MS),
    ),
}
"""Up and down: a slice for control, one for bulk, the edge of the cell, and a moving machine that changes cells."""
