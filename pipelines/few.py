"""A batch of a few rows without columns: numpy costs a microsecond a call, five where it is not in the CPU's cache.

Whoever knows rows takes them from `few_rows`; everybody else finds the columns, which are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pipelines.batch import Batch, Extra
from pipelines.clock import ClockState

Row = tuple[int, int, float, int, int, int]
"""tag, ts_ns, value, status, kind, flags: see `Batch`."""
_COLUMNS: Final = {"tag": np.uint32, "ts_ns": np.int64, "value": np.float64, "status": np.uint32, "kind": np.uint8}
_COLUMNS["flags"] = np.uint8
_PLACES: Final = {name: place for place, name in enumerate(_COLUMNS)}


class FewRows(Batch):
    """Made by `of`; what `dataclasses.replace` makes of one is one too."""

    __slots__ = ("few",)
    few: Sequence[Row]

    @classmethod
    def of(
        cls,
        few: Sequence[Row],
        source_id: int,
        number: int,
        origin: bytes | None,
        received_ns: int,
        extra: Extra | None,
        clock: ClockState,
        seq: int = -1,
        lane_ns: int = 0,
    ) -> FewRows:
        """A batch of these rows, at least one."""
        batch: Any = object.__new__(cls)
        batch.few = few
        batch.source_id = source_id
        batch.number = number
        batch.origin = origin
        batch.received_ns = received_ns
        batch.extra = extra
        batch.clock = clock
        batch.seq = seq
        batch.lane_ns = lane_ns
        made: FewRows = batch
        return made

    def __len__(self) -> int:
        return len(self.few)

    @property
    def nbytes(self) -> int:
        return 200 + 26 * len(self.few) if not self.extra else super().nbytes

    def __getattr__(self, name: str) -> Any:
        """A column that nobody has asked for yet; or the rows of a batch that was made of columns."""
        made: Any
        if name == "few":
            made = list(zip(*(getattr(self, column).tolist() for column in _COLUMNS), strict=True))
        elif name in _COLUMNS:
            place = _PLACES[name]
            made = np.array([row[place] for row in self.few], dtype=_COLUMNS[name])
        else:
            raise AttributeError(name)
        object.__setattr__(self, name, made)
        return made

    def numbered(self, seq: int, lane_ns: int = 0) -> FewRows:
        return self.of(
            self.few,
            self.source_id,
            self.number,
            self.origin,
            self.received_ns,
            self.extra,
            self.clock,
            seq,
            lane_ns,
        )


def few_rows(batch: Batch) -> Sequence[Row] | None:
    """Its rows, where it is made of them; None where columns are the way."""
    return batch.few if isinstance(batch, FewRows) else None


def first_tag(batch: Batch) -> int:
    """Of its first row; there must be one."""
    return batch.few[0][0] if isinstance(batch, FewRows) else int(batch.tag[0])
