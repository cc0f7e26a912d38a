"""Ten of the faults that `benchmarks/soak_opcua_faults.py` makes by the hundred."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import made
from tests.integration.opcua_faults import Machine, Written, endured, short_lives
from tests.services.asyncua_server import AsyncuaServer
from tests.services.node_opcua import NodeOpcua

FAULTS = {
    "asyncua": [
        "session killed, subscriptions kept",
        "connection reset",
        "network cut for 1 s",
        "channel expired",
        "server killed and started",
    ],
    "node-opcua": [
        "session killed",
        "session killed, subscriptions kept",
        "connection reset",
        "network cut for 1 s",
        "network cut for longer than the subscription lives",
    ],
}


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    with made(AsyncuaServer) as first, made(NodeOpcua) as second:
        yield [Written("asyncua", first, "ns=2;s=Double"), Written("node-opcua", second, "ns=1;s=Double")]


async def test_data_goes_on_after_each_fault_and_nothing_is_lost_unsaid_or_left_behind(
    machines: list[Machine], tmp_path: Path
) -> None:
    """New values come; each that the server took has arrived or is in the ledger; nothing is left on either side."""
    before = asyncio.all_tasks()
    done: list[str] = []
    with short_lives():
        async with asyncio.TaskGroup() as group:
            for machine in machines:
                folder = tmp_path / machine.name
                group.create_task(endured(machine, FAULTS[machine.name], folder, done.append))
    assert sorted(done) == sorted(fault for faults in FAULTS.values() for fault in faults)
    assert asyncio.all_tasks() == before
