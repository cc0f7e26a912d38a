"""What the rows of a profile's tags mean: scale, offset, what is uncertain, what a device does not have. Pure.

Done here and not by a tag's own `scale`, because with a device's firmware the scale may change while the tag stays what
it is: an id of the TagTable keeps its description for ever, in engineering units.

A factor such as 0.1 is a division by ten, so that 2305 becomes 230.5 and not 230.50000000000003.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from connectors.modbus_decode import BAD_NO_DATA
from connectors.modbus_plan import Point
from connectors.profile_doubt import doubted
from pipelines.batch import Batch, Kind


class Meaning(NamedTuple):
    """What to make of a number as it was read."""

    scale: float = 1.0
    offset: float = 0.0
    uncertain: bool = False
    double: bool = False
    """A Double although nothing is scaled: what it is with another firmware."""


PLAIN: Final = Meaning()


class Conversion:
    """For the rows of one layout, in their order; those without a meaning stay as they are."""

    def __init__(self, points: Sequence[Point], meanings: Mapping[str, Meaning]) -> None:
        own = [meanings.get(point.name, PLAIN) for point in points]
        ratio = [Decimal(repr(one.scale)).as_integer_ratio() for one in own]
        self._factor = np.array([float(above) for above, _ in ratio])
        self._divisor = np.array([float(below) for _, below in ratio])
        self._offset = np.array([one.offset for one in own])
        self._scaled = np.array([one.scale != 1.0 or one.offset != 0.0 or one.double for one in own], dtype=np.bool_)
        self._uncertain = np.array([one.uncertain for one in own], dtype=np.bool_)
        self._known = np.array([point.name in meanings for point in points], dtype=np.bool_)
        self._was_absent = np.zeros(len(own), dtype=np.bool_)

    def apply(self, batch: Batch) -> Batch:
        """The rows that are delivered, in engineering units.

        A row whose device says that there is no value is delivered once, with BAD_NO_DATA, and again when the value is
        back: a device may list hundreds of points that it does not have.
        """
        value, extra = self._scale(batch)
        kind = np.where(self._scaled & (batch.kind != Kind.NULL), np.uint8(Kind.DOUBLE), batch.kind)
        absent = self._known & (batch.status == BAD_NO_DATA)
        status, flags = batch.status, batch.flags
        if self._uncertain.any():
            status, flags = doubted(self._uncertain, status, flags)
        whole = replace(batch, value=value, kind=kind, status=status, flags=flags, extra=extra)
        delivered = ~(absent & self._was_absent)
        self._was_absent = absent
        return whole if delivered.all() or not delivered.any() else whole.take(delivered)

    def _scale(self, batch: Batch) -> tuple[npt.NDArray[np.float64], Any]:
        value, extra = batch.value, batch.extra
        big = [row for row in extra if self._scaled[row]] if extra else []
        if extra and big:
            value = value.copy()
            value[big] = [float(extra[row]) for row in big]
            extra = {row: item for row, item in extra.items() if not self._scaled[row]} or None
        with np.errstate(over="ignore", invalid="ignore"):  # infinities are values, not errors
            return np.where(self._scaled, value * self._factor / self._divisor + self._offset, value), extra
