"""Device profiles: what is known of a family of devices, as a YAML file says it. This part is of any protocol.

A profile is chosen by facts: texts that a device tells of itself (`vendor`, `model`, `firmware`, `map`, `serial`, and
what a profile's own probes are named). A condition is a mapping from facts to what they must be; `firmware`, `map` and
`hardware` are versions and compared as such, any other fact matches a pattern (`SDM630*`, capitals do not matter), one
of several, or "" where the fact must be missing.

Files: those that ship with the gateway (package `firmware_profiles`, a folder per protocol), and the user's own in the
data folder (`profiles/`), which take the place of a shipped one of the same name. `extends: name` starts from another
file: mappings merge by key, null removes a key, everything else is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import Field, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.quantities import Settings

Facts: TypeAlias = Mapping[str, str]
Condition: TypeAlias = dict[str, str | list[str]]
Version: TypeAlias = tuple[tuple[int, int | str], ...]

VERSIONS: Final = frozenset({"firmware", "map", "hardware"})
"""Facts that have an order."""
AUTO: Final = "auto"
OWN_PROFILES: Final = "profiles"
"""Folder of the user's, in the data folder."""
EXTENDS_MAX: Final = 3
_PART = re.compile(r"\d+|[a-z]+")
_BOUND = re.compile(r"\s*(>=|<=|>|<|=)\s*([^\s,]+)\s*")


def version(text: str) -> Version:
    """`1.2.1`, `b.10`, `V200R001C00SPC153` -> something that sorts; letters before numbers, 1.2 is 1.2.0."""
    parts = _PART.findall(re.sub(r"^\s*v(?=\d+\.)", "", text.lower()))
    found: list[tuple[int, int | str]] = [(1, int(part)) if part.isdigit() else (0, part) for part in parts]
    while found and found[-1] == (1, 0):
        found.pop()
    return tuple(found)


def bounds(text: str) -> list[tuple[str, str]]:
    """`>=1.2, <2` -> [(">=", "1.2"), ("<", "2")]. Raises ValueError, one line."""
    found = [(part, _BOUND.fullmatch(part)) for part in text.split(",")]
    if wrong := [part for part, match in found if match is None]:
        raise ValueError(f"{wrong[0]!r} is not a range of versions: write `>=1.2`, `<2`, `=1.4`, or two with a comma")
    return [(match[1], match[2]) for _, match in found if match]


def in_range(known: str, text: str) -> bool:
    """Whether the version `known` lies in the range `text`."""
    return all(_holds(version(known), sign, version(bound)) for sign, bound in bounds(text))


def _holds(known: Version, sign: str, bound: Version) -> bool:
    if sign in (">=", "<="):
        return known == bound or _holds(known, sign[0], bound)
    return known == bound if sign == "=" else known > bound if sign == ">" else known < bound


def fits(condition: Condition, facts: Facts) -> bool:
    """Every fact is as the condition wants it; a version that is not known lies in no range."""
    return all(_fits(name, wanted, facts.get(name, "")) for name, wanted in condition.items())


def _fits(name: str, wanted: str | list[str], known: str) -> bool:
    if name in VERSIONS and wanted and isinstance(wanted, str):
        return bool(known) and in_range(known, wanted)
    patterns = [wanted] if isinstance(wanted, str) else wanted
    return any(fnmatchcase(known.lower(), pattern.lower()) for pattern in patterns)


def checked_condition(condition: Condition) -> Condition:
    """`condition` itself. Raises ValueError for a range that is none."""
    for name, wanted in condition.items():
        if name in VERSIONS and isinstance(wanted, str) and wanted:
            bounds(wanted)
    return condition


class ProfileBase(Settings):
    """What every profile says of itself."""

    profile: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="Name, as `profile:` of a device spells it; the file's, too."
    )
    protocol: Literal["modbus", "opcua"] = Field(description="What the device speaks.")
    vendor: str = Field(description="Who makes the devices.")
    models: list[str] = Field(description="Which devices it is for, for people.")
    grade: Literal["A", "B", "C"] = Field(
        description="How sure the facts are. A: read in a document of the vendor; B: in two independent public "
        "implementations; C: in one."
    )
    sources: list[str] = Field(min_length=1, description="Where the facts are from.")
    notes: list[str] = Field([], description="What people should know: settings of the device, traps.")
    extends: str | None = Field(None, description="Name of a profile to start from.")
    match: list[Condition] = Field(
        [],
        description="The device is of this family where one of these conditions holds; none: only chosen by name. A "
        "condition is fact -> pattern, or list of patterns; `firmware`, `map` and `hardware` are ranges (`>=1.2, <2`).",
        examples=[[{"vendor": "SolarEdge*"}]],
    )

    @field_validator("match")
    @classmethod
    def _conditions(cls, match: list[Condition]) -> list[Condition]:
        return [checked_condition(condition) for condition in match]

    def matched(self, facts: Facts) -> Condition | None:
        """The condition with the most facts that holds, if any does."""
        found = [condition for condition in self.match if fits(condition, facts)]
        return max(found, key=len, default=None)


class ProfileError(ValueError):
    """A profile cannot be used; one line with its file."""


def profile_files(protocol: str, own: Path | None = None) -> dict[str, Traversable]:
    """Name -> file, by name; `own` is the folder of the user's."""
    folders: Iterator[Traversable] = iter(
        [files("firmware_profiles") / protocol, *([own] if own and own.is_dir() else [])]
    )
    found = {
        file.name.removesuffix(".yaml"): file
        for folder in folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }
    return dict(sorted(found.items()))


def raw_profile(file: Traversable, known: Mapping[str, Traversable], below: Sequence[str] = ()) -> dict[str, Any]:
    """The file as plain data, on top of what it extends. Raises ProfileError."""
    try:
        content = _plain(file.read_text("utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{file}: a profile is a mapping that begins with `profile: name`")
    base = content.get("extends")
    if base is None:
        return content
    chain = [*below, str(content.get("profile"))]
    if base not in known or base in chain or len(chain) > EXTENDS_MAX:
        raise ProfileError(
            f"{file}: extends {base!r}: there is no such profile, or a circle, or more than {EXTENDS_MAX}"
        )
    whole: dict[str, Any] = merged(raw_profile(known[base], known, chain), content)
    return whole


@lru_cache(maxsize=100)
def _plain(text: str) -> Any:
    """Read once: profiles share what they extend. Nobody changes what comes out."""
    return YAML(typ="safe", pure=True).load(text)


def merged(base: Any, top: Any) -> Any:
    """Mappings merge by key, null removes a key, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    both = {key: merged(base.get(key), value) for key, value in top.items() if value is not None}
    return {key: value for key, value in {**base, **both}.items() if key not in top or top[key] is not None}
