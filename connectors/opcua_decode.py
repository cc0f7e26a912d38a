"""Data changes of a PublishResponse -> columns. Pure: no I/O, no clock, no state but caches of record layouts.

A DataChangeNotification holds MonitoredItemNotifications: client handle 4, DataValue mask 1, Variant type 1, value, and
the parts that the mask names (OPC UA Part 6, 5.2). Records of one shape (mask, type) have one size when the value is a
number, so

- a *run* of equally shaped records (arrays: of equal length) is one `np.frombuffer`; how many they are is found at C
  speed by comparing every size-th byte,
- short runs of fixed-size records are collected per shape and gathered with one fancy index each,
- of text and arrays only the value is read one by one (`opcua_variable`), what stands around it is gathered,
- everything else (structures, matrices, and the rows of a shape that has only a few) is read by `opcua_binary.Cursor`.

The record's layout is derived from its mask and type, never assumed: servers differ (masks 5, 13 and 63 are common).
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from connectors.opcua_binary import EPOCH_TICKS, FIXED, VARIABLE, Cursor, DecodeError, guid_texts
from connectors.opcua_records import HANDLE, PARTS, RECORDS, SIZED, VALUE_AT, Shape, array_record, learn
from connectors.opcua_response import PublishResponse
from pipelines.batch import ARRAY, EXACT_INTEGER_MAX, GOOD, Extra, Flag, Kind
from pipelines.few import Row

OVERFLOW_BITS: Final = 0x0480
"""InfoType DataValue plus Overflow (Part 4, 7.39.1): values before this one fell out of the server's queue."""
TICKS_MIN: Final = EPOCH_TICKS - 2**63 // 100 + 1
TICKS_MAX: Final = EPOCH_TICKS + 2**63 // 100 - 1
_NO_DIAGNOSTICS: Final = (b"\0\0\0\0", b"\xff\xff\xff\xff")
RUN_MIN: Final = 6
"""Below this many records a run costs less when it is gathered with others of its shape."""

_Head: Final = struct.Struct("<IB")
_ONE_BYTE: Final = [bytes((byte,)) for byte in range(256)]


@dataclass(slots=True)
class Columns:
    """Decoded rows; as in `Batch`, but with the client handle in place of the tag."""

    handle: npt.NDArray[np.uint32]
    ts_ns: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint8]
    extra: Extra = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int) -> Columns:
        """Room for `rows` rows; status Good and flags 0, all else unset."""
        return cls(
            np.empty(rows, np.uint32),
            np.empty(rows, np.int64),
            np.empty(rows, np.float64),
            np.zeros(rows, np.uint32),
            np.empty(rows, np.uint8),
            np.zeros(rows, np.uint8),
        )


def decode_changes(body: bytes, response: PublishResponse, arrival_ns: int, rows_max: int) -> Iterator[Columns]:
    """The rows in order, in parts of at most `rows_max`, so that the caller can let others run in between.

    Rows without a usable source time get `arrival_ns` and Flag.ARRIVAL_TIME. Raises DecodeError when a record does not
    fit into its notification; the parts before it have been yielded.
    """
    for change in response.changes:
        at, left = change.start, change.count
        while left:
            columns = Columns.empty(min(left, rows_max))
            at = _fill(columns, body, at, change.end, arrival_ns)
            left -= len(columns.handle)
            if not left:
                _check_tail(Cursor(body, at, change.end))
            yield columns


def decode_few(body: bytes, response: PublishResponse, arrival_ns: int) -> tuple[list[Row], Extra]:
    """All rows, one by one, with client handles in place of tags, and their `extra`: for less than RUN_MIN of them."""
    rows: list[Row] = []
    extra: Extra = {}
    for change in response.changes:
        at = change.start
        for _ in range(change.count):
            row, behind = _number_row(body, at, change.end)
            if row is None:
                singles = _Rows(body, change.end, arrival_ns)
                behind = singles.read(len(rows), at)
                (row,) = singles.fields
                extra |= singles.extra
            rows.append(row)
            at = behind
        if change.count and body[at : change.end] not in _NO_DIAGNOSTICS:
            _check_tail(Cursor(body, at, change.end))
    return rows, extra


def _number_row(body: bytes, at: int, end: int) -> tuple[Row | None, int]:
    """A record with a number and a usable source time in it, and the offset behind it; None where it is another."""
    layout, status_at, source_at = _scalar(body[at + 4 : at + VALUE_AT])
    behind = at + layout.size
    if not source_at or behind > end:
        return None, at
    fields = layout.unpack_from(body, at)
    value, ticks = fields[3], fields[source_at]
    exact = -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX or isinstance(value, float)
    if not exact or not TICKS_MIN <= ticks <= TICKS_MAX:
        return None, at
    status = fields[status_at] if status_at else GOOD
    return (fields[0], (ticks - EPOCH_TICKS) * 100, value, status, fields[2], 0), behind


def _check_tail(cursor: Cursor) -> None:
    """Behind the records stand their DiagnosticInfos and nothing else: a record that was read too long shows here."""
    for _ in range(cursor.count(1)):
        cursor.diagnostic_info()
    if cursor.at != cursor.end:
        raise DecodeError(f"{cursor.end - cursor.at} bytes are left over behind the records at offset {cursor.at}")


def _tail(mask: int) -> tuple[struct.Struct, int, int]:
    """The parts behind the value: layout, and the places of status and source time in it, -1 where absent."""
    parts = [(name, code) for bit, name, code in PARTS if mask & bit]
    names = [name for name, _ in parts]
    status, source = (names.index(name) if name in names else -1 for name in ("status", "source"))
    return struct.Struct("<" + "".join(code for _, code in parts)), status, source


_TAILS: Final = [_tail(half << 1) for half in range(0x20)]


@lru_cache(maxsize=1024)
def _scalar(shape: Shape) -> tuple[struct.Struct, int, int]:
    """Layout of a record whose value is a number, and the places of status and source time in it, 0 where absent."""
    mask, encoding = shape.ljust(2, b"\0")
    if mask & 0xC0 or not mask & 0x01 or encoding not in FIXED:
        return _Head, 0, 0
    parts = [(name, code) for bit, name, code in PARTS if mask & bit]
    names = ["handle", "mask", "encoding", "value", *(name for name, _ in parts)]
    layout = struct.Struct("<IBB" + FIXED[encoding].char + "".join(code for _, code in parts))
    status, source = (names.index(name) if name in names else 0 for name in ("status", "source"))
    return layout, status, source


class _Found:
    """Records of one shape, scattered over a part: their offsets, their rows, and where values of no fixed size end."""

    __slots__ = ("offsets", "rows", "stops")

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.rows: list[int] = []
        self.stops: list[int] = []


def _fill(columns: Columns, body: bytes, at: int, end: int, arrival_ns: int) -> int:
    """Decodes len(columns) records from `at`; returns the offset behind the last one."""
    rows, row = len(columns.handle), 0
    singles = _Rows(body, end, arrival_ns)
    if rows < RUN_MIN:
        for row in range(rows):
            at = singles.read(row, at)
        singles.store(columns)
        return at
    scattered: defaultdict[Shape, _Found] = defaultdict(_Found)
    records = RECORDS
    while row < rows:
        shape = same = body[at + 4 : at + VALUE_AT]
        record = records.get(shape) or learn(shape)
        if record.counted and at + VALUE_AT + 4 <= end:
            same = body[at + 4 : at + VALUE_AT + 4]
            record = array_record(same)
        size = record.size
        run = 1
        if size and at + size <= end and body[at + size + 4 : at + size + 4 + len(same)] == same:
            run = _run_length(body, at, min(rows - row, (end - at) // size), size, same)
        if run >= RUN_MIN:
            _store(columns, slice(row, row + run), np.frombuffer(body, record.layout, run, at), shape)
            at += run * size
        elif record.read:
            run, at = _read_run(columns.extra, body, at, end, range(row, rows), shape, scattered[shape])
        elif size == 0 or at + size > end:
            run, at = 1, singles.read(row, at)
        else:
            found = scattered[shape]
            found.offsets.extend(range(at, at + run * size, size))
            found.rows.extend(range(row, row + run))
            at += run * size
        row += run
    for shape, found in scattered.items():
        if len(found.rows) < RUN_MIN:
            singles.read_all(found.rows, found.offsets)
        else:
            _store_found(columns, body, found, shape)
    _ticks_to_ns(columns, arrival_ns)
    singles.store(columns)
    return at


def _read_run(
    extra: Extra, body: bytes, at: int, end: int, rows: range, shape: Shape, found: _Found
) -> tuple[int, int]:
    """Reads the values of records of one shape, which has a reader, from `at` on; how many, the offset behind them."""
    record, first = RECORDS[shape], len(found.rows)
    read, tail_bytes = record.read, record.tail_bytes
    assert read
    offsets, stops = found.offsets, found.stops
    try:
        for row in rows:
            offsets.append(at)
            extra[row], stop = read(body, at + VALUE_AT, end)
            stops.append(stop)
            at = stop + tail_bytes
            if at > end:
                raise DecodeError(f"the record at offset {offsets[-1]} goes beyond the end of the field at {end}")
            if body[at + 4 : at + VALUE_AT] != shape:
                break
    except struct.error as error:
        raise DecodeError(f"the record at offset {offsets[-1]} goes beyond the end of the message") from error
    run = len(offsets) - first
    found.rows.extend(rows[:run])
    return run, at


def _store_found(columns: Columns, body: bytes, found: _Found, shape: Shape) -> None:
    """Gathers the records of one shape and writes them into their rows; values of no fixed size are there already."""
    record, rows = RECORDS[shape], np.array(found.rows)
    if record.layout:
        _store(columns, rows, _pick(body, record.layout, found.offsets), shape)
        return
    mask, kind = shape
    columns.handle[rows] = _pick(body, HANDLE, found.offsets)
    columns.kind[rows] = kind
    columns.value[rows] = np.nan
    tails = _pick(body, record.tail, found.stops) if mask & 0x06 else np.empty(0)
    _store_tails(columns, rows, tails, mask)


def _pick(body: bytes, layout: np.dtype[Any], offsets: list[int]) -> npt.NDArray[Any]:
    """What lies at these offsets: the body as an array of overlapping elements, one at every byte, indexed once."""
    overlapping: npt.NDArray[Any] = np.ndarray((len(body) - layout.itemsize + 1,), layout, body, 0, (1,))
    return overlapping[offsets]


def _run_length(body: bytes, at: int, limit: int, size: int, shape: bytes) -> int:
    """How many of the next `limit` records have this shape. Looks in growing windows: short runs cost little."""
    run, window = 0, 8
    while run < limit:
        count = min(window, limit - run)
        start = at + run * size + 4
        reach = (count - 1) * size + 1
        same = count
        for place, byte in enumerate(_ONE_BYTE[byte] for byte in shape):
            column = body[start + place : start + place + reach : size]
            same = min(same, count - len(column.lstrip(byte)))
        run += same
        if same < count:
            break
        window *= 32
    return run


def _store(columns: Columns, rows: slice | npt.NDArray[np.intp], records: npt.NDArray[Any], shape: Shape) -> None:
    """Writes records of one shape, all with a value of fixed size, into their rows."""
    mask, kind = shape
    columns.handle[rows] = records["handle"]
    columns.kind[rows] = kind
    if kind in SIZED or kind & ARRAY:
        _store_extra(columns, rows, records["value"], kind)
    else:
        columns.value[rows] = records["value"]
    if kind in (Kind.INT64, Kind.UINT64):
        _store_big(columns, rows, records["value"])
    _store_tails(columns, rows, records, mask)


def _store_tails(columns: Columns, rows: slice | npt.NDArray[np.intp], tails: npt.NDArray[Any], mask: int) -> None:
    """Status and source time, of those that `mask` names; the time as ticks, 0 where there is none."""
    if mask & 0x02:
        columns.status[rows] = tails["status"]
    columns.ts_ns[rows] = tails["source"] if mask & 0x04 else 0


def _ticks_to_ns(columns: Columns, arrival_ns: int) -> None:
    """Turns the times of all rows from ticks to ns; `arrival_ns`, and flagged, where they are not usable."""
    ticks = columns.ts_ns
    if int(ticks.min()) >= TICKS_MIN and int(ticks.max()) <= TICKS_MAX:
        ticks -= EPOCH_TICKS
        ticks *= 100
        return
    usable = (ticks >= TICKS_MIN) & (ticks <= TICKS_MAX)
    columns.ts_ns = np.where(usable, (np.where(usable, ticks, EPOCH_TICKS) - EPOCH_TICKS) * 100, arrival_ns)
    columns.flags[~usable] = Flag.ARRIVAL_TIME


def _store_extra(columns: Columns, rows: slice | npt.NDArray[np.intp], values: npt.NDArray[Any], kind: int) -> None:
    columns.value[rows] = np.nan
    shown: list[Any]
    if kind == Kind.DATETIME:
        shown = [(ticks - EPOCH_TICKS) * 100 for ticks in values.tolist()]
    elif kind == Kind.GUID:
        shown = guid_texts(values.tobytes())
    else:
        shown = values.tolist()
    columns.extra.update(zip(np.arange(len(columns.handle))[rows].tolist(), shown, strict=True))


def _store_big(columns: Columns, rows: slice | npt.NDArray[np.intp], values: npt.NDArray[Any]) -> None:
    """Integers that a Double cannot hold exactly move to `extra`."""
    big = values > EXACT_INTEGER_MAX
    if values.dtype.kind == "i":
        big |= values < -EXACT_INTEGER_MAX
    if not big.any():
        return
    places = np.arange(len(columns.handle))[rows][big]
    columns.value[places] = np.nan
    columns.extra.update(zip(places.tolist(), values[big].tolist(), strict=True))


class _Rows:
    """Records that are read one by one, for the rows of a part that fit no column layout."""

    def __init__(self, body: bytes, end: int, arrival_ns: int) -> None:
        self._cursor = Cursor(body, 0, end)
        self._arrival_ns = arrival_ns
        self._row: list[int] = []
        self.fields: list[Row] = []
        """With client handles."""
        self.extra: Extra = {}

    def read(self, row: int, at: int) -> int:
        """The record at `at` becomes row `row`; returns the offset behind it."""
        cursor = self._cursor
        cursor.at = at
        cursor.skip(_Head.size)
        handle, mask = _Head.unpack_from(cursor.body, at)
        if mask & 0xC0:
            raise DecodeError(f"DataValue mask {mask:#04x} at offset {at + 4} has reserved bits set")
        kind, number = self._value(row) if mask & 0x01 else (Kind.NULL, math.nan)
        tail, status_at, source_at = _TAILS[mask >> 1]
        parts = tail.unpack_from(cursor.body, cursor.skip(tail.size))
        status = parts[status_at] if status_at >= 0 else GOOD
        ts_ns, flags = self._arrival_ns, Flag.ARRIVAL_TIME
        if source_at >= 0 and TICKS_MIN <= parts[source_at] <= TICKS_MAX:
            ts_ns, flags = (parts[source_at] - EPOCH_TICKS) * 100, 0
        self._row.append(row)
        self.fields.append((handle, ts_ns, number, status, kind, flags))
        return cursor.at

    def read_all(self, rows: list[int], offsets: list[int]) -> None:
        """The records at these offsets."""
        for row, at in zip(rows, offsets, strict=True):
            self.read(row, at)

    def _value(self, row: int) -> tuple[int, float]:
        """(kind, what the column holds); all that is no number goes to `extra`."""
        cursor = self._cursor
        kind = cursor.byte()
        read = VARIABLE.get(kind)
        if read is not None:
            self.extra[row] = read(cursor)
            return kind, math.nan
        cursor.at -= 1
        kind, value = cursor.variant()
        if isinstance(value, float) or (kind in FIXED and -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX):
            return kind, value
        if kind != Kind.NULL:
            self.extra[row] = value
        return kind, math.nan

    def store(self, columns: Columns) -> None:
        """Writes everything that was read into its rows."""
        if not self._row:
            return
        rows = np.array(self._row)
        handle, ts_ns, value, status, kind, flags = zip(*self.fields, strict=True)
        columns.handle[rows] = handle
        columns.kind[rows] = kind
        columns.status[rows] = status
        columns.ts_ns[rows] = ts_ns
        columns.value[rows] = value
        columns.flags[rows] = flags
        columns.extra.update(self.extra)
