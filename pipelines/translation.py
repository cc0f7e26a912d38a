"""Batches of an earlier process: its tag and source numbers are not ours. Names are; a segment knows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from pipelines.batch import Batch
from pipelines.segment import Tables
from pipelines.tags import TagTable

NO_SOURCE: Final = 2**16 - 1
"""The source is no longer configured."""


def translated(batch: Batch, tables: Tables, tags: TagTable, sources: Sequence[str]) -> Batch:
    """The same batch by our numbers; tags that we lack are added. Rows whose tag is not named in `tables` are left out.

    A tag that we describe differently now keeps our description: the path is what counts.
    """
    source = tables.sources.get(batch.source_id, "")
    source_id = sources.index(source) if source in sources else NO_SOURCE
    used, place = np.unique(batch.tag, return_inverse=True)
    ours = np.array([_ours(number, tables, tags) for number in used.tolist()], dtype=np.int64)
    if (ours == used).all():
        return batch if source_id == batch.source_id else replace(batch, source_id=source_id)
    column = ours[place]
    known = replace(batch, source_id=source_id, tag=column.astype(np.uint32))
    return known if (column >= 0).all() else known.take(column >= 0)


def _ours(number: int, tables: Tables, tags: TagTable) -> int:
    tag = tables.tags.get(number)
    if tag is None:
        return -1
    known = tags.id_of(tag.path)
    return tags.add(tag) if known is None else known
