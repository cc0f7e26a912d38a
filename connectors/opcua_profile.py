"""Profiles of OPC UA servers: which product it is, what it takes per call, where its values are. Pure.

Several may fit one server at once: its product's (limits, nodes), and one for each companion model that it has (nodes).
One that another fitting profile extends is left out. Facts: `vendor`, `product`, `product_uri`, `firmware`, `build`
(BuildInfo, Part 5, 12.4), `namespaces` (the NamespaceArray, blanks between), and of its nameplate (Part 100, 5.6)
`manufacturer`, `model`, `serial`, `hardware`, `software`, `device_class`.

`resolve` makes a `NodeMap` for what is known of one server: overrides apply in their order where their condition holds,
and what is not sure is flagged, as for a Modbus device (`profile.doubts`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from connectors import opcua_pattern
from connectors.profile import Condition, Facts, ProfileBase, doubts, fits, merged, versions
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
NAMEPLATE: Final[Mapping[str, str]] = {
    "Manufacturer": "manufacturer",
    "Model": "model",
    "SerialNumber": "serial",
    "HardwareRevision": "hardware",
    "SoftwareRevision": "software",
    "DeviceClass": "device_class",
}
"""Property of a device, in the namespace of Devices (DI) -> fact."""
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


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_node(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | list) else value


class OpcUaNode(Settings):
    """Where a node is below the object that the profile speaks of."""

    path: Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = Field(
        min_length=1,
        description="Browse path, `alias:Name/alias:Name`, or several: the first that exists (a model may rename).",
    )
    unit: str = Field("", description="UCUM code.")
    labels: dict[int, str] = Field({}, description="Names of numbers: an enumeration.")


Node: TypeAlias = Annotated[OpcUaNode, BeforeValidator(_as_node, json_schema_input_type=str | list[str] | OpcUaNode)]


class OpcUaOverride(Settings):
    """What is different where a condition holds."""

    when: Condition = Field(description="Fact -> range or pattern, as in `match`.")
    limits: dict[LimitName, PositiveInt] = Field({}, description="Limits that are others.")
    below: str | None = Field(None, description="Where `nodes` start from instead.")
    nodes: dict[str, str | list[str] | dict[str, Any] | None] = Field(
        {}, description="Tags that are added, changed key by key, or (null) not there."
    )
    note: str = Field("", description="Why.")


class OpcUaProfile(ProfileBase):
    """A product, or a companion model."""

    protocol: Literal["opcua"] = Field(description="What the device speaks.")
    namespaces: dict[str, list[str]] = Field(
        {}, description="Alias -> URI, or several for models that changed theirs: the first that the server has."
    )
    below: str = Field("/", description="Browse path of the object that `nodes` start from; `*` is any name.")
    nodes: dict[str, Node] = Field({}, description="Tag -> browse path, or a mapping.")
    limits: dict[LimitName, PositiveInt] = Field(
        {}, description="What the product takes in practice, whatever it states: operations per call, and its room."
    )
    filters: bool = Field(True, description="false: the product refuses every DataChangeFilter.")
    overrides: list[OpcUaOverride] = Field([], description="Differences, applied in this order.")

    @property
    def conditions(self) -> list[Condition]:
        """On which nodes differ."""
        return [override.when for override in self.overrides if override.nodes or override.below is not None]

    @model_validator(mode="after")
    def _branches(self) -> Self:
        """Every version's map is made once: a wrong path in an override is found when the file is read."""
        for facts in versions(self.covers, self.conditions, {}):
            _mapped(self, facts)
        return self


@dataclass(frozen=True, slots=True)
class MappedNode:
    """One tag of a server as it is now."""

    paths: tuple[str, ...]
    """From the root on, `alias:Name` each; the first that exists."""
    unit: str = ""
    labels: tuple[tuple[int, str], ...] = ()
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class NodeMap:
    """Where a server has its values."""

    tags: Mapping[str, MappedNode]
    uncertain: str = ""
    """Why tags are flagged; empty where none is."""


def resolve(profile: OpcUaProfile, facts: Facts) -> NodeMap:
    """What is known of one server -> its map."""
    found = [_mapped(profile, known) for known in versions(profile.covers, profile.conditions, facts)]
    doubtful, why = doubts(profile.covers, profile.conditions, facts, found)
    tags = {name: replace(tag, uncertain=True) if name in doubtful else tag for name, tag in found[0].items()}
    return NodeMap(tags, why)


def _mapped(profile: OpcUaProfile, facts: Facts) -> dict[str, MappedNode]:
    """The tags of one version, none of them flagged. Raises ValueError."""
    nodes, below = dict(profile.nodes), profile.below
    for override in profile.overrides:
        if not fits(override.when, facts):
            continue
        below = below if override.below is None else override.below
        for name, change in override.nodes.items():
            known = nodes.pop(name, None)
            if change is not None:
                base = known.model_dump(exclude_unset=True) if known else {}
                nodes[name] = OpcUaNode.model_validate(merged(base, _as_node(change)))
    return {
        name: MappedNode(
            tuple(_checked(profile, f"{below.rstrip('/')}/{path.lstrip('/')}") for path in node.path),
            node.unit,
            tuple(node.labels.items()),
        )
        for name, node in nodes.items()
    }


def _checked(profile: OpcUaProfile, path: str) -> str:
    """`path` itself. Raises ValueError where it cannot mean anything."""
    whole = with_uris(path, {alias: uris[0] for alias, uris in {**STANDARD, **profile.namespaces}.items()})
    if whole is None:
        raise ValueError(f"{path!r}: an alias of it is not in `namespaces`")
    opcua_pattern.checked(whole)
    return path


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


def browse_paths(profile: OpcUaProfile, facts: Facts, server: Sequence[str]) -> dict[str, list[str]]:
    """Tag -> its possible browse paths from the root on, names with their namespace's URI (`nsu=...;Name`).

    `server` is the NamespaceArray. A path with a namespace that the server does not have is left out.
    """
    uris = server_uris(profile, server)
    return {
        tag: [path for whole in node.paths if (path := with_uris(whole, uris)) is not None]
        for tag, node in resolve(profile, facts).tags.items()
    }


def server_uris(profile: OpcUaProfile, server: Sequence[str]) -> dict[str, str | None]:
    """Alias -> the URI that a server with this NamespaceArray has; None: none of them."""
    return {
        alias: next((uri for uri in known if uri in server), None)
        for alias, known in {**STANDARD, **profile.namespaces}.items()
    }


def with_uris(path: str, uris: Mapping[str, str | None]) -> str | None:
    """`/ua:Objects/a:Press` -> `/Objects/nsu=...;Press`; None where the server does not have a namespace."""
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
