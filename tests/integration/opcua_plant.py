"""What the tests of one OPC UA source share: a server in this process, sources that are closed, rows that are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asyncua import Server, ua

from connectors.opcua import OpcUaSource
from connectors.opcua_settings import OpcUaDevice
from pipelines.batch import Batch
from pipelines.clock import SystemClock
from pipelines.tags import TagTable
from tests.contract.source_suite import within
from tests.services.ports import HOST, free_port

Make = Callable[..., OpcUaSource]
NODES = [f"ns=2;s=v{i}" for i in range(10)]


@asynccontextmanager
async def plant_server() -> AsyncIterator[Server]:
    """An asyncua server in this process, so that a test can reach into it; variables ns=2;s=v0 ... v9, Double."""
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{HOST}:{free_port()}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    await server.register_namespace("urn:test")
    for i in range(10):
        await server.nodes.objects.add_variable(ua.NodeId(f"v{i}", 2), f"2:v{i}", float(i))
    async with server:
        yield server


@asynccontextmanager
async def sources(folder: Path) -> AsyncIterator[Make]:
    """Makes sources and closes them: make(url, tags, **settings)."""
    made: list[OpcUaSource] = []

    def make(url: Any, tags: dict[str, Any], **options: Any) -> OpcUaSource:
        settings = {"opcua": url, "security": "none", "every": "50ms", "timeout": "20s", "tags": tags, **options}
        made.append(OpcUaSource("press", 0, OpcUaDevice.model_validate(settings), TagTable(), SystemClock(), folder))
        return made[-1]

    yield make
    for each in made:
        await each.close()


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
