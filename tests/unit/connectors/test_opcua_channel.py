"""opcua_channel: byte for byte what asyncua does, and asyncua's own way where a message is not a plain one."""

import asyncio
from collections.abc import Iterator

import pytest
from asyncua import ua
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.crypto.security_policies import SecurityPolicyNone
from asyncua.ua import MessageType

from connectors.opcua_channel import HEADERS, Channel

CHANNEL, TOKEN = 7, 11


def _token() -> ua.ChannelSecurityToken:
    return ua.ChannelSecurityToken(ChannelId=ua.UInt32(CHANNEL), TokenId=ua.UInt32(TOKEN))


class _Transport(asyncio.Transport):
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server() -> SecureConnection:
    connection = SecureConnection(SecurityPolicyNone(), TransportLimits())
    connection.security_token = _token()
    return connection


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def channel(server: SecureConnection) -> Channel:
    """Open, and the server's first message has come."""
    channel = Channel(security_policy=SecurityPolicyNone())
    channel.transport = _Transport()
    channel._connection.security_token = _token()
    channel._connection._peer_sequence_number = server._sequence_number
    return channel


def _sent(server: SecureConnection, body: bytes, request_id: int) -> bytes:
    return server.message_to_binary(body, MessageType.SecureMessage, request_id)  # type: ignore[arg-type]


def _asked(channel: Channel, loop: asyncio.AbstractEventLoop, *request_ids: int) -> list[asyncio.Future[object]]:
    for request_id in request_ids:
        channel._callbackmap[request_id] = loop.create_future()
    return [channel._callbackmap[request_id] for request_id in request_ids]


@pytest.mark.parametrize("size", [1, 100, 70_000])
def test_a_request_is_what_asyncua_makes_of_it(channel: Channel, size: int) -> None:
    """The larger one in several chunks."""
    asyncuas = SecureConnection(SecurityPolicyNone(), TransportLimits())
    asyncuas.security_token = _token()
    body = bytes(size)
    for request_id in (1, 2):
        assert channel.message(body, request_id) == _sent(asyncuas, body, request_id)


@pytest.mark.parametrize("piece", [1, 7, HEADERS, 1000, 10**6])
def test_responses_arrive_in_pieces_of_any_size(
    channel: Channel, server: SecureConnection, loop: asyncio.AbstractEventLoop, piece: int
) -> None:
    bodies = [b"first", b"x" * 3000, b"y" * 150_000, b"z"]
    futures = _asked(channel, loop, 1, 2, 3, 4)
    stream = b"".join(_sent(server, body, request_id) for request_id, body in enumerate(bodies, 1))
    for at in range(0, len(stream), piece):
        channel.data_received(stream[at : at + piece])
    assert [bytes(future.result()) for future in futures] == bodies  # type: ignore[call-overload]
    assert not channel.receive_buffer


@pytest.mark.parametrize(
    ("at", "why"), [(8, "channel id"), (12, "token id"), (16, "sequence number"), (20, "request id"), (3, "chunk type")]
)
def test_a_header_that_is_not_as_it_should_be_ends_the_connection(
    channel: Channel, server: SecureConnection, loop: asyncio.AbstractEventLoop, at: int, why: str
) -> None:
    """asyncua's checks hold for what is left to it; nobody is given the body."""
    [future] = _asked(channel, loop, 1)
    message = bytearray(_sent(server, b"body", 1))
    message[at] ^= 0x55
    channel.data_received(bytes(message))
    assert not future.done(), why
    transport = channel.transport
    assert transport is None or transport.closed  # type: ignore[attr-defined]
