"""Reverse connect (Part 6, 7.1.3): the gateway listens, the server dials and says who it is with a ReverseHello.

    "RHE" "F", message size 4 | ServerUri, EndpointUrl: strings of at most 4,096 bytes

Only a server that a device names (both texts) is let in; from then on the connection is like any other. Devices may
share a listening address. A caller has `HELLO_S` to say who it is; at most `CALLERS_MAX` are waited for at a time; of
each device one call is kept in hand for when it is wanted next.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

from asyncua import ua
from asyncua.client.ua_client import UaClient, UaClientState

from connectors.network import PLAIN, Network, mark
from connectors.opcua_binary import Cursor, DecodeError
from pipelines.errors import NotConnected, Permanent

HELLO_S: Final = 10.0
CALLERS_MAX: Final = 64
CALL_S: Final = 120.0
"""How long a call is waited for: a server tries again within two minutes (Part 6, 7.1.3)."""
TEXT_MAX: Final = 4096
_Head: Final = struct.Struct("<4sI")
_HELLO_MAX: Final = _Head.size + 2 * (4 + TEXT_MAX)

Wanted = tuple[str, str]
"""ServerUri, EndpointUrl."""


@dataclass(slots=True)
class _Line:
    """What one device waits for."""

    waiting: asyncio.Future[_Caller] | None = None
    in_hand: _Caller | None = None


class Calls:
    """The calls for one device, from `expect` to `close`."""

    def __init__(self, listener: _Listener, wanted: Wanted, network: Network) -> None:
        self._listener = listener
        self._wanted = wanted
        self._network = network

    async def connect(self, client: UaClient) -> None:
        """Gives `client` the next call as its socket. Raises NotConnected: none has come."""
        line = self._listener.lines[self._wanted]
        caller, line.in_hand = line.in_hand, None
        if caller is None:
            line.waiting = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(CALL_S):
                    caller = await line.waiting
            except TimeoutError as error:
                uri, url = self._wanted
                raise NotConnected(f"no call from {uri} ({url}) within {CALL_S:g} s (reverse connect)") from error
            finally:
                if caller is None and line.waiting.done() and not line.waiting.cancelled():
                    line.waiting.result().abort()  # came too late
                line.waiting = None
        client._set_state(UaClientState.CONNECTING)
        caller.hand_over(client._make_protocol(), self._network)
        client._set_state(UaClientState.SOCKET_OPEN)

    def close(self) -> None:
        """Idempotent."""
        self._listener.forget(self._wanted)


async def expect(listen: str, server_uri: str, endpoint_url: str, network: Network = PLAIN) -> Calls:
    """Listens at `opc.tcp://address:port` for that server. Raises OSError, Permanent: another device waits for it.

    Its connection has the marks of `network`; until it has said who it is, those of the device that listened first.
    """
    parts = urlsplit(listen)
    address = (parts.hostname or "", parts.port or 0)
    listener = _LISTENERS.setdefault(address, _Listener(address))
    wanted = (server_uri, endpoint_url)
    if wanted in listener.lines:
        raise Permanent(f"two devices wait for calls of {server_uri} ({endpoint_url})")
    listener.lines[wanted] = _Line()
    try:
        await listener.start(network)
    except BaseException:
        listener.forget(wanted)
        raise
    return Calls(listener, wanted, network)


@dataclass(slots=True)
class _Listener:
    """One listening address, open while a device waits for calls there or uses one."""

    address: tuple[str, int]
    lines: dict[Wanted, _Line] = field(default_factory=dict)
    callers: set[_Caller] = field(default_factory=set)
    """Who has not said who it is."""
    server: asyncio.Server | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    unknown: set[Wanted] = field(default_factory=set)
    """Who was turned away, each logged once."""

    async def start(self, network: Network) -> None:
        async with self.starting:
            if self.server is None:
                loop = asyncio.get_running_loop()
                self.server = await loop.create_server(lambda: _Caller(self), *self.address)
                for sock in self.server.sockets:
                    mark(sock, network)

    def forget(self, wanted: Wanted) -> None:
        line = self.lines.pop(wanted, None)
        if line is not None and line.in_hand is not None:
            line.in_hand.abort()
        if self.lines:
            return
        if _LISTENERS.get(self.address) is self:
            del _LISTENERS[self.address]
        if self.server is not None:
            self.server.close()
        for caller in [*self.callers]:
            caller.abort()

    def arrived(self, caller: _Caller, said: Wanted) -> None:
        line = self.lines.get(said)
        if line is None:
            self._turn_away(caller, said)
        elif line.waiting is not None and not line.waiting.done():
            line.waiting.set_result(caller)
        elif line.in_hand is None:
            line.in_hand = caller
            caller.line = line
        else:
            caller.abort()

    def _turn_away(self, caller: _Caller, said: Wanted) -> None:
        if said not in self.unknown and len(self.unknown) < CALLERS_MAX:
            self.unknown.add(said)
            logging.getLogger(__name__).warning(
                "%s calls itself %.200r at %.200r, which no device names (reverse connect): turned away",
                caller.peer,
                *said,
            )
        caller.refuse(ua.StatusCodes.BadTcpEndpointUrlInvalid)


_LISTENERS: Final[dict[tuple[str, int], _Listener]] = {}


class _Caller(asyncio.Protocol):
    """A connection until it is handed over."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener
        self._said = b""
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None
        self.line: _Line | None = None
        """Where it is kept in hand."""

    @property
    def peer(self) -> str:
        return str(self._transport.get_extra_info("peername")) if self._transport is not None else "somebody"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._listener.callers) >= CALLERS_MAX or not self._listener.lines:
            self.abort()
            return
        self._listener.callers.add(self)
        self._patience = asyncio.get_running_loop().call_later(HELLO_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self not in self._listener.callers:  # before our Hello a server has nothing more to say
            self.abort()
            return
        self._said += data
        try:
            said = reverse_hello(self._said)
        except DecodeError:
            self.refuse(ua.StatusCodes.BadTcpMessageTypeInvalid)
            return
        if said is not None:
            self._settled()
            self._listener.arrived(self, said)

    def connection_lost(self, exc: Exception | None) -> None:
        self._settled()
        self._transport = None
        if self.line is not None and self.line.in_hand is self:
            self.line.in_hand = None

    def hand_over(self, protocol: asyncio.Protocol, network: Network) -> None:
        """Its connection is `protocol`'s now. Raises NotConnected: it is gone; NetworkRefused."""
        if self._transport is None or self._transport.is_closing():
            raise NotConnected("the server has called and hung up")
        mark(self._transport.get_extra_info("socket"), network)
        transport, self._transport = self._transport, None
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def refuse(self, status: int) -> None:
        """An Error message (Part 6, 7.1.2.5), and the end."""
        if self._transport is not None:
            self._transport.write(_Head.pack(b"ERRF", 16) + struct.pack("<Ii", status, -1))
            self._transport.close()
        self._settled()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._settled()

    def _settled(self) -> None:
        self._listener.callers.discard(self)
        if self._patience is not None:
            self._patience.cancel()


def reverse_hello(data: bytes) -> Wanted | None:
    """ServerUri and EndpointUrl; None while it has not come in full. Raises DecodeError: it is something else."""
    if not b"RHEF".startswith(data[:4]):
        raise DecodeError("no ReverseHello")
    if len(data) < _Head.size:
        return None
    _, size = _Head.unpack_from(data)
    if not _Head.size + 8 <= size <= _HELLO_MAX or len(data) > size:
        raise DecodeError(f"a ReverseHello of {size} bytes")
    if len(data) < size:
        return None
    cursor = Cursor(data, _Head.size)
    said = cursor.text() or "", cursor.text() or ""
    if cursor.at != size:
        raise DecodeError("more than a ReverseHello")
    return said
