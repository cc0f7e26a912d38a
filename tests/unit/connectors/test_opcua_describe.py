"""What a server says of the tags is asked for until it was said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast

import pytest

from connectors import opcua_describe
from connectors.opcua_describe import Describer
from connectors.opcua_structures import DataType
from connectors.opcua_types import Types
from pipelines.batch import Kind
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from pipelines.tags import Tag, TagTable

LOG = logging.LoggerAdapter(logging.getLogger(__name__), {})


async def test_a_session_that_ends_before_all_units_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one, at the same life of the server, asks for the others, and not for those again."""
    monkeypatch.setattr(opcua_describe, "NODES_PER_STEP", 1)
    asked: list[bytes] = []
    begun = asyncio.Event()

    async def data_types(_: Describer, __: object, nodes: Sequence[bytes]) -> list[DataType | None]:
        return [DataType(Kind.DOUBLE)] * len(nodes)

    async def properties(_: Types, __: object, nodes: Sequence[bytes]) -> list[dict[str, Any]]:
        asked.extend(nodes)
        if len(asked) == 2:
            begun.set()
            await asyncio.Event().wait()
        return [{} for _ in nodes]

    monkeypatch.setattr(Describer, "_data_types", data_types)
    monkeypatch.setattr(Types, "properties", properties)
    tags = TagTable()
    wanted = [(tags.add(Tag("press", name)), name.encode()) for name in ("a", "b", "c")]
    describer = Describer("press", tags, SystemClock(), Counters("source", "press"), LOG)
    session = cast(Any, object())
    async with asyncio.timeout(30):
        await describer.start(session, "started at noon", wanted, waits=False)
        await begun.wait()
        await describer.stop()
        await describer.start(session, "started at noon", wanted, waits=True)
        await describer.stop()
        await describer.start(session, "started at noon", wanted, waits=True)
        await describer.stop()
    assert asked == [b"a", b"b", b"b", b"c"]
