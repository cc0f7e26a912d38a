"""An asyncua session with a publish loop of our own: responses are kept as bytes, acknowledgements wait for the lanes.

asyncua's own loop sends one PublishRequest at a time, decodes every value into objects and acknowledges whatever came.
Here several requests are outstanding, and `PublishSession.arm` sends the next one together with the acknowledgements
that have become due (Part 4, 5.13.5). Built on asyncua 2.1: `UaSession`, `UASocketProtocol._connection` and
`._callbackmap`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from asyncua.client.ua_client import UaClient
from asyncua.client.ua_session import SessionState, UaSession
from asyncua.ua import StatusCodes
from asyncua.ua.ua_binary import nodeid_to_binary

from connectors import opcua_requests
from connectors.opcua_channel import Channel
from connectors.opcua_requests import RequestHeader, ServiceError
from pipelines.clock import Clock
from pipelines.errors import NotConnected


class PublishSession(UaSession):
    """A `UaSession` for `client.uaclient.session`; see the module."""

    def __init__(self, client: UaClient, clock: Clock, timeout_s: float) -> None:
        super().__init__(client)
        self._clock = clock
        self._timeout_s = timeout_s
        self._responses: deque[bytes] = deque()
        self._lost: str | None = None
        self._wake = asyncio.Event()
        self._nudged = False
        self._idle = self._taken = False
        self.on_response: Callable[[bytes], bool] | None = None
        """Is shown a response in the step of its arrival, while `response` waits: True, it is taken."""
        self.outstanding = 0
        self.request_bytes_max = 0
        """The server takes no larger requests; 0: any."""
        self.keep_subscriptions = False
        """They live on at the server when the session is closed."""
        self.keep_session = False
        """It is not closed at all: the next connection takes it up again."""

    def ensure_publish_loop(self) -> None:
        """asyncua calls this after CreateSubscription; its loop stays off."""

    @property
    def lost(self) -> bool:
        """The connection is gone, while the session may live on at the server."""
        return self._lost is not None

    async def close_session(self, delete_subscriptions: bool) -> None:
        """CloseSession (Part 4, 5.7.4), where there is still a connection."""
        if self.lost or self.keep_session:
            self._set_state(SessionState.CLOSED)
        await super().close_session(delete_subscriptions and not self.keep_subscriptions)

    def arm(self, acks: Sequence[tuple[int, int]]) -> None:
        """Sends one PublishRequest that acknowledges `acks`. Raises NotConnected."""
        future = self._send(lambda header: opcua_requests.publish(header, acks), timeout_ms=0, taker=self._arrived)
        self.outstanding += 1
        future.add_done_callback(self._failed)

    async def response(self) -> bytes | None:
        """The next PublishResponse or ServiceFault, in order of arrival; None after a `nudge`, or where
        `on_response` has taken it.

        Raises NotConnected: the session is gone.
        """
        self._taken = False
        while not self._responses:
            if self._nudged:
                self._nudged = False
                return None
            if self._lost is not None:
                raise NotConnected(self._lost)
            self._wake.clear()
            self._idle = True
            try:
                await self._wake.wait()
            finally:
                self._idle = False
            if self._taken:  # the next one may be here already: it comes behind this one
                return None
        return self._responses.popleft()

    @property
    def waiting(self) -> int:
        """Responses that have arrived and were not taken."""
        return len(self._responses)

    def nudge(self) -> None:
        """Who waits for a response goes on without one."""
        self._nudged = True
        self._wake.set()

    def lose(self, reason: str) -> None:
        """The connection is gone: `response` raises after what has arrived was read."""
        self._lost = self._lost or reason
        self._wake.set()

    async def request(self, encode: Callable[[RequestHeader], bytes]) -> bytes:
        """Sends an encoded request and returns the response's bytes.

        Raises NotConnected, TimeoutError, ServiceError: it is larger than what the server takes.
        """
        async with asyncio.timeout(self._timeout_s):
            try:
                return bytes(await self._send(encode, timeout_ms=int(self._timeout_s * 1000)))
            except (ConnectionError, OSError) as error:
                raise NotConnected(f"the connection was lost: {error}") from error

    def _send(
        self, encode: Callable[[RequestHeader], bytes], timeout_ms: int, taker: Callable[[bytes], None] | None = None
    ) -> asyncio.Future[Any]:
        protocol = self._client.protocol
        if not isinstance(protocol, Channel) or protocol.transport is None:
            raise NotConnected(self._lost or "the connection is closed")
        protocol._request_handle += 1
        header = RequestHeader(
            nodeid_to_binary(self.authentication_token), protocol._request_handle, self._clock.wall_ns(), timeout_ms
        )
        protocol.revolve_security_token()
        protocol._request_id += 1
        request = encode(header)
        if 0 < self.request_bytes_max < len(request):  # the server would close the connection
            raise ServiceError(StatusCodes.BadRequestTooLarge)
        message = protocol.message(request, protocol._request_id)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        protocol._callbackmap[protocol._request_id] = future
        if taker:
            protocol.takers[protocol._request_id] = taker
        protocol.transport.write(message)
        return future

    def _arrived(self, body: bytes) -> None:
        self.outstanding -= 1
        idle, self._idle = self._idle, False
        if idle and self.on_response and self.on_response(body):
            self._taken = True
        else:
            self._responses.append(body)
        self._wake.set()

    def _failed(self, future: asyncio.Future[Any]) -> None:
        self.outstanding -= 1
        if not future.cancelled() and (error := future.exception()) is not None:
            self.lose(str(error) or "the connection was lost")
