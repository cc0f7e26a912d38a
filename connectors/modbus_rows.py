"""The rows of some blocks of one device: where they come from, which columns never change. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.modbus_convert import Conversion, Meaning
from connectors.modbus_decode import NOTHING_BAD, Layout
from connectors.modbus_few import scalars
from connectors.modbus_frames import EXCEPTIONS, ILLEGAL_ADDRESS, Reply
from connectors.modbus_plan import Block, Point
from pipelines.batch import GOOD, Batch, Flag, Kind
from pipelines.clock import ClockState
from pipelines.few import FewRows

ABSENT: tuple[int, str] = EXCEPTIONS[ILLEGAL_ADDRESS]
"""Of a point that the device has refused before, and that is not asked for again."""

FEW_MAX = 5
"""Rows that are cheaper one by one than as columns."""


class Rows:
    """Of `blocks`, and of points that are in none of them."""

    def __init__(
        self,
        blocks: Sequence[Block],
        absent: Sequence[Point],
        tag_ids: Mapping[str, int],
        meanings: Mapping[str, Meaning],
    ) -> None:
        self._layout = Layout(blocks, absent)
        self._conversion = Conversion(self._layout.points, meanings) if meanings else None
        ids = [tag_ids[point.name] for point in self._layout.points]
        self._tag = _shared(np.array(ids, dtype=np.uint32))
        status = np.zeros(len(ids), dtype=np.uint32)
        status[self._layout.present :] = ABSENT[0]
        self._status = _shared(status)
        self._flags = _shared(np.full(len(ids), Flag.ARRIVAL_TIME, dtype=np.uint8))

        self._few = list(zip(ids, self._layout.kind.tolist(), strict=True)) if len(ids) <= FEW_MAX else []
        self._scalars = (
            scalars(blocks[0], self._layout.points) if self._few and len(blocks) == 1 and not absent else None
        )

    def __len__(self) -> int:
        return len(self._tag)

    def tied(self, blocks: int) -> set[int]:
        """Which of so many blocks have rows that need another one too, for their scale."""
        of = self._layout.block
        return {one for at in range(blocks) for one in of[self._layout.rows_without(at)].tolist() if one != at}

    def batch(self, replies: Sequence[Reply], source_id: int, number: int, now_ns: int, clock: ClockState) -> Batch:
        """The rows from the replies to the blocks, one a block, in their order; each has its reply's time."""
        value, extra, bad = self._layout.decode([reply.data for reply in replies])
        if len(replies) == 1:
            received_ns = replies[0].received_ns
            ts_ns = np.empty(len(value), dtype=np.int64)
            ts_ns.fill(received_ns)
        else:
            times = [reply.received_ns for reply in replies] or [now_ns]
            received_ns = max(times)
            ts_ns = np.array(times, dtype=np.int64)[self._layout.block]
        batch = Batch(
            source_id,
            number,
            None,
            received_ns,
            self._tag,
            ts_ns,
            value,
            self._status,
            self._layout.kind,
            self._flags,
            extra,
            clock,
        )
        if bad:
            batch = _without(batch, list(bad), list(bad.values()))
        return batch

    def prompt(self, reply: Reply, source_id: int, number: int, clock: ClockState) -> Batch:
        """`batch` of the good reply to the only block, and `converted`; without columns where its rows are few."""
        if not self._few:
            return self.converted(self.batch([reply], source_id, number, reply.received_ns, clock))
        extra, bad = None, NOTHING_BAD
        values = self._scalars(reply.data) if self._scalars else None
        if values is None:
            column, extra, bad = self._layout.decode([reply.data])
            values = column.tolist()
        rows = [
            (tag, reply.received_ns, value, GOOD, kind, Flag.ARRIVAL_TIME)
            for (tag, kind), value in zip(self._few, values, strict=True)
        ]
        batch = FewRows.of(rows, source_id, number, None, reply.received_ns, extra, clock)
        return self.converted(_without(batch, list(bad), list(bad.values())) if bad else batch)

    def blank(self, batch: Batch, replies: Sequence[Reply]) -> Batch:
        """`batch` without the values of failed blocks: their rows have the failure's status and no value."""
        for at, reply in enumerate(replies):
            if reply.failure:
                batch = _without(batch, self._layout.rows_without(at), reply.failure.status)
        return batch

    def converted(self, batch: Batch) -> Batch:
        """`batch` as the device's profile means it; as it is where there is none."""
        return batch if self._conversion is None else self._conversion.apply(batch)


def _without(batch: Batch, rows: Any, statuses: Any) -> Batch:
    """`batch` without the values of `rows`."""
    status, kind, value = batch.status.copy(), batch.kind.copy(), batch.value.copy()
    status[rows], kind[rows], value[rows] = statuses, Kind.NULL, np.nan
    extra = {row: item for row, item in (batch.extra or {}).items() if kind[row] != Kind.NULL}
    return replace(batch, status=status, kind=kind, value=value, extra=extra or None)


def _shared(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every batch has this very column, so nobody may write to it."""
    column.setflags(write=False)
    return column
