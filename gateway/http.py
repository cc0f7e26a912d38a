"""The gateway's own HTTP service: `/metrics` for Prometheus, `/health` for people and container runtimes."""

from __future__ import annotations

import errno
from http import HTTPStatus
from socket import socket
from typing import Any, Protocol

import orjson
from aiohttp import web

from gateway.log import Log
from gateway.metrics import CONTENT_TYPE
from pipelines.errors import Permanent
from pipelines.latency import KEPT_S
from pipelines.quantities import duration_ns


def not_to_be_had(host: str, port: int, error: OSError) -> Permanent:
    """What to say where `listen:` cannot be had."""
    if error.errno == errno.EADDRINUSE:
        why = "another program listens there, perhaps another gateway"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "this host has no such address"
    else:
        why = error.strerror or str(error)
    return Permanent(f"listen: {host}:{port} cannot be used: {why}; set gateway.listen (or --listen) to another")


class HealthPage(Protocol):
    """What `/health` asks."""

    async def answer(self, over_s: float) -> tuple[HTTPStatus, dict[str, Any]]:
        """The report, ready for JSON; latencies of the last `over_s`."""


class MetricsPage(Protocol):
    """What `/metrics` asks."""

    async def text(self) -> bytes:
        """One scrape."""


class HttpService:
    """Serves while started; read-only, nothing secret, no page that loads anything from elsewhere.

    `place`: host and port, or a socket that listens already.
    """

    def __init__(self, place: tuple[str, int] | socket, health: HealthPage, metrics: MetricsPage) -> None:
        self._place = place
        self._health = health
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens, and says so where people can ask it. Raises Permanent where the address cannot be had."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._get_metrics), web.get("/health", self._get_health)])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        if isinstance(self._place, socket):
            await web.SockSite(self._runner, self._place).start()
        else:
            await self._listen(self._runner, *self._place)
        if self.url:
            Log("gateway").info("listening", health=f"{self.url}/health", metrics=f"{self.url}/metrics")

    @property
    def url(self) -> str:
        """Where it listens, with the port that was given where the file says 0; empty for a Unix socket."""
        address = self._runner.addresses[0] if self._runner and self._runner.addresses else self._place
        if not isinstance(address, tuple):
            return ""
        host, port = address[0], address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        """Idempotent."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _listen(self, runner: web.AppRunner, host: str, port: int) -> None:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await self.close()
            raise not_to_be_had(host, port, error) from error

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _get_health(self, request: web.Request) -> web.Response:
        over = request.query.get("over")
        try:
            over_s = duration_ns(over) / 1e9 if over else KEPT_S
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"over: {error}\n") from None
        status, report = await self._health.answer(over_s)
        body = orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return web.Response(body=body, status=status, content_type="application/json")
