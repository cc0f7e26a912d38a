"""The gateway's own HTTP service: `/metrics` for Prometheus, `/health` for people and container runtimes."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.health import Health
from gateway.metrics import CONTENT_TYPE, Metrics
from pipelines.errors import Permanent
from pipelines.latency import KEPT_S
from pipelines.quantities import duration_ns


class HttpService:
    """Serves while started; read-only, nothing secret, no page that loads anything from elsewhere."""

    def __init__(self, host: str, port: int, health: Health, metrics: Metrics) -> None:
        self._place = (host, port)
        self._health = health
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens. Raises Permanent where the address cannot be had."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._get_metrics), web.get("/health", self._get_health)])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        host, port = self._place
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.close()
            raise Permanent(f"listen: {host}:{port} cannot be used: {error.strerror or error}") from error

    @property
    def url(self) -> str:
        """Where it listens, with the port that was given where the file says 0."""
        address = self._runner.addresses[0] if self._runner and self._runner.addresses else self._place
        host, port = address[0], address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        """Idempotent."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _get_health(self, request: web.Request) -> web.Response:
        over = request.query.get("over")
        try:
            over_s = duration_ns(over) / 1e9 if over else KEPT_S
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"over: {error}\n") from None
        body = orjson.dumps(self._health.report(over_s), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return web.Response(body=body, status=self._health.http_status, content_type="application/json")
