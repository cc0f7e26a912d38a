"""What every connection asks of the system."""

import socket

from connectors.tcp import PROBES, notice_dead_peer


def test_options() -> None:
    """Data under way by TCP_USER_TIMEOUT, an idle connection by keep-alive, in whole seconds of at least one."""
    with socket.socket() as sock:
        for within_ns, seconds in ((2 * 10**9, 1), (30 * 10**9, 10)):
            notice_dead_peer(sock, within_ns)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            for name, value in {
                "TCP_USER_TIMEOUT": within_ns // 10**6,
                "TCP_KEEPIDLE": seconds,
                "TCP_KEEPINTVL": seconds,
                "TCP_KEEPCNT": PROBES,
            }.items():
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value


def test_no_socket() -> None:
    """A transport without one (a test's) is left alone."""
    notice_dead_peer(None, 1)
