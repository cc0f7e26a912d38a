"""What all workers share, in a process of its own: the pages that `listen:` serves, and the embedded brokers.

Both pages are put together from those of the workers, which are asked at the same time over their Unix sockets. One
that does not answer in time is shown as such and holds up nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from socket import socket
from typing import Any, Final

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

from gateway.build import embedded_brokers
from gateway.health import Health
from gateway.http import HttpService
from gateway.metrics import Metrics, StateCollector
from gateway.settings import GatewayFile
from gateway.supervisor import Supervisor
from gateway.workers_merge import Crew, merged_health, merged_metrics, worker_metrics
from gateway.workers_orders import STOP, heard
from gateway.workers_settings import SHARED
from pipelines.clock import Clock, SystemClock

ANSWER_S: Final = 2.0
"""A worker that has not answered by then is silent."""
ANSWERS: Final = (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)
"""`/health` of a worker that stops is the second; anything else is a bug in that worker, and no page."""


async def serve_shared(
    file: GatewayFile, listening: socket | None, pages: Mapping[str, Path], started_ns: int, orders: int
) -> int:
    """Until the supervising process says STOP; the exit code."""
    clock = SystemClock()
    brokers = [Supervisor(broker, clock, random.random) for broker in embedded_brokers(file)]
    own = Health(file.gateway.id, clock, brokers, [], started_ns)
    merged, stop = MergedPages(own, pages, clock), asyncio.Event()
    service = HttpService(listening, merged, merged) if listening else None

    def tell(line: bytes) -> None:
        if line == STOP:
            stop.set()
        else:
            merged.crew = orjson.loads(line)

    with heard(orders, tell):
        try:
            if service:
                await service.start()
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(broker.run()) for broker in brokers]
                await stop.wait()
                for task in running:
                    task.cancel()
        finally:
            if service:
                await service.close()
    return 0


class MergedPages:
    """A `gateway.http` HealthPage and MetricsPage. `crew` is what the supervising process said last."""

    def __init__(self, own: Health, pages: Mapping[str, Path], clock: Clock) -> None:
        self.crew: Crew = {"phase": "running", "workers": []}
        self._own = own
        self._pages = pages
        self._own_metrics = Metrics([StateCollector(own.components, [], clock)], lambda: None)

    async def answer(self, over_s: float) -> tuple[HTTPStatus, dict[str, Any]]:
        self._own.phase = self.crew["phase"]
        found = await self._ask(f"/health?over={over_s:.9g}s")
        reports = {name: orjson.loads(body) for name, body in found.items() if body is not None}
        return self._own.http_status, merged_health(self._own.report(over_s), self.crew, reports)

    async def text(self) -> bytes:
        found = await self._ask("/metrics")
        texts = {name: body for name, body in found.items() if body is not None}
        own = await self._own_metrics.text()
        return worker_metrics(self.crew, texts) + merged_metrics({SHARED: own, **texts})

    async def _ask(self, path: str) -> dict[str, bytes | None]:
        """Worker -> what it answers; None where it does not."""
        bodies = await asyncio.gather(*(_fetched(door, path) for door in self._pages.values()))
        return dict(zip(self._pages, bodies, strict=True))


async def _fetched(door: Path, path: str) -> bytes | None:
    try:
        async with (
            ClientSession(connector=UnixConnector(str(door)), timeout=ClientTimeout(total=ANSWER_S)) as session,
            session.get(f"http://worker{path}") as answer,
        ):
            return await answer.read() if answer.status in ANSWERS else None
    except (ClientError, OSError, TimeoutError):
        return None
