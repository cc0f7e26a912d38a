"""Device profiles: what is known of a family of devices, as a YAML file says it. This part is of any protocol.

A profile is chosen by facts: texts that a device tells of itself (`vendor`, `model`, `firmware`, `map`, `serial`, and
what a profile's own probes are named). A condition is a mapping from facts to what they must be; `firmware`, `map`,
`hardware` and `software` are versions and compared as such, any other fact matches a pattern (`SDM630*`, capitals do
not matter), one of several, or "" where the fact must be missing.

Files: those that ship with the gateway (package `firmware_profiles`, a folder per protocol), and the user's own in the
data folder (`profiles/`), which take the place of a shipped one of the same name. `extends: name` starts from another
file: mappings merge by key, null removes a key, everything else is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args

from pydantic import AfterValidator, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.gaps import Gap, Reason
from pipelines.quantities import Settings

Facts: TypeAlias = Mapping[str, str]
Version: TypeAlias = tuple[tuple[int, int | str], ...]

VERSIONS: Final = frozenset({"firmware", "map", "hardware", "software"})
"""Facts that have an order."""
AUTO: Final = "auto"
OWN_PROFILES: Final = "profiles"
"""Folder of the user's, in the data folder."""
EXTENDS_MAX: Final = 3
_CHANGED_SHOWN_MAX: Final = 5
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


def checked_condition(condition: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    """`condition` itself. Raises ValueError for a range that is none."""
    for name, wanted in condition.items():
        if name in VERSIONS and isinstance(wanted, str) and wanted:
            bounds(wanted)
    return condition


def versions(covers: Condition, conditions: Sequence[Condition], facts: Facts) -> Iterator[Facts]:
    """`facts`, with each version that is not known filled in by every one at which something changes, oldest first.

    `conditions`: those of what differs; `covers`: see `ProfileBase`.
    """
    missing = [name for name in versioned(covers, conditions) if not facts.get(name)]
    choices = [_thresholds(name, covers, conditions) for name in missing]
    for combination in product(*choices):
        yield {**facts, **dict(zip(missing, combination, strict=True))}


def doubts(
    covers: Condition, conditions: Sequence[Condition], facts: Facts, maps: Sequence[Mapping[str, Any]]
) -> tuple[set[str], str]:
    """(names whose meaning is uncertain, why) where the first of `maps` is used: one for each of `versions`."""
    used = maps[0]
    if len(maps) > 1:
        names = {name for name, meaning in used.items() if any(other.get(name) != meaning for other in maps)}
        missing = ", ".join(name for name in versioned(covers, conditions) if not facts.get(name))
        return names, f"the device does not tell its {missing}: the oldest map is used" if names else ""
    if outside := [name for name, wanted in covers.items() if not fits({name: wanted}, facts)]:
        said = ", ".join(f"{name} {facts.get(name)} ({covers[name]})" for name in outside)
        return set(used), f"the profile does not cover {said}: the nearest map is used"
    return set(), ""


def versioned(covers: Condition, conditions: Sequence[Condition]) -> list[str]:
    """The versions that matter."""
    named = [*covers, *(name for condition in conditions for name in condition)]
    return [name for name in dict.fromkeys(named) if name in VERSIONS]


def _thresholds(name: str, covers: Condition, conditions: Sequence[Condition]) -> list[str]:
    """Oldest first: one version below every bound, then one at each and one above it, within what is covered."""
    texts = [wanted for one in (covers, *conditions) if isinstance(wanted := one.get(name), str) and wanted]
    known = sorted({bound for text in texts for _, bound in bounds(text)}, key=version)
    every = ["0", *(sample for bound in known for sample in (bound, f"{bound}.1"))]
    covered = covers.get(name)
    return [one for one in every if not isinstance(covered, str) or in_range(one, covered)] or every


Condition: TypeAlias = Annotated[dict[str, str | list[str]], AfterValidator(checked_condition)]
"""Fact -> range or pattern, or list of patterns."""
ProfileName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class ProfileBase(Settings):
    """What every profile says of itself."""

    profile: ProfileName = Field(description="Name, as `profile:` of a device spells it; the file's, too.")
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
        "condition is fact -> pattern, or list of patterns; `firmware`, `map`, `hardware` and `software` are ranges "
        "(`>=1.2, <2`).",
        examples=[[{"vendor": "SolarEdge*"}]],
    )
    covers: Condition = Field(
        {},
        description="Versions that the sources speak of: `{firmware: '>=1.0, <1.3'}`. Outside of them the nearest map "
        "is used and flagged uncertain.",
    )

    def matched(self, facts: Facts) -> Condition | None:
        """The condition with the most facts that holds, if any does."""
        found = [condition for condition in self.match if fits(condition, facts)]
        return max(found, key=len, default=None)


@dataclass(frozen=True, slots=True)
class Change:
    """Another map than before."""

    text: str
    tags: tuple[str, ...]
    """Those that are not what they were, or are not there any more, or were not there before."""

    @classmethod
    def of(cls, shown: tuple[str, str], profiles: tuple[str, str], tags: Sequence[str], nothing: str) -> Change:
        """Of a device that was `shown[0]` with `profiles[0]` before; `nothing`: what has changed where no tag has."""
        more = len(tags) - _CHANGED_SHOWN_MAX
        listed = ", ".join(tags[:_CHANGED_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        chosen = "" if profiles[0] == profiles[1] else f"profile {profiles[0]} -> {profiles[1]}, "
        return cls(f"{shown[0]} -> {shown[1]}: {chosen}{listed or nothing} changed", tuple(tags))

    def gap(self, device: str, from_ns: int, to_ns: int) -> Gap:
        """The entry of the ledger."""
        return Gap(Reason.MAP_CHANGED, device, "", self.tags, from_ns, to_ns, 0, detail=self.text)


P = TypeVar("P", bound=ProfileBase)


class ProfileError(ValueError):
    """A profile cannot be used; one line with its file."""


@lru_cache(maxsize=8)
def load_profiles(kind: type[P], data_dir: Path | None = None) -> Mapping[str, P]:
    """Every profile of a kind by name; the user's own take the place of shipped ones. Read once.

    Raises ProfileError.
    """
    protocol = protocol_of(kind)
    known = profile_files(protocol, data_dir / OWN_PROFILES if data_dir else None)
    mine = [name for name, file in known.items() if raw_profile(file, known).get("protocol", protocol) == protocol]
    return {name: _loaded(kind, name, known) for name in mine}


def load_profile(kind: type[P], name: str, data_dir: Path | None = None) -> P:
    """Raises ProfileError where there is none of that name, or it is wrong."""
    known = profile_files(protocol_of(kind), data_dir / OWN_PROFILES if data_dir else None)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f": did you mean `{near[0]}`?" if near else "; `gateway profile ls` lists them"
        raise ProfileError(f"there is no profile `{name}`{meant}")
    return _loaded(kind, name, known)


def parsed(kind: type[P], content: dict[str, Any], place: object) -> P:
    """A profile from plain data. Raises ProfileError, one line."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ProfileError(f"{place}: {where + ': ' if where else ''}{first['msg']}") from error


def protocol_of(kind: type[ProfileBase]) -> str:
    """What devices of profiles of this kind speak."""
    [protocol] = get_args(kind.model_fields["protocol"].annotation)
    return str(protocol)


def _loaded(kind: type[P], name: str, known: Mapping[str, Traversable]) -> P:
    profile = parsed(kind, raw_profile(known[name], known), known[name])
    if profile.profile != name:
        raise ProfileError(f"{known[name]}: it calls itself `{profile.profile}`: a profile has its file's name")
    return profile


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
