"""A serial line of two pseudo terminals: a port for the gateway, a port for the machine, and a thread between them.

A pseudo terminal takes any baud rate (and no parity) and hands bytes over at once: what a real line does to them is in
`serial_bus`.
"""

import os
import select
import threading
import tty
from pathlib import Path
from typing import Self

from tests.services.process import Service

_PIECE_BYTES = 4096


class SerialLine:
    """`plug()` makes both ports, with names in `folder` that stay the same; `pull()` takes them away."""

    def __init__(self, folder: Path) -> None:
        self.gateway_port = folder / "gateway-port"
        self.machine_port = folder / "machine-port"
        self._fds: list[int] = []
        self._stop = -1
        self._thread: threading.Thread | None = None

    def plug(self) -> None:
        """The ports are there. Both stay open here: what is sent to a port that nobody has open is kept."""
        masters = []
        for path in (self.gateway_port, self.machine_port):
            master, slave = os.openpty()
            tty.setraw(slave)
            path.symlink_to(os.ttyname(slave))
            masters.append(master)
            self._fds += [master, slave]
        ended, self._stop = os.pipe()
        self._fds.append(ended)
        self._thread = threading.Thread(target=self._copy, args=(*masters, ended), name="serial line", daemon=True)
        self._thread.start()

    def pull(self) -> None:
        """As when an adapter is pulled out: who has a port open gets an error. Idempotent."""
        if self._thread is None:
            return
        os.close(self._stop)
        self._thread.join()
        self._thread = None
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for path in (self.gateway_port, self.machine_port):
            path.unlink()

    def held_open(self) -> int:
        """How often this process has the gateway's port open."""
        port = str(self.gateway_port.resolve())
        return sum(port == _target(fd) for fd in Path("/proc/self/fd").iterdir())

    def _copy(self, gateway: int, machine: int, ended: int) -> None:
        other = {gateway: machine, machine: gateway}
        while True:
            readable, _, _ = select.select([*other, ended], [], [])
            if ended in readable:
                return
            for fd in readable:
                os.write(other[fd], os.read(fd, _PIECE_BYTES))


class SerialService(Service):
    """A machine on a serial line of its own, 19200 8N1, unit 1; it and its line come and go together."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 0)
        self.line = SerialLine(self.folder)

    @property
    def url(self) -> str:
        """rtu:///path?baud=19200&parity=N"""
        return f"rtu://{self.line.gateway_port}?baud=19200&parity=N"

    def start(self) -> Self:
        """The line first."""
        self.line.plug()
        return super().start()

    def wait_ready(self) -> None:
        """Returns when the server has its port open."""
        self.process.wait_line("^ready$", self.ready_s)

    def stop(self) -> None:
        """Idempotent."""
        super().stop()
        self.line.pull()

    def kill(self) -> None:
        """Idempotent."""
        super().kill()
        self.line.pull()


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:  # the folder's own
        return ""
