"""Batches of an earlier process: its tag and source numbers are not ours. Names are; a segment knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from pipelines.batch import Batch
from pipelines.segment_tables import Tables
from pipelines.tags import Tag, TagTable

NO_SOURCE: Final = 2**16 - 1
"""The source is no longer configured."""


class Translation:
    """One segment's numbers -> ours; tags that we lack are added.

    A tag that we describe differently now keeps our description: the path is what counts.
    """

    def __init__(self, tables: Tables, tags: TagTable, sources: Sequence[str]) -> None:
        ours = {number: _ours(tags, tag) for number, tag in tables.tags.items()}
        self._ours = np.full(max(ours, default=-1) + 2, -1, dtype=np.int64)  # the last stands for all that follow
        self._ours[list(ours)] = list(ours.values())
        self._same = self._ours == np.arange(len(self._ours))
        self._sources = {
            number: sources.index(name) if name in sources else NO_SOURCE for number, name in tables.sources.items()
        }

    def of(self, batch: Batch) -> Batch:
        """The same batch by our numbers. Rows whose tag is not named in the segment's tables are left out."""
        source_id = self._sources.get(batch.source_id, NO_SOURCE)
        if self._same.take(batch.tag, mode="clip").all():
            return batch if source_id == batch.source_id else replace(batch, source_id=source_id)
        column = self._ours.take(batch.tag, mode="clip")
        known = replace(batch, source_id=source_id, tag=column.astype(np.uint32))
        return known if (column >= 0).all() else known.take(column >= 0)


def _ours(tags: TagTable, tag: Tag) -> int:
    """Our id. Unit and labels may be a machine's own words: they hold until it, or the file, says something else."""
    known = tags.id_of(tag.path)
    if known is None:
        known = tags.add(replace(tag, unit="", labels=(), bits=False))
    ours = tags[known]
    tags.learn(known, ours.unit or tag.unit, ours.labels or tag.labels, ours.bits if ours.labels else tag.bits)
    return known
