"""The OPC UA server that latency is measured with: gopcua, running stamper/main.go (its head says what it serves)."""

from functools import partial
from pathlib import Path

from tests.services.cache import cached
from tests.services.gopcua import compile_go
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_FILES = Path(__file__).parent
_SOURCES = [_FILES / "gopcua" / "go.mod", _FILES / "gopcua" / "go.sum", _FILES / "stamper" / "main.go"]


def install() -> None:
    """Compiles the server when it is not there yet. ServiceMissing when that cannot be."""
    _install()


class Stamper(Service):
    """The server: endpoint None, anonymous, one variable `node`, which stands still until `go`."""

    node = "ns=1;s=Stamp"

    def __init__(self) -> None:
        folder = _install()
        super().__init__("stamper", free_port())
        self.run_as([folder / "server", str(self.port)])

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port"""
        return f"opc.tcp://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready 1$", self.ready_s)

    def go(self, period_us: int) -> None:
        """A change every so often from now on; 0: none."""
        mark = self.process.mark()
        self.process.send(f"go {period_us}")
        self.process.wait_line("^going$", self.ready_s, mark)


def _install() -> Path:
    return cached("stamper", _SOURCES, partial(compile_go, _SOURCES))
