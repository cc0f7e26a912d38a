"""The file's workers as the processes that they are, and the sockets between them."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from connectors import SINKS, SOURCES, load
from gateway.app import exit_code, serve
from gateway.build import Process, build_share, embedded_brokers
from gateway.command import on_loop
from gateway.http import not_to_be_had
from gateway.instance import next_instance
from gateway.log import setup
from gateway.realtime import ask
from gateway.settings import GatewayFile, kind_of
from gateway.workers_orders import heard
from gateway.workers_run import Crew, Member, Run
from gateway.workers_settings import SHARED
from gateway.workers_shared import serve_shared
from gateway.workers_split import Share, shares
from pipelines.clock import SystemClock
from pipelines.errors import Permanent

BACKLOG: Final = 16


def run_workers(file: GatewayFile) -> int:
    """Until it is told to stop; the exit code. Raises Permanent and Poisoned where nothing can be started."""
    for part in (*file.devices.values(), *file.to.values()):
        load({**SOURCES, **SINKS}[kind_of(part)])  # here once, for all of them
    with ExitStack() as stack:
        workers, shared = _members(file, stack)
        gc.collect()
        gc.freeze()  # what is loaded stays in memory that all processes share
        return Crew(workers, shared, file.gateway.stop_timeout / 1e9).run()


def _members(file: GatewayFile, stack: ExitStack) -> tuple[list[Member], list[Member]]:
    """The workers; what they share, where there is something. Its sockets are closed with `stack`."""
    parts, place = shares(file), file.gateway.listen_address()
    pages = {name: file.gateway.data_dir / "run" / f"{name}.sock" for name in parts} if place else {}
    doors = {name: stack.enter_context(_door(path)) for name, path in pages.items()}
    workers = [Member(name, partial(_prepared, share, doors.get(name))) for name, share in parts.items()]
    listening = stack.enter_context(closing(_listening(*place))) if place else None
    if listening is None and not embedded_brokers(file):
        return workers, []
    serve_all = partial(_shared, file, listening, pages, SystemClock().mono_ns())
    return workers, [Member(SHARED, lambda: serve_all)]


def _prepared(share: Share, door: socket.socket | None) -> Run:
    return partial(_work, share, Process(next_instance(share.file.gateway.data_dir), door))


def _work(share: Share, process: Process, orders: int) -> int:
    """A worker's life: as the gateway without `workers:`, with its share of the file."""
    log = share.file.gateway.log
    setup(log.format, log.level, worker=share.worker)
    asked = ask(share.settings) if share.settings else []
    return exit_code(lambda: on_loop(lambda: _serve(share, replace(process, asked=asked), orders)))


async def _serve(share: Share, process: Process, orders: int) -> int:
    built = build_share(share, process)
    return await serve(built.app, built.service, built.watch, lambda stop: heard(orders, lambda _: stop()))


def _shared(
    file: GatewayFile, listening: socket.socket | None, pages: dict[str, Path], started_ns: int, orders: int
) -> int:
    setup(file.gateway.log.format, file.gateway.log.level, worker=SHARED)
    return exit_code(lambda: on_loop(lambda: serve_shared(file, listening, pages, started_ns, orders)))


@contextmanager
def _door(path: Path) -> Iterator[socket.socket]:
    """Where a worker is asked for its pages. It is there before the worker, and while it is started again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            door.bind(str(path))
        except OSError as error:
            raise Permanent(
                f"{path} cannot be made a socket ({error.strerror or error}): set gateway.data_dir to a folder of the "
                f"gateway's user, with a path of 80 characters at most"
            ) from error
        door.listen(BACKLOG)
        door.setblocking(False)
        yield door
    path.unlink(missing_ok=True)


def _listening(host: str, port: int) -> socket.socket:
    """Here, so that a place that cannot be had is known before anything is started."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address, family=family)
    except OSError as error:
        raise not_to_be_had(host, port, error) from error
    listening.setblocking(False)
    return listening
