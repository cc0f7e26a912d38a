"""The OPC UA server that latency is measured with: gopcua, running stamper/main.go (its head says what it serves)."""

from functools import partial
from pathlib import Path

from tests.services.cache import cached
from tests.services.gopcua import GoServer, compile_go

_FILES = Path(__file__).parent
_SOURCES = [_FILES / "gopcua" / "go.mod", _FILES / "gopcua" / "go.sum", _FILES / "stamper" / "main.go"]


def install() -> None:
    """Compiles the server when it is not there yet. ServiceMissing when that cannot be."""
    _install()


class Stamper(GoServer):
    """One variable `node`, which stands still until `go`."""

    node = "ns=1;s=Stamp"

    def __init__(self) -> None:
        super().__init__("stamper", _install())

    def go(self, period_us: int) -> None:
        """A change every so often from now on; 0: none."""
        self.process.ask(f"go {period_us}", "^going$", self.ready_s)


def _install() -> Path:
    return cached("stamper", _SOURCES, partial(compile_go, _SOURCES))
