"""One connection to one Modbus unit: a request goes out, its reply comes back, and nothing else is ever taken for it.

A thin transaction layer. Requests are made by pymodbus's PDUs and framers, once per planned read; then only the
transaction id changes. pymodbus's client is not used, because its transaction manager costs several times the whole
exchange here. Replies are cut out of the stream here and not by the framers: FramerSocket waits for ever on a header
that is not Modbus, and FramerRTU cannot know which length was asked for.

    TCP  (Messaging on TCP/IP V1.0b, section 3.1.3)  | transaction 2 | protocol 2 = 0 | length 2 | unit 1 | PDU |
    RTU  (Serial Line V1.02, section 2.5.1)          | unit 1 | PDU | CRC-16 2, low byte first |
    PDU of a read reply (Application Protocol V1.1b3, section 6)   | function 1 | byte count 1 | data |
    PDU of an exception (section 7)                                | function + 0x80 1 | exception code 1 |

A reply counts when transaction, unit, function and byte count are those of the request. On TCP a late reply is known by
its transaction id, dropped and counted. RTU has no such id: after a time-out, a wrong reply or surplus bytes the
connection is given up and the next request dials a new one, once, so that what is still under way arrives nowhere.
There is no reconnect loop: what cannot be repaired so is NotConnected, and the supervisor's business.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsRequest, ReadDiscreteInputsRequest
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest

from connectors.modbus_plan import Block
from connectors.modbus_settings import ModbusUrl
from connectors.tcp import MACHINE_PATIENCE, notice_dead_peer
from pipelines.batch import BAD_TIMEOUT
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected

BAD_COMMUNICATION_ERROR = 0x8005_0000
BAD_CONNECTION_CLOSED = 0x80AE_0000
BAD_DEVICE_FAILURE = 0x808B_0000
ILLEGAL_ADDRESS = 2
ILLEGAL_VALUE = 3
EXCEPTIONS: Mapping[int, tuple[int, str]] = {
    1: (0x803D_0000, "illegal function (exception 1): the device cannot read this table"),
    ILLEGAL_ADDRESS: (
        0x8034_0000,
        "illegal data address (exception 2): the device has no such register; check the address",
    ),
    ILLEGAL_VALUE: (0x803C_0000, "illegal data value (exception 3): the device refuses to read this many at once"),
    4: (BAD_DEVICE_FAILURE, "server device failure (exception 4)"),
    5: (0x8004_0000, "acknowledge (exception 5): the device needs more time"),
    6: (0x8004_0000, "server device busy (exception 6)"),
    8: (BAD_DEVICE_FAILURE, "memory parity error (exception 8)"),
    10: (0x8031_0000, "gateway path unavailable (exception 10): check the unit id"),
    11: (0x8031_0000, "gateway target device failed to respond (exception 11): check unit id and wiring"),
}
"""Exception code (V1.1b3, section 7) -> OPC UA StatusCode and text. The codes, in order: BadNotSupported,
BadNodeIdUnknown, BadOutOfRange, BadDeviceFailure, BadResourceUnavailable (twice), BadDeviceFailure, BadNoCommunication
(twice). Any other exception is BadDeviceFailure."""

_REQUESTS: Mapping[int, type[ModbusPDU]] = {
    request.function_code: request
    for request in (
        ReadCoilsRequest,
        ReadDiscreteInputsRequest,
        ReadHoldingRegistersRequest,
        ReadInputRegistersRequest,
    )
}
_HEADER = struct.Struct(">HHHBBB")
_LENGTH_MIN, _LENGTH_MAX = 3, 254
"""Of the MBAP length field: unit and the shortest PDU (an exception); unit and the longest PDU (253 bytes)."""
_EXCEPTION_FRAME_BYTES = 5


class Query(NamedTuple):
    """A read, ready to be sent."""

    unit: int
    function: int
    reply_bytes: int
    frame: bytes
    """TCP: everything behind the transaction id. RTU: everything, with the CRC."""
    sized: Callable[[bytes], int] | None = None
    """Of a reply that says its own length: the PDU as far as it has come -> its bytes in all, 0 while that is unknown.
    The reply's data is then all of the PDU behind the function code."""


class Reply(NamedTuple):
    """Data bytes of a good reply, as many as were asked for, and the wall clock when the last of them came."""

    data: bytes
    received_ns: int
    failure: RequestFailed | None = None
    """No values came, `data` is zeros, and this is why."""


class RequestFailed(Exception):
    """No values for this request; the connection itself may go on. `status` is an OPC UA StatusCode."""

    def __init__(self, status: int, reason: str, exception_code: int = 0) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.exception_code = exception_code
        """What the device answered; 0 when it did not answer, or wrongly."""


def query(url: ModbusUrl, block: Block) -> Query:
    """The request for `block`; made once, sent at every poll."""
    pdu = _REQUESTS[block.table.function](address=block.start, count=block.count, dev_id=url.unit)
    framer = FramerRTU(DecodePDU(False)) if url.rtu else FramerSocket(DecodePDU(False))
    frame = framer.buildFrame(pdu)
    return Query(url.unit, block.table.function, block.reply_bytes, frame if url.rtu else frame[2:])


def request(url: ModbusUrl, pdu: bytes, sized: Callable[[bytes], int]) -> Query:
    """Any other request; for `sized` see Query."""
    body = bytes([url.unit]) + pdu
    frame = body + FramerRTU.compute_CRC(body).to_bytes(2, "big") if url.rtu else bytes([0, 0, 0, len(body)]) + body
    return Query(url.unit, pdu[0], 0, frame, sized)


def _exception(code: int) -> RequestFailed:
    status, reason = EXCEPTIONS.get(code, (BAD_DEVICE_FAILURE, f"exception {code}"))
    return RequestFailed(status, reason, code)


def _unlike(what: str, came: int, asked: int) -> RequestFailed:
    return RequestFailed(BAD_COMMUNICATION_ERROR, f"wrong reply: {what} {came} came, {asked} was asked for")


class _Wire(asyncio.Protocol):
    """One TCP connection; dialled by the link, never used again once it is lost or `spent`.

    The next request goes out as soon as the reply before it is in: a whole exchange is one wait of one task. One timer
    watches all its requests.
    """

    def __init__(self, timeout_s: float, clock: Clock, counters: Counters) -> None:
        self.spent = False
        """A reply may still be under way that nothing would tell from the next one."""
        self.loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._error: NotConnected | None = None
        self._transport: asyncio.Transport | None = None
        self._timeout_s = timeout_s
        self._clock = clock
        self._counters = counters
        self._buffer = b""
        self._left: Iterator[Query] = iter(())
        self._query: Query | None = None
        """Waits for its reply."""
        self._replies: list[Reply] = []
        self._done: asyncio.Future[None] | None = None
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(f"connection lost: {_oserror(error)}" if error else "connection closed by the device")
        self._transport = None
        if self._timer:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._counters.add("received_bytes", len(data))
        self._buffer = self._buffer + data if self._buffer else data
        waited = self._query is not None
        self._take()
        if waited and self._query is None:  # not before: what came already answers nothing that is asked now
            self._ask()

    def abort(self) -> None:
        """Ends the connection at once; `closed` follows."""
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, queries: Sequence[Query], replies: list[Reply]) -> None:
        """Asks one after the other and appends their replies; stops behind one that left the wire `spent`.

        Raises NotConnected.
        """
        self._left, self._replies = iter(queries), replies
        self._done = self.loop.create_future()
        self._ask()
        try:
            await self._done
        finally:
            self._forget()
        if self._error:
            raise self._error

    def _take(self) -> None:
        """Takes what is whole out of the buffer."""
        raise NotImplementedError

    def _frame(self, query: Query) -> bytes:
        """What is sent."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Nobody waits for this reply any more."""
        self._query = None

    def _ask(self) -> None:
        """Sends the next request, or ends the exchange."""
        query = None if self.spent else next(self._left, None)
        if query is None:
            self._end()
        elif self._transport is None or self._transport.is_closing():
            self._lose("connection closed by the device")
        else:
            self._query = query
            self._counters.add("requests")
            self._transport.write(self._frame(query))
            self._due_s = self.loop.time() + self._timeout_s
            if self._timer is None:
                self._timer = self.loop.call_at(self._due_s, self._watch)

    def _watch(self) -> None:
        """The request under way may be a later one than the one that the timer was made for."""
        self._timer = None
        query = self._query
        if query is None:
            return
        if self.loop.time() < self._due_s:
            self._timer = self.loop.call_at(self._due_s, self._watch)
            return
        self._forget()
        self._counters.add("timeouts")
        failure = RequestFailed(BAD_TIMEOUT, f"no reply within {self._timeout_s:g} s")
        self._replies.append(_without_values(query, self._clock, failure))
        self._ask()

    def _settle(self, data: bytes) -> None:
        self._query = None
        self._replies.append(Reply(data, self._clock.wall_ns()))

    def _refuse(self, query: Query, failure: RequestFailed) -> None:
        self._query = None
        self._counters.add("exceptions" if failure.exception_code else "bad_replies")
        self._replies.append(_without_values(query, self._clock, failure))

    def _lose(self, reason: str) -> None:
        """The connection is worth nothing; the first reason counts."""
        self._error = self._error or NotConnected(reason)
        self._end()

    def _end(self) -> None:
        if self._done and not self._done.done():
            self._done.set_result(None)


class _TcpWire(_Wire):
    """Modbus TCP. Each request has its transaction id, and a reply with another one is nobody's."""

    _transaction = 0

    def _frame(self, query: Query) -> bytes:
        self._transaction = (self._transaction + 1) & 0xFFFF
        return self._transaction.to_bytes(2, "big") + query.frame

    def _take(self) -> None:
        data = self._buffer
        at, end = 0, len(data)
        while end - at >= _HEADER.size:
            transaction, protocol, length, unit, function, first = _HEADER.unpack_from(data, at)
            if protocol or not _LENGTH_MIN <= length <= _LENGTH_MAX:
                self._counters.add("bad_replies")
                self._lose("what came is not Modbus TCP: is the port right?")
                self.abort()
                return
            stop = at + 6 + length
            if stop > end:
                break
            if self._query is None or transaction != self._transaction:
                self._counters.add("stale_replies")
            else:
                self._judge(self._query, unit, function, first, data[at + _HEADER.size : stop])
            at = stop
        self._buffer = data[at:]

    def _judge(self, query: Query, unit: int, function: int, first: int, data: bytes) -> None:
        """One whole frame; `first` is the PDU's second byte: byte count, or exception code."""
        if unit != query.unit:
            self._refuse(query, _unlike("unit", unit, query.unit))
        elif function == query.function | 0x80 and not data:
            self._refuse(query, _exception(first))
        elif function != query.function:
            self._refuse(query, _unlike("function", function, query.function))
        elif query.sized:
            self._settle(bytes([first]) + data)
        elif not first == len(data) == query.reply_bytes:
            came = first if first != query.reply_bytes else len(data)
            self._refuse(query, _unlike("byte count", came, query.reply_bytes))
        else:
            self._settle(data)


class _RtuWire(_Wire):
    """RTU frames inside TCP: the byte count that was asked for says where a reply ends."""

    def _frame(self, query: Query) -> bytes:
        return query.frame

    def _forget(self) -> None:
        self.spent = self.spent or self._query is not None
        self._query = None

    def _take(self) -> None:
        query = self._query
        if query is None:
            self._counters.add("stale_replies")
            self.spent, self._buffer = True, b""
            return
        if len(self._buffer) < _EXCEPTION_FRAME_BYTES:
            return
        size, failure = self._expected(query)
        if len(self._buffer) < size:
            return
        frame, surplus = self._buffer[:size], len(self._buffer) - size
        if size and not FramerRTU.check_CRC(frame[:-2], int.from_bytes(frame[-2:], "big")):
            failure = RequestFailed(BAD_COMMUNICATION_ERROR, "wrong reply: its CRC does not fit")
        self._buffer = b""
        self.spent = surplus > 0 or (failure is not None and not failure.exception_code)
        if failure is None:
            self._settle(frame[2:-2] if query.sized else frame[3:-2])
        else:
            self._refuse(query, failure)

    def _expected(self, query: Query) -> tuple[int, RequestFailed | None]:
        """Size of the frame that has begun, 0 when it cannot be the reply; and the failure that it means."""
        unit, function, first = self._buffer[:3]
        if unit != query.unit:
            return 0, _unlike("unit", unit, query.unit)
        if function == query.function | 0x80:
            return _EXCEPTION_FRAME_BYTES, _exception(first)
        if function != query.function:
            return 0, _unlike("function", function, query.function)
        if query.sized:
            pdu_bytes = query.sized(self._buffer[1:])
            return 1 + pdu_bytes + 2 if pdu_bytes else len(self._buffer) + 1, None
        if first != query.reply_bytes:
            return 0, _unlike("byte count", first, query.reply_bytes)
        return 3 + first + 2, None


class ModbusLink:
    """`connect`, then `read` one after the other, then `close`.

    Counts requests, timeouts, exceptions, bad_replies, stale_replies, received_bytes.
    """

    def __init__(self, url: ModbusUrl, timeout_ns: int, clock: Clock, counters: Counters) -> None:
        self.lost = "not connected"
        """Why nothing is read until the next `connect`; empty while all is well."""
        self._url = url
        self._timeout_s = timeout_ns / 1e9
        self._clock = clock
        self._counters = counters
        self._wire: _Wire | None = None

    async def connect(self) -> None:
        """Dials once. Raises NotConnected. Cancelled in the middle it leaves nothing open."""
        await self.close()
        try:
            await self._dial()
        except NotConnected as error:
            raise NotConnected(self.give_up(str(error))) from error
        self.lost = ""

    async def read(self, queries: Sequence[Query]) -> list[Reply]:
        """A reply to each, asked one after the other. What has no values has a `failure`: BAD_CONNECTION_CLOSED, with
        `lost` as its reason, from where the connection was lost."""
        replies: list[Reply] = []
        try:
            while not self.lost and len(replies) < len(queries):
                wire = await self._usable()
                await wire.exchange(queries[len(replies) :] if replies else queries, replies)
        except NotConnected as error:
            self.give_up(str(error))
        if self.lost:
            failure = RequestFailed(BAD_CONNECTION_CLOSED, self.lost)
            replies += [_without_values(query, self._clock, failure) for query in queries[len(replies) :]]
        return replies

    def give_up(self, reason: str) -> str:
        """Nothing is read until the next `connect`, because of `reason`; returns `lost`."""
        self.lost = f"modbus {self._url}: {reason}"
        return self.lost

    async def close(self) -> None:
        """Idempotent; returns when the connection is gone. A `read` that is under way ends as when it is lost."""
        self.lost = self.lost or "not connected"
        await self._hang_up()

    async def _hang_up(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            await wire.closed

    async def _usable(self) -> _Wire:
        if self._wire is not None and not self._wire.spent:
            return self._wire
        await self._hang_up()
        return await self._dial()

    async def _dial(self) -> _Wire:
        wire = (_RtuWire if self._url.rtu else _TcpWire)(self._timeout_s, self._clock, self._counters)
        try:
            async with asyncio.timeout(self._timeout_s):
                transport, _ = await wire.loop.create_connection(lambda: wire, self._url.host, self._url.port)
            silence_ns = int(MACHINE_PATIENCE * self._timeout_s * 1e9)
            notice_dead_peer(transport.get_extra_info("socket"), silence_ns)
            self._wire = wire
        except TimeoutError as error:
            raise NotConnected(f"no connection within {self._timeout_s:g} s") from error
        except OSError as error:
            raise NotConnected(_oserror(error)) from error
        finally:
            if self._wire is not wire:
                wire.abort()
        return wire


def _without_values(query: Query, clock: Clock, failure: RequestFailed) -> Reply:
    return Reply(bytes(query.reply_bytes), clock.wall_ns(), failure)


def _oserror(error: Exception) -> str:
    """An operating system's error in few words."""
    if isinstance(error, socket.gaierror):
        return "host name not found"
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return str(getattr(error, "strerror", None) or error).lower()
