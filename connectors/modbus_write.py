"""Values -> registers, and the requests that write them (Application Protocol V1.1b3, sections 6.5, 6.6, 6.11, 6.12,
6.16, 6.17). `encode` is the inverse of `modbus_decode.Layout`.

    one coil                          5   write single coil
    several coils                    15   write multiple coils
    one register                      6   write single register
    several registers                16   write multiple registers, in one request: a value is never torn
    a bit, or half of a register     22   mask write register: the other bits stay as the device has them at that moment
    where asked                      23   read/write multiple registers: what is read back is of the same request

A device without function 22 (exception 1) has its register read, changed and written with function 6: what else changes
that register in between is lost. No write is ever sent twice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from math import isfinite
from typing import Any, Final, NamedTuple

import numpy as np

from connectors.modbus_decode import NUMBER_TYPES, SCALE_MAX, Layout, byte_order
from connectors.modbus_frames import BAD_COMMUNICATION_ERROR, Reply, RequestFailed, query, request
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Block, DataType, Point, Table
from connectors.modbus_time import from_ns
from connectors.modbus_url import ModbusUrl

ILLEGAL_FUNCTION: Final = 1
REGISTERS_WRITTEN_MAX: Final = 123
"""In one request of function 16 (section 6.12); 121 of function 23 (section 6.17)."""
_BCD_MAX = {DataType.BCD16: 9_999, DataType.BCD32: 99_999_999}
_ON = 0xFF00


class Written(NamedTuple):
    """What a write came to."""

    value: Any
    """Read back from the device, in engineering units; None where it has no value."""
    same: bool
    """The device holds what was written."""


async def write(
    link: ModbusLink,
    url: ModbusUrl,
    point: Point,
    value: Any,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    function: int | None = None,
) -> Written:
    """Writes a value in engineering units and reads it back. `function`: 16 or 23 in place of 6 and 16.

    Raises ValueError for a value that the point cannot hold, and RequestFailed, with an OPC UA StatusCode, for what the
    device or the connection did not do: then it is unknown whether the value was written.
    """
    power = await _power(link, url, point.scale_from) if point.scale_from else 0
    raw = raw_of(point, value, scale, offset, power)
    data = encode(point, raw)
    if function == 23 and point.table is Table.HOLDING and not _is_part(point):
        came = await _send(link, url, _read_write(point, data), _read_write_bytes)
        came = came[1:]
    else:
        if _is_part(point):
            await _write_part(link, url, point, data)
        else:
            pdu = _pdu(point, data, function)
            _check_echo(pdu, await _send(link, url, pdu, lambda _: 5))
        came = (await _read(link, url, _block(point))).data
    if len(came) != _block(point).reply_bytes:
        raise RequestFailed(BAD_COMMUNICATION_ERROR, "wrong reply: not as many registers as were asked for")
    read_back = _decoded(point, came)
    same = read_back == raw if _is_part(point) else came == data
    return Written(_engineered(read_back, scale, offset, power), same)


async def read(link: ModbusLink, url: ModbusUrl, point: Point) -> Any:
    """The present value, before `scale` and `offset`; None where there is none. Raises ValueError, RequestFailed."""
    power = await _power(link, url, point.scale_from) if point.scale_from else 0
    return _engineered(_decoded(point, (await _read(link, url, _block(point))).data), 1.0, 0.0, power)


def raw_of(point: Point, value: Any, scale: float = 1.0, offset: float = 0.0, power: int = 0) -> Any:
    """The value before `scale`, `offset` and a power of ten; whole where the type is. Raises ValueError."""
    if scale == 1.0 and offset == 0.0 and power == 0:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{point.type.value} with a scale takes a number, not {value!r}")
    raw = (value - offset) / scale
    raw = raw * 10.0**-power if power < 0 else raw / 10.0**power
    is_float = point.type in {DataType.FLOAT16, DataType.FLOAT32, DataType.FLOAT64}
    return raw if is_float or not isfinite(raw) else round(raw)


def encode(point: Point, value: Any) -> bytes:
    """The bytes that a reply would have if the device held `value` (raw): registers, or coils eight a byte.

    Of a bit or half a register the rest is zero. Raises ValueError, one line.
    """
    if point.table in {Table.INPUT, Table.DISCRETE}:
        raise ValueError(f"{point.span}: {point.table.word} registers can only be read")
    values = value if point.items else [value]
    if point.items and (not isinstance(value, list | tuple) or len(value) != point.items):
        raise ValueError(f"{point.span}: takes a list of {point.items} values")
    elements = point.elements()
    if point.table is Table.COIL:
        bits = sum(_bool(point, one) << at for at, one in enumerate(values))
        return bits.to_bytes((len(values) + 7) // 8, "little")
    return b"".join(_registers(element, one) for element, one in zip(elements, values, strict=True))


def _registers(point: Point, value: Any) -> bytes:
    data = np.zeros(2 * point.count, dtype=np.uint8)
    if point.type is DataType.BOOL:
        bit = _bool(point, value) << point.bit
        return bit.to_bytes(2, "little" if point.order.bytes_swapped else "big")
    raw = np.frombuffer(_host_bytes(point, value), dtype=np.uint8)
    data[byte_order(point)[: len(raw)]] = raw
    return data.tobytes()


def _host_bytes(point: Point, value: Any) -> bytes:
    """In the order of `byte_order`."""
    if point.type is DataType.STRING:
        return _text(point, value)
    if point.type.is_time:
        return from_ns(point.type, _nanoseconds(point, value))
    dtype = np.dtype(NUMBER_TYPES[point.type][1])
    if dtype.kind == "f":
        return _float(point, value, dtype)
    low, high = (0, _BCD_MAX[point.type]) if point.type in _BCD_MAX else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    number = _whole(point, value)
    if not low <= number <= high:
        raise ValueError(f"{point.type.value} holds {low} to {high}, not {number}")
    return np.array(int(str(number), 16) if point.type in _BCD_MAX else number, dtype=dtype).tobytes()


def _float(point: Point, value: Any, dtype: np.dtype[Any]) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{point.type.value} takes a number, not {value!r}")
    with np.errstate(over="ignore"):
        number = np.array(value, dtype=dtype)
    if isfinite(value) and not np.isfinite(number):
        raise ValueError(f"{point.type.value} cannot hold {value!r}")
    return number.tobytes()


def _text(point: Point, value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"a string takes a text, not {value!r}")
    try:
        data = value.encode(point.encoding)
    except UnicodeEncodeError as error:
        raise ValueError(f"{value!r} cannot be written in {point.encoding}") from error
    if len(data) > point.length:
        raise ValueError(f"{value!r} has {len(data)} bytes, the string {point.length}")
    return data.ljust(point.length, b"\0")


def _nanoseconds(point: Point, value: Any) -> int:
    """UTC ns, or RFC 3339 text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"{point.type.value} takes a time such as 2026-11-23T14:05:09Z, not {value!r}")
    return round(moment.timestamp() * 1000) * 10**6


def _whole(point: Point, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{point.type.value} takes a whole number, not {value!r}")
    return int(value)


def _bool(point: Point, value: Any) -> bool:
    if value not in (True, False):  # 0 and 1 as well
        raise ValueError(f"{point.span} takes true or false, not {value!r}")
    return bool(value)


def _is_part(point: Point) -> bool:
    """Less than whole registers: the rest must stay as it is."""
    part = point.type in {DataType.BOOL, DataType.INT8, DataType.UINT8}
    return part and point.table is Table.HOLDING


def _pdu(point: Point, data: bytes, function: int | None) -> bytes:
    if point.table is Table.COIL:
        if not point.items:
            return struct.pack(">BHH", 5, point.address, _ON if data[0] else 0)
        return struct.pack(">BHHB", 15, point.address, point.count, len(data)) + data
    if point.count == 1 and function != 16:
        return struct.pack(">BH", 6, point.address) + data
    if point.count > REGISTERS_WRITTEN_MAX:
        raise ValueError(f"{point.span}: {REGISTERS_WRITTEN_MAX} registers are written at once at most")
    return struct.pack(">BHHB", 16, point.address, point.count, len(data)) + data


def _read_write(point: Point, data: bytes) -> bytes:
    if point.count > REGISTERS_WRITTEN_MAX - 2:
        raise ValueError(f"{point.span}: {REGISTERS_WRITTEN_MAX - 2} registers are read and written at once at most")
    return struct.pack(">BHHHHB", 23, point.address, point.count, point.address, point.count, len(data)) + data


def _read_write_bytes(pdu: bytes) -> int:
    return 2 + pdu[1] if len(pdu) > 1 else 0


async def _write_part(link: ModbusLink, url: ModbusUrl, point: Point, data: bytes) -> None:
    own = _own_bits(point)
    word = int.from_bytes(data, "big")
    try:
        pdu = struct.pack(">BHHH", 22, point.address, ~own & 0xFFFF, word)
        _check_echo(pdu, await _send(link, url, pdu, lambda _: 7))
    except RequestFailed as error:
        if error.exception_code != ILLEGAL_FUNCTION:
            raise
        now = int.from_bytes((await _read(link, url, _block(point))).data, "big")
        pdu = struct.pack(">BHH", 6, point.address, now & ~own | word)
        _check_echo(pdu, await _send(link, url, pdu, lambda _: 5))


def _own_bits(point: Point) -> int:
    if point.type is DataType.BOOL:
        return int.from_bytes(_registers(point, True), "big")
    high = (point.half == "high") != point.order.bytes_swapped
    return 0xFF00 if high else 0x00FF


async def _power(link: ModbusLink, url: ModbusUrl, scale: Point) -> int:
    power = _decoded(scale, (await _read(link, url, _block(scale))).data)
    if not isinstance(power, int) or abs(power) > SCALE_MAX:
        raise ValueError(f"{scale.span}: {power} is no power of ten to scale with")
    return power


async def _read(link: ModbusLink, url: ModbusUrl, block: Block) -> Reply:
    [reply] = await link.read([query(url, block)])
    if reply.failure:
        raise reply.failure
    return reply


async def _send(link: ModbusLink, url: ModbusUrl, pdu: bytes, sized: Callable[[bytes], int]) -> bytes:
    """The reply's PDU behind its function code. Raises RequestFailed."""
    [reply] = await link.read([request(url, pdu, sized)])
    if reply.failure:
        raise reply.failure
    return reply.data


def _check_echo(pdu: bytes, came: bytes) -> None:
    """Functions 5, 6 and 22 repeat the request, 15 and 16 its address and count."""
    if came != (pdu[1:5] if pdu[0] in {15, 16} else pdu[1:]):
        raise RequestFailed(BAD_COMMUNICATION_ERROR, "wrong reply: it does not repeat what was written")


def _block(point: Point) -> Block:
    return Block(point.table, point.address, point.count, (replace(point, name="value", scale_from=None, invalid=()),))


def _decoded(point: Point, data: bytes) -> Any:
    """The raw value as Python has it; None where the bytes are none."""
    layout = Layout([_block(point)])
    value, extra, bad = layout.decode([data])
    if bad or extra:
        return (extra or {}).get(0)
    number = float(value[0])
    if point.type is DataType.BOOL:
        return number != 0.0
    return number if point.type in {DataType.FLOAT16, DataType.FLOAT32, DataType.FLOAT64} else int(number)


def _engineered(raw: Any, scale: float, offset: float, power: int) -> Any:
    if (scale == 1.0 and offset == 0.0 and power == 0) or not isinstance(raw, int | float):
        return raw
    return (raw / 10.0**-power if power < 0 else raw * 10.0**power) * scale + offset
