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

from tests.services.manner import Direction, Manner
from tests.services.packages import program
from tests.services.process import ServiceMissing

MTU = 1400
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_READS_MAX = 64
"""Packets carried from one end before the other has its turn."""


class Link:
    """Joins this network to a far one, whose only host is `address`. Made, it works; `close` removes it.

    delay_s: of each packet, either way. space: a network namespace that is there; default: one of its own.
    """

    def __init__(self, delay_s: float = 0.0, space: str = "") -> None:
        if os.geteuid() != 0:
            raise ServiceMissing("a bad link needs root, for its network namespace")
        program("ip", "iproute2")
        name = uuid.uuid4().hex[:8]
        net = f"198.{random.randint(18, 19)}.{random.randint(0, 255)}"
        self.address = f"{net}.2"
        self.carried = self.lost = 0
        """Packets, both ways."""
        self.net = net
        """The first three bytes of its addresses; here it has .1."""
        self.device, self.far_device = f"gwn-{name}", f"gwf-{name}"
        self._own_space = not space
        self._space = space or f"gw-{name}"
        self._loss = 0.0
        self._chance = random.Random()
        self._ways = [Direction(Manner(delay_s), self._chance) for _ in range(2)]
        """Up, down."""
        self._ends: list[int] = []
        self._over = os.eventfd(0)
        self._carrier = threading.Thread(target=self._carry, name=f"link {name}")
        try:
            if self._own_space:
                ip("netns", "add", self._space)
            near, far = self._end(self.device), self._end(self.far_device)
            ip("link", "set", far, "netns", self._space)
            _up([], near, f"{net}.1", self.address)
            _up(["-n", self._space], far, self.address, f"{net}.1")
            ip("-n", self._space, "link", "set", "lo", "up")
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

    def shape(self, up: Manner, down: Manner) -> None:
        """From now on packets that leave here, and those that come, are treated so."""
        self._ways[0].manner, self._ways[1].manner = up, down

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
        if self._own_space:
            subprocess.run(["ip", "netns", "del", self._space], capture_output=True, check=False)

    def _carry(self) -> None:
        """The thread: until `close`."""
        near, far = self._ends
        under_way: dict[int, deque[tuple[float, bytes]]] = {near: deque(), far: deque()}
        """By the end that they leave by; in the order of their times."""
        poll = select.poll()
        for file in (near, far, self._over):
            poll.register(file, select.POLLIN)
        while True:
            next_s = min((packets[0][0] for packets in under_way.values() if packets), default=None)
            wait_ms = None if next_s is None else max(next_s - time.monotonic(), 0.0) * 1000
            ready = [file for file, _ in poll.poll(wait_ms)]
            if self._over in ready:
                return
            for file in ready:
                under_way[far if file == near else near].extend(self._survivors(file, self._ways[file != near]))
            for end, packets in under_way.items():
                while packets and packets[0][0] <= time.monotonic():
                    self._put(end, packets.popleft()[1])

    def _survivors(self, file: int, way: Direction) -> list[tuple[float, bytes]]:
        """With the times when they are due."""
        packets = []
        for _ in range(_READS_MAX):
            try:
                packet = os.read(file, MTU)
            except BlockingIOError:
                break
            due_s = way.due_s(time.monotonic(), len(packet))
            if due_s is None or self._chance.random() < self._loss:
                self.lost += 1
            else:
                packets.append((due_s, packet))
        return packets

    def _put(self, end: int, packet: bytes) -> None:
        try:
            os.write(end, packet)
            self.carried += 1
        except OSError:  # its queue is full, or the interface is down
            self.lost += 1


def _up(space: list[str], device: str, address: str, peer: str) -> None:
    ip(*space, "addr", "add", address, "peer", peer, "dev", device)
    ip(*space, "link", "set", device, "mtu", str(MTU), "up")


def ip(*arguments: str) -> None:
    """Runs iproute2. ServiceMissing where it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceMissing(f"a bad link: ip {' '.join(arguments)}: {done.stderr.strip()}")
