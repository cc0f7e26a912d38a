"""Modbus frames: requests that are made once, and what makes bytes the reply to one of them. Pure: no I/O, no clock.

Requests are made by pymodbus's PDUs and framers; then only the transaction id changes. Replies are cut out of what
comes here and not by the framers: FramerSocket waits for ever on a header that is not Modbus, and FramerRTU cannot know
which length was asked for.

    TCP  (Messaging on TCP/IP V1.0b, section 3.1.3)  | transaction 2 | protocol 2 = 0 | length 2 | unit 1 | PDU |
    RTU  (Serial Line V1.02, section 2.5.1)          | unit 1 | PDU | CRC-16 2, low byte first |
    PDU of a read reply (Application Protocol V1.1b3, section 6)   | function 1 | byte count 1 | data |
    PDU of an exception (section 7)                                | function + 0x80 1 | exception code 1 |

A reply counts when unit, function and byte count are those of the request, and on TCP the transaction id as well.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pymodbus.framer import FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.pdu.bit_message import ReadCoilsRequest, ReadDiscreteInputsRequest
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest

from connectors.modbus_plan import Block
from connectors.modbus_url import ModbusUrl

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
HEADER = struct.Struct(">HHHBBB")
"""Of a TCP reply: transaction, protocol, length, unit, function, and the PDU's second byte."""
LENGTH_MIN, LENGTH_MAX = 3, 254
"""Of the MBAP length field: unit and the shortest PDU (an exception); unit and the longest PDU (253 bytes)."""
EXCEPTION_FRAME_BYTES = 5
RTU_OVERHEAD_BYTES = 5
"""Of a read reply: unit, function, byte count, CRC."""
RTU_DATA_BYTES_MAX = 251


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


def tcp_reply(query: Query, unit: int, function: int, first: int, data: bytes) -> bytes | RequestFailed:
    """The data of one whole frame, or why it has none; `first` is the PDU's second byte: byte count or exception."""
    if unit != query.unit:
        return _unlike("unit", unit, query.unit)
    if function == query.function | 0x80 and not data:
        return _exception(first)
    if function != query.function:
        return _unlike("function", function, query.function)
    if query.sized:
        return bytes([first]) + data
    if not first == len(data) == query.reply_bytes:
        return _unlike("byte count", first if first != query.reply_bytes else len(data), query.reply_bytes)
    return data


class RtuReply(NamedTuple):
    """What has begun to come on an RTU line, judged as the reply to a request."""

    size: int
    """Bytes of the whole frame; 0 when it cannot be the reply, however it goes on."""
    outcome: bytes | RequestFailed
    """Its data, or why it has none. Of a frame that is not whole yet it says nothing."""

    @property
    def damaged(self) -> bool:
        """It is neither the reply nor an exception."""
        return isinstance(self.outcome, RequestFailed) and not self.outcome.exception_code


def rtu_reply(query: Query, came: bytes) -> RtuReply | None:
    """None while too little has come to say."""
    if len(came) < EXCEPTION_FRAME_BYTES:
        return None
    unit, function, first = came[:3]
    if unit != query.unit:
        return RtuReply(0, _unlike("unit", unit, query.unit))
    if function == query.function | 0x80:
        return _checked(came, EXCEPTION_FRAME_BYTES, _exception(first))
    if function != query.function:
        return RtuReply(0, _unlike("function", function, query.function))
    if query.sized:
        pdu_bytes = query.sized(came[1:])
        size = 1 + pdu_bytes + 2 if pdu_bytes else len(came) + 1
        return _checked(came, size, came[2 : size - 2])
    if first != query.reply_bytes:
        return RtuReply(0, _unlike("byte count", first, query.reply_bytes))
    size = first + RTU_OVERHEAD_BYTES
    return _checked(came, size, came[3 : size - 2])


def rtu_reply_at_end(query: Query, burst: bytes) -> bytes | RequestFailed | None:
    """What lies between two silences may begin with noise, an echo or another unit's reply: the reply at its end, whole
    and with its CRC. None where there is none."""
    at = -1
    while (at := burst.find(query.unit, at + 1)) >= 0:
        found = rtu_reply(query, burst[at:])
        if found and found.size == len(burst) - at and not found.damaged:
            return found.outcome
    return None


def whole(frame: bytes) -> bool:
    """The CRC at its end fits."""
    return len(frame) >= _RTU_FRAME_MIN and FramerRTU.check_CRC(frame[:-2], int.from_bytes(frame[-2:], "big"))


_RTU_FRAME_MIN = 4


def _checked(came: bytes, size: int, outcome: bytes | RequestFailed) -> RtuReply:
    if len(came) >= size and not whole(came[:size]):
        return RtuReply(size, RequestFailed(BAD_COMMUNICATION_ERROR, "wrong reply: its CRC does not fit"))
    return RtuReply(size, outcome)


def _exception(code: int) -> RequestFailed:
    status, reason = EXCEPTIONS.get(code, (BAD_DEVICE_FAILURE, f"exception {code}"))
    return RequestFailed(status, reason, code)


def _unlike(what: str, came: int, asked: int) -> RequestFailed:
    return RequestFailed(BAD_COMMUNICATION_ERROR, f"wrong reply: {what} {came} came, {asked} was asked for")
