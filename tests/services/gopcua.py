"""The poor OPC UA server: gopcua, running gopcua/main.go (its head says what it lacks)."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.services.cache import cached, run
from tests.services.packages import program
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_FILES = Path(__file__).parent / "gopcua"
_SOURCES = [_FILES / name for name in ("go.mod", "go.sum", "main.go")]


def install() -> None:
    """Compiles the server when it is not there yet. ServiceMissing when that cannot be."""
    _install()


class Gopcua(Service):
    """The server: endpoint None, anonymous, one variable `node`."""

    node = "ns=1;s=Double"

    def __init__(self) -> None:
        folder = _install()
        super().__init__("gopcua", free_port())
        self.run_as([folder / "server", str(self.port)])

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port"""
        return f"opc.tcp://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready 1$", self.ready_s)

    def set_value(self, value: float) -> None:
        """Returns when it is set."""
        mark = self.process.mark()
        self.process.send(repr(value))
        self.process.wait_line("^set$", self.ready_s, mark)


def _install() -> Path:
    return cached("gopcua", _SOURCES, partial(compile_go, _SOURCES))


def compile_go(sources: Sequence[Path], folder: Path) -> None:
    """Makes the program `server` in the folder of a module's files."""
    go = program("go", "golang-go")
    source = folder / "source"
    source.mkdir()
    for file in sources:
        shutil.copy(file, source)
    run(
        [go, "build", "-mod=mod", "-o", folder / "server", "."],
        f"compiling {sources[-1].parent.name}/main.go",
        cwd=source,
        env={"CGO_ENABLED": "0"},
    )
