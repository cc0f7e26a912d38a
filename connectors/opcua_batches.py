"""Rows of one OPC UA device as batches: numbered in the order in which they are made, with times as `clock:` says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from connectors import opcua_history
from connectors.opcua_decode import Columns
from connectors.opcua_heartbeat import Late
from connectors.opcua_skew import Skew
from connectors.profile_doubt import doubted
from pipelines.batch import Batch, BatchBuilder, Extra, Flag, Kind
from pipelines.clock import Clock, ClockState
from pipelines.few import FewRows, Row
from pipelines.stage_deadband import DeadbandStage
from pipelines.tags import TagTable


class Batches:
    """Lives as long as the source; items are client handles."""

    def __init__(self, source_id: int, tags: TagTable, clock: Clock, skew: Skew) -> None:
        self._source_id = source_id
        self._tags = tags
        self._clock = clock
        self._skew = skew
        self._unfiltered: DeadbandStage | None = None
        self._doubtful: npt.NDArray[np.uint32] | None = None
        self.tag_ids: npt.NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)
        """By client handle."""
        self.number = 0
        """Of the batch that was made last."""

    def grow(self, tag_ids: Sequence[int]) -> None:
        """Of the items behind those that are known."""
        self.tag_ids = np.concatenate([self.tag_ids, np.array(tag_ids, dtype=np.uint32)])

    def doubt(self, tag_ids: Sequence[int]) -> None:
        """The tags of which a profile is not sure: their rows are flagged from now on, other tags' are not."""
        self._doubtful = np.array(tag_ids, dtype=np.uint32) if tag_ids else None

    def forget_bands(self) -> None:
        """The server filters again, or another one does."""
        self._unfiltered = None

    def set_bands(self, bands: Mapping[int, tuple[float, float]]) -> None:
        """What the server was to filter and does not: `Unfiltered.bands`."""
        if bands and self._unfiltered is None:
            self._unfiltered = DeadbandStage(self._tags, absolute=0.0)
        for item, band in bands.items():
            assert self._unfiltered is not None
            self._unfiltered.set_band(int(self.tag_ids[item]), *band)

    def notified(
        self, tag: npt.NDArray[np.uint32], columns: Columns, origin: bytes, arrival_ns: int, clock: ClockState
    ) -> Batch | None:
        """What the server has sent; None where it would not have, had it filtered as it was asked to."""
        ts_ns, flags = columns.ts_ns, columns.flags
        if self._skew.acts:
            ts_ns, flags = self._skew.applied(ts_ns, flags, arrival_ns)
        status = columns.status
        if self._doubtful is not None:
            status, flags = doubted(np.isin(tag, self._doubtful), status, flags)
        self.number += 1
        batch = Batch(
            source_id=self._source_id,
            number=self.number,
            origin=origin,
            received_ns=arrival_ns,
            tag=tag,
            ts_ns=ts_ns,
            value=columns.value,
            status=status,
            kind=columns.kind,
            flags=flags,
            extra=columns.extra or None,
            clock=clock,
        )
        kept = batch if self._unfiltered is None else self._unfiltered.process(batch)
        if kept is None:
            self.number -= 1
        return kept

    @property
    def plain(self) -> bool:
        """Rows go on as the server has sent them."""
        return self._unfiltered is None and self._doubtful is None and not self._skew.acts

    def few(self, rows: Sequence[Row], extra: Extra, origin: bytes, arrival_ns: int, clock: ClockState) -> Batch:
        """What the server has sent, while it goes on as it is; rows with client handles."""
        tag_of, of_tags = self.tag_ids.item, []
        for row in rows:  # a comprehension would be one more function that is not in the CPU's cache
            of_tags.append((tag_of(row[0]), *row[1:]))
        self.number += 1
        return FewRows.of(
            of_tags,
            self._source_id,
            self.number,
            origin,
            arrival_ns,
            extra or None,
            clock,
        )

    def of_history(self, item: int, rows: Sequence[opcua_history.Row]) -> Batch:
        """What was missed of an item."""
        builder = BatchBuilder()
        tag, flags = int(self.tag_ids[item]), self._suspect
        for ts_ns, value, kind, status in rows:
            builder.add(tag, ts_ns, value, kind, status, flags)
        return self._built(builder)

    def of_late(self, late: Sequence[Late]) -> Batch:
        """What the server failed to report."""
        builder = BatchBuilder()
        now, suspect = self._clock.wall_ns(), self._suspect
        for item, ts_ns, value, kind, status in late:
            flags = Flag.ARRIVAL_TIME if ts_ns is None else suspect
            builder.add(int(self.tag_ids[item]), now if ts_ns is None else ts_ns, value, kind, status, flags)
        return self._built(builder)

    def of_bad(self, tags: Iterable[tuple[int, int]]) -> list[Batch]:
        """(tag id, status) of what cannot be had: no value. At most one batch."""
        builder = BatchBuilder()
        now = self._clock.wall_ns()
        for tag, status in tags:
            builder.add(tag, now, None, Kind.NULL, status, Flag.ARRIVAL_TIME)
        return [self._built(builder)] if len(builder) else []

    @property
    def _suspect(self) -> int:
        return Flag.MACHINE_CLOCK_SUSPECT if self._skew.acts else 0

    def _built(self, builder: BatchBuilder) -> Batch:
        self.number += 1
        batch = builder.build(self._source_id, self.number, self._clock.wall_ns(), clock=self._clock.state)
        if self._doubtful is None:
            return batch
        status, flags = doubted(np.isin(batch.tag, self._doubtful), batch.status, batch.flags)
        return replace(batch, status=status, flags=flags)
