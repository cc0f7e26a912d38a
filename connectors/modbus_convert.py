"""What raw rows of a profile's tags mean: scale, scale factors from registers, values that mean "none". Pure.

Done here and not by a tag's own `scale`, because with a device's firmware the scale may change while the tag stays what
it is: an id of the TagTable keeps its description for ever, in engineering units.

A factor such as 0.1 is a division by ten, so that 2305 becomes 230.5 and not 230.50000000000003.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from math import isnan
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from connectors.modbus_plan import Point
from pipelines.batch import GOOD, Batch, Flag, Kind

BAD_NO_DATA: Final = 0x809B_0000
"""The device answers, and says that it has no value."""
UNCERTAIN: Final = 0x4000_0000
EXPONENT_MAX: Final = 10
"""Of a SunSpec scale factor (SunSpec Device Information Model Specification, `sunssf`: -10 to 10)."""


class Meaning(NamedTuple):
    """What to make of a raw number."""

    scale: float = 1.0
    offset: float = 0.0
    scale_from: str = ""
    """Name of the point whose value is the power of ten to multiply by."""
    invalid: tuple[float, ...] = ()
    """Raw values that mean that there is none."""
    hidden: bool = False
    uncertain: bool = False
    double: bool = False
    """A Double although nothing is scaled: what it is with another firmware."""


PLAIN: Final = Meaning()


class Conversion:
    """For the rows of one layout, in their order."""

    def __init__(self, points: Sequence[Point], meanings: Mapping[str, Meaning]) -> None:
        own = [meanings.get(point.name, PLAIN) for point in points]
        place = {point.name: row for row, point in enumerate(points)}
        ratio = [Decimal(repr(one.scale)).as_integer_ratio() for one in own]
        self._factor = np.array([float(above) for above, _ in ratio])
        self._divisor = np.array([float(below) for _, below in ratio])
        self._offset = np.array([one.offset for one in own])
        self._exponent = np.array([place.get(one.scale_from, -1) for one in own], dtype=np.intp)
        lost = np.array([bool(one.scale_from) and one.scale_from not in place for one in own])
        self._lost = np.flatnonzero(lost)
        changed = [one.scale != 1.0 or one.offset != 0.0 or bool(one.scale_from) or one.double for one in own]
        self._scaled = np.array(changed, dtype=np.bool_)
        self._by_register = np.flatnonzero(self._exponent >= 0)
        plain = [(row, bad) for row, one in enumerate(own) for bad in one.invalid if not isnan(bad)]
        self._invalid_row = np.array([row for row, _ in plain], dtype=np.intp)
        self._invalid = np.array([bad for _, bad in plain], dtype=np.float64)
        self._invalid_big = {row: one.invalid for row, one in enumerate(own) if one.invalid}
        self._nan_row = np.array([row for row, one in enumerate(own) if any(map(isnan, one.invalid))], dtype=np.intp)
        self._shown = np.array([not one.hidden for one in own], dtype=np.bool_)
        self._uncertain = np.array([one.uncertain for one in own], dtype=np.bool_)
        self._was_absent = np.zeros(len(own), dtype=np.bool_)

    def apply(self, batch: Batch) -> Batch:
        """The rows that are delivered, in engineering units.

        A row whose device says that there is no value is delivered once, with BAD_NO_DATA, and again when the value is
        back: a device may list hundreds of points that it does not have.
        """
        absent = self._absent(batch)
        value, extra = self._scale(batch, absent)
        kind = np.where(self._scaled & (batch.kind != Kind.NULL), np.uint8(Kind.DOUBLE), batch.kind)
        status, flags = batch.status, batch.flags
        if self._uncertain.any():
            flags = flags | np.where(self._uncertain, np.uint8(Flag.PROFILE_UNCERTAIN), np.uint8(0))
            status = np.where(self._uncertain & (status == GOOD), np.uint32(UNCERTAIN), status)
        if absent.any():
            value, kind = np.where(absent, np.nan, value), np.where(absent, np.uint8(Kind.NULL), kind)
            status = np.where(absent, np.uint32(BAD_NO_DATA), status)
            extra = {row: item for row, item in (extra or {}).items() if not absent[row]} or None
        whole = replace(batch, value=value, kind=kind, status=status, flags=flags, extra=extra)
        delivered = self._shown & ~(absent & self._was_absent)
        self._was_absent = absent
        return whole if delivered.all() or not delivered.any() else whole.take(delivered)

    def _absent(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Rows that the device says it has no value for."""
        value, absent = batch.value, np.zeros(len(batch), dtype=np.bool_)
        absent[self._invalid_row[value[self._invalid_row] == self._invalid]] = True
        absent[self._nan_row[np.isnan(value[self._nan_row])]] = True
        for row, item in (batch.extra or {}).items():
            absent[row] |= item in self._invalid_big.get(row, ())
        absent[self._lost] = True
        if len(self._by_register):
            exponent = value[self._exponent[self._by_register]]
            absent[self._by_register[~(np.abs(exponent) <= EXPONENT_MAX)]] = True
        absent &= batch.kind != Kind.NULL
        return absent

    def _scale(self, batch: Batch, absent: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], Any]:
        value, extra = batch.value, batch.extra
        big = [row for row in extra if self._scaled[row]] if extra else []
        if extra and big:
            value = value.copy()
            value[big] = [float(extra[row]) for row in big]
            extra = {row: item for row, item in extra.items() if not self._scaled[row]} or None
        factor, divisor = self._factor, self._divisor
        if len(self._by_register):
            factor, divisor = factor.copy(), divisor.copy()
            exponent = batch.value[self._exponent[self._by_register]]
            exponent = np.where(absent[self._by_register], 0.0, np.nan_to_num(exponent))
            factor[self._by_register] *= 10.0 ** np.maximum(exponent, 0.0)
            divisor[self._by_register] *= 10.0 ** np.maximum(-exponent, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are values, not errors
            return np.where(self._scaled, value * factor / divisor + self._offset, value), extra
