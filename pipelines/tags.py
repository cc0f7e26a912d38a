"""Tags: what a number in a batch's `tag` column means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tag:
    """One measured point of one device."""

    device: str
    name: str
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    deadband: float = 0.0
    """Absolute, in engineering units; 0 means that every change passes."""
    uncertain: bool = False
    """The address is a guess (a profile for another firmware): delivered, but flagged."""
    labels: tuple[tuple[int, str], ...] = ()
    """What numbers mean, where they stand for something: (value, name) of an enumeration; (bit, name) of `bits`."""
    bits: bool = False
    """`labels` name single bits, 0 the least significant."""
    event: bool = False
    """A stream of events: each row is one, its value a structure of the event's fields."""

    @property
    def path(self) -> str:
        """`device/name`, as selectors and topics spell it."""
        return f"{self.device}/{self.name}"


class TagTable:
    """Append-only: an id, once given, means the same tag for ever. Ids are 0, 1, 2, ... in order of `add`."""

    def __init__(self) -> None:
        self._tags: list[Tag] = []
        self._ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._tags)

    def __getitem__(self, tag_id: int) -> Tag:
        return self._tags[tag_id]

    def __iter__(self) -> Iterator[Tag]:
        return iter(self._tags)

    def add(self, tag: Tag) -> int:
        """The id of `tag`. The same device and name twice give the same id; their first description stays.

        Raises ValueError when that path was added before with another description.
        """
        known = self._ids.get(tag.path)
        if known is not None:
            if self._tags[known] != tag:
                raise ValueError(f"tag {tag.path} is already described differently: ids are never reused")
            return known
        self._ids[tag.path] = len(self._tags)
        self._tags.append(tag)
        return len(self._tags) - 1

    def id_of(self, path: str) -> int | None:
        """The id of `device/name`, or None."""
        return self._ids.get(path)

    def column(self, attribute: str, start: int = 0) -> npt.NDArray[np.float64]:
        """One numeric attribute of all tags from id `start` on, indexed by id: `column("scale")[batch.tag]`."""
        return np.array([getattr(tag, attribute) for tag in self._tags[start:]], dtype=np.float64)
