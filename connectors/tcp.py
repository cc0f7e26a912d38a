"""What the system itself is asked to find out about a TCP connection; shared by the protocols."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final

PROBES: Final = 3
MACHINE_PATIENCE: Final = 3
"""A machine's connection is given up after so many request time-outs of silence: requests may fail, and it go on."""
_BYTES_ACKED_AT: Final = 120


def notice_dead_peer(sock: socket.socket | None, within_ns: int) -> None:
    """The connection ends by itself (ETIMEDOUT) when the peer's system has been silent for about so long.

    TCP_USER_TIMEOUT is for data under way, keep-alive for an idle connection, in whole seconds (tcp(7)): the system
    sends no keep-alive while data waits for its acknowledgement. Options that this system does not have are left out.
    """
    if sock is None:
        return
    seconds = max(1, within_ns // (PROBES * 10**9))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": seconds,
        "TCP_KEEPALIVE": seconds,  # as macOS calls it
        "TCP_KEEPINTVL": seconds,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": max(1, within_ns // 10**6),
    }
    for name, value in options.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def uploaded(sock: socket.socket | None) -> tuple[int, int]:
    """Bytes that the peer's system has acknowledged so far, and bytes that wait here for that.

    Linux: tcpi_bytes_acked of TCP_INFO (linux/tcp.h, since 4.1) and SIOCOUTQ (tcp(7)). Zeros where the system says
    nothing of it.
    """
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return 0, 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED_AT + 8)
        waiting = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0, 0
    if len(info) < _BYTES_ACKED_AT + 8:
        return 0, 0
    return struct.unpack_from("=Q", info, _BYTES_ACKED_AT)[0], struct.unpack("=i", waiting)[0]
