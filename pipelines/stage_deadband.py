"""deadband: a numeric value goes on only when it moved far enough from the last one that went on."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipelines.batch import SMALL_ROWS, Batch, Kind
from pipelines.tags import TagTable

_NUMBERS = range(Kind.SBYTE, Kind.DOUBLE + 1)
_ROWS_PER_ROUND_MIN = 20
"""A round of numpy calls costs what this many rows cost one by one."""


class DeadbandStage:
    """`deadband: 0.5` or `{absolute: 0.5}` in engineering units, `{percent: 1}` of the last value that went on.

    What is not a plain number (text, booleans, arrays, NaN, infinity), the first number of a tag or after one of these,
    and every change of status goes on. `absolute` is a column per tag id, so that each tag may have its own.
    """

    def __init__(self, tags: TagTable, *, absolute: float | None = None, percent: float = 0.0) -> None:
        self._tags = tags
        self._absolute_all = absolute
        self._percent_all = percent / 100.0
        self._absolute = np.zeros(0)
        self._percent = np.zeros(0)
        self._last = np.zeros(0)  # the last number that went on; NaN where none did
        self._status = np.zeros(0, dtype=np.int64)

    @classmethod
    def from_setting(cls, tags: TagTable, setting: Any) -> Self:
        parts = setting if isinstance(setting, dict) else {"absolute": setting}
        numeric = all(isinstance(n, int | float) and not isinstance(n, bool) and n >= 0 for n in parts.values())
        if not parts or set(parts) - {"absolute", "percent"} or not numeric:
            raise ValueError("deadband takes a number, {absolute: 0.5} or {percent: 1}, none below 0")
        return cls(tags, absolute=float(parts.get("absolute", 0.0)), percent=float(parts.get("percent", 0.0)))

    @classmethod
    def per_tag(cls, tags: TagTable) -> Self:
        """Each tag's own `deadband` of the file."""
        return cls(tags)

    def set_band(self, tag_id: int, absolute: float, percent: float) -> None:
        """Of one tag, instead of what was given for all."""
        self._grow()
        self._absolute[tag_id], self._percent[tag_id] = absolute, percent / 100.0

    def process(self, batch: Batch) -> Batch | None:
        self._grow()
        kept = self._kept(batch)
        if kept.all():
            return batch
        return batch.take(kept) if kept.any() else None

    def _grow(self) -> None:
        known, wanted = len(self._last), len(self._tags)
        if known < wanted:
            own, everyones = self._tags.column("deadband", known), self._absolute_all
            new = own if everyones is None else np.full(wanted - known, everyones)
            self._absolute = np.concatenate([self._absolute, new])
            self._percent = np.concatenate([self._percent, np.full(wanted - known, self._percent_all)])
            self._last = np.concatenate([self._last, np.full(wanted - known, nan)])
            self._status = np.concatenate([self._status, np.full(wanted - known, -1)])

    def _kept(self, batch: Batch) -> npt.NDArray[np.bool_]:
        if len(batch) <= SMALL_ROWS:
            return self._kept_by_row(batch)
        order, rank = _occurrences(batch.tag)
        rounds = int(rank.max()) + 1
        if rounds * _ROWS_PER_ROUND_MIN > len(batch):
            return self._kept_by_row(batch)
        numeric = (batch.kind >= Kind.SBYTE) & (batch.kind <= Kind.DOUBLE) & np.isfinite(batch.value)
        value = np.where(numeric, batch.value, nan)
        kept = np.empty(len(batch), dtype=np.bool_)
        for occurrence in range(rounds):
            rows = order[rank == occurrence]
            kept[rows] = self._kept_of_round(batch.tag[rows], value[rows], batch.status[rows])
        return kept

    def _kept_by_row(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Few rows, or few tags with many rows each. The rule itself, to be read first."""
        kept = []
        columns = (batch.tag.tolist(), batch.value.tolist(), batch.kind.tolist(), batch.status.tolist())
        for tag, value, kind, status in zip(*columns, strict=True):
            number = value if kind in _NUMBERS and isfinite(value) else nan
            last = self._last.item(tag)
            band = max(self._absolute.item(tag), self._percent.item(tag) * abs(last))
            # A band of zero passes everything, equal values too: only the machine decides then. NaN is never within.
            within = band > 0.0 and abs(number - last) <= band and self._status.item(tag) == status
            if not within:
                self._last[tag] = number
                self._status[tag] = status
            kept.append(not within)
        return np.array(kept, dtype=np.bool_)

    def _kept_of_round(
        self, tag: npt.NDArray[np.uint32], value: npt.NDArray[np.float64], status: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.bool_]:
        """The same rule for rows of different tags."""
        last = self._last[tag]
        band = np.maximum(self._absolute[tag], self._percent[tag] * np.abs(last))
        with np.errstate(over="ignore"):
            within = (band > 0.0) & (np.abs(value - last) <= band) & (self._status[tag] == status)
        kept: npt.NDArray[np.bool_] = ~within
        passed = tag[kept]
        self._last[passed] = value[kept]
        self._status[passed] = status[kept]
        return kept


def _occurrences(tag: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows ordered by tag, and of each whether it is its tag's first (0), second (1), ... of the batch."""
    order = np.argsort(tag, kind="stable")
    ordered = tag[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    lengths = np.diff(np.append(starts, len(tag)))
    return order, np.arange(len(tag)) - np.repeat(starts, lengths)
