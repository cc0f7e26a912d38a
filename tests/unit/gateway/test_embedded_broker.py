"""The process behind `local: embedded`."""

from __future__ import annotations

import asyncio
import importlib.util
import socket

import pytest

from gateway.embedded_broker import EmbeddedBroker
from pipelines.errors import NotConnected, Permanent
from tests.services.ports import accepts, free_port


async def test_starts_listens_and_ends() -> None:
    """`connect` returns when it accepts clients; after `close` nothing listens; both may be repeated."""
    port = free_port()
    broker = EmbeddedBroker(f"127.0.0.1:{port}")
    await broker.close()
    await broker.connect()
    assert await asyncio.to_thread(accepts, port)
    await broker.close()
    await broker.close()
    assert not await asyncio.to_thread(accepts, port)
    with pytest.raises(NotConnected):
        await broker.run()


async def test_port_in_use_is_said() -> None:
    """One line with the address and the reason, at once; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        broker = EmbeddedBroker(address)
        with pytest.raises(NotConnected, match=f"{address}.*address already in use") as caught:
            async with asyncio.timeout(30):
                await broker.connect()
        assert "\n" not in str(caught.value)
        await broker.close()


async def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, or to write."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Permanent, match=r"mec-gateway\[broker\]"):
        await EmbeddedBroker("127.0.0.1:1").connect()
