"""What the tests of one OPC UA source share, beside the fixtures: servers in this process, rows that are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from asyncua import Server, ua

from connectors.opcua import OpcUaSource
from pipelines.batch import Batch
from tests.contract.source_suite import within
from tests.services.asyncua_space import new_server
from tests.services.ports import HOST, free_port

Make = Callable[..., OpcUaSource]
NODES = [f"ns=2;s=v{i}" for i in range(10)]


async def empty_server(port: int | None = None) -> Server:
    """An asyncua server in this process, so that a test can reach into it; not started, without security."""
    server = new_server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{HOST}:{port or free_port()}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    return server


@asynccontextmanager
async def plant_server() -> AsyncIterator[Server]:
    """One with the variables ns=2;s=v0 ... v9, Double."""
    server = await empty_server()
    await server.register_namespace("urn:test")
    for i in range(10):
        await server.nodes.objects.add_variable(ua.NodeId(f"v{i}", 2), f"2:v{i}", float(i))
    async with server:
        yield server


def url(server: Server) -> str:
    return str(server.endpoint.geturl())


async def write_standard(server: Server, node: int, value: Any, kind: ua.VariantType) -> None:
    """What a node of namespace 0 holds from now on."""
    await server.get_node(ua.NodeId(ua.Int32(node))).write_value(ua.Variant(value, kind))


async def rows(source: OpcUaSource, count: int) -> list[Batch]:
    """As many rows, or a few more; acknowledged."""
    batches: list[Batch] = []
    while sum(map(len, batches)) < count:
        batches.append(await within(source.read()))
        source.commit(batches[-1].number)
    return batches


async def values(source: OpcUaSource, count: int) -> list[Any]:
    return [value for batch in await rows(source, count) for value in batch.values()]
