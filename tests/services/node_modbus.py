"""The second foreign Modbus server: modbus-serial on Node.js, running node_modbus/server.js."""

import shutil
from pathlib import Path

from tests.services.cache import cached, run
from tests.services.packages import node, npm
from tests.services.ports import HOST, free_port
from tests.services.process import Service
from tests.services.serial_line import SerialService

_FILES = Path(__file__).parent / "node_modbus"
_PACKAGE = _FILES / "package.json"


def install() -> None:
    """Installs modbus-serial into the cache when it is absent. ServiceMissing when that cannot be."""
    _install()


class NodeModbus(Service):
    """A Modbus TCP server that answers every unit id; it holds what libmodbus.py computes."""

    ready_s = 90.0

    def __init__(self) -> None:
        folder = _install()
        super().__init__("node-modbus", free_port())
        self.run_as([node(), _FILES / "server.js", str(self.port)], env={"NODE_MODBUS_FOLDER": str(folder)})

    @property
    def url(self) -> str:
        """tcp://127.0.0.1:port"""
        return f"tcp://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server listens."""
        self.process.wait_line("^ready$", self.ready_s)


class NodeModbusRtu(SerialService):
    """The same on a serial line."""

    ready_s = 90.0

    def __init__(self) -> None:
        folder = _install()
        super().__init__("node-modbus-rtu")
        argv: list[str | Path] = [node(), _FILES / "server.js", self.line.machine_port]
        self.run_as(argv, env={"NODE_MODBUS_FOLDER": str(folder)})


def _install() -> Path:
    def build(folder: Path) -> None:
        shutil.copy(_PACKAGE, folder)
        options = ["--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        run([npm(), "install", *options], "npm package modbus-serial", cwd=folder)

    return cached("node-modbus", [_PACKAGE], build)
