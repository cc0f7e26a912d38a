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
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsRequest, ReadDiscreteInputsRequest
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest

from connectors.modbus_plan import Block
from connectors.modbus_settings import ModbusUrl
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


class Reply(NamedTuple):
    """Data bytes of a good reply, as many as were asked for, and the wall clock when the last of them came."""

    data: bytes
    received_ns: int
    failure: RequestFailed | None = None
    """Set by who polls: no values came, `data` is zeros, and this is why."""


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


def _exception(code: int) -> RequestFailed:
    status, reason = EXCEPTIONS.get(code, (BAD_DEVICE_FAILURE, f"exception {code}"))
    return RequestFailed(status, reason, code)


def _unlike(what: str, came: int, asked: int) -> RequestFailed:
    return RequestFailed(BAD_COMMUNICATION_ERROR, f"wrong reply: {what} {came} came, {asked} was asked for")


class _Wire(asyncio.Protocol):
    """One TCP connection; dialled by the link, never used again once it is lost or `spent`."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self.spent = False
        """A reply may still be under way that nothing would tell from the next one."""
        self.loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._clock = clock
        self._counters = counters

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.fail(NotConnected(f"connection lost: {_oserror(error)}" if error else "connection closed by the device"))
        if not self.closed.done():
            self.closed.set_result(None)

    def transport(self) -> asyncio.Transport:
        """Raises NotConnected when the connection has gone."""
        if self._transport is None or self._transport.is_closing():
            raise NotConnected("connection closed by the device")
        return self._transport

    def abort(self) -> None:
        """Ends the connection at once; `closed` follows."""
        if self._transport is not None:
            self._transport.abort()

    def send(self, query: Query) -> tuple[int, asyncio.Future[Reply]]:
        """Sends; the id for `forget`, and the reply's future (RequestFailed, NotConnected)."""
        raise NotImplementedError

    def forget(self, transaction: int) -> None:
        """Nobody waits for this reply any more."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Ends every wait with `error`."""
        raise NotImplementedError

    def _settle(self, future: asyncio.Future[Reply], data: bytes) -> None:
        if future.done():
            self._counters.add("stale_replies")
        else:
            future.set_result(Reply(data, self._clock.wall_ns()))

    def _refuse(self, future: asyncio.Future[Reply], failure: RequestFailed) -> None:
        self._counters.add("exceptions" if failure.exception_code else "bad_replies")
        if not future.done():
            future.set_exception(failure)


_Waiting: TypeAlias = dict[int, tuple[Query, asyncio.Future[Reply]]]


class _TcpWire(_Wire):
    """Modbus TCP. Any number of requests may wait, each under its transaction id; the link sends one at a time."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        super().__init__(clock, counters)
        self._waiting: _Waiting = {}
        self._transaction = 0

    def send(self, query: Query) -> tuple[int, asyncio.Future[Reply]]:
        transaction = self._transaction = (self._transaction + 1) & 0xFFFF
        reply: asyncio.Future[Reply] = self.loop.create_future()
        self.transport().write(transaction.to_bytes(2, "big") + query.frame)
        self._waiting[transaction] = query, reply
        return transaction, reply

    def forget(self, transaction: int) -> None:
        self._waiting.pop(transaction, None)

    def fail(self, error: Exception) -> None:
        for _, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(error)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._counters.add("received_bytes", len(data))
        data = self._buffer + data if self._buffer else data
        at, end = 0, len(data)
        while end - at >= _HEADER.size:
            transaction, protocol, length, unit, function, first = _HEADER.unpack_from(data, at)
            if protocol or not _LENGTH_MIN <= length <= _LENGTH_MAX:
                self._counters.add("bad_replies")
                self.fail(NotConnected("what came is not Modbus TCP: is the port right?"))
                self.abort()
                return
            stop = at + 6 + length
            if stop > end:
                break
            self._take(transaction, unit, function, first, data[at + _HEADER.size : stop])
            at = stop
        self._buffer = data[at:]

    def _take(self, transaction: int, unit: int, function: int, first: int, data: bytes) -> None:
        """One whole frame; `first` is the PDU's second byte: byte count, or exception code."""
        waiting = self._waiting.pop(transaction, None)
        if waiting is None:
            self._counters.add("stale_replies")
            return
        query, reply = waiting
        if unit != query.unit:
            self._refuse(reply, _unlike("unit", unit, query.unit))
        elif function == query.function | 0x80 and not data:
            self._refuse(reply, _exception(first))
        elif function != query.function:
            self._refuse(reply, _unlike("function", function, query.function))
        elif not first == len(data) == query.reply_bytes:
            came = first if first != query.reply_bytes else len(data)
            self._refuse(reply, _unlike("byte count", came, query.reply_bytes))
        else:
            self._settle(reply, data)


class _RtuWire(_Wire):
    """RTU frames inside TCP: one request at a time, and the byte count that was asked for says where its reply ends."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        super().__init__(clock, counters)
        self._waiting: tuple[Query, asyncio.Future[Reply]] | None = None

    def send(self, query: Query) -> tuple[int, asyncio.Future[Reply]]:
        assert self._waiting is None, "a serial line carries one request at a time"
        reply: asyncio.Future[Reply] = self.loop.create_future()
        self.transport().write(query.frame)
        self._waiting = query, reply
        return 0, reply

    def forget(self, transaction: int) -> None:
        self.spent = self.spent or self._waiting is not None
        self._waiting = None

    def fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_exception(error)
        self._waiting = None

    def data_received(self, data: bytes) -> None:
        self._counters.add("received_bytes", len(data))
        if self._waiting is None:
            self._counters.add("stale_replies")
            self.spent = True
            return
        self._buffer += data
        if len(self._buffer) < _EXCEPTION_FRAME_BYTES:
            return
        query, reply = self._waiting
        size, failure = self._judge(query)
        if len(self._buffer) < size:
            return
        frame, surplus = self._buffer[:size], len(self._buffer) - size
        if size and not FramerRTU.check_CRC(frame[:-2], int.from_bytes(frame[-2:], "big")):
            failure = RequestFailed(BAD_COMMUNICATION_ERROR, "wrong reply: its CRC does not fit")
        self._waiting, self._buffer = None, b""
        self.spent = surplus > 0 or (failure is not None and not failure.exception_code)
        if failure is None:
            self._settle(reply, frame[3:-2])
        else:
            self._refuse(reply, failure)

    def _judge(self, query: Query) -> tuple[int, RequestFailed | None]:
        """Size of the frame that has begun, 0 when it cannot be the reply; and the failure that it means."""
        unit, function, first = self._buffer[:3]
        if unit != query.unit:
            return 0, _unlike("unit", unit, query.unit)
        if function == query.function | 0x80:
            return _EXCEPTION_FRAME_BYTES, _exception(first)
        if function != query.function:
            return 0, _unlike("function", function, query.function)
        if first != query.reply_bytes:
            return 0, _unlike("byte count", first, query.reply_bytes)
        return 3 + first + 2, None


class ModbusLink:
    """`connect`, then `request` one after the other, then `close`.

    Counts timeouts, exceptions, bad_replies, stale_replies, received_bytes.
    """

    def __init__(self, url: ModbusUrl, timeout_ns: int, clock: Clock, counters: Counters) -> None:
        self._url = url
        self._timeout_s = timeout_ns / 1e9
        self._clock = clock
        self._counters = counters
        self._wire: _Wire | None = None

    async def connect(self) -> None:
        """Dials once. Raises NotConnected. Cancelled in the middle it leaves nothing open."""
        await self.close()
        await self._dial()

    async def request(self, query: Query) -> Reply:
        """One exchange. Raises RequestFailed (the next request may go on) or NotConnected."""
        wire = self._wire
        if wire is None:
            raise self.lost("not connected")
        if wire.spent:
            await self.close()
            wire = await self._dial()
        try:
            transaction, reply = wire.send(query)
        except NotConnected as error:
            raise self.lost(str(error)) from error
        timer = wire.loop.call_later(self._timeout_s, self._expire, reply)
        try:
            return await reply
        except NotConnected as error:
            raise self.lost(str(error)) from error
        except asyncio.CancelledError:
            if not reply.cancelled():
                reply.exception()  # it came in the same step; looked at, so that asyncio does not report it
            raise
        finally:
            timer.cancel()
            wire.forget(transaction)

    async def _dial(self) -> _Wire:
        wire = (_RtuWire if self._url.rtu else _TcpWire)(self._clock, self._counters)
        try:
            async with asyncio.timeout(self._timeout_s):
                await wire.loop.create_connection(lambda: wire, self._url.host, self._url.port)
            self._wire = wire
        except TimeoutError as error:
            raise self.lost(f"no connection within {self._timeout_s:g} s") from error
        except OSError as error:
            raise self.lost(_oserror(error)) from error
        finally:
            if self._wire is not wire:
                wire.abort()
        return wire

    async def close(self) -> None:
        """Idempotent; returns when the connection is gone. Waits that are under way end with NotConnected."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            await wire.closed

    def lost(self, reason: str) -> NotConnected:
        """The error of this connection, for `reason`."""
        return NotConnected(f"modbus {self._url}: {reason}")

    def _expire(self, reply: asyncio.Future[Reply]) -> None:
        if not reply.done():
            self._counters.add("timeouts")
            reply.set_exception(RequestFailed(BAD_TIMEOUT, f"no reply within {self._timeout_s:g} s"))


def _oserror(error: Exception) -> str:
    """An operating system's error in few words."""
    if isinstance(error, socket.gaierror):
        return "host name not found"
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return str(getattr(error, "strerror", None) or error).lower()
