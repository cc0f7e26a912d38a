"""Several ways from this network to one far host, which has the same addresses over all of them; and what arrives there
(Linux, root)."""

import ctypes
import os
import random
import select
import socket
import struct
import subprocess
import threading
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from tests.services.link import Link, ip
from tests.services.process import ServiceMissing

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_TCP, _UDP = 6, 17
_TCP_SYN, _TCP_RST, _TCP_ACK = 0x02, 0x04, 0x10


class Paths:
    """`links[name]` is one way, `links[name].device` its interface here; the first is what routes prefer.

    address, address6: the far host. delay_s: as of `Link`.
    """

    def __init__(self, *names: str, delay_s: float = 0.0) -> None:
        if os.geteuid() != 0:
            raise ServiceMissing("paths need root, for their network namespace")
        self.space = f"gw-{uuid.uuid4().hex[:8]}"
        self._made = ExitStack()
        one, two = random.randint(0, 0xFFFF), random.randint(0, 0xFFFF)
        self.address6 = f"fd00:{one:x}:{two:x}::fe"
        self.links: dict[str, Link] = {}
        try:
            ip("netns", "add", self.space)
            self._made.callback(subprocess.run, ["ip", "netns", "del", self.space], capture_output=True, check=False)
            ip("-n", self.space, "link", "set", "lo", "up")
            for number, name in enumerate(names):
                link = self.links[name] = self._made.enter_context(Link(delay_s, self.space))
                self._six(link, f"fd00:{one:x}:{two:x}:{number + 1:x}")
            first = next(iter(self.links.values()))
            self.address = f"{first.net}.254"
            ip("-n", self.space, "addr", "add", f"{self.address}/32", "dev", "lo")
            ip("-n", self.space, "addr", "add", f"{self.address6}/128", "dev", "lo", "nodad")
            for number, link in enumerate(self.links.values()):
                self._route(link, 10 + number)
        except BaseException:
            self.close()
            raise

    def beyond(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program at the far host."""
        return ["ip", "netns", "exec", self.space, *map(str, argv)]

    def pull(self, name: str) -> None:
        """The interface here goes down."""
        ip("link", "set", self.links[name].device, "down")

    def plug(self, name: str) -> None:
        """It is up again, and its routes are there."""
        link = self.links[name]
        ip("link", "set", link.device, "up")
        self._route(link, 10 + [*self.links].index(name))

    def close(self) -> None:
        """What runs at the far host must have ended. Idempotent."""
        self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _six(self, link: Link, net: str) -> None:
        for space, device, own, peer in (([], link.device, 1, 2), (["-n", self.space], link.far_device, 2, 1)):
            ip(*space, "addr", "add", f"{net}::{own}", "peer", f"{net}::{peer}", "dev", device, "nodad")

    def _route(self, link: Link, metric: int) -> None:
        for version, address in (("-4", self.address), ("-6", self.address6)):
            ip(version, "route", "replace", address, "dev", link.device, "metric", str(metric))
        # An answer that comes by another way than routes prefer is no forgery here.
        Path(f"/proc/sys/net/ipv4/conf/{link.device}/rp_filter").write_text("2")


class Packet(NamedTuple):
    """What is looked at of one that arrived."""

    device: str
    version: int
    protocol: str
    dscp: int
    port: int
    """Where it goes."""
    is_syn: bool
    is_late_reset: bool
    """The kernel's answer to what comes after a connection was closed: it has no socket any more, and so the mark of
    what it answers and the way that routes say (RFC 9293, 3.10.7.1: RST without ACK)."""


class Capture:
    """AF_PACKET at the far host: TCP and UDP packets that arrive there, all interfaces. A context."""

    def __init__(self, paths: Paths) -> None:
        self.packets: list[Packet] = []
        self._space = paths.space
        self._over = os.eventfd(0)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture")

    def to(self, port: int) -> list[Packet]:
        """Those to one port, in order."""
        return [packet for packet in [*self.packets] if packet.port == port]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10.0), "no capture"
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._over, 1)
        self._thread.join()
        os.close(self._over)

    def _run(self) -> None:
        with _socket_in(self._space) as sock:
            self._ready.set()
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            poll.register(self._over, select.POLLIN)
            while self._over not in (ready := [file for file, _ in poll.poll()]):
                assert ready
                data, (device, _, kind, *_) = sock.recvfrom(256)
                packet = _parsed(device, data) if kind == socket.PACKET_HOST else None
                if packet and packet.device != "lo":
                    self.packets.append(packet)


def _socket_in(space: str) -> socket.socket:
    """Of another network namespace: this thread goes there and stays."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{space}").open() as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
    return sock


def _parsed(device: str, data: bytes) -> Packet | None:
    """None where it is neither TCP nor UDP (RFC 791, RFC 8200; extension headers are not looked through)."""
    version = data[0] >> 4
    if version == 4:
        dscp, protocol, payload = data[1] >> 2, data[9], data[4 * (data[0] & 15) :]
    else:
        dscp, protocol, payload = (int.from_bytes(data[:2], "big") >> 6) & 0x3F, data[6], data[40:]
    if protocol not in (_TCP, _UDP):
        return None
    [port] = struct.unpack_from("!H", payload, 2)
    flags = payload[13] if protocol == _TCP else 0
    is_late_reset = flags & (_TCP_RST | _TCP_ACK) == _TCP_RST
    return Packet(
        device, version, "tcp" if protocol == _TCP else "udp", dscp, port, bool(flags & _TCP_SYN), is_late_reset
    )
