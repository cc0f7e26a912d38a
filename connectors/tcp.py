"""What the kernel does for a connection whose other side went silent: a half-open link ends in time."""

from __future__ import annotations

import socket
from typing import Any

PROBE_EVERY_S = 1


def end_when_silent(sock: Any, silent_s: float) -> None:
    """The connection fails with ETIMEDOUT once what was sent is unacknowledged for `silent_s` (RFC 5482, tcp(7)).

    An idle one is probed first, after `silent_s` and then each second, and fails in the same way; slow, but moving, is
    not silent. `sock` is a socket or what a transport gives out as one.
    """
    idle_s = max(1, round(silent_s))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(silent_s * 1000))
