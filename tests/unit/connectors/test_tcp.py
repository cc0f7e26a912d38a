"""What every connection asks of the system."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from connectors.tcp import PROBES, notice_dead_peer, uploaded


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
    assert uploaded(None) == (0, 0)


def test_uploaded() -> None:
    """What the peer's system has is told apart from what waits because it reads nothing; a closed socket has none."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        reader, _ = server.accept()
        with reader:
            before, waiting = uploaded(sender)
            assert waiting == 0
            sender.sendall(bytes(1000))
            reader.recv(1000, socket.MSG_WAITALL)
            _wait(lambda: uploaded(sender) == (before + 1000, 0))
            sender.setblocking(False)
            sent = 1000
            with suppress(BlockingIOError):
                while True:
                    sent += sender.send(bytes(2**20))
            _wait(lambda: sum(uploaded(sender)) == before + sent)
            assert uploaded(sender)[1] > 0
    assert uploaded(sender) == (0, 0)


def _wait(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
