"""rename: rows go on under another tag name of the same device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np

from pipelines.batch import Batch
from pipelines.tags import Tag, TagTable


class RenameStage:
    """`rename: {"press4/temperature": temp, flow: volume_flow}`: by path, or by name in every device.

    The new names have the old tag's unit and labels in the tag table; scale and deadband have been applied before.
    """

    def __init__(self, tags: TagTable, names: dict[str, str]) -> None:
        self._tags = tags
        self._names = names
        self._ids = np.zeros(0, dtype=np.uint32)
        self._version = 0

    @classmethod
    def from_setting(cls, tags: TagTable, setting: Any) -> Self:
        if not isinstance(setting, dict) or not all(isinstance(n, str) and n for n in setting.values()):
            raise ValueError("rename takes a mapping from old to new names, such as {temp_c: temperature}")
        return cls(tags, {str(old): new for old, new in setting.items()})

    def process(self, batch: Batch) -> Batch | None:
        if len(self._ids) < len(self._tags):
            self._grow()
        if self._version != self._tags.version:
            self._describe()
        return replace(batch, tag=self._ids[batch.tag])

    def _grow(self) -> None:
        ids = self._ids.tolist()
        for tag_id in range(len(ids), len(self._tags)):
            tag = self._tags[tag_id]
            new = self._names.get(tag.path, self._names.get(tag.name))
            ids.append(tag_id if new is None else self._id_of(replace(tag, name=new)))
        self._ids = np.array(ids, dtype=np.uint32)

    def _describe(self) -> None:
        """What a machine has said of its tags since is said of their new names too."""
        for tag_id in self._tags.changed_since(self._version):
            tag, renamed = self._tags[tag_id], int(self._ids[tag_id]) if tag_id < len(self._ids) else tag_id
            if renamed != tag_id:
                self._tags.learn(renamed, tag.unit, tag.labels, tag.bits)
        self._version = self._tags.version

    def _id_of(self, tag: Tag) -> int:
        known = self._tags.id_of(tag.path)
        return self._tags.add(tag) if known is None else known
