"""scale: numbers times a factor, plus an offset; what comes out is a Double in engineering units."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipelines.batch import Batch, Kind
from pipelines.tags import TagTable


def scale_rows(batch: Batch, factor: npt.NDArray[np.float64], offset: npt.NDArray[np.float64]) -> Batch:
    """`value * factor + offset` for the numeric rows whose factor or offset is not neutral; columns per row.

    Integers beyond 2^53 become the nearest Double. Text, booleans, arrays and structures stay as they are.
    """
    kind = batch.kind
    numeric = (kind >= Kind.SBYTE) & (kind <= Kind.DOUBLE)
    rows = numeric & ((factor != 1.0) | (offset != 0.0))
    if not rows.any():
        return batch
    value, extra = batch.value, batch.extra
    big = [row for row in extra if rows[row]] if extra else []
    if extra and big:
        value = value.copy()
        value[big] = [float(extra[row]) for row in big]
        extra = {row: item for row, item in extra.items() if not rows[row]} or None
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are values, not errors
        scaled = value * factor + offset
    return replace(
        batch,
        value=np.where(rows, scaled, value),
        kind=np.where(rows, np.uint8(Kind.DOUBLE), kind),
        extra=extra,
    )


class ScaleStage:
    """`scale: {factor: 0.1, offset: 0}` for every tag of the route, or `scale: 0.1`."""

    def __init__(self, factor: float, offset: float) -> None:
        self._factor = factor
        self._offset = offset

    @classmethod
    def from_setting(cls, tags: TagTable, setting: Any) -> Self:
        parts = setting if isinstance(setting, dict) else {"factor": setting}
        numbers = [parts.get("factor", 1.0), parts.get("offset", 0.0)]
        numeric = all(isinstance(n, int | float) and not isinstance(n, bool) and isfinite(n) for n in numbers)
        if not parts or set(parts) - {"factor", "offset"} or not numeric:
            raise ValueError("scale takes a number, or {factor: 0.1, offset: 0}")
        return cls(float(numbers[0]), float(numbers[1]))

    def process(self, batch: Batch) -> Batch | None:
        rows = len(batch)
        return scale_rows(batch, np.full(rows, self._factor), np.full(rows, self._offset))


class TagScaleStage:
    """Each tag's own `scale` and `offset`; first stage of every source that has such tags."""

    def __init__(self, tags: TagTable) -> None:
        self._tags = tags
        self._factor = np.zeros(0)
        self._offset = np.zeros(0)

    def process(self, batch: Batch) -> Batch | None:
        known = len(self._factor)
        if known < len(self._tags):
            self._factor = np.concatenate([self._factor, self._tags.column("scale", known)])
            self._offset = np.concatenate([self._offset, self._tags.column("offset", known)])
        return scale_rows(batch, self._factor[batch.tag], self._offset[batch.tag])
