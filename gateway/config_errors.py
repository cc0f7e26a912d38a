"""What can be wrong with a configuration file: the errors as they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple


class Place(NamedTuple):
    """Where something stands in the file; both count from 1. Line 0: the file as a whole."""

    line: int
    column: int


WHOLE_FILE = Place(0, 0)


@dataclass(frozen=True, slots=True, order=True)
class ConfigError:
    """One mistake, one line."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        position = f"{self.line}:{self.column}: " if self.line else " "
        return f"{self.file}:{position}{self.message}"


class ConfigErrors(Exception):
    """Every mistake of the file, by position. As text: a line for each."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = sorted(set(errors))
        super().__init__("\n".join(map(str, self.errors)))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most likely meant to be."""
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def hint(word: str, known: Iterable[str]) -> str:
    """`: did you mean ...?` or nothing; to be put at the end of a message."""
    meant = nearest(word, known)
    return f": did you mean `{meant}`?" if meant else ""
