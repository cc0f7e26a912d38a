"""Which tags a text selects: `*`, a device, `device/tag`, with `*` and `?` as wildcards in either part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipelines.tags import Tag, TagTable


def matches(pattern: str, tag: Tag) -> bool:
    """True where `pattern` (`press4`, `press*/temp*`, `*`) names the tag. Brackets mean themselves: `db1/value[3]`."""
    device, _, name = pattern.partition("/")
    return bool(_regex(device).fullmatch(tag.device) and _regex(name or "*").fullmatch(tag.name))


def may_match(pattern: str, device: str) -> bool:
    """True where `pattern` names some tag that `device` has or might get."""
    return bool(_regex(pattern.partition("/")[0]).fullmatch(device))


class Selector:
    """A set of patterns as a growing mask over the tag table: tags that are added later are judged then."""

    def __init__(self, tags: TagTable, patterns: Sequence[str]) -> None:
        self._tags = tags
        wild = {pattern for pattern in patterns if "*" in pattern or "?" in pattern}
        self._wild = sorted(wild)
        self._exact = {pattern.removesuffix("/") for pattern in patterns if pattern not in wild}
        self._mask = np.zeros(0, dtype=np.bool_)

    def mask(self) -> npt.NDArray[np.bool_]:
        """One boolean per tag id of the table as it is now."""
        known = len(self._mask)
        if known < len(self._tags):
            new = [self._chosen(self._tags[tag_id]) for tag_id in range(known, len(self._tags))]
            self._mask = np.concatenate([self._mask, np.array(new, dtype=np.bool_)])
        return self._mask

    def _chosen(self, tag: Tag) -> bool:
        """Names are looked up, patterns tried one by one: a file may list thousands of names."""
        return tag.device in self._exact or tag.path in self._exact or any(matches(p, tag) for p in self._wild)


@lru_cache(maxsize=10_000)
def _regex(pattern: str) -> re.Pattern[str]:
    words = {"*": ".*", "?": "."}
    return re.compile("".join(words.get(letter) or re.escape(letter) for letter in pattern), re.DOTALL)
