"""A poor server: gopcua, without security, session time-out, queues, Republish and history."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from connectors import opcua_plan
from connectors.opcua_response import parse_response
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from pipelines.errors import NotConnected
from pipelines.gaps import Reason
from tests.conftest import made
from tests.integration.opcua_rig import Rig
from tests.services.gopcua import Gopcua

TAG = "counter"


async def test_a_poor_server_works_and_health_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live values; after a cut the session that goes on says nothing and is replaced, the gap is in the ledger."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 300_000_000)
    monkeypatch.setattr("connectors.opcua_silence.PROOF_S", 0.5)
    with made(Gopcua) as server:
        device = {"opcua": server.url, "security": "none", "every": "50ms", "tags": {TAG: server.node}}
        rig = Rig(tmp_path / "press", OpcUaDevice.model_validate({**device, "sampling": 0, "queue": 10}))
        try:
            await rig.start()
            await rig.has(0.25, TAG)
            await asyncio.to_thread(server.set_value, 1.5)
            await rig.has(1.5, TAG)
            assert "the server has no session time-out, no queue of 10 values (it keeps 1)" in rig.source.info
            rig.drop_connection()
            await rig.ended()
            await asyncio.to_thread(server.set_value, 2.5)
            await rig.start()
            error = await rig.ended()
            assert isinstance(error, BaseExceptionGroup) and error.subgroup(NotConnected)
            await rig.start()
            await rig.has(2.5, TAG)
            await asyncio.to_thread(server.set_value, 3.5)
            await rig.has(3.5, TAG)
            async with asyncio.timeout(30):
                while not rig.notes:  # noqa: ASYNC110  a list has no event
                    await asyncio.sleep(0.02)
            assert [gap.reason for gap in rig.notes] == [Reason.DISCONNECTED]
            assert "no history" in rig.source.info
        finally:
            await rig.stop()


async def test_what_it_cannot_send_again_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification goes astray: health says that there is no Republish, the ledger that something is missing."""
    strays: list[None] = []
    arrived = PublishSession._arrived

    def all_but_strays(session: PublishSession, body: bytes) -> None:
        if strays and parse_response(body).numbered:
            strays.pop()
            session.outstanding -= 1
            session.arm(())
        else:
            arrived(session, body)

    monkeypatch.setattr(PublishSession, "_arrived", all_but_strays)
    with made(Gopcua) as server:
        device = {"opcua": server.url, "security": "none", "every": "50ms", "tags": {TAG: server.node}}
        rig = Rig(tmp_path / "press", OpcUaDevice.model_validate({**device, "sampling": 0}))
        try:
            await rig.start()
            await rig.has(0.25, TAG)
            strays.append(None)
            await asyncio.to_thread(server.set_value, 1.5)
            async with asyncio.timeout(30):
                while strays:  # noqa: ASYNC110  a list has no event
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(server.set_value, 2.5)
            assert 1.5 not in await rig.has(2.5, TAG)
            assert "no Republish" in rig.source.info
            assert Reason.MISSED in [gap.reason for gap in rig.notes]
        finally:
            await rig.stop()
