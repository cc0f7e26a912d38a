"""RTU frames: inside TCP, through a serial server, and on a serial port of this machine.

RTU has no transaction id: a late reply of the unit that is asked looks like the current one. So a unit that did not
answer in time is not asked again before as much time again has passed; others are, meanwhile.
The byte count that was asked for says where a reply ends. Inside TCP whatever is not the reply ends the connection, so
that what is still under way arrives nowhere. A serial port is drained instead: what lies between two silences is judged
together, as noise, another unit's frame, a damaged reply, or something with the reply at its end.

Silence cannot be timed to t3.5 from up here: USB adapters hand bytes over in pieces, up to 16 ms apart. It is only
waited for where something is wrong; before a request at least t3.5 is kept.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from connectors.modbus_frames import (
    BAD_COMMUNICATION_ERROR,
    RTU_DATA_BYTES_MAX,
    RTU_OVERHEAD_BYTES,
    Query,
    RequestFailed,
    rtu_reply,
    rtu_reply_at_end,
    whole,
)
from connectors.modbus_serial import SerialTransport
from connectors.modbus_url import Manners, SerialFormat
from connectors.modbus_wire import Exchange, Sent, Wire
from pipelines.clock import Clock
from pipelines.counters import Counters

QUIET_S: Final = 0.03
"""A serial port that has been silent for so long has nothing more of a frame."""
_ONLY: Final = 0
"""Key of the one request under way."""

Owed = dict[int, float]
"""Unit that owes a reply -> until when it may come, on the monotonic clock. The line's: it outlives its wires."""


class RtuWire(Wire):
    """Inside TCP."""

    def __init__(self, clock: Clock, counters: Counters, owed: Owed) -> None:
        super().__init__(clock, counters)
        self._owed = owed
        self._echoes = False
        self._echo = b""
        """Still to come back, before the reply."""

    def behave(self, manners: Manners) -> None:
        super().behave(manners)
        self._echoes = manners.echo

    def _write(self, transport: asyncio.Transport, query: Query) -> int:
        transport.write(query.frame)
        self._buffer = b""
        self._echo = query.frame if self._echoes else b""
        return _ONLY

    def _next(self) -> Exchange | None:
        if not self._owed:
            return self._waiting[0]
        now_s = time.monotonic()
        for unit in [unit for unit, until_s in self._owed.items() if until_s <= now_s]:
            del self._owed[unit]
        for exchange in sorted(self._waiting):
            if exchange.queries[exchange.asked].unit not in self._owed:
                return exchange
        self._send_at(min(self._owed.values()))
        return None

    def _distrust(self, sent: Sent) -> None:
        self._owe(sent)
        self.spent = True

    def _owe(self, sent: Sent) -> None:
        self._owed[sent.query.unit] = time.monotonic() + sent.exchange.timeout_s

    def _take(self) -> None:
        sent = self._sent.get(_ONLY)
        if sent is None:
            self._counters.add("stale_replies")
            self.spent, self._buffer = True, b""
            return
        if self._echo and not self._take_echo():
            return
        found = rtu_reply(sent.query, self._buffer)
        if found is None or len(self._buffer) < found.size:
            return
        self.spent = found.damaged or len(self._buffer) > found.size
        self._buffer = b""
        self._settle(_ONLY, found.outcome)

    def _take_echo(self) -> bool:
        """True when it has been taken off, and what follows is the reply."""
        size = len(self._echo)
        if len(self._buffer) < size and self._echo.startswith(self._buffer):
            return False
        if self._buffer.startswith(self._echo):
            self._buffer, self._echo = self._buffer[size:], b""
            return True
        self.spent, self._buffer = True, b""
        self._settle(_ONLY, _no_echo())
        return False


class SerialWire(RtuWire):
    """A serial port of this machine."""

    def __init__(self, clock: Clock, counters: Counters, owed: Owed, serial: SerialFormat) -> None:
        super().__init__(clock, counters, owed)
        self._serial = serial
        self._heard_s = 0.0
        self._listener: asyncio.TimerHandle | None = None

    def behave(self, manners: Manners) -> None:
        super().behave(manners)
        self._gap_s = max(self._gap_s, self._serial.silence_s)

    def connection_lost(self, error: Exception | None) -> None:
        if self._listener:
            self._listener.cancel()
        super().connection_lost(error)

    def _patience_s(self, exchange: Exchange, query: Query) -> float:
        reply_bytes = RTU_DATA_BYTES_MAX if query.sized else query.reply_bytes
        on_line = (1 + self._echoes) * len(query.frame) + reply_bytes + RTU_OVERHEAD_BYTES
        return exchange.timeout_s + on_line * self._serial.character_s

    def _next(self) -> Exchange | None:
        """What came before the request went out does not answer it."""
        if isinstance(self._transport, SerialTransport) and self._transport.waiting():
            self._drain()
            self._send_at(self._free_s)
            return None
        return super()._next()

    def _distrust(self, sent: Sent) -> None:
        self._owe(sent)
        self._drain()

    def _drain(self) -> None:
        """No request before the line has been silent."""
        self._buffer = b""
        self._free_s = time.monotonic() + QUIET_S

    def _take(self) -> None:
        self._heard_s = time.monotonic()
        sent = self._sent.get(_ONLY)
        if sent is None:
            self._counters.add("stale_replies")
            self._drain()
        elif not self._echo or self._take_echo():
            self._take_reply(sent)

    def _take_echo(self) -> bool:
        if self._buffer.startswith(self._echo):
            self._buffer, self._echo = self._buffer[len(self._echo) :], b""
            return True
        if len(self._buffer) >= len(self._echo):
            self._listen(QUIET_S)
        return False

    def _take_reply(self, sent: Sent) -> None:
        found = rtu_reply(sent.query, self._buffer)
        if found is None or len(self._buffer) < found.size:
            return
        if found.damaged:
            self._listen(QUIET_S)
            return
        surplus = len(self._buffer) > found.size
        self._buffer = b""
        self._settle(_ONLY, found.outcome)
        if surplus:
            self._counters.add("stale_replies")
            self._drain()

    def _listen(self, seconds: float) -> None:
        """Judges what came as soon as the line is silent."""
        if self._listener is None:
            self._listener = self.loop.call_later(seconds, self._silent)

    def _silent(self) -> None:
        self._listener = None
        left_s = self._heard_s + QUIET_S - time.monotonic()
        sent = self._sent.get(_ONLY)
        if not self._buffer or sent is None:
            return
        if left_s > 0:
            self._listen(left_s)
            return
        self._judge(sent)
        self._send()

    def _judge(self, sent: Sent) -> None:
        """What came between two silences while a reply is waited for."""
        burst, query = self._buffer, sent.query
        begun = rtu_reply(query, burst)
        if begun and len(burst) < begun.size:
            return  # it goes on
        self._buffer = b""
        if self._echo:
            self._owe(sent)
            self._settle(_ONLY, _no_echo())
        elif (outcome := rtu_reply_at_end(query, burst)) is not None:
            self._settle(_ONLY, outcome)
        elif begun and begun.size:
            self._settle(_ONLY, begun.outcome)
        elif begun and not whole(burst) and len(burst) >= query.reply_bytes + RTU_OVERHEAD_BYTES:
            self._owe(sent)  # most likely it, but not surely
            self._settle(_ONLY, begun.outcome)
        else:
            self._counters.add("stale_replies")  # noise, another unit's, or our own request; the reply may follow


def _no_echo() -> RequestFailed:
    return RequestFailed(
        BAD_COMMUNICATION_ERROR, "the request did not come back as it was sent: another master, noise, or `echo:` wrong"
    )
