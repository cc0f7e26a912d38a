"""One connection to Modbus units: requests go out, their replies come back, and nothing else is ever taken for one.

A thin transaction layer. pymodbus's client is not used, because its transaction manager costs several times the whole
exchange here. What a poll cycle asks is an `Exchange`, which is one wait of one task; the next request goes out as soon
as there is room for it, and one timer watches all that are under way. Where several devices share the wire, the
exchange that is due first has the next request, so short poll periods and writes go first and nobody starves.

A reply that is late may look like the next one: not every device gives it the transaction id of its request (pymodbus'
own server gives it the newest), and RTU has none. So after a time-out a wire is `spent`, and the line dials a new one;
a serial port, which cannot be dialled anew, is drained (`modbus_wire_rtu`).
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import math
import socket
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from connectors.modbus_frames import BAD_COMMUNICATION_ERROR, Query, Reply, RequestFailed
from connectors.modbus_url import Manners
from connectors.network import NetworkRefused
from pipelines.batch import BAD_TIMEOUT
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected

Arrived = Callable[[Query, Reply], None]
"""Is told of each reply with values in the step of its arrival, before the next request goes out."""


class Exchange:
    """The requests of one poll cycle on their way, and the replies so far, in their order."""

    __slots__ = (
        "_before_ns",
        "arrived",
        "asked",
        "counters",
        "done",
        "dropped",
        "missing",
        "queries",
        "replies",
        "timeout_s",
    )

    def __init__(
        self,
        queries: Sequence[Query],
        timeout_s: float,
        before_ns: int,
        counters: Counters,
        arrived: Arrived | None = None,
    ) -> None:
        self.queries = queries
        self.arrived = arrived
        self.replies: list[Reply | None] = [None] * len(queries)
        self.asked = 0
        """Requests that went out; a new wire goes on from here."""
        self.missing = len(queries)
        self.timeout_s = timeout_s
        self.counters = counters
        self.dropped = False
        self.done: asyncio.Future[None] | None = None
        self._before_ns = before_ns

    def __lt__(self, other: Exchange) -> bool:
        """Has the next request; on the monotonic clock."""
        return self._before_ns < other._before_ns

    def drop(self) -> None:
        """Whoever asked does not want the rest."""
        self.dropped = True
        self.wake()

    def wake(self) -> None:
        """Everything is there, or this wire does nothing more for it."""
        if self.done and not self.done.done():
            self.done.set_result(None)


class Sent(NamedTuple):
    """A request under way."""

    exchange: Exchange
    at: int
    query: Query
    due_s: float


class Wire(asyncio.Protocol):
    """Dialled by the line, never used again once it is lost or `spent`."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self.spent = False
        """A reply may still be under way that nothing would tell from the next one."""
        self.error: NotConnected | None = None
        """Lost, and why; the first reason counts."""
        self.loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._clock = clock
        self._counters = counters
        """Of whoever asked last."""
        self._buffer = b""
        self._sent: dict[int, Sent] = {}
        """By transaction id; RTU: 0."""
        self._waiting: list[Exchange] = []
        """A heap: exchanges with requests that have not gone out."""
        self._sent_max = 1
        self._gap_s = 0.0
        self._free_s = 0.0
        """When the next request may go out, on the monotonic clock."""
        self._pacer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0

    @property
    def usable(self) -> bool:
        """Requests may be sent."""
        return not (self.spent or self.error or self._transport is None or self._transport.is_closing())

    @property
    def under_way(self) -> set[asyncio.Future[None]]:
        """Who waits for a reply that may still come: also on a `spent` wire."""
        return {sent.exchange.done for sent in self._sent.values() if sent.exchange.done}

    def behave(self, manners: Manners) -> None:
        """From the next request on."""
        self._sent_max = manners.pipeline
        self._gap_s = manners.pause_ns / 1e9

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(f"connection lost: {os_error_text(error)}" if error else "connection closed by the device")
        self._transport = None
        for timer in (self._timer, self._pacer):
            if timer:
                timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._counters.add("received_bytes", len(data))
        self._buffer = self._buffer + data if self._buffer else data
        self._take()
        if self._waiting:  # not before: what came already answers nothing that is asked now
            self._send()

    def abort(self) -> None:
        """Ends the connection at once; `closed` follows."""
        if self._transport is not None:
            self._transport.abort()

    def submit(self, exchange: Exchange) -> None:
        """Asks what is left of it. It is woken when all replies are there, or the wire is lost or spent."""
        heapq.heappush(self._waiting, exchange)
        self._send()

    def forget(self, exchange: Exchange) -> None:
        """Nobody waits for it any more."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)
            heapq.heapify(self._waiting)
        for key, sent in list(self._sent.items()):
            if sent.exchange is exchange:
                del self._sent[key]
                self._distrust(sent)

    def _take(self) -> None:
        """Takes what is whole out of the buffer."""
        raise NotImplementedError

    def _write(self, transport: asyncio.Transport, query: Query) -> int:
        """Sends it; the key of its reply."""
        raise NotImplementedError

    def _distrust(self, sent: Sent) -> None:
        """Its reply may still come."""
        self.spent = True

    def _next(self) -> Exchange | None:
        """Whose request goes out next; None: nobody's now, and `_send_at` says when."""
        return self._waiting[0]

    def _patience_s(self, exchange: Exchange, query: Query) -> float:
        """From the request to the end of its reply."""
        return exchange.timeout_s

    def _send(self) -> None:
        """Sends what there is room for. Wakes those who wait on a wire that does nothing more."""
        while self._waiting and len(self._sent) < self._sent_max and not self.spent and not self.error:
            if self._transport is None or self._transport.is_closing():
                self._lose("connection closed by the device")
            elif self._free_s and self._free_s > time.monotonic():
                return self._send_at(self._free_s)
            elif (exchange := self._next()) is None:
                return
            else:
                self._ask(self._transport, exchange)
        if (self.spent or self.error) and not self._sent:
            for exchange in self._waiting:
                exchange.wake()

    def _ask(self, transport: asyncio.Transport, exchange: Exchange) -> None:
        at = exchange.asked
        query = exchange.queries[at]
        exchange.asked += 1
        if exchange.asked == len(exchange.queries):
            if self._waiting[0] is exchange:
                heapq.heappop(self._waiting)
            else:
                self._waiting.remove(exchange)
                heapq.heapify(self._waiting)
        self._counters = exchange.counters
        self._counters.add("requests")
        due_s = self.loop.time() + self._patience_s(exchange, query)
        self._sent[self._write(transport, query)] = Sent(exchange, at, query, due_s)
        if self._timer is None or due_s < self._timer_s:
            self._watch_at(due_s)

    def _send_at(self, when_s: float) -> None:
        """Sends then, on the monotonic clock. Timers have whole milliseconds, and may be that early."""
        if self._pacer:
            self._pacer.cancel()
        wait_s = math.ceil(max(0.0, when_s - time.monotonic()) * 1e3) / 1e3
        self._pacer = self.loop.call_later(wait_s, self._send)

    def _watch_at(self, due_s: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self.loop.call_at(due_s, self._watch)

    def _watch(self) -> None:
        """The requests under way may be later ones than the one that the timer was made for."""
        self._timer = None
        now_s = self.loop.time()
        for key, sent in list(self._sent.items()):
            if sent.due_s <= now_s:
                sent.exchange.counters.add("timeouts")
                self._distrust(sent)
                self._settle(key, RequestFailed(BAD_TIMEOUT, f"no reply within {sent.exchange.timeout_s:g} s"))
        if self._sent:
            self._watch_at(min(sent.due_s for sent in self._sent.values()))
        self._send()

    def _settle(self, key: int, outcome: bytes | RequestFailed) -> None:
        """This is what became of a request."""
        exchange, at, query, _ = self._sent.pop(key)
        reply: Reply | None = None
        if isinstance(outcome, bytes):
            reply = exchange.replies[at] = Reply(outcome, self._clock.wall_ns())
        else:
            if outcome.exception_code:
                exchange.counters.add("exceptions")
            elif outcome.status == BAD_COMMUNICATION_ERROR:
                exchange.counters.add("bad_replies")
            exchange.replies[at] = without_values(query, self._clock, outcome)
        if self._gap_s:
            self._free_s = max(self._free_s, time.monotonic() + self._gap_s)
        exchange.missing -= 1
        if not exchange.missing:
            exchange.wake()
        if exchange.arrived and reply:
            exchange.arrived(query, reply)

    def _lose(self, reason: str) -> None:
        """The connection is worth nothing."""
        self.error = self.error or NotConnected(reason)
        for sent in self._sent.values():
            sent.exchange.wake()
        for exchange in self._waiting:
            exchange.wake()
        self._sent.clear()


def without_values(query: Query, clock: Clock, failure: RequestFailed) -> Reply:
    """The reply that a request without one gets."""
    return Reply(bytes(query.reply_bytes), clock.wall_ns(), failure)


def os_error_text(error: Exception) -> str:
    """An operating system's error in few words."""
    if isinstance(error, NetworkRefused):
        return str(error)
    if isinstance(error, socket.gaierror):
        return "host name not found"
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return str(getattr(error, "strerror", None) or error).lower()
