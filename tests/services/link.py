"""A bad link: two TUN devices, one here and one in a network namespace of its own, and a thread that carries packets
from one to the other, or does not (Linux, root, /dev/net/tun).

In user space because not every kernel has sch_netem. What is lost is lost without a word: no reset, no ICMP, no carrier
that goes away. Addresses are of 198.18.0.0/15, which RFC 2544 keeps for tests.
"""

import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.services.packages import program
from tests.services.process import ServiceMissing

MTU = 1400
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_READS_MAX = 64
"""Packets carried from one end before the other has its turn."""


class Link:
    """Joins this network to a far one, whose only host is `address`. Made, it works; `close` removes it.

    delay_s: of each packet, either way.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        if os.geteuid() != 0:
            raise ServiceMissing("a bad link needs root, for its network namespace")
        program("ip", "iproute2")
        name = uuid.uuid4().hex[:8]
        net = f"198.{random.randint(18, 19)}.{random.randint(0, 255)}"
        self.address = f"{net}.2"
        self.carried = self.lost = 0
        """Packets, both ways."""
        self._space = f"gw-{name}"
        self._delay_s = delay_s
        self._loss = 0.0
        self._chance = random.Random()
        self._ends: list[int] = []
        self._over = os.eventfd(0)
        self._carrier = threading.Thread(target=self._carry, name=f"link {name}")
        try:
            _ip("netns", "add", self._space)
            near, far = self._end(f"gwn-{name}"), self._end(f"gwf-{name}")
            _ip("link", "set", far, "netns", self._space)
            _up([], near, f"{net}.1", self.address)
            _up(["-n", self._space], far, self.address, f"{net}.1")
            _ip("-n", self._space, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        self._carrier.start()

    def beyond(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program in the far network."""
        return ["ip", "netns", "exec", self._space, *map(str, argv)]

    def lose(self, fraction: float) -> None:
        """Each packet is lost with this probability from now on, either way; 1: a black hole, 0: none is."""
        self._loss = fraction

    def cut(self) -> None:
        """Everything is lost from now on."""
        self.lose(1.0)

    def mend(self) -> None:
        """Nothing is lost any more."""
        self.lose(0.0)

    def close(self) -> None:
        """What runs in the far network must have ended. Idempotent."""
        if self._carrier.is_alive():
            os.eventfd_write(self._over, 1)
            self._carrier.join()
            self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, device: str) -> str:
        """Makes a TUN device that lives as long as its file, wherever it is moved to."""
        try:
            file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._ends.append(file)
            fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
        except OSError as error:
            raise ServiceMissing(f"a bad link needs TUN devices: /dev/net/tun: {error}") from error
        return device

    def _remove(self) -> None:
        for file in (*self._ends, self._over):
            os.close(file)
        self._ends.clear()
        subprocess.run(["ip", "netns", "del", self._space], capture_output=True, check=False)

    def _carry(self) -> None:
        """The thread: until `close`."""
        near, far = self._ends
        across = {near: far, far: near}
        under_way: deque[tuple[float, int, bytes]] = deque()
        poll = select.poll()
        for file in (near, far, self._over):
            poll.register(file, select.POLLIN)
        while True:
            wait_s = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
            ready = [file for file, _ in poll.poll(None if wait_s is None else wait_s * 1000)]
            if self._over in ready:
                return
            for file in ready:
                due_s = time.monotonic() + self._delay_s
                under_way.extend((due_s, across[file], packet) for packet in self._survivors(file))
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = under_way.popleft()
                self._put(end, packet)

    def _survivors(self, file: int) -> list[bytes]:
        packets = []
        for _ in range(_READS_MAX):
            try:
                packet = os.read(file, MTU)
            except BlockingIOError:
                break
            if self._chance.random() < self._loss:
                self.lost += 1
            else:
                packets.append(packet)
        return packets

    def _put(self, end: int, packet: bytes) -> None:
        try:
            os.write(end, packet)
            self.carried += 1
        except BlockingIOError:
            self.lost += 1


def _up(space: list[str], device: str, address: str, peer: str) -> None:
    _ip(*space, "addr", "add", address, "peer", peer, "dev", device)
    _ip(*space, "link", "set", device, "mtu", str(MTU), "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceMissing(f"a bad link: ip {' '.join(arguments)}: {done.stderr.strip()}")
