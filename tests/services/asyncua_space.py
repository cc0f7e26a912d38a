"""asyncua servers with a standard address space that was made once: making its 6,000 nodes takes over a second of CPU
time, loading them a fifth of that."""

from __future__ import annotations

import gc
from importlib.metadata import distribution
from pathlib import Path

from asyncua import Server
from asyncua.server.internal_server import InternalServer
from asyncua.server.user_managers import UserManager

from tests.services.cache import cached


def new_server(user_manager: UserManager | None = None) -> Server:
    """As asyncua's Server, to be initialised."""
    return Server(_InternalServer(user_manager))


def install() -> Path:
    """Makes the nodes when they are not there yet; their file."""
    return cached("asyncua_space", [_version()], _dump) / "nodes"


class _InternalServer(InternalServer):
    async def load_standard_address_space(self, shelf_file: Path | None = None) -> None:
        nodes = install()
        collects = gc.isenabled()
        gc.disable()  # else most of the time goes into looking at what is being loaded
        try:
            self.aspace.load(nodes)
        finally:
            if collects:
                gc.enable()


def _version() -> Path:
    """A file that is another one with each version of asyncua."""
    asyncua = distribution("asyncua")
    return Path(str(asyncua.locate_file(f"asyncua-{asyncua.version}.dist-info/METADATA")))


def _dump(folder: Path) -> None:
    from asyncua.server.standard_address_space import standard_address_space

    made = InternalServer()
    standard_address_space.fill_address_space(made.node_mgt_service)  # type: ignore[no-untyped-call]
    made.aspace.dump(folder / "nodes")
