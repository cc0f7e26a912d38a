"""The tags that a device's selection or its profiles have found, kept on disk: their names and handles stay when the
gateway restarts.

`data_dir/opcua/learnt/<device>.json`: see `pipelines/json_file.py`. It belongs to the
device's address and its rules: when these change, or the file is damaged, the server is looked through as if new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from pipelines.json_file import JsonFile

FORMAT: Final = 1
Labels: TypeAlias = tuple[tuple[int, str], ...]
"""Numbers and their names."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a profile says of a tag's values: another one, and it is another tag."""

    unit: str = ""
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Learnt:
    """One tag, by its place behind those of the file."""

    name: str
    node: str
    """With the namespace's URI; empty where the profile has it no more."""
    base: str = ""
    """What the profile calls it; empty where it is no profile's."""
    meaning: Meaning = Meaning()
    uncertain: bool = False

    @property
    def key(self) -> tuple[str, Meaning]:
        """What makes it the same tag at another place."""
        return self.base, self.meaning


@dataclass(frozen=True, slots=True)
class Former:
    """The profiles that a server had when it was connected last."""

    profiles: tuple[str, ...]
    shown: str
    """What it said it was."""
    digest: str
    """Of `opcua_follow.Chosen`."""


class LearntFile:
    """The file of one device. Its methods wait for the disk."""

    def __init__(self, data_dir: Path, device: str, rules: Any) -> None:
        self._file = JsonFile(data_dir / "opcua" / "learnt" / f"{device}.json", FORMAT)
        self.path = self._file.path
        self._rules = hashlib.sha256(orjson.dumps(rules)).hexdigest()

    def load(self) -> tuple[list[Learnt], Former | None]:
        """What was saved last for these rules. Raises Corrupt, OSError."""
        return self._file.load(self._of_these_rules) or ([], None)

    def save(self, tags: list[Learnt], former: Former | None) -> None:
        """Raises OSError; then what was saved before is still there."""
        content = {"rules": self._rules, "tags": list(map(_packed, tags)), "profiles": former}
        self._file.save(self._file.pack(content))

    def _of_these_rules(self, content: Mapping[str, Any]) -> tuple[list[Learnt], Former | None] | None:
        if content["rules"] != self._rules:
            return None
        return [_unpacked(*row) for row in content["tags"]], _former(content.get("profiles"))


def _packed(tag: Learnt) -> tuple[Any, ...]:
    plain = (tag.name, tag.node)
    return (*plain, tag.base, tag.meaning.unit, tag.meaning.labels, tag.uncertain) if tag.base else plain


def _unpacked(
    name: str, node: str, base: str = "", unit: str = "", labels: Sequence[Any] = (), uncertain: bool = False
) -> Learnt:
    meaning = Meaning(str(unit), tuple((int(number), str(text)) for number, text in labels))
    return Learnt(str(name), str(node), str(base), meaning, bool(uncertain))


def _former(packed: Any) -> Former | None:
    return Former(tuple(packed["profiles"]), str(packed["shown"]), str(packed["digest"])) if packed else None
