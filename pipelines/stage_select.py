"""select: only the rows of the chosen tags go on."""

from __future__ import annotations

from typing import Any, Self

from pipelines.batch import Batch
from pipelines.few import few_rows
from pipelines.selector import Selector
from pipelines.tags import TagTable


class SelectStage:
    """`select: [press4, meter7/flow]`, or one such text."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector

    @classmethod
    def from_setting(cls, tags: TagTable, setting: Any) -> Self:
        patterns = [setting] if isinstance(setting, str) else setting
        if not patterns or not isinstance(patterns, list) or not all(isinstance(p, str) and p for p in patterns):
            raise ValueError('select takes a tag or a list of tags, such as [press4, "meter7/flow"]')
        return cls(Selector(tags, patterns))

    def process(self, batch: Batch) -> Batch | None:
        mask, few = self._selector.mask(), few_rows(batch)
        if few is not None and all(mask.item(row[0]) for row in few):
            return batch
        chosen = mask[batch.tag]
        if chosen.all():
            return batch
        return batch.take(chosen) if chosen.any() else None
