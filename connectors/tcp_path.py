"""What the system knows of the path of a TCP connection (Linux: TCP_INFO, `struct tcp_info` in linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

_INFO: Final = struct.Struct("=2xB21xI28xI8xII24xI40xI80xI")
"""The fields of `TcpInfo` at bytes 2, 24, 56, 68, 72, 100, 144 and 228."""
LATE_NS: Final = 150_000_000


class TcpInfo(NamedTuple):
    """One look; all since the connection was made where they are totals."""

    resends: int
    """Of the same data, in a row, without an answer."""
    unacked_segments: int
    last_ack_ms: int
    """Since the newest acknowledgement; what an idle connection says here is old and no fault."""
    rtt_us: int
    rtt_deviation_us: int
    resent_segments: int
    """Total."""
    notsent_bytes: int
    window_bytes: int
    """What the far side lets come; 0 where it is slow to read. 2^32 - 1 on a system that does not say (before 5.4)."""


def tcp_info(sock: socket.socket | None) -> TcpInfo | None:
    """None where the system does not say."""
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:
        return None
    return TcpInfo(*_INFO.unpack(info.ljust(_INFO.size, b"\xff"))) if len(info) >= 148 else None


class Silence:
    """For how long the far system has acknowledged nothing although something waits for it.

    A far side that is slow to read closes its window: then nothing is under way, and nothing is silent. Where nobody
    looked for `LATE_NS` nobody knows since when something waits: it counts from then on.
    """

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._looked_ns = 0

    def age_ns(self, info: TcpInfo, now_ns: int) -> int:
        """To be asked regularly, with a monotonic time."""
        late, self._looked_ns = now_ns - self._looked_ns > LATE_NS, now_ns
        if not (info.unacked_segments or (info.notsent_bytes and info.window_bytes)):
            self._since_ns = None
            return 0
        if self._since_ns is None or late:
            self._since_ns = now_ns
        return min(now_ns - self._since_ns, info.last_ack_ms * 1_000_000)
