"""A batch: one source's samples that arrived together, as parallel numpy columns. Immutable once appended to a lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from operator import attrgetter
from typing import Any, Final, Self, TypeAlias, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt

from pipelines.clock import UNDISCIPLINED, ClockState

Extra: TypeAlias = dict[int, Any]

GOOD = 0x0000_0000
BAD_TIMEOUT = 0x800A_0000
"""OPC UA StatusCode BadTimeout."""
SEVERITY_MASK = 0xC000_0000
SEVERITY_UNCERTAIN = 0x4000_0000
EXACT_INTEGER_MAX = 2**53
"""Integers beyond this magnitude do not fit an f64 exactly and travel in `extra`."""
SMALL_ROWS = 16
"""Up to here plain Python beats numpy, whose every call costs about a microsecond."""


class Kind:
    """OPC UA built-in types (Part 6, 5.1.2); NULL stands for a row without a value. Arrays add `ARRAY`."""

    NULL: Final = 0
    BOOLEAN: Final = 1
    SBYTE: Final = 2
    BYTE: Final = 3
    INT16: Final = 4
    UINT16: Final = 5
    INT32: Final = 6
    UINT32: Final = 7
    INT64: Final = 8
    UINT64: Final = 9
    FLOAT: Final = 10
    DOUBLE: Final = 11
    STRING: Final = 12
    DATETIME: Final = 13
    GUID: Final = 14
    BYTESTRING: Final = 15
    XML_ELEMENT: Final = 16
    NODE_ID: Final = 17
    EXPANDED_NODE_ID: Final = 18
    STATUS_CODE: Final = 19
    QUALIFIED_NAME: Final = 20
    LOCALIZED_TEXT: Final = 21
    EXTENSION_OBJECT: Final = 22
    DATA_VALUE: Final = 23
    VARIANT: Final = 24
    DIAGNOSTIC_INFO: Final = 25


ARRAY = 0x80
"""Added to the element's kind where the value in `extra` is a list."""


class Flag:
    """Bits of the `flags` column."""

    ARRIVAL_TIME: Final = 1
    """The machine gave no time; `ts_ns` is the gateway's own."""
    MACHINE_CLOCK_SUSPECT: Final = 2
    GATEWAY_CLOCK_STEPPED: Final = 4
    PROFILE_UNCERTAIN: Final = 8


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, eq_default=False)
def _frozen_for_the_type_checker(cls: type[_T]) -> type[_T]:
    """A frozen dataclass that pays nothing for it at run time: made in a third of the time, once per stage and lane."""
    return dataclass(slots=True, eq=False)(cls)


@_frozen_for_the_type_checker
class Batch:
    """Columns of equal length; a row is one sample.

    `value` holds numbers and booleans (raw before `scale`, engineering units after) and NaN where the row's value is in
    `extra`: text (str), bytes, integers beyond 2^53 (int), DateTime (int, UTC ns), arrays (list), structures (dict).
    """

    source_id: int
    number: int
    """+1 per batch of a source since start: what `Source.commit` speaks of."""
    origin: bytes | None
    """Where the batch ends in the machine's own numbering; None where the machine has none."""
    received_ns: int
    tag: npt.NDArray[np.uint32]
    ts_ns: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint8]
    extra: Extra | None = None
    clock: ClockState = UNDISCIPLINED
    seq: int = -1
    """Given by the lane on `append`; -1 before."""
    lane_ns: int = 0
    """The wall clock when the lane had it; 0 before, and where it was read from disk again."""

    def __len__(self) -> int:
        return len(self.tag)

    @property
    def nbytes(self) -> int:
        """Memory held, roughly: what lanes count against their cap."""
        columns = 200 + 26 * len(self)
        return columns + 100 * len(self.extra) + sum(map(_size, self.extra.values())) if self.extra else columns

    def take(self, rows: npt.NDArray[Any] | slice) -> Self:
        """The batch of `rows` only: row numbers (each at most once), a boolean mask, or a slice."""
        if not isinstance(rows, slice) and rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return replace(
            self,
            tag=self.tag[rows],
            ts_ns=self.ts_ns[rows],
            value=self.value[rows],
            status=self.status[rows],
            kind=self.kind[rows],
            flags=self.flags[rows],
            extra=_moved(self.extra, rows, len(self)) if self.extra else None,
        )

    def split(self, rows_max: int) -> Iterator[Self]:
        """Parts of at most `rows_max` rows, in order; the batch itself when it is small enough.

        Only the last part carries the origin: a lane that has it has all of the batch.
        """
        last = max(len(self) - 1, 0) // rows_max * rows_max
        if not last:
            yield self
            return
        body = replace(self, origin=None)
        for start in range(0, last, rows_max):
            yield body.take(slice(start, start + rows_max))
        yield self.take(slice(last, None))

    def numbered(self, seq: int, lane_ns: int = 0) -> Self:
        """The same batch with a lane's number, and the time when the lane took it."""
        return type(self)(*(*_OFFERED(self), seq, lane_ns))

    def values(self) -> list[Any]:
        """One Python object a row: bool, int, float, str, bytes, list, dict; None where a row has no value."""
        if len(self) <= SMALL_ROWS:
            rows = zip(self.kind.tolist(), self.value.tolist(), strict=True)
            values = [_value(kind, number) for kind, number in rows]
        else:
            values = _values(self.kind, self.value)
        if self.extra:
            for row, value in self.extra.items():
                values[row] = value
        return values


_OFFERED = attrgetter(*[name for name in Batch.__annotations__ if name not in ("seq", "lane_ns")])
"""All fields but those that a lane gives."""


def _moved(extra: Extra, rows: npt.NDArray[np.intp] | slice, length: int) -> Extra | None:
    """`extra` by the row numbers that it has after a `take`."""
    if isinstance(rows, slice):
        chosen = range(length)[rows]
        if len(chosen) < len(extra):
            return {new: extra[old] for new, old in enumerate(chosen) if old in extra} or None
        return {chosen.index(old): value for old, value in extra.items() if old in chosen} or None
    place = np.full(length, -1, dtype=np.intp)
    place[rows] = np.arange(len(rows))
    moved = place[np.fromiter(extra, dtype=np.intp, count=len(extra))].tolist()
    return {new: value for new, value in zip(moved, extra.values(), strict=True) if new >= 0} or None


def _value(kind: int, number: float) -> Any:
    """What `_values` gives, for one row."""
    if kind in (Kind.DOUBLE, Kind.FLOAT):
        return number
    if isnan(number) or kind == Kind.NULL:
        return None
    if kind == Kind.BOOLEAN:
        return number != 0.0
    integer = Kind.SBYTE <= kind <= Kind.UINT64 or kind == Kind.STATUS_CODE
    return int(number) if integer and isfinite(number) else number


def _values(kind: npt.NDArray[np.uint8], number: npt.NDArray[np.float64]) -> list[Any]:
    """Booleans, integers and floats by kind; NaN is a value of floats only, elsewhere there is none."""
    floating = (kind == Kind.DOUBLE) | (kind == Kind.FLOAT)
    if floating.all():
        plain: list[Any] = number.tolist()
        return plain
    values = number.astype(np.object_)
    integer = ((kind >= Kind.SBYTE) & (kind <= Kind.UINT64)) | (kind == Kind.STATUS_CODE)
    integer &= np.isfinite(number)
    values[integer] = number[integer].astype(np.int64)
    boolean = kind == Kind.BOOLEAN
    values[boolean] = number[boolean] != 0.0
    values[(np.isnan(number) & ~floating) | (kind == Kind.NULL)] = None
    mixed: list[Any] = values.tolist()
    return mixed


def _size(value: Any) -> int:
    """Bytes of what is in `extra`, roughly. Looked up by type: isinstance with unions takes twice as long."""
    measure = _SIZES.get(type(value))
    return measure(value) if measure else 32


def _size_of_list(values: Sequence[Any]) -> int:
    plain = not values or isinstance(values[0], (int, float))  # a union would be made anew each time
    return 32 * len(values) if plain else sum([50 + _size(item) for item in values])


def _size_of_dict(value: dict[Any, Any]) -> int:
    return sum(150 + _size(item) for item in value.values())


_SIZES: Final[dict[type, Callable[[Any], int]]] = {
    str: len,
    bytes: len,
    list: _size_of_list,
    tuple: _size_of_list,
    dict: _size_of_dict,
}


class BatchBuilder:
    """Rows one by one, for sources that have no columns (small batches, bad rows); `build` makes the arrays."""

    def __init__(self) -> None:
        self.tag: list[int] = []
        self.ts_ns: list[int] = []
        self.value: list[float] = []
        self.status: list[int] = []
        self.kind: list[int] = []
        self.flags: list[int] = []
        self.extra: Extra = {}

    def __len__(self) -> int:
        return len(self.tag)

    def add(self, tag: int, ts_ns: int, value: Any, kind: int, status: int = GOOD, flags: int = 0) -> None:
        """One row; `value` is a number or boolean, or what belongs in `extra`, or None with Kind.NULL."""
        if value is None:
            number, kind = float("nan"), Kind.NULL
        elif isinstance(value, bool | float) or (isinstance(value, int) and _fits(value, kind)):
            number = float(value)
        else:
            number = float("nan")
            self.extra[len(self.tag)] = value
        self.tag.append(tag)
        self.ts_ns.append(ts_ns)
        self.value.append(number)
        self.status.append(status)
        self.kind.append(kind)
        self.flags.append(flags)

    def build(
        self,
        source_id: int,
        number: int,
        received_ns: int,
        origin: bytes | None = None,
        clock: ClockState = UNDISCIPLINED,
    ) -> Batch:
        """The batch of all rows added so far."""
        return Batch(
            source_id=source_id,
            number=number,
            origin=origin,
            received_ns=received_ns,
            tag=np.array(self.tag, dtype=np.uint32),
            ts_ns=np.array(self.ts_ns, dtype=np.int64),
            value=np.array(self.value, dtype=np.float64),
            status=np.array(self.status, dtype=np.uint32),
            kind=np.array(self.kind, dtype=np.uint8),
            flags=np.array(self.flags, dtype=np.uint8),
            extra=dict(self.extra) or None,
            clock=clock,
        )


def _fits(value: int, kind: int) -> bool:
    return -EXACT_INTEGER_MAX <= value <= EXACT_INTEGER_MAX and kind != Kind.DATETIME


def rows_of(batches: Sequence[Batch]) -> int:
    """How many samples these batches hold together."""
    return sum(len(batch) for batch in batches)
