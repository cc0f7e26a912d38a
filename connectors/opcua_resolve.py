"""Addresses of a file -> node ids of the server that is connected (Part 4, 5.8.4).

Browse paths are followed name by name, all of them beside each other: what paths have in common is asked once, and a
name without a namespace is tried in each that the server has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from connectors import opcua_requests
from connectors.opcua_address import (
    NO_NODE,
    QualifiedName,
    UnknownNamespace,
    index_of,
    is_path,
    steps_of,
    unescaped,
    with_index,
)
from connectors.opcua_limits import Limits, Service
from connectors.opcua_requests import ATTRIBUTE_VALUE, Request, encode_node_id
from connectors.opcua_view import translate, translated

ROOT: Final = "i=84"
NAMESPACE_ARRAY: Final = "i=2255"
SHOWN_MAX: Final = 3

Step = tuple[str, int | None, str]
"""From a node: the namespace index, None for any, and the name."""


async def namespace_array(request: Request) -> list[str]:
    """The server's namespace URIs by index. Raises what requests raise."""
    node = encode_node_id(NAMESPACE_ARRAY)
    body = await request(partial(opcua_requests.read, nodes=[node], attribute=ATTRIBUTE_VALUE))
    [found] = opcua_requests.read_values(body, 1)
    return [str(uri or "") for uri in found] if isinstance(found, list) else []


async def resolve(
    request: Request, addresses: Collection[str], namespaces: Sequence[str], limits: Limits
) -> tuple[dict[str, str], dict[str, str]]:
    """(address -> node id, address -> why there is none). Raises what requests raise."""
    nodes: dict[str, str] = {}
    why: dict[str, str] = {}
    paths: dict[str, list[QualifiedName]] = {}
    for address in addresses:
        try:
            if is_path(address):
                paths[address] = [_indexed(step, namespaces) for step in steps_of(address)]
            else:
                nodes[address] = with_index(address, namespaces)
        except UnknownNamespace as error:
            why[address] = str(error)
    at = dict.fromkeys(paths, ROOT)
    for depth in range(max(map(len, paths.values()), default=0)):
        going = {address: _step(at[address], path[depth]) for address, path in paths.items() if depth < len(path)}
        found = await _children(request, set(going.values()), len(namespaces), limits)
        for address, step in going.items():
            targets = found[step]
            if len(targets) == 1:
                at[address] = targets[0]
            else:
                why[address] = _unclear(step[2], targets)
                del paths[address]
    return nodes | {address: at[address] for address in paths}, why


def _indexed(step: QualifiedName, namespaces: Sequence[str]) -> QualifiedName:
    namespace = None if step.namespace is None else index_of(step.namespace, namespaces)
    return QualifiedName(namespace, unescaped(step.name))


def _step(node: str, step: QualifiedName) -> Step:
    return node, step.namespace if isinstance(step.namespace, int) else None, step.name


def _unclear(name: str, targets: Sequence[str]) -> str:
    if not targets:
        return f"there is no `{name}` on its way"
    shown = ", ".join(targets[:SHOWN_MAX]) + (", ..." if len(targets) > SHOWN_MAX else "")
    return (
        f"`{name}` means {len(targets)} nodes ({shown}): write its namespace in front, such as 2:{name}, or a node id"
    )


async def _children(
    request: Request, steps: Iterable[Step], namespaces: int, limits: Limits
) -> Mapping[Step, Sequence[str]]:
    """The nodes to which each step leads."""
    asked = [
        (step, namespace)
        for step in steps
        for namespace in (range(max(namespaces, 1)) if step[1] is None else (step[1],))
    ]

    async def ask(part: Sequence[tuple[Step, int]]) -> list[tuple[int, list[str]]]:
        paths = [(encode_node_id(step[0]), namespace, step[2]) for step, namespace in part]
        return translated(await request(partial(translate, paths=paths)), len(part))

    found: dict[Step, list[str]] = defaultdict(list)
    results = await limits.in_parts(Service.TRANSLATE_BROWSE_PATHS, asked, ask)
    for (step, _), (_, nodes) in zip(asked, results, strict=True):
        found[step] += [node for node in nodes if node not in found[step] and node != NO_NODE]
    return found
