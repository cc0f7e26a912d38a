"""The foreign Modbus server: libmodbus_server.c on Debian's libmodbus, and mbpoll, a client on the same library.

What its registers hold is computed here too.
"""

import re
import subprocess
from pathlib import Path

from tests.services.cache import cached, run
from tests.services.packages import apt_install, program
from tests.services.ports import HOST, free_port
from tests.services.process import Service, ServiceFailed
from tests.services.serial_line import SerialService

LIMIT = 2_000
"""The first address of each kind that is answered with exception 2."""

_SOURCE = Path(__file__).parent / "libmodbus_server.c"
_VALUE = re.compile(r"^\[(\d+)\]:\s+(-?\d+)", re.MULTILINE)
_HEADER = Path("/usr/include/modbus/modbus.h")


def holding(register: int) -> int:
    """What a holding register has until somebody writes it."""
    return (register * 31 + 7) % 65_536


def input_register(register: int) -> int:
    """What an input register has."""
    return (register * 17 + 3) % 65_536


def coil(address: int) -> bool:
    """What a coil has until somebody writes it."""
    return address % 3 == 0


def discrete_input(address: int) -> bool:
    """What a discrete input has."""
    return address % 5 == 0


def install() -> None:
    """Compiles the server and installs mbpoll when they are not there yet. ServiceMissing when that cannot be."""
    _install()
    program("mbpoll", "mbpoll")


def mbpoll(*arguments: str) -> dict[int, int]:
    """Address -> value, as one call of the command-line client reads them. ServiceFailed when it does not."""
    done = subprocess.run(
        [program("mbpoll", "mbpoll"), "-0", "-1", "-q", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    values = {int(address): int(value) for address, value in _VALUE.findall(done.stdout)}
    if done.returncode != 0 or not values:
        raise ServiceFailed(f"mbpoll {' '.join(arguments)}: code {done.returncode}: {done.stdout}{done.stderr}")
    return values


class LibmodbusServer(Service):
    """A Modbus TCP server for several clients that answers every unit id.

    stamps: input registers 0 to 3 are the time of the request, UTC us, an int64.
    """

    def __init__(self, *, stamps: bool = False) -> None:
        folder = _install()
        super().__init__("libmodbus", free_port())
        self.run_as([folder / "server", str(self.port), *(["stamp"] if stamps else [])])

    @property
    def url(self) -> str:
        """tcp://127.0.0.1:port"""
        return f"tcp://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server listens."""
        self.process.wait_line("^ready$", self.ready_s)


class LibmodbusRtuServer(SerialService):
    """The same on a serial line."""

    def __init__(self) -> None:
        folder = _install()
        super().__init__("libmodbus-rtu")
        self.run_as([folder / "server", self.line.machine_port, "19200", "N", "1"])


def _install() -> Path:
    return cached("libmodbus", [_SOURCE], _build)


def _build(folder: Path) -> None:
    if not _HEADER.exists():
        apt_install("libmodbus-dev", needed="libmodbus")
    compiler = program("cc", "build-essential")
    options = ["-O2", "-Wall", "-Wextra", "-o", str(folder / "server")]
    run([compiler, *options, _SOURCE, "-lmodbus"], "compiling libmodbus_server.c")
