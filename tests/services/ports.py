"""Ports for servers that tests start, stop and start again on the same port."""

import random
import socket
from pathlib import Path

HOST = "127.0.0.1"

# Below Linux's ephemeral range (32768-60999): while a test has its server stopped, no outgoing connection can be given
# the server's port, and a client that keeps dialling the dead port cannot end up connected to itself.
_RANGE = range(20_000, 32_000)
_given: set[int] = set()


def free_port() -> int:
    """A TCP port nobody listens on at 127.0.0.1; never given twice by this process. OSError when there is none."""
    for _ in range(1_000):
        port = random.choice(_RANGE)
        if port not in _given and _can_bind(port):
            _given.add(port)
            return port
    raise OSError(f"no free port in {_RANGE.start}-{_RANGE.stop - 1}")


def accepts(port: int) -> bool:
    """Whether something accepts TCP connections on 127.0.0.1:port now."""
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def connections(*ports: int, transport: str = "tcp") -> int:
    """Sockets that some process holds open towards these ports of this machine (Linux: /proc/net/tcp, inode not 0)."""
    rows = [line.split() for line in Path(f"/proc/net/{transport}").read_text().splitlines()[1:]]
    wanted = {f"{port:04X}" for port in ports}
    return sum(row[2].rpartition(":")[2] in wanted and row[9] != "0" for row in rows)
