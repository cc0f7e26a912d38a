"""Records what foreign OPC UA servers really send, for the tests that mutate it: tests/data/opcua_responses.jsonl.

    python -m tests.integration.opcua_recorder

One line for each PublishResponse, JSON: `server`, `what`, `body` (base64) and, of events, `fields` by client handle.
Node-opcua, Eclipse Milo, gopcua and open62541: all types that each has, alone and in runs, arrays, structures, bad
nodes, events, keep-alives, the status change of a subscription that has expired. Made once; a new recording differs in
times and ids only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from asyncua import ua

from connectors.opcua_response import parse_response
from connectors.opcua_resume import ResumingClient
from connectors.opcua_session import PublishSession
from pipelines.clock import SystemClock
from tests.services.gopcua import Gopcua
from tests.services.milo import KINDS, Group, Milo
from tests.services.node_opcua import NodeOpcua
from tests.services.open62541 import Open62541

CORPUS: Final = Path(__file__).resolve().parents[1] / "data" / "opcua_responses.jsonl"
BYTES_MAX: Final = 6_000
"""Of one message; longer ones tell a mutation nothing more."""
PERIOD_MS: Final = 50.0
FIELDS: Final = ("EventId", "EventType", "SourceNode", "SourceName", "Time", "ReceiveTime", "Message", "Severity")
EVENT_HANDLE: Final = 1000
EXPIRES_S: Final = 30.0

BOTH: Final = (
    "Boolean SByte Byte Int16 UInt16 Int32 UInt32 Int64 UInt64 Float Double String DateTime Guid ByteString NodeId "
    "StatusCode QualifiedName LocalizedText DoubleArray Int32Array StringArray BooleanArray Matrix Missing"
)
NODE_OPCUA: Final = f"{BOTH} XmlElement ExpandedNodeId Point Motor Recipe Limit State Temperature Mode Valve"
OPEN62541: Final = f"{BOTH} Range RangeArray"


class Recorder:
    """One session with a server; `lines` are what it has recorded."""

    def __init__(self, server: str, session: PublishSession) -> None:
        self.lines: list[dict[str, Any]] = []
        self._server = server
        self._session = session

    async def subscribe(self, nodes: Sequence[str], keep_alives: int = 4, lifetime: int = 1000) -> int:
        """Item i has client handle i; the subscription's id."""
        wanted = ua.CreateSubscriptionParameters(PERIOD_MS, lifetime, keep_alives, 0, True, 0)
        made = await self._session.create_subscription(wanted, lambda _: None)
        items = [self._item(handle, ua.NodeId.from_string(node)) for handle, node in enumerate(nodes)]
        await self._create(made.SubscriptionId, items)
        return int(made.SubscriptionId)

    async def subscribe_events(self, subscription: int) -> None:
        """Of the Server object, with `FIELDS`."""
        base = ua.NodeId(ua.Int32(ua.ObjectIds.BaseEventType))
        clauses = [ua.SimpleAttributeOperand(base, [ua.QualifiedName(name)], ua.AttributeIds.Value) for name in FIELDS]
        item = self._item(EVENT_HANDLE, ua.NodeId(ua.Int32(ua.ObjectIds.Server)), ua.AttributeIds.EventNotifier)
        item.RequestedParameters.Filter = ua.EventFilter(SelectClauses=clauses)
        await self._create(subscription, [item])

    async def hear(self, what: str, wanted: Callable[[Any], bool]) -> None:
        """Keeps the next response that is wanted; the others are let go, and all are acknowledged."""
        async with asyncio.timeout(60):
            while True:
                self._session.arm(())
                body = await self._session.response()
                assert body is not None
                response = parse_response(body)
                if wanted(response):
                    break
        if len(body) <= BYTES_MAX:
            line: dict[str, Any] = {"server": self._server, "what": what, "body": b64encode(body).decode()}
            if response.events:
                line["fields"] = {EVENT_HANDLE: FIELDS}
            self.lines.append(line)

    async def _create(self, subscription: int, items: list[ua.MonitoredItemCreateRequest]) -> None:
        both = ua.TimestampsToReturn.Both
        await self._session.create_monitored_items(ua.CreateMonitoredItemsParameters(subscription, both, items))

    def _item(self, handle: int, node: ua.NodeId, attribute: int = ua.AttributeIds.Value) -> Any:
        parameters = ua.MonitoringParameters(
            ClientHandle=handle, SamplingInterval=0.0, QueueSize=20, DiscardOldest=True
        )
        return ua.MonitoredItemCreateRequest(
            ua.ReadValueId(node, ua.AttributeIds(attribute)), ua.MonitoringMode.Reporting, parameters
        )


@asynccontextmanager
async def recorder(server: str, url: str) -> AsyncIterator[Recorder]:
    """Connected, without security."""
    client = ResumingClient(url, 10.0, None, logging.LoggerAdapter(logging.getLogger(__name__)))
    session = PublishSession(client.uaclient, SystemClock(), 10.0)
    client.uaclient.session = session
    await client.connect()
    try:
        yield Recorder(server, session)
    finally:
        await client.disconnect()


def has_rows(response: Any) -> bool:
    """Data changes."""
    return bool(response.changes)


def has_events(response: Any) -> bool:
    """Events."""
    return bool(response.events)


def is_empty(response: Any) -> bool:
    """A keep-alive."""
    return not response.numbered and response.status_change is None


def is_end(response: Any) -> bool:
    """A status change, or a fault where the server does not tell."""
    return response.status_change is not None or bool(response.result & 0x8000_0000)


async def expire(to: Recorder, nodes: Sequence[str]) -> None:
    """Nobody asks for so long that the server gives the subscription up."""
    await to.subscribe(nodes, keep_alives=1, lifetime=3)
    await asyncio.sleep(EXPIRES_S)
    await to.hear("expired", is_end)


async def of_node_opcua() -> list[dict[str, Any]]:
    """Records it."""
    with NodeOpcua() as server:
        async with recorder("node-opcua", server.url) as to:
            every = await to.subscribe([f"ns=1;s={name}" for name in NODE_OPCUA.split()])
            await to.hear("every type", has_rows)
            await to.hear("keep-alive", is_empty)
            await to.subscribe_events(every)
            server.add("Flow")
            await to.hear("event", has_events)
            await to.subscribe(["ns=1;s=Double"] * 12)
            for number in range(3):
                server.set_value("Double", number + 0.5, status=0x40000000 * (number == 1))
            await to.hear("run of doubles", lambda response: response.rows > 20)
            await to.subscribe(["ns=1;s=String", "ns=1;s=Motor"] * 4)
            await to.hear("texts and structures by turns", has_rows)
        async with recorder("node-opcua", server.url) as other:
            await expire(other, ["ns=1;s=Double"])
        return to.lines + other.lines


async def of_milo() -> list[dict[str, Any]]:
    """Records it."""
    groups = [Group("m", "mixed", len(KINDS), 40), Group("v", "double", 30, 20)]
    with Milo(groups, ticks=6) as server:
        async with recorder("milo", server.url) as to:
            await to.subscribe([*groups[0].node_ids(), "ns=2;s=nope"])
            await to.hear("every type", has_rows)
            await to.hear("keep-alive", is_empty)
            server.go()
            await to.hear("every type, some ticks", has_rows)
            server.wait_finished(60)
            await to.subscribe(groups[1].node_ids())
            server.go()
            await to.hear("run of doubles", lambda response: response.rows > 20)
            server.wait_finished(60)
        async with recorder("milo", server.url) as other:
            await expire(other, ["ns=2;s=v0"])
        return to.lines + other.lines


async def of_gopcua() -> list[dict[str, Any]]:
    """Records it."""
    with Gopcua() as server:
        async with recorder("gopcua", server.url) as to:
            await to.subscribe([server.node, "ns=1;s=Missing"])
            await to.hear("a double", has_rows)
            server.set_value(2.5)
            await to.hear("another", has_rows)
            await to.hear("keep-alive", is_empty)
        return to.lines


async def of_open62541() -> list[dict[str, Any]]:
    """Records it."""
    with Open62541() as server:
        async with recorder("open62541", server.url) as to:
            every = await to.subscribe([f"ns=2;s={name}" for name in OPEN62541.split()])
            await to.hear("every type", has_rows)
            await to.hear("keep-alive", is_empty)
            await to.subscribe_events(every)
            server.fire("the door is open", 700)
            await to.hear("event", has_events)
            await to.subscribe(["ns=2;s=Double"] * 12)
            for number in range(3):
                server.set_value("Double", number + 0.5, status=0x40000000 * (number == 1))
            await to.hear("run of doubles", lambda response: response.rows > 20)
            await to.subscribe(["ns=2;s=StringArray", "ns=2;s=Range"] * 4)
            await to.hear("arrays and structures by turns", has_rows)
        async with recorder("open62541", server.url) as other:
            await expire(other, ["ns=2;s=Double"])
        return to.lines + other.lines


async def main() -> None:
    """Writes the file."""
    made = [await record() for record in (of_node_opcua, of_milo, of_gopcua, of_open62541)]
    CORPUS.write_text("".join(json.dumps(line) + "\n" for lines in made for line in lines))
    for line in (line for lines in made for line in lines):
        print(f"{line['server']:12} {line['what']:32} {len(line['body']) * 3 // 4:6d} bytes")


if __name__ == "__main__":
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    sys.exit(asyncio.run(main()))
