"""What is known of servers by the name of their product: `firmware_profiles/opcua/*.yaml`, matched with BuildInfo.

A profile only ever makes calls smaller than what the server states; it cannot make them larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Final, Literal

from asyncua.client.ua_session import UaSession
from pydantic import BaseModel, ConfigDict, PositiveInt
from ruamel.yaml import YAML

from connectors.opcua_limits import Limits, Service, read_standard

PRODUCT_NAME, MANUFACTURER_NAME, SOFTWARE_VERSION = 2261, 2263, 2264
"""Nodes of ServerStatus.BuildInfo, namespace 0 (Part 5, 12.4)."""
FOLDER: Final = "opcua"

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
"""Operations per call, then what a server has room for."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Match(_Model):
    """Parts of BuildInfo's texts, in any case: one of each list has to be there; an empty list is always."""

    manufacturer: tuple[str, ...] = ()
    product: tuple[str, ...] = ()

    def fits(self, manufacturer: str, product: str) -> bool:
        return _in(self.manufacturer, manufacturer) and _in(self.product, product)


class ServerProfile(_Model):
    """One family of servers."""

    id: str
    name: str
    match: Match
    limits: dict[LimitName, PositiveInt] = {}
    filters: bool = True
    """False: it refuses every DataChangeFilter."""
    source: str
    """Where this is known from."""


class Server(_Model):
    """What a server says of itself, and what is known of it."""

    manufacturer: str = ""
    product: str = ""
    version: str = ""
    profile: ServerProfile | None = None

    @property
    def info(self) -> str:
        """One line for health; empty where the server says nothing."""
        named = " ".join(filter(None, (self.manufacturer, self.product, self.version)))
        known = f" (known as {self.profile.id})" if self.profile else ""
        return f"server {named}{known}" if named else ""


async def identify(session: UaSession, limits: Limits) -> Server:
    """Reads BuildInfo and lets `limits` know. Raises what the session raises."""

    async def read(part: Sequence[int]) -> list[object]:
        return await read_standard(session, part)

    nodes = (MANUFACTURER_NAME, PRODUCT_NAME, SOFTWARE_VERSION)
    values = await limits.in_parts(Service.READ, nodes, read)
    manufacturer, product, version = (value.strip() if isinstance(value, str) else "" for value in values)
    known = await asyncio.to_thread(profiles)
    found = next((one for one in known if one.match.fits(manufacturer, product)), None)
    limits.know({str(name): limit for name, limit in found.limits.items()} if found else {})
    return Server(manufacturer=manufacturer, product=product, version=version, profile=found)


@cache
def profiles() -> tuple[ServerProfile, ...]:
    """All of them, the most particular first. Reads files."""
    yaml = YAML(typ="safe", pure=True)
    folder = resources.files("firmware_profiles") / FOLDER
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    found = [ServerProfile.model_validate(yaml.load(file.read_text(encoding="utf-8"))) for file in files]
    return tuple(sorted(found, key=lambda one: -bool(one.match.product) - bool(one.match.manufacturer)))


def _in(parts: Sequence[str], text: str) -> bool:
    return not parts or any(part.casefold() in text.casefold() for part in parts)
