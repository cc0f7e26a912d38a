"""Reverse connect: node-opcua dials the gateway; who is let in, and who is not."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors import opcua_reverse
from connectors.opcua_reverse import reverse_hello
from pipelines.errors import NotConnected, Permanent
from tests.conftest import made
from tests.contract.source_suite import within
from tests.integration.opcua_plant import Make, sources, values
from tests.services.node_opcua import NodeOpcua
from tests.services.ports import HOST, free_port

URI = "urn:test:press"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[NodeOpcua]:
    """It dials `port` until somebody listens there."""
    connections = [{"endpointUrl": f"opc.tcp://{HOST}:{port}"}]
    reverse = {"connections": connections, "reconnectDelay": 100, "maxReconnectDelay": 300}
    options = {"reverseConnect": reverse, "serverInfo": {"applicationUri": URI}}
    with made(lambda: NodeOpcua(options=options)) as node:
        yield node


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Make]:
    async with sources(tmp_path) as make:
        yield make


def device(server: NodeOpcua, port: int) -> dict[str, Any]:
    return {
        "url": f"opc.tcp://{HOST}:{port}",
        "tags": {"x": "ns=1;s=Double"},
        "reverse": {"server": URI, "endpoint": server.url},
    }


def hello(uri: str, url: str) -> bytes:
    body = b"".join(struct.pack("<i", len(text)) + text for text in (uri.encode(), url.encode()))
    return struct.pack("<4sI", b"RHEF", 8 + len(body)) + body


async def test_the_server_dials_and_again_after_a_lost_connection(server: NodeOpcua, port: int, source: Make) -> None:
    """Values come, on a connection with the device's mark; the connection is reset; the server calls again and the
    session goes on; then nothing listens."""
    press = source(**device(server, port), network={"dscp": "CS2", "priority": 3})
    server.set_value("Double", 1.5)
    await within(press.connect([]))
    assert await values(press, 1) == [1.5]
    session = press._link.session
    assert session is not None and session._client.protocol is not None and session._client.protocol.transport
    sock = session._client.protocol.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 16 << 2
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 3
    session._client.protocol.transport.abort()
    with pytest.raises(NotConnected):
        while True:
            await values(press, 1)
    await within(press.close())
    await within(press.connect([]))
    server.set_value("Double", 2.5)
    async with asyncio.timeout(30):
        while 2.5 not in await values(press, 1):
            pass
    await within(press.close())
    assert not opcua_reverse._LISTENERS


async def test_secured_like_any_other(server: NodeOpcua, port: int, source: Make, tmp_path: Path) -> None:
    """One call for the endpoints, one for the session; an unknown certificate is refused as ever."""
    press = source(**device(server, port), security="best")
    with pytest.raises(Permanent, match="not trusted"):
        await within(press.connect([]))
    await within(press.close())
    [pending] = (tmp_path / "pki" / "pending").iterdir()
    shutil.move(pending, tmp_path / "pki" / "trusted")
    await within(press.connect([]))
    assert len(await values(press, 1)) == 1


async def test_strangers_are_turned_away(
    source: Make, server: NodeOpcua, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another ServerUri, another EndpointUrl, no ReverseHello at all, one that never ends, and silence."""
    monkeypatch.setattr(opcua_reverse, "HELLO_S", 0.3)
    listen = free_port()
    press = source(**device(server, listen))
    connecting = asyncio.create_task(press.connect([]))

    async def answer(said: bytes) -> bytes:
        async with asyncio.timeout(30):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(HOST, listen)
                    break
                except OSError:
                    await asyncio.sleep(0.02)
            writer.write(said)
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

    refused = struct.pack("<4sIIi", b"ERRF", 16, 0x8083_0000, -1)
    assert await answer(hello("urn:other", server.url)) == refused
    assert await answer(hello(URI, "opc.tcp://elsewhere:4840")) == refused
    assert (await answer(b"GET / HTTP/1.1\r\n"))[:4] == b"ERRF"
    assert await answer(hello(URI, server.url)[:-1]) == b""
    assert await answer(b"") == b""
    assert "'urn:other'" in caplog.text and not connecting.done()
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    await within(press.close())
    with socket.socket() as probe, pytest.raises(OSError):
        probe.connect((HOST, listen))


async def test_nobody_calls(source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal state: NotConnected, one line that says whose call is missed; a second device for it is refused."""
    monkeypatch.setattr(opcua_reverse, "CALL_S", 0.2)
    options: dict[str, Any] = {"reverse": {"server": URI, "endpoint": "opc.tcp://press:4840"}}
    listen = f"opc.tcp://{HOST}:{free_port()}"
    press = source(listen, {"x": "i=2258"}, **options)
    with pytest.raises(NotConnected, match=URI):
        await within(press.connect([]))
    monkeypatch.setattr(opcua_reverse, "CALL_S", 30)
    connecting = asyncio.create_task(press.connect([]))
    async with asyncio.timeout(30):
        while not opcua_reverse._LISTENERS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(Permanent, match="two devices"):
        await within(source(listen, {"x": "i=2258"}, **options).connect([]))
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)


def test_a_reverse_hello_in_pieces() -> None:
    whole = hello(URI, "opc.tcp://press:4840")
    assert all(reverse_hello(whole[:at]) is None for at in range(len(whole)))
    assert reverse_hello(whole) == (URI, "opc.tcp://press:4840")
    for broken in (b"MSGF", whole + b"x", struct.pack("<4sI", b"RHEF", 2**31), hello("u" * 9000, "x")[:8]):
        with pytest.raises(opcua_reverse.DecodeError):
            reverse_hello(broken)
