"""A poor server: gopcua, without security, session time-out, queues, Republish and history."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from connectors import opcua_plan
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
    monkeypatch.setattr("connectors.opcua.PROOF_S", 0.5)
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


async def test_what_it_cannot_send_again_is_said(tmp_path: Path) -> None:
    """A notification that was not safe at a kill: health says that there is no Republish, the ledger that it is lost."""
    with made(Gopcua) as server:
        device = {"opcua": server.url, "security": "none", "every": "50ms", "tags": {TAG: server.node}}
        settings = OpcUaDevice.model_validate({**device, "sampling": 0})
        rig = Rig(tmp_path / "first", settings)
        try:
            await rig.start()
            await rig.has(0.25, TAG)
            rig.durable[0].hangs = True
            await asyncio.to_thread(server.set_value, 1.5)
            await rig.has(1.5, TAG)
            await rig.kill(tmp_path / "second")
            rig = Rig(tmp_path / "second", settings)
            await rig.start()
            async with asyncio.timeout(30):
                while not rig.notes:  # noqa: ASYNC110  a list has no event
                    await asyncio.sleep(0.02)
            print("LACKS", rig.notes, rig.source.info)
        finally:
            await rig.stop()
