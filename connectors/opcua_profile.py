"""Profiles of OPC UA servers: which product it is, what it takes per call, where companion models have nodes. Pure.

Several may fit one server at once: its product's (limits), and one for each companion model that it has (nodes). One
that another fitting profile extends is left out. Facts: `vendor`, `product`, `product_uri`, `firmware`, `build`
(BuildInfo, Part 5, 12.4) and `namespaces` (the NamespaceArray, blanks between).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from connectors.profile import (
    OWN_PROFILES,
    Condition,
    Facts,
    ProfileBase,
    ProfileError,
    checked_condition,
    fits,
    profile_files,
    raw_profile,
)
from pipelines.quantities import Settings

STANDARD: Final = {"ua": ["http://opcfoundation.org/UA/"]}
BUILD_INFO: Final[Mapping[str, str]] = {
    "ManufacturerName": "vendor",
    "ProductName": "product",
    "ProductUri": "product_uri",
    "SoftwareVersion": "firmware",
    "BuildNumber": "build",
}
"""Field -> fact."""
_NAME: Final = re.compile(r"(?P<alias>[a-z0-9]+):(?P<name>[^/]+)")

LimitName = Literal[
    "read",
    "write",
    "call",
    "browse",
    "register_nodes",
    "translate_browse_paths",
    "node_management",
    "monitored_items",
    "history_read",
    "history_events",
    "items_per_subscription",
    "subscriptions_per_session",
    "monitored_items_in_all",
    "subscriptions_in_all",
    "sessions",
]
ROOM: Final = frozenset(
    {
        "items_per_subscription",
        "subscriptions_per_session",
        "monitored_items_in_all",
        "subscriptions_in_all",
        "sessions",
    }
)
"""What a server has room for; the other limits are operations per call."""


class OpcUaNode(Settings):
    """Where a node is below the object that the profile speaks of."""

    path: str | list[str] = Field(
        description="Browse path, `alias:Name/alias:Name`, or several: the first that exists (a model may rename)."
    )
    unit: str = Field("", description="UCUM code.")
    labels: dict[int, str] = Field({}, description="Names of numbers: an enumeration.")


class OpcUaOverride(Settings):
    """What is different where a condition holds."""

    when: Condition = Field(description="Fact -> range or pattern, as in `match`.")
    limits: dict[LimitName, PositiveInt] = Field({}, description="Limits that are others.")
    note: str = Field("", description="Why.")

    @field_validator("when")
    @classmethod
    def _condition(cls, when: Condition) -> Condition:
        return checked_condition(when)


class OpcUaProfile(ProfileBase):
    """A product, or a companion model."""

    protocol: Literal["opcua"] = Field(description="What the device speaks.")
    namespaces: dict[str, list[str]] = Field(
        {}, description="Alias -> URI, or several for models that changed theirs: the first that the server has."
    )
    below: str = Field("/", description="Browse path of the object that `nodes` start from; `*` is any name.")
    nodes: dict[str, str | list[str] | OpcUaNode] = Field({}, description="Tag -> browse path, or a mapping.")
    limits: dict[LimitName, PositiveInt] = Field(
        {}, description="What the product takes in practice, whatever it states: operations per call, and its room."
    )
    filters: bool = Field(True, description="false: the product refuses every DataChangeFilter.")
    overrides: list[OpcUaOverride] = Field([], description="Differences, applied in this order.")


def load_server_profiles(data_dir: Path | None = None) -> dict[str, OpcUaProfile]:
    """Every profile by name; the user's own take the place of shipped ones. Raises ProfileError."""
    known = profile_files("opcua", data_dir / OWN_PROFILES if data_dir else None)
    found = {}
    for name, file in known.items():
        content = raw_profile(file, known)
        if content.get("protocol") != "opcua":
            continue  # the user's own are in one folder
        try:
            found[name] = OpcUaProfile.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ProfileError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return found


def fitting(profiles: Mapping[str, OpcUaProfile], facts: Facts) -> list[OpcUaProfile]:
    """Those that fit, without what another of them extends."""
    found = [profile for profile in profiles.values() if profile.matched(facts) is not None]
    below = {profile.extends for profile in found}
    return [profile for profile in found if profile.profile not in below]


def limits_of(profiles: Sequence[OpcUaProfile], facts: Facts) -> dict[str, int]:
    """Name of a limit -> number; the least where several profiles speak of it."""
    found: dict[str, int] = {}
    for profile in profiles:
        own = dict(profile.limits)
        for override in profile.overrides:
            if fits(override.when, facts):
                own |= override.limits
        found |= {str(name): min(number, found.get(name, number)) for name, number in own.items()}
    return found


def browse_paths(profile: OpcUaProfile, server: Sequence[str]) -> dict[str, list[str]]:
    """Tag -> its possible browse paths from the root on, names with their namespace's URI (`nsu=...;Name`).

    `server` is the NamespaceArray. A path with a namespace that the server does not have is left out.
    """
    uris = {
        alias: next((uri for uri in known if uri in server), None)
        for alias, known in {**STANDARD, **profile.namespaces}.items()
    }
    found: dict[str, list[str]] = {}
    for tag, node in profile.nodes.items():
        paths = node.path if isinstance(node, OpcUaNode) else node
        every = [paths] if isinstance(paths, str) else paths
        wholes = [f"{profile.below.rstrip('/')}/{path.lstrip('/')}" for path in every]
        found[tag] = [path for whole in wholes if (path := _with_uris(whole, uris)) is not None]
    return found


def _with_uris(path: str, uris: Mapping[str, str | None]) -> str | None:
    names = [part for part in path.split("/") if part]
    steps: list[str] = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            steps.append(name)
            continue
        uri = uris.get(match["alias"])
        if uri is None:
            return None
        steps.append(match["name"] if uri == STANDARD["ua"][0] else f"nsu={uri};{match['name']}")
    return "/" + "/".join(steps)


def build_facts(build: Mapping[str, Any], namespaces: Sequence[str]) -> dict[str, str]:
    """BuildInfo's fields and the NamespaceArray as facts."""
    facts = {fact: str(build[name]).strip() for name, fact in BUILD_INFO.items() if build.get(name)}
    return {**facts, "namespaces": " ".join(namespaces)}
