"""What a server says that it takes in one call (Part 5, 6.3.11), and its namespaces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from asyncua import ua

from connectors import opcua_requests
from connectors.opcua_requests import ATTRIBUTE_VALUE, RequestHeader, encode_node_id

Request: TypeAlias = Callable[[Callable[[RequestHeader], bytes]], Awaitable[bytes]]
"""`PublishSession.request`: sends an encoded request and returns the response's bytes."""

PER_CALL: Final = 500
"""Nodes per call where the server names no limit of its own."""


@dataclass(frozen=True, slots=True)
class ViewLimits:
    """Nodes per call."""

    browse: int = PER_CALL
    translate: int = PER_CALL
    read: int = PER_CALL


async def view_limits(request: Request) -> ViewLimits:
    """What the server names; 0 or absent means no limit. Raises what requests raise."""
    ids = (
        ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse,
        ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerTranslateBrowsePathsToNodeIds,
        ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
    )
    found = [await _value(request, identifier) for identifier in ids]  # one by one: 1 node per Read is legal
    return ViewLimits(*(min(n, PER_CALL) if isinstance(n, int) and n > 0 else PER_CALL for n in found))


async def namespace_array(request: Request) -> list[str]:
    """The server's namespace URIs by index. Raises what requests raise."""
    found = await _value(request, ua.ObjectIds.Server_NamespaceArray)
    return [str(uri or "") for uri in found] if isinstance(found, list) else []


async def _value(request: Request, identifier: int) -> Any:
    node = encode_node_id(f"i={identifier}")
    body = await request(partial(opcua_requests.read, nodes=[node], attribute=ATTRIBUTE_VALUE))
    return opcua_requests.read_values(body, 1)[0]
