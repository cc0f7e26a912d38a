"""How much a server takes at a time, asked of it once per connection, and how every service call keeps to it.

`Limits.in_parts` cuts a call into parts. Its size is the smallest of what the server states (OperationLimits, Part 5,
6.3.11; 0 and absent mean "not stated", and may be wrong), what is known of its product (`opcua_servers`), what it has
taught us, and a default. A part that is refused for its size is tried again in halves, and the half is remembered for
as long as the gateway runs. The transport's own limits (Part 6, 7.1.2) are `agree`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

from asyncua import ua
from asyncua.client.ua_client import UASocketProtocol
from asyncua.client.ua_session import UaSession

from connectors import opcua_requests
from connectors.opcua_binary import DecodeError
from connectors.opcua_requests import Request, ServiceError, status_name

T = TypeVar("T")
R = TypeVar("R")


class Service(Enum):
    """A service whose calls carry many operations: the node that states its limit, and ours where none is stated."""

    READ = 11705, 1000
    WRITE = 11707, 1000
    CALL = 11709, 100
    BROWSE = 11710, 100
    REGISTER_NODES = 11711, 1000
    TRANSLATE_BROWSE_PATHS = 11712, 100
    NODE_MANAGEMENT = 11713, 100
    MONITORED_ITEMS = 11714, 1000
    HISTORY_READ = 12165, 10
    HISTORY_EVENTS = 12166, 10

    @property
    def node(self) -> int:
        """Numeric id, namespace 0, of its OperationLimit (Part 6, annex A)."""
        return self.value[0]

    @property
    def default(self) -> int:
        """Operations per call where the server states nothing."""
        return self.value[1]


SUBSCRIPTIONS_PER_SESSION: Final = 24098
ITEMS_PER_SUBSCRIPTION: Final = 24104
"""MaxSubscriptionsPerSession, MaxMonitoredItemsPerSubscription of ServerCapabilities (1.05)."""
_NODES: Final = (*(service.node for service in Service), SUBSCRIPTIONS_PER_SESSION, ITEMS_PER_SUBSCRIPTION)

RESPONSE_BYTES_MAX: Final = 64 * 2**20
"""One response; 2.7 MB hold 90,000 values. What is larger, no honest server sends."""
CHUNK_OVERHEAD: Final = 1024
"""Of one chunk's bytes: headers, padding and signature, at most."""

TOO_MANY: Final = frozenset(
    {
        ua.StatusCodes.BadTooManyOperations,
        ua.StatusCodes.BadEncodingLimitsExceeded,
        ua.StatusCodes.BadRequestTooLarge,
        ua.StatusCodes.BadResponseTooLarge,
        ua.StatusCodes.BadTcpMessageTooLarge,
    }
)
"""What a server says of a call that is too large."""


class Limits:
    """Of one server; lives as long as the device, `learn` for each connection."""

    def __init__(self, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._log = log
        self._stated: Mapping[int, int] = {}
        self._known: Mapping[str, int] = {}
        self._taught: dict[Service, int] = {}

    async def learn(self, session: UaSession) -> None:
        """Asks the server, in two calls. Raises what the session raises."""
        first = await read_numbers(session, [Service.READ.node], 1)
        per_read = first.get(Service.READ.node) or Service.READ.default
        self._stated = first | await read_numbers(session, [node for node in _NODES if node not in first], per_read)

    def know(self, limits: Mapping[str, int]) -> None:
        """Limits of the server's product: a Service's name in small letters, or a property of this class -> number."""
        self._known = limits

    def size(self, service: Service) -> int:
        """Operations per call."""
        named = (self._stated.get(service.node), self._known.get(service.name.lower()), self._taught.get(service))
        return min(service.default, *(number or service.default for number in named))

    @property
    def subscriptions_per_session(self) -> int | None:
        """None: not limited, as far as known."""
        return self._least(SUBSCRIPTIONS_PER_SESSION, "subscriptions_per_session")

    @property
    def items_per_subscription(self) -> int | None:
        """None: not limited, as far as known."""
        return self._least(ITEMS_PER_SUBSCRIPTION, "items_per_subscription")

    async def in_parts(
        self, service: Service, items: Sequence[T], call: Callable[[Sequence[T]], Awaitable[Sequence[R]]]
    ) -> list[R]:
        """`call` for all items in parts that the server takes; one result for each, in order. Raises what it raises."""
        results: list[R] = []
        while len(results) < len(items):
            part = items[len(results) : len(results) + self.size(service)]
            try:
                found = await call(part)
            except (ServiceError, ua.UaStatusCodeError) as error:
                if not self.too_many(service, len(part), error):
                    raise
                continue
            if len(found) != len(part):
                raise DecodeError(f"{len(part)} results expected, {len(found)} received")
            results += found
        return results

    async def read(self, request: Request, nodes: Sequence[bytes], attribute: int) -> list[Any]:
        """One attribute of each node, None where it has none; nodes are encoded. Raises what `request` raises."""

        async def read(part: Sequence[bytes]) -> list[Any]:
            body = await request(partial(opcua_requests.read, nodes=part, attribute=attribute))
            return opcua_requests.read_values(body, len(part))

        return await self.in_parts(Service.READ, nodes, read)

    def too_many(self, service: Service, asked: int, error: ServiceError | ua.UaStatusCodeError) -> bool:
        """Remembers where `asked` operations were too many. Returns whether it is worth to try again with fewer."""
        status = error.status if isinstance(error, ServiceError) else error.code
        if status not in TOO_MANY or asked <= 1:
            return False
        self._taught[service] = asked // 2
        self._log.info("%d in one %s are too many: %s; %d now", asked, service.name, status_name(status), asked // 2)
        return bool(status != ua.StatusCodes.BadTcpMessageTooLarge)  # that one costs the connection

    def _least(self, node: int, name: str) -> int | None:
        return min(filter(None, (self._stated.get(node), self._known.get(name))), default=None)


async def read_numbers(session: UaSession, nodes: Sequence[int], per_call: int) -> dict[int, int]:
    """Values of numeric nodes of namespace 0; what is absent, bad or no whole number is left out."""
    found = {}
    for at in range(0, len(nodes), per_call):
        part = nodes[at : at + per_call]
        for node, value in zip(part, await read_standard(session, part), strict=False):
            if isinstance(value, int) and value >= 0:
                found[node] = value
    return found


async def read_standard(session: UaSession, nodes: Sequence[int]) -> list[Any]:
    """Values of nodes of namespace 0 in one call; None where there is none."""
    ids = [ua.NodeId(ua.Int32(node)) for node in nodes]
    values = await session.read_attributes(ids, ua.AttributeIds.Value)
    return [value.Value.Value if value.Value is not None else None for value in values]


def agree(protocol: UASocketProtocol, server: ua.Acknowledge) -> int:
    """What client and server have agreed on for this connection; returns the largest request in bytes, 0: any.

    An Acknowledge speaks of what the *server* receives and sends (Part 6, 7.1.2.4). asyncua 2.1 applies its limits for
    requests to responses, and would refuse the large answers of a server that takes small requests only.
    """
    limits = protocol._connection._limits
    limits.max_send_buffer = int(server.ReceiveBufferSize) or limits.max_send_buffer
    limits.max_recv_buffer = max(int(server.SendBufferSize), limits.max_recv_buffer)
    limits.max_message_size, limits.max_chunk_count = RESPONSE_BYTES_MAX, 0
    by_chunks = int(server.MaxChunkCount) * (int(server.ReceiveBufferSize) - CHUNK_OVERHEAD)
    return min(filter(lambda size: size > 0, (int(server.MaxMessageSize), by_chunks)), default=0)
