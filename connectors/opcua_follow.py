"""The profiles of one OPC UA server: which tags they have, and where these are at the server that is connected.

A profile's tag is a path with wildcards from the root on. What the wildcards stand for is in front of the tag's name:
`/Objects/Machines/*/Identification/Manufacturer` gives `Press4.manufacturer`. Of a tag's several paths the first that
exists counts, for each `Press4` on its own. A node is one tag, that of the first profile that has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import orjson

from connectors import opcua_names, opcua_pattern
from connectors.opcua_address import with_uri
from connectors.opcua_learnt import Learnt, Meaning
from connectors.opcua_limits import Limits
from connectors.opcua_pattern import Path, Rules, Step
from connectors.opcua_profile import MappedNode, resolve, server_uris, with_uris
from connectors.opcua_requests import Request
from connectors.opcua_servers import Server
from connectors.opcua_walk import Selector, walk

TAGS_MAX: Final = 10_000
"""Of all profiles of a server."""


@dataclass(frozen=True, slots=True)
class Template:
    """A tag of a profile; `paths` with URIs, only those that the server can have."""

    tag: str
    paths: Sequence[str]
    meaning: Meaning
    uncertain: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """The profiles of a server."""

    profiles: Sequence[str]
    shown: str
    """`Acme Press 4 firmware 1.2.1`: what it says it is, for people."""
    info: str
    """Which profiles and why, what is uncertain: one line for people."""
    templates: Sequence[Template]

    @classmethod
    def of(cls, server: Server) -> Chosen:
        templates: list[Template] = []
        doubts = []
        for profile in server.chosen:
            found, uris = resolve(profile, server.facts), server_uris(profile, server.namespaces)
            templates += (_template(tag, node, uris) for tag, node in found.tags.items())
            doubts += [f"uncertain: {found.uncertain}"] if found.uncertain else []
        info = "; ".join([*server.why, *doubts])
        return cls([profile.profile for profile in server.chosen], server.shown, info, templates)

    @property
    def digest(self) -> str:
        """Equal where the same tags are at the same places."""
        return hashlib.sha256(orjson.dumps([self.profiles, self.templates])).hexdigest()


def _template(tag: str, node: MappedNode, uris: Mapping[str, str | None]) -> Template:
    paths = [path for whole in node.paths if (path := with_uris(whole, uris)) is not None]
    return Template(tag, paths, Meaning(node.unit, node.labels), node.uncertain)


@dataclass(frozen=True, slots=True)
class Placed:
    """A tag of a profile that the server has."""

    base: str
    """Its name, where nothing else has it."""
    node: str
    meaning: Meaning
    uncertain: bool

    @property
    def key(self) -> tuple[str, Meaning]:
        """What makes it the same tag at another place."""
        return self.base, self.meaning

    def learnt(self, name: str, namespaces: Sequence[str]) -> Learnt:
        """As it is kept."""
        return Learnt(name, with_uri(self.node, namespaces), self.base, self.meaning, self.uncertain)


@dataclass(frozen=True, slots=True)
class Places:
    """What was found of templates."""

    tags: Sequence[Placed] = ()
    whole: bool = True
    """What is missing is not there."""
    fault: str = ""
    """Why not all was looked at, or nothing is there."""


async def place(
    request: Request,
    templates: Sequence[Template],
    own: Collection[str],
    taken: Collection[str],
    namespaces: Sequence[str],
    limits: Limits,
) -> Places:
    """Looks for the tags at the server. Raises what requests raise.

    `own`: names of the file's tags, which take the place of the profiles'; `taken`: nodes that are tags already.
    """
    asked = [(number, place) for number, one in enumerate(templates) for place in range(len(one.paths))]
    rules = [opcua_pattern.include(templates[number].paths[place], namespaces) for number, place in asked]
    walked = await walk(request, Selector(Rules(rules), Rules([]), TAGS_MAX, properties=True), limits)
    best: dict[tuple[int, str], tuple[int, str]] = {}  # (template, what its wildcards stand for) -> (path, node)
    for variable in walked.variables:
        for rule in variable.rules:
            number, path = asked[rule]
            key = number, _instance(rules[rule].steps, variable.path)
            best[key] = min(best.get(key, (path, variable.node)), (path, variable.node))
    found = {key: node for key, (_, node) in sorted(best.items())}
    tags = [one for one in _placed(templates, found, taken, namespaces) if one.base not in own]
    fault = walked.cut or ("" if walked.variables or not rules else "the server has none of the profile's nodes")
    return Places(tags, walked.whole, fault)


def _instance(steps: Sequence[Step], path: Path) -> str:
    """What the wildcards stand for, and what is between them; empty where there is none."""
    lead = sum(1 for _ in takewhile(lambda step: step.literal, steps))
    if lead == len(steps):
        return ""
    trail = sum(1 for _ in takewhile(lambda step: step.literal, reversed(steps)))
    return opcua_names.plain_name(path[max(lead, 1) - 1 : len(path) - trail])


def _placed(
    templates: Sequence[Template],
    found: Mapping[tuple[int, str], str],
    taken: Collection[str],
    namespaces: Sequence[str],
) -> Iterator[Placed]:
    """One for each node, with names of their own."""
    nodes, bases = {*taken}, set[str]()
    for (number, instance), node in found.items():
        if node in nodes:
            continue
        nodes.add(node)
        one = templates[number]
        base = f"{instance}.{one.tag}" if instance else one.tag
        if base in bases:
            base = opcua_names.told_apart(base, with_uri(node, namespaces))
        bases.add(base)
        yield Placed(base, node, one.meaning, one.uncertain)
