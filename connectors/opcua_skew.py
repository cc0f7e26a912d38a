"""How far the machine's clock is off, and what that means for the times of its values.

ServerStatus.CurrentTime is read and compared with the gateway's clock in the middle of the round trip; the answer is
good to half of that. Of the last few readings the one with the shortest round trip counts, as in NTP's clock filter.
Some servers renew CurrentTime once a second only: the time in the response's header is taken where it is later.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from connectors import opcua_requests
from connectors.opcua_binary import EPOCH_TICKS, Cursor
from connectors.opcua_decode import TICKS_MAX
from connectors.opcua_requests import ATTRIBUTE_VALUE, Session
from connectors.opcua_resume import Log
from pipelines.batch import Flag
from pipelines.clock import Clock
from pipelines.counters import Counters

CURRENT_TIME: Final = opcua_requests.encode_node_id("i=2258")
EVERY_S: Final = 30.0
READINGS: Final = 8
FIRST_READINGS: Final = 3
STEP_NS: Final = 100_000_000
"""A reading that contradicts the others by more than this, beyond both errors, means that a clock was set."""

Policy = Literal["keep", "flag", "replace"]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class Reading(NamedTuple):
    """All in ns; positive: the machine is ahead."""

    round_trip: int
    skew: int


class Skew:
    """Of one machine; lives as long as the device."""

    def __init__(self, policy: Policy, tolerance_ns: int, clock: Clock, counters: Counters, log: Log) -> None:
        self._policy = policy
        self._tolerance_ns = tolerance_ns
        self._clock = clock
        self._counters = counters
        self._log = log
        self._readings: deque[Reading] = deque(maxlen=READINGS)
        self._off = False
        self.acts = False
        """Times have to be flagged or replaced now."""

    @property
    def info(self) -> str:
        """One line for health; empty before the first reading."""
        if not self._readings:
            return ""
        trip, skew = min(self._readings)
        side = "ahead" if skew > 0 else "behind"
        shown = f"machine clock {abs(skew) / 1e9:.3f} s {side} (within {trip / 2e9:.3f} s)"
        return f"{shown}, which is more than clock_tolerance" if self._off else shown

    async def begin(self, session: Session) -> None:
        """The first readings of a connection. Raises what `measure` raises."""
        self._readings.clear()
        for _ in range(FIRST_READINGS):
            await self.measure(session)

    async def measure(self, session: Session) -> None:
        """One reading. Raises NotConnected, TimeoutError, ServiceError, DecodeError."""
        encode = partial(opcua_requests.read, nodes=[CURRENT_TIME], attribute=ATTRIBUTE_VALUE)
        sent_wall, sent = self._clock.wall_ns(), self._clock.mono_ns()
        body = await session.request(encode)
        trip = self._clock.mono_ns() - sent
        [current] = opcua_requests.read_values(body, 1)
        machine = max([*_header_time(body), *([current] if isinstance(current, int) else [])], default=None)
        if machine is not None:
            self._note(Reading(trip, machine - (sent_wall + trip // 2)))

    def applied(self, ts_ns: Int64s, flags: Bytes, arrival_ns: int) -> tuple[Int64s, Bytes]:
        """The times and flags of a batch, while `acts`: flagged, or the machine's times replaced by the arrival's."""
        if self._policy == "replace":
            return np.full_like(ts_ns, arrival_ns), flags | np.uint8(Flag.ARRIVAL_TIME)
        own = (flags & Flag.ARRIVAL_TIME) == 0
        return ts_ns, flags | np.where(own, Flag.MACHINE_CLOCK_SUSPECT, 0).astype(np.uint8)

    def _note(self, reading: Reading) -> None:
        if self._readings:
            best = min(self._readings)
            if abs(reading.skew - best.skew) > (reading.round_trip + best.round_trip) // 2 + STEP_NS:
                self._readings.clear()
        self._readings.append(reading)
        trip, skew = min(self._readings)
        off = abs(skew) - trip // 2 > self._tolerance_ns
        if off != self._off:
            self._off = off
            self._log.log(30 if off else 20, "%s", self.info if off else f"{self.info}: within clock_tolerance")
        self.acts = off and self._policy != "keep"
        self._counters.set("clock_skew_seconds", round(skew / 1e9, 6))


def _header_time(body: bytes) -> list[int]:
    """When the server sent the response, UTC ns, where it says so (Part 4, 7.33)."""
    cursor = Cursor(body)
    cursor.node_id()
    ticks = cursor.int64()
    return [(ticks - EPOCH_TICKS) * 100] if EPOCH_TICKS < ticks <= TICKS_MAX else []
