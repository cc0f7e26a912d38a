"""What is known of a server by what it says of itself: BuildInfo, NamespaceArray (Part 5, 12.4 and 6.3.2), nameplate.

The nameplate is that of the machines it has (Machinery, OPC 40001-1, 8), else of its devices (DI, OPC 10000-100, 5.6).
Where several of them do not say the same of themselves, what they differ in is not known.

A profile only ever makes calls smaller than what the server states; it cannot make them larger.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.client.ua_session import UaSession

from connectors import opcua_pattern
from connectors.opcua_limits import Limits, Service, read_standard
from connectors.opcua_pattern import Rules
from connectors.opcua_profile import BUILD_INFO, NAMEPLATE, OpcUaProfile, build_facts, fitting, limits_of, resolve
from connectors.opcua_requests import ATTRIBUTE_VALUE, Request, encode_node_id
from connectors.opcua_resume import Log
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_walk import Selector, walk
from connectors.profile import AUTO, Facts, ProfileError, load_profile, load_profiles, versioned
from pipelines.errors import Permanent

_NODES: Final = {name: getattr(ua.ObjectIds, f"Server_ServerStatus_BuildInfo_{name}") for name in BUILD_INFO}
"""Field of BuildInfo -> its node, namespace 0."""
DI: Final = "http://opcfoundation.org/UA/DI/"
MACHINERY: Final = "http://opcfoundation.org/UA/Machinery/"
_NAMEPLATES: Final = (
    f"/Objects/nsu={MACHINERY};Machines/*/nsu={DI};Identification/nsu={DI};",
    f"/Objects/nsu={DI};DeviceSet/*/nsu={DI};",
)
"""Where nameplates are; the first that exists."""
_SHOWN: Final = (("manufacturer", "vendor"), ("model", "product"))
NAMEPLATES_MAX: Final = 1000
"""Properties that are read."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself, and what is known of its product."""

    facts: Facts = field(default_factory=dict)
    profile: OpcUaProfile | None = None
    """Its product's."""
    namespaces: Sequence[str] = ()
    chosen: Sequence[OpcUaProfile] = ()
    """Whose nodes become tags, as `profile:` of the device says."""
    why: Sequence[str] = ()
    """These, a line each."""

    @property
    def info(self) -> str:
        """One line for health; empty where the server says nothing."""
        named = " ".join(filter(None, (self.facts.get(fact) for fact in ("vendor", "product", "firmware"))))
        known = f" (known as {self.profile.profile})" if self.profile else ""
        return f"server {named}{known}" if named else ""

    @property
    def shown(self) -> str:
        """`Acme Press 4 firmware 1.2.1`: what it says it is, of the nameplate where that says more; for people."""
        told = [self.facts.get(plate) or self.facts.get(build, "") for plate, build in _SHOWN]
        versions = [f"{name} {self.facts[name]}" for name in ("firmware", "software") if self.facts.get(name)]
        return " ".join(filter(None, (*told, *versions))) or "a server that tells nothing of itself"

    @property
    def profiles(self) -> Sequence[OpcUaProfile]:
        """All that is known of it."""
        known = [self.profile] if self.profile else []
        return [*known, *(one for one in self.chosen if one not in known)]

    @property
    def limits(self) -> Mapping[str, int]:
        """Those that its profiles know, by name."""
        return limits_of(self.profiles, self.facts)


async def server_facts(session: UaSession, limits: Limits) -> tuple[dict[str, str], list[str]]:
    """Facts for the choice of profiles, and the server's namespaces. Raises what the session raises."""

    async def read(part: Sequence[int]) -> list[object]:
        return await read_standard(session, part)

    nodes = [*_NODES.values(), ua.ObjectIds.Server_NamespaceArray]
    *build, namespaces = await limits.in_parts(Service.READ, nodes, read)
    known = [str(uri) for uri in namespaces] if isinstance(namespaces, list) else []
    texts = {name: value for name, value in zip(_NODES, build, strict=True) if isinstance(value, str)}
    return build_facts(texts, known), known


async def identify(session: UaSession, limits: Limits, data_dir: Path | None, log: Log) -> Server:
    """Asks the server, and lets `limits` know. Raises what the session raises.

    A wrong file among the user's own profiles, which are in `data_dir`, is a line in the log.
    """
    facts, namespaces = await server_facts(session, limits)
    try:
        known = await asyncio.to_thread(load_profiles, OpcUaProfile, data_dir)
    except ProfileError as error:
        log.warning("%s: only the profiles that ship with the gateway are used", error)
        known = await asyncio.to_thread(load_profiles, OpcUaProfile)
    server = Server(facts, product(known, facts), namespaces)
    limits.know(server.limits)
    return server


def product(known: Mapping[str, OpcUaProfile], facts: Facts) -> OpcUaProfile | None:
    """The most particular profile that BuildInfo alone speaks for."""
    build = {**facts, "namespaces": ""}
    return max(fitting(known, build), key=lambda one: len(one.matched(build) or ()), default=None)


async def profiled(server: Server, request: Request, limits: Limits, settings: OpcUaDevice, data_dir: Path) -> Server:
    """With the profiles that the device is to have. Raises Permanent where none fits; what requests raise."""
    server = await with_nameplate(server, request, limits, settings.firmware)
    found = await asyncio.to_thread(with_profiles, server, settings.profile or AUTO, data_dir)
    if not any(resolve(one, found.facts).tags for one in found.chosen) and not settings.tags and not settings.select:
        names = " and ".join(one.profile for one in found.chosen)
        raise Permanent(f"profile {names} has no tags: add `tags:` or `select:` to the device")
    limits.know(found.limits)
    return found


async def with_nameplate(server: Server, request: Request, limits: Limits, firmware: str | None) -> Server:
    """With what its machines or devices say of themselves; `firmware` is believed more. Raises what requests raise."""
    said = {"firmware": firmware} if firmware else {}
    return replace(server, facts={**server.facts, **await nameplate(request, server.namespaces, limits), **said})


def with_profiles(server: Server, wanted: str, data_dir: Path) -> Server:
    """With the profile of that name, or with all that fit where it is `auto`. Reads files. Raises Permanent."""
    try:
        if wanted == AUTO:
            chosen = fitting(load_profiles(OpcUaProfile, data_dir), server.facts)
        else:
            chosen = [load_profile(OpcUaProfile, wanted, data_dir)]
    except ProfileError as error:
        raise Permanent(str(error)) from error
    if not chosen:
        told = ", ".join(f"{name} {text!r}" for name, text in server.facts.items())
        raise Permanent(f"no profile fits this server ({told}): write `profile:` with a name, or list its `tags:`")
    return replace(server, chosen=chosen, why=[*map(partial(_why, wanted, server.facts), chosen)])


def _why(wanted: str, facts: Facts, profile: OpcUaProfile) -> str:
    """`profile opcua-di, because it has http://opcfoundation.org/UA/DI/; firmware 1.2`."""
    matched = profile.matched(facts)
    if wanted == AUTO:
        why = " and ".join(
            f"it has {' or '.join(_listed(text))}"
            if name == "namespaces"
            else f"{name} is {facts.get(name) or 'missing'}"
            for name, text in (matched or {}).items()
        )
    else:
        unlike = "" if matched or not profile.match else ", although what it says does not fit"
        why = f"the configuration says so{unlike}"
    versions = [f"{name} {facts[name]}" for name in versioned(profile.covers, profile.conditions) if facts.get(name)]
    return "; ".join([f"profile {profile.profile}, because {why}", *versions])


def _listed(patterns: str | list[str]) -> list[str]:
    return [text.strip("*") for text in ([patterns] if isinstance(patterns, str) else patterns)]


async def nameplate(request: Request, namespaces: Sequence[str], limits: Limits) -> dict[str, str]:
    """What all machines, or else all devices, of a server say of themselves, as facts. Raises what requests raise."""
    for place in _NAMEPLATES:
        if not all(uri in namespaces for uri in (DI, MACHINERY) if uri in place):
            continue
        rules = [opcua_pattern.include(f"{place}{name}", namespaces) for name in NAMEPLATE]
        walked = await walk(request, Selector(Rules(rules), Rules([]), NAMEPLATES_MAX, properties=True), limits)
        nodes = [encode_node_id(one.node) for one in walked.variables]
        values = await limits.read(request, nodes, ATTRIBUTE_VALUE)
        said: defaultdict[str, set[str]] = defaultdict(set)
        for one, value in zip(walked.variables, values, strict=True):
            said[NAMEPLATE[one.path[-1].name]].add(_text(value))
        if said:
            return {fact: texts.pop() for fact, texts in said.items() if len(texts) == 1 and texts != {""}}
    return {}


def _text(value: Any) -> str:
    """Of a String or a LocalizedText; empty for anything else."""
    return value.strip() if isinstance(value, str) else ""
