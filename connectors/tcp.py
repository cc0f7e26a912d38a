"""What the system itself is asked to find out about a TCP connection; shared by the protocols."""

from __future__ import annotations

import socket
from typing import Final

PROBES: Final = 3
MACHINE_PATIENCE: Final = 3
"""A machine's connection is given up after so many request time-outs of silence: requests may fail, and it go on."""


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
