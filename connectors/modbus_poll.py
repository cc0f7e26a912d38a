"""One poll period of one device: its reads, the layout of its rows, when it is due. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.modbus_convert import Conversion, Meaning
from connectors.modbus_decode import Layout
from connectors.modbus_link import Query, Reply, query
from connectors.modbus_plan import Block
from connectors.modbus_settings import ModbusUrl
from pipelines.batch import Batch, Flag, Kind
from pipelines.clock import ClockState


class Poll:
    """The schedule is absolute: due at `start + n * every`, whatever a cycle takes."""

    def __init__(
        self,
        every_ns: int,
        url: ModbusUrl,
        blocks: Sequence[Block],
        tag_ids: Mapping[str, int],
        meanings: Mapping[str, Meaning] | None = None,
    ) -> None:
        self.due_ns = 0
        self._every_ns = every_ns
        self._url = url
        self._planned = tuple(blocks)
        self._tag_ids = tag_ids
        self._meanings = meanings
        self.adopt(blocks)

    def adopt(self, blocks: Sequence[Block]) -> None:
        """Reads `blocks` from now on."""
        self.blocks = tuple(blocks)
        self.queries = [query(self._url, block) for block in blocks]
        self._layout = Layout(blocks)
        self._conversion = Conversion(self._layout.points, self._meanings) if self._meanings else None
        ids = [self._tag_ids[point.name] for point in self._layout.points]
        self._tag = _shared(np.array(ids, dtype=np.uint32))
        self._status = _shared(np.zeros(len(ids), dtype=np.uint32))
        self._flags = _shared(np.full(len(ids), Flag.ARRIVAL_TIME, dtype=np.uint8))

    def restart(self, now_ns: int) -> None:
        """Due at once, with the reads that were planned: what was learnt of the device is forgotten."""
        self.due_ns = now_ns
        if self.blocks != self._planned:
            self.adopt(self._planned)

    def advance(self, now_ns: int) -> int:
        """The cycle of `due_ns` is taken: the next is due. How many periods went by entirely without one."""
        missed = max(0, (now_ns - self.due_ns) // self._every_ns)
        self.due_ns += (missed + 1) * self._every_ns
        return missed

    def query(self, block: Block) -> Query:
        """The request for a part of a block."""
        return query(self._url, block)

    def batch(self, replies: Sequence[Reply], source_id: int, number: int, clock: ClockState) -> Batch:
        """The rows of a cycle from the replies to `blocks`, one a block, in their order; each has its reply's time."""
        value, extra = self._layout.decode([reply.data for reply in replies])
        if len(replies) == 1:
            received_ns = replies[0].received_ns
            ts_ns = np.empty(len(value), dtype=np.int64)
            ts_ns.fill(received_ns)
        else:
            times = [reply.received_ns for reply in replies]
            received_ns = max(times)
            ts_ns = np.array(times, dtype=np.int64)[self._layout.block]
        return Batch(
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

    def blank(self, batch: Batch, replies: Sequence[Reply]) -> Batch:
        """`batch` without the values of failed blocks: their rows have the failure's status and no value."""
        status, kind, value = batch.status.copy(), batch.kind.copy(), batch.value.copy()
        for at, reply in enumerate(replies):
            if reply.failure:
                rows = self._layout.block == at
                status[rows], kind[rows], value[rows] = reply.failure.status, Kind.NULL, np.nan
        extra = {row: item for row, item in (batch.extra or {}).items() if kind[row] != Kind.NULL}
        return replace(batch, status=status, kind=kind, value=value, extra=extra or None)

    def converted(self, batch: Batch) -> Batch:
        """`batch` as the device's profile means it; as it is where there is none."""
        return batch if self._conversion is None else self._conversion.apply(batch)


def _shared(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every batch has this very column, so nobody may write to it."""
    column.setflags(write=False)
    return column
