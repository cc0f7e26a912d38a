"""Tags: what a number in a batch's `tag` column means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

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


def device_of(source: str) -> str:
    """The device behind a source's name: one may have several sessions, `press4` and `press4@fast`."""
    return source.partition("@")[0]


class TagTable:
    """Append-only: an id, once given, means the same tag for ever. Ids are 0, 1, 2, ... in order of `add`.

    What a machine says of a tag itself (`learn`) completes its description, at any time.
    """

    def __init__(self) -> None:
        self._tags: list[Tag] = []
        self._given: list[Tag] = []  # as they were added
        self._ids: dict[str, int] = {}
        self.version = 0
        """+1 with each tag and each description that has changed: who keeps something by id looks here."""
        self._changed: dict[int, int] = {}  # id -> version

    def __len__(self) -> int:
        return len(self._tags)

    def __getitem__(self, tag_id: int) -> Tag:
        return self._tags[tag_id]

    def __iter__(self) -> Iterator[Tag]:
        return iter(self._tags)

    def add(self, tag: Tag) -> int:
        """The id of `tag`. The same device and name twice give the same id; their first description stays, but what
        it left open may be said later.

        Raises ValueError when that path was added before with another description.
        """
        known = self._ids.get(tag.path)
        if known is not None:
            given = self._given[known]
            if given != tag:
                if not _completes(tag, given):
                    raise ValueError(f"tag {tag.path} is already described differently: ids are never reused")
                self._given[known] = tag
                self._describe(known, tag)
            return known
        self._ids[tag.path] = len(self._tags)
        self._tags.append(tag)
        self._given.append(tag)
        return self._changes(len(self._tags) - 1)

    def learn(self, tag_id: int, unit: str = "", labels: tuple[tuple[int, str], ...] = (), bits: bool = False) -> None:
        """The machine's own words for what was left open when the tag was added; those before them are forgotten."""
        given, before = self._given[tag_id], self._tags[tag_id]
        if given.labels or not labels:
            labels, bits = before.labels, before.bits
        self._describe(tag_id, replace(given, unit=given.unit or unit or before.unit, labels=labels, bits=bits))

    def changed_since(self, version: int) -> list[int]:
        """Ids that were added or described anew after `version`."""
        return [tag_id for tag_id, changed in self._changed.items() if changed > version]

    def _describe(self, tag_id: int, tag: Tag) -> None:
        if self._tags[tag_id] != tag:
            self._tags[tag_id] = tag
            self._changes(tag_id)

    def _changes(self, tag_id: int) -> int:
        self.version += 1
        self._changed[tag_id] = self.version
        return tag_id

    def id_of(self, path: str) -> int | None:
        """The id of `device/name`, or None."""
        return self._ids.get(path)

    def column(self, attribute: str, start: int = 0) -> npt.NDArray[np.float64]:
        """One numeric attribute of all tags from id `start` on, indexed by id: `column("scale")[batch.tag]`."""
        return np.array([getattr(tag, attribute) for tag in self._tags[start:]], dtype=np.float64)


def _completes(tag: Tag, given: Tag) -> bool:
    """`tag` is `given`, and says what that one left open."""
    unit = given.unit or tag.unit
    labels, bits = (given.labels, given.bits) if given.labels else (tag.labels, tag.bits)
    return replace(given, unit=unit, labels=labels, bits=bits) == tag


def name_of(value: Any, labels: Mapping[int, str], bits: bool = False) -> Any:
    """A number's name, None where it has none; the names of the bits that are set; of a list those of its items."""
    if isinstance(value, list):
        return [name_of(each, labels, bits) for each in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        return None
    return [name for bit, name in labels.items() if value >> bit & 1] if bits else labels.get(value)
