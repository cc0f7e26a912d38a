"""Walks a server's address space below Objects and finds the variables that some rules mean.

Level by level, many nodes in a call, within the server's limits; long lists of references come in pages (Part 4,
5.8.3). A node that hangs at several places has the first of its shortest paths, in the order of the names, so that the
result does not depend on the order in which a server answers. References in a circle end: a node is looked into once
for each set of places that its paths have in the rules.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

from connectors.opcua_address import QualifiedName
from connectors.opcua_binary import DecodeError
from connectors.opcua_limits import Limits, Service
from connectors.opcua_pattern import Path, Place, Rules
from connectors.opcua_requests import Request, ServiceError, encode_node_id, status_name
from connectors.opcua_view import (
    BROWSE_NEXT_RESPONSE,
    BROWSE_RESPONSE,
    HAS_PROPERTY,
    HAS_SUBTYPE,
    HIERARCHICAL,
    OBJECT,
    TYPES,
    VARIABLE,
    Page,
    Reference,
    browse,
    browse_next,
    browsed,
)

Progress: TypeAlias = Callable[[int, int], None]
"""Is told (nodes to be looked into, variables found) after each level."""

OBJECTS: Final = "i=85"
REFERENCES_PER_NODE: Final = 1000
"""In one page."""
NODES_MAX: Final = 200_000
"""Looked into by one walk; a server whose address space has no end has an end here."""
DEPTH_MAX: Final = 64
DECODED_PER_TURN: Final = 50
"""References between two turns of the event loop: less than a millisecond."""

NO_CONTINUATION_POINTS: Final = 0x804B_0000
"""The server had no room for another one in this call: the node is asked for again, alone."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that some rule means."""

    path: Path
    """From Objects on, that one too."""
    node: str
    rules: Sequence[int] = ()
    """Which."""


@dataclass(slots=True)
class Walked:
    """What a walk has found."""

    variables: list[Variable] = field(default_factory=list)
    """In the order of depth and names; at most as many as were allowed."""
    matched: set[int] = field(default_factory=set)
    """The rules that mean at least one variable or are a type of which there is an instance."""
    instances: dict[int, int] = field(default_factory=dict)
    """How many, by the rule of their type."""
    cut: str = ""
    """Why not everything was looked into; empty where it was."""
    refused: list[tuple[Path, str]] = field(default_factory=list)
    """Nodes that could not be looked into, and the status."""

    @property
    def whole(self) -> bool:
        """What is missing here is not there."""
        return not self.cut and not self.refused


@dataclass(frozen=True, slots=True)
class _Branch:
    """A node to be looked into."""

    path: Path
    node: str
    places: frozenset[Place]
    excluded: frozenset[Place]

    @property
    def key(self) -> tuple[str, frozenset[Place], frozenset[Place]]:
        return self.node, self.places, self.excluded


@dataclass(frozen=True, slots=True)
class Selector:
    """What is looked for."""

    rules: Rules
    exclude: Rules
    limit: int
    properties: bool = False


async def walk(request: Request, selector: Selector, limits: Limits, progress: Progress = lambda _, __: None) -> Walked:
    """Raises what requests raise."""
    walked = Walked()
    found: dict[str, Variable] = {}
    objects = QualifiedName(0, "Objects")
    rules, exclude = selector.rules, selector.exclude
    start = _Branch((objects,), OBJECTS, rules.follow(rules.start, objects), exclude.follow(exclude.start, objects))
    level, seen = [start], {start.key}
    for _ in range(DEPTH_MAX):
        children: list[list[tuple[_Branch, Reference]]] = [[] for _ in level]
        wide = len(seen)
        async for index, reference in _references(request, level, limits, walked):
            if child := _child(selector, level[index], reference):
                children[index].append((child, reference))
                wide += 1
                if wide > NODES_MAX:
                    break
        level = []
        for siblings in children:  # of parents in order
            siblings.sort(key=lambda one: (one[1].name.name, str(one[1].name.namespace), one[1].node))
            for branch, reference in siblings:
                entered = _enter(selector, branch, reference, walked, found)
                if entered and entered.key not in seen:
                    seen.add(entered.key)
                    level.append(entered)
                    if len(level) % DECODED_PER_TURN == 0:
                        await asyncio.sleep(0)
        progress(len(seen), len(found))
        walked.cut = _cut(len(found), selector.limit, wide)
        if walked.cut or not level:
            break
    else:
        walked.cut = f"branches deeper than {DEPTH_MAX} levels"
    walked.variables = list(found.values())[: selector.limit]
    return walked


def _cut(found: int, limit: int, nodes: int) -> str:
    if found > limit:
        return f"more than {limit:,} variables (limit)"
    return f"more than {NODES_MAX:,} nodes" if nodes > NODES_MAX else ""


def _child(selector: Selector, parent: _Branch, reference: Reference) -> _Branch | None:
    """None where neither the node nor anything below it can be meant."""
    if reference.type == HAS_PROPERTY and not selector.properties:
        return None
    if reference.node.startswith(("svr=", "nsu=")):  # at another server
        return None
    # What the standard itself puts below Objects (Server, Aliases, ...) is nobody's measurement: by name only.
    standard = len(parent.path) == 1 and not reference.node.startswith("ns=")
    places = selector.rules.follow(parent.places, reference.name, by_name_only=standard)
    if not places:
        return None
    excluded = selector.exclude.follow(parent.excluded, reference.name)
    return _Branch((*parent.path, reference.name), reference.node, places, excluded)


def _enter(
    selector: Selector, branch: _Branch, reference: Reference, walked: Walked, found: dict[str, Variable]
) -> _Branch | None:
    """Notes a variable that is meant; what to look into, None where nothing below is meant."""
    if selector.exclude.takes_all_below(branch.excluded):
        return None
    places, types = selector.rules.entered(branch.places, reference.type_definition)
    excluded = bool(selector.exclude.matched(branch.excluded, branch.path))
    for rule in types if not excluded else ():
        walked.instances[rule] = walked.instances.get(rule, 0) + 1
        walked.matched.add(rule)
    if reference.node_class == VARIABLE and not excluded:
        rules = selector.rules.matched(places, branch.path)
        walked.matched.update(rules)
        if rules and len(found) <= selector.limit:
            found.setdefault(branch.node, Variable(branch.path, branch.node, rules))
    return replace(branch, places=places) if selector.rules.goes_on(places) else None


async def _references(
    request: Request, level: Sequence[_Branch], limits: Limits, walked: Walked
) -> AsyncIterator[tuple[int, Reference]]:
    """Every reference of these nodes, with their place in `level`."""
    wanted = partial(browse, reference_type=HIERARCHICAL, node_classes=OBJECT | VARIABLE)

    def refused(index: int, status: int) -> None:
        walked.refused.append((level[index].path, status_name(status)))

    nodes = [encode_node_id(branch.node) for branch in level]
    async for one in _all_pages(request, nodes, limits, wanted, refused):
        yield one


async def _all_pages(
    request: Request,
    nodes: Sequence[bytes],
    limits: Limits,
    wanted: Callable[..., bytes],
    refused: Callable[[int, int], None],
) -> AsyncIterator[tuple[int, Reference]]:
    """(place in `nodes`, reference) of all nodes, page by page."""
    alone: list[int] = []
    at = 0
    while at < len(nodes):
        asked = list(range(at, min(at + limits.size(Service.BROWSE), len(nodes))))
        try:
            body = await request(_of(wanted, nodes, asked))
        except ServiceError as error:
            if not limits.too_many(Service.BROWSE, len(asked), error):
                raise
            continue
        at += len(asked)
        async for one in _pages(request, body, asked, refused, alone):
            yield one
    for index in alone:
        body = await request(_of(wanted, nodes, [index]))
        async for one in _pages(request, body, [index], refused, None):
            yield one


def _of(wanted: Callable[..., bytes], nodes: Sequence[bytes], asked: Sequence[int]) -> Callable[..., bytes]:
    return partial(wanted, nodes=[nodes[index] for index in asked], references_max=REFERENCES_PER_NODE)


async def _pages(
    request: Request,
    body: bytes,
    asked: list[int],
    refused: Callable[[int, int], None],
    alone: list[int] | None,
) -> AsyncIterator[tuple[int, Reference]]:
    """What was answered of some nodes, and what follows. `alone`: where those go that have to be asked again."""
    expected, turn = BROWSE_RESPONSE, 0
    while True:
        points: list[tuple[int, bytes]] = []
        index, before = 0, turn
        for part in browsed(body, expected, len(asked)):
            if isinstance(part, Page):
                index = asked[part.index]
                _sort_out(part, index, points, refused, alone)
                continue
            turn += 1
            if turn % DECODED_PER_TURN == 0:
                await asyncio.sleep(0)
            yield index, part
        if not points:
            return
        if expected == BROWSE_NEXT_RESPONSE and turn == before:
            raise DecodeError("pages of references without an end")
        asked, expected = [index for index, _ in points], BROWSE_NEXT_RESPONSE
        body = await request(partial(browse_next, points=[point for _, point in points]))


def _sort_out(
    page: Page,
    index: int,
    points: list[tuple[int, bytes]],
    refused: Callable[[int, int], None],
    alone: list[int] | None,
) -> None:
    if page.continuation:
        points.append((index, page.continuation))
    if page.status == NO_CONTINUATION_POINTS and alone is not None:
        alone.append(index)
    elif page.status & 0x8000_0000:
        refused(index, page.status)


async def subtypes(request: Request, type_node: str, limits: Limits) -> Collection[str]:
    """The type itself and all its subtypes. Raises what requests raise."""
    known, level = {type_node}, [type_node]
    wanted = partial(browse, reference_type=HAS_SUBTYPE, node_classes=TYPES)
    while level and len(known) < NODES_MAX:
        below = []
        nodes = [encode_node_id(node) for node in level]
        async for _, reference in _all_pages(request, nodes, limits, wanted, lambda _, __: None):
            if reference.node not in known:
                known.add(reference.node)
                below.append(reference.node)
        level = below
    return known
