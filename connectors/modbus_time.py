"""Date-times as devices keep them in registers <-> UTC ns since 1970. Pure.

Bytes are in reading order: the first register's high byte first. No format says which time zone it means: it is taken
as UTC. What is no date (month 13, a digit above 9) is None.

    unix32, unix64      seconds since 1970, unsigned 32 and signed 64 bits
    unix64-ms           milliseconds since 1970
    iec870              four registers: year - 2000 | month, weekday 3 bits + day 5 bits | hour, invalid bit + minute |
                        ms in the minute. IEC 60870-5-4 (CP56Time2a) in words: Schneider's TI081 / DATETIME
    powerlogic          three registers: month, day | year - 1900, hour | minute, second. Schneider PM800, CM4000
    s7-datetime         four registers, BCD: year, month | day, hour | minute, second | ms in 3 digits, weekday.
                        Siemens DATE_AND_TIME
    bcd-datetime        three registers, BCD: year, month | day, hour | minute, second
    datetime6           six registers: year, month, day, hour, minute, second
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from connectors.modbus_plan import DataType

SECOND_NS = 10**9
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_ns(kind: DataType, data: bytes) -> int | None:
    """The bytes of a date-time of that type -> UTC ns."""
    return _READ[kind](data)


def from_ns(kind: DataType, ns: int) -> bytes:
    """The other way; what the type cannot hold of it (ms, ns) is cut off. Raises ValueError for a year beyond it."""
    try:
        return _WRITE[kind](ns)
    except (OverflowError, struct.error) as error:
        raise ValueError(f"{kind.value} cannot hold that time") from error


def _ns(year: int, month: int, day: int, hour: int, minute: int, second: int, ms: int = 0) -> int | None:
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return int((moment - _EPOCH).total_seconds()) * SECOND_NS + ms * 10**6


def _parts(ns: int) -> tuple[datetime, int]:
    """Whole seconds, and the ms beyond them."""
    seconds, rest = divmod(ns, SECOND_NS)
    return datetime.fromtimestamp(seconds, UTC), rest // 10**6


def _in_century(moment: datetime, first: int, years: int) -> int:
    if not first <= moment.year < first + years:
        raise ValueError(f"the year must be {first} to {first + years - 1}")
    return moment.year - first


def _digits(data: bytes) -> Sequence[int] | None:
    """Each byte's two digits as a number."""
    text = data.hex()
    return [int(text[at : at + 2]) for at in range(0, len(text), 2)] if text.isdecimal() else None


def _read_iec870(data: bytes) -> int | None:
    year, date, time, ms = struct.unpack(">4H", data)
    if time & 0x80 or ms >= 60_000:
        return None
    return _ns(2000 + (year & 0x7F), date >> 8 & 15, date & 31, time >> 8 & 31, time & 63, ms // 1000, ms % 1000)


def _write_iec870(ns: int) -> bytes:
    moment, ms = _parts(ns)
    year = _in_century(moment, 2000, 128)
    date = moment.month << 8 | moment.isoweekday() << 5 | moment.day
    return struct.pack(">4H", year, date, moment.hour << 8 | moment.minute, moment.second * 1000 + ms)


def _read_powerlogic(data: bytes) -> int | None:
    month, day, year, hour, minute, second = data
    return _ns(1900 + year, month, day, hour, minute, second)


def _write_powerlogic(ns: int) -> bytes:
    moment, _ = _parts(ns)
    year = _in_century(moment, 1900, 256)
    return bytes([moment.month, moment.day, year, moment.hour, moment.minute, moment.second])


def _read_s7(data: bytes) -> int | None:
    """Years 90-99 are of the last century; the last digit is the weekday, 1 is Sunday."""
    digits = _digits(data[:7])
    if digits is None or data[7] >> 4 > 9:
        return None
    year, month, day, hour, minute, second, hundredths = digits
    century = 1900 if year >= 90 else 2000
    return _ns(century + year, month, day, hour, minute, second, 10 * hundredths + (data[7] >> 4))


def _write_s7(ns: int) -> bytes:
    moment, ms = _parts(ns)
    _in_century(moment, 1990, 100)
    return bytes.fromhex(f"{moment:%y%m%d%H%M%S}{ms:03}{moment.isoweekday() % 7 + 1}")


def _read_bcd(data: bytes) -> int | None:
    if (digits := _digits(data)) is None:
        return None
    year, month, day, hour, minute, second = digits
    return _ns(2000 + year, month, day, hour, minute, second)


def _write_bcd(ns: int) -> bytes:
    moment, _ = _parts(ns)
    _in_century(moment, 2000, 100)
    return bytes.fromhex(f"{moment:%y%m%d%H%M%S}")


def _read_datetime6(data: bytes) -> int | None:
    year, month, day, hour, minute, second = struct.unpack(">6H", data)
    return _ns(year, month, day, hour, minute, second)


def _write_datetime6(ns: int) -> bytes:
    moment, _ = _parts(ns)
    return struct.pack(">6H", *moment.timetuple()[:6])


_READ: Mapping[DataType, Callable[[bytes], int | None]] = {
    DataType.UNIX32: lambda data: int.from_bytes(data, "big") * SECOND_NS,
    DataType.UNIX64: lambda data: int.from_bytes(data, "big", signed=True) * SECOND_NS,
    DataType.UNIX64_MS: lambda data: int.from_bytes(data, "big", signed=True) * 10**6,
    DataType.IEC870: _read_iec870,
    DataType.POWERLOGIC: _read_powerlogic,
    DataType.S7_DATETIME: _read_s7,
    DataType.BCD_DATETIME: _read_bcd,
    DataType.DATETIME6: _read_datetime6,
}
_WRITE: Mapping[DataType, Callable[[int], bytes]] = {
    DataType.UNIX32: lambda ns: (ns // SECOND_NS).to_bytes(4, "big"),
    DataType.UNIX64: lambda ns: (ns // SECOND_NS).to_bytes(8, "big", signed=True),
    DataType.UNIX64_MS: lambda ns: (ns // 10**6).to_bytes(8, "big", signed=True),
    DataType.IEC870: _write_iec870,
    DataType.POWERLOGIC: _write_powerlogic,
    DataType.S7_DATETIME: _write_s7,
    DataType.BCD_DATETIME: _write_bcd,
    DataType.DATETIME6: _write_datetime6,
}
