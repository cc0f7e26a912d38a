"""Filling from history ends in time, says why, and leaves nothing at the server."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from connectors.opcua_backfill import Backfill
from connectors.opcua_gaps import Gap, History
from connectors.opcua_history import history_read
from connectors.opcua_limits import Limits
from connectors.opcua_link import Link
from connectors.opcua_requests import RequestHeader
from connectors.opcua_settings import OpcUaDevice
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from pipelines.gaps import NoLedger

LOG = logging.LoggerAdapter(logging.getLogger(__name__), {})
NODE = b"\x01\x02\x03\x04"
HEADER = RequestHeader(b"\0\0", 1, 0, 0)


@pytest.mark.parametrize(
    ("answers", "backfill", "why"),
    [(False, "100ms", "not done within 0.1 s (backfill)"), (True, "1h", "the server did not answer a HistoryRead")],
)
async def test_what_the_server_keeps_for_the_next_page_is_given_back(
    answers: bool, backfill: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time is over, or one request's is, after the first of several pages."""
    pages = 0
    released: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def page(*_: object) -> list[tuple[int, bytes, bytes]]:
        nonlocal pages
        pages += 1
        if pages == 1:
            return [(0, b"more", b"")]
        if not answers:
            await asyncio.Event().wait()
        raise TimeoutError

    async def readable(_: History, items: list[int]) -> list[int]:
        return items

    async def request(encode: Any) -> bytes:
        released.set_result(encode(HEADER))
        return b""

    async def save() -> None:
        """Is not looked at."""

    monkeypatch.setattr(History, "_pages", page)
    monkeypatch.setattr(History, "_readable", readable)
    device = {"opcua": "opc.tcp://127.0.0.1:4840", "security": "none", "tags": {"a": "ns=1;s=a"}, "backfill": backfill}
    settings, clock = OpcUaDevice.model_validate(device), SystemClock()
    filling = Backfill("press", settings, clock, NoLedger(), Counters("source", "press"), LOG)
    filling.grow(["a"], [NODE])
    gap = Gap([0], filling.newest_of_all() + 1000, 9000, 9000)
    filling.open.append(gap)
    link = SimpleNamespace(
        session=SimpleNamespace(request=request),
        limits=Limits(LOG),
        state=SimpleNamespace(gaps=[]),
        save=save,
        lacks={},
    )
    await filling.start(cast(Link, link))
    async with asyncio.timeout(30):
        asked = await released
        while filling.open:  # noqa: ASYNC110  the task has a step or two to go
            await asyncio.sleep(0)
    await filling.stop()
    assert asked == history_read(HEADER, [(NODE, b"more")], (1000, 9000), 0, release=True)
    assert why in caplog.text
