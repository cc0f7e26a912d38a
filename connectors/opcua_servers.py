"""What is known of a server by what it says of itself: BuildInfo and the NamespaceArray (Part 5, 12.4 and 6.3.2).

A profile only ever makes calls smaller than what the server states; it cannot make them larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from asyncua import ua
from asyncua.client.ua_session import UaSession

from connectors.opcua_limits import Limits, Service, read_standard
from connectors.opcua_profile import BUILD_INFO, OpcUaProfile, build_facts, fitting, limits_of, load_server_profiles
from connectors.profile import Facts

_NODES: Final = {name: getattr(ua.ObjectIds, f"Server_ServerStatus_BuildInfo_{name}") for name in BUILD_INFO}
"""Field of BuildInfo -> its node, namespace 0."""


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself, and what is known of its product."""

    facts: Facts = field(default_factory=dict)
    profile: OpcUaProfile | None = None

    @property
    def info(self) -> str:
        """One line for health; empty where the server says nothing."""
        named = " ".join(filter(None, (self.facts.get(fact) for fact in ("vendor", "product", "firmware"))))
        known = f" (known as {self.profile.profile})" if self.profile else ""
        return f"server {named}{known}" if named else ""

    @property
    def limits(self) -> Mapping[str, int]:
        """Those of its product, by name."""
        return limits_of([self.profile], self.facts) if self.profile else {}


async def server_facts(session: UaSession, limits: Limits) -> tuple[dict[str, str], list[str]]:
    """Facts for the choice of profiles, and the server's namespaces. Raises what the session raises."""

    async def read(part: Sequence[int]) -> list[object]:
        return await read_standard(session, part)

    nodes = [*_NODES.values(), ua.ObjectIds.Server_NamespaceArray]
    *build, namespaces = await limits.in_parts(Service.READ, nodes, read)
    known = [str(uri) for uri in namespaces] if isinstance(namespaces, list) else []
    texts = {name: value for name, value in zip(_NODES, build, strict=True) if isinstance(value, str)}
    return build_facts(texts, known), known


async def identify(session: UaSession, limits: Limits) -> Server:
    """Asks the server, and lets `limits` know. Raises what the session raises."""
    facts, _ = await server_facts(session, limits)
    server = Server(facts, product(await asyncio.to_thread(profiles), facts))
    limits.know(server.limits)
    return server


def product(known: Mapping[str, OpcUaProfile], facts: Facts) -> OpcUaProfile | None:
    """The most particular profile that BuildInfo alone speaks for."""
    build = {**facts, "namespaces": ""}
    return max(fitting(known, build), key=lambda one: len(one.matched(build) or ()), default=None)


@cache
def profiles() -> Mapping[str, OpcUaProfile]:
    """All that ship with the gateway. Reads files."""
    return load_server_profiles()
