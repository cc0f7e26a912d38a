"""`gateway run`: the whole file in this process, or, where it names workers, this process over theirs."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.app import exit_code, serve
from gateway.build import build
from gateway.command import on_loop
from gateway.instance import locked
from gateway.log import Log, setup
from gateway.settings import GatewayFile
from gateway.version import version
from gateway.workers_build import run_workers


def run(settings: GatewayFile, warnings: Sequence[str]) -> int:
    """Until it is told to stop; the exit code."""
    setup(settings.gateway.log.format, settings.gateway.log.level)
    log = Log("gateway")
    log.info("starting", version=version(), id=settings.gateway.id, **_counts(settings))
    for warning in warnings:
        log.warning(warning)
    return exit_code(lambda: _run(settings))


def _run(settings: GatewayFile) -> int:
    with locked(settings.gateway.data_dir):
        return run_workers(settings) if settings.workers else on_loop(lambda: _serve(settings))


async def _serve(settings: GatewayFile) -> int:
    built = build(settings)
    return await serve(built.app, built.service, built.watch)


def _counts(settings: GatewayFile) -> dict[str, int]:
    counts = {"devices": len(settings.devices), "routes": len(settings.send)}
    return counts | ({"workers": len(settings.workers)} if settings.workers else {})
