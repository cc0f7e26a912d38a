"""Looks around in a server's address space and prints a `tags:` block that can be pasted under a device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asyncua import Client, ua

from connectors.opcua_client import SecureClient
from connectors.opcua_security import Access, refusal, secure
from connectors.opcua_settings import OpcUaAuth, OpcUaSecurity
from pipelines.errors import NotConnected

NODES_PER_CALL: Final = 100
DEPTH_MAX: Final = 20
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable node: `path` holds the browse names from the root on, `value` is None where it cannot be read."""

    path: tuple[str, ...]
    node: str
    value: Any


@asynccontextmanager
async def session(url: str, access: Access, data_dir: Path) -> AsyncIterator[Client]:
    """A session to look around in, or for commands. Raises NotConnected, Permanent with one clear line."""
    client = SecureClient(url, timeout=10)
    try:
        await secure(client, data_dir, access)
        await client.connect()
    except ua.UaStatusCodeError as error:
        client.disconnect_socket()
        raise NotConnected(f"{url}: {refusal(error) or error}") from error
    except (OSError, TimeoutError, ua.UaError) as error:
        client.disconnect_socket()
        raise NotConnected(f"{url}: {str(error) or 'no answer within 10 s'}") from error
    except BaseException:
        client.disconnect_socket()
        raise
    try:
        yield client
    finally:
        await client.disconnect()


async def browse(
    url: str, *, root: str | None, limit: int, insecure: bool, auth: OpcUaAuth | None, data_dir: Path
) -> str:
    """What `gateway browse` prints. Raises NotConnected, Permanent."""
    access = Access(None if insecure else OpcUaSecurity(), auth)
    async with session(url, access, data_dir) as client:
        return tags_block(await variables(client, root, limit))


async def variables(client: Client, root: str | None, limit: int) -> list[Variable]:
    """At most `limit` variables below `root`, breadth first; default: the Objects folder without the Server object."""
    start = client.get_node(root) if root else client.nodes.objects
    found: list[tuple[tuple[str, ...], ua.NodeId]] = []
    seen = {start.nodeid, ua.NodeId(ua.Int32(ua.ObjectIds.Server))}
    level: list[tuple[tuple[str, ...], ua.NodeId]] = [((), start.nodeid)]
    for _ in range(DEPTH_MAX):
        below: list[tuple[tuple[str, ...], ua.NodeId]] = []
        for at in range(0, len(level), NODES_PER_CALL):
            for path, reference in await _children(client, level[at : at + NODES_PER_CALL]):
                node = ua.NodeId(reference.NodeId.Identifier, reference.NodeId.NamespaceIndex)
                if node in seen:
                    continue
                seen.add(node)
                below.append((path, node))
                # What the standard itself puts below Objects (aliases, locations) is nobody's measurement.
                wanted = root is not None or node.NamespaceIndex > 0
                if wanted and reference.NodeClass == ua.NodeClass.Variable:
                    found.append((path, node))
        level = below
        if not level or len(found) >= limit:
            break
    return await _with_values(client, found[:limit])


async def _children(
    client: Client, parents: list[tuple[tuple[str, ...], ua.NodeId]]
) -> list[tuple[tuple[str, ...], ua.ReferenceDescription]]:
    """Hierarchical references of many nodes in one call, continuation points followed (Part 4, 5.8.2)."""
    description = {
        "BrowseDirection": ua.BrowseDirection.Forward,
        "ReferenceTypeId": ua.NodeId(ua.Int32(ua.ObjectIds.HierarchicalReferences)),
        "IncludeSubtypes": True,
        "NodeClassMask": ua.NodeClass.Object | ua.NodeClass.Variable,
        "ResultMask": ua.BrowseResultMask.All,
    }
    nodes = [ua.BrowseDescription(NodeId=node, **description) for _, node in parents]
    session = client.uaclient.session
    results = await session.browse(ua.BrowseParameters(NodesToBrowse=nodes))
    children = []
    for (path, _), result in zip(parents, results, strict=True):
        page = result
        while True:
            children += [((*path, ref.BrowseName.Name or "?"), ref) for ref in page.References or []]
            if not page.ContinuationPoint:
                break
            [page] = await session.browse_next(ua.BrowseNextParameters(ContinuationPoints=[page.ContinuationPoint]))
    return children


async def _with_values(client: Client, found: list[tuple[tuple[str, ...], ua.NodeId]]) -> list[Variable]:
    values: list[Any] = []
    for at in range(0, len(found), NODES_PER_CALL):
        nodes = [node for _, node in found[at : at + NODES_PER_CALL]]
        read = await client.uaclient.session.read_attributes(nodes, ua.AttributeIds.Value)
        values += [value.Value for value in read]
    return [Variable(path, node.to_string(), value) for (path, node), value in zip(found, values, strict=True)]


def tags_block(found: list[Variable]) -> str:
    """The `tags:` block for these variables: names are as short as they can be without being ambiguous."""
    lines = ["tags:"]
    for name, variable in zip(_names([v.path for v in found]), found, strict=True):
        key = name if _PLAIN_KEY.fullmatch(name) else f'"{name}"'
        lines.append(f"  {key}: {_quoted(variable.node)}{_comment(variable.value)}")
    return "\n".join(lines)


def _names(paths: list[tuple[str, ...]]) -> list[str]:
    """Each path's last parts, joined by dots: as many as it takes to be unique; numbered where the path is not."""
    names = [_clean(path[-1:]) for path in paths]
    for parts in range(2, DEPTH_MAX + 1):
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        names = [_clean(path[-parts:]) if counts[name] > 1 else name for name, path in zip(names, paths, strict=True)]
    taken: dict[str, int] = {}
    for index, name in enumerate(names):
        taken[name] = taken.get(name, 0) + 1
        names[index] = name if taken[name] == 1 else f"{name}_{taken[name]}"
    return names


def _clean(parts: tuple[str, ...]) -> str:
    return ".".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def _quoted(node: str) -> str:
    return node if re.fullmatch(r"[\w=;.,|/()$-]+", node) else "'" + node.replace("'", "''") + "'"


def _comment(value: Any) -> str:
    if value is None or value.Value is None:
        return ""
    shown = str(value.Value).replace("\n", " ")
    return f"  # {value.VariantType.name}{'[]' if value.is_array else ''}, {shown[:40]}"
