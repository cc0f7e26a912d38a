"""Machines on one serial line that misbehave as real ones do, at the line's speed, byte by byte.

One thread per bus on a pseudo terminal. Holding register `r` of unit `u` is always `register(u, r)`, so that a value
which belongs to another unit or another request is seen. `manners(number)` names what is wrong with the answer to the
`number`th request that came; the list is `MANNERS`.
"""

import heapq
import os
import random
import select
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pymodbus.framer import FramerRTU

MANNERS: Final = ("right", "late", "silent", "flipped", "noise", "foreign", "foreign-late", "echo", "cut", "babble")
_REQUEST_BYTES = 8
_BITS_PER_BYTE = 11


def register(unit: int, address: int) -> int:
    """What a holding register has."""
    return (unit * 4_001 + address * 31 + 7) % 65_536


class SerialBus:
    """`with SerialBus(folder, baud, late_s, manners) as bus:`; late answers begin `late_s` after the request.

    One that would come later than that by half, because the machine is busy, does not come at all.
    """

    def __init__(
        self, folder: Path, baud: int, late_s: float, manners: Callable[[int], str], *, echo: bool = False
    ) -> None:
        self.port = folder / "bus"
        self.requests = 0
        self.seen: dict[str, int] = {}
        """Manner -> how often."""
        self._byte_s = _BITS_PER_BYTE / baud
        self._late_s = late_s
        self._manners = manners
        self._echo = echo
        self._random = random.Random(7)
        self._late: list[tuple[float, bytes]] = []
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self._ended, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="serial bus", daemon=True)

    def __enter__(self) -> Self:
        self.port.symlink_to(os.ttyname(self._slave))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stop)
        self._thread.join()
        for fd in (self._ended, self._master, self._slave):
            os.close(fd)

    def _serve(self) -> None:
        heard = b""
        while True:
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            readable, _, _ = select.select([self._master, self._ended], [], [], wait_s)
            if self._ended in readable:
                return
            if readable:
                heard += os.read(self._master, 4096)
                while len(heard) >= _REQUEST_BYTES:
                    self._answer(heard[:_REQUEST_BYTES])
                    heard = heard[_REQUEST_BYTES:]
            while self._late and self._late[0][0] <= time.monotonic():
                due_s, frame = heapq.heappop(self._late)
                if time.monotonic() - due_s < self._late_s / 2:
                    self._say(frame)

    def _answer(self, request: bytes) -> None:
        """A read of holding registers."""
        time.sleep(_REQUEST_BYTES * self._byte_s)  # the request's own time on the line
        if self._echo:
            self._say(request)
        unit, address, count = request[0], int.from_bytes(request[2:4], "big"), int.from_bytes(request[4:6], "big")
        manner = self._manners(self.requests)
        self.requests += 1
        self.seen[manner] = self.seen.get(manner, 0) + 1
        reply = _frame(unit, address, count)
        match manner:
            case "late":
                self._later(reply)
            case "foreign-late":
                self._later(_frame(unit + 100, address, count))  # of another master's unit: ours do not speak unasked
                self._say(reply)
            case "silent":
                return
            case "flipped":
                self._say(self._flip(reply))
            case "noise":
                self._say(self._random.randbytes(self._random.randint(1, 6)) + reply)
            case "foreign":
                self._say(_frame(unit + 1, address, count))
                time.sleep(4 * self._byte_s)
                self._say(reply)
            case "echo":
                self._say(request + reply)
            case "cut":
                self._say(reply[: self._random.randrange(1, len(reply))])
            case "babble":
                self._say(self._random.randbytes(len(reply)))
            case _:
                self._say(reply)

    def _later(self, frame: bytes) -> None:
        heapq.heappush(self._late, (time.monotonic() + self._late_s, frame))

    def _flip(self, frame: bytes) -> bytes:
        number = int.from_bytes(frame, "big")
        for bit in self._random.sample(range(8 * len(frame)), self._random.randint(1, 3)):
            number ^= 1 << bit
        return number.to_bytes(len(frame), "big")

    def _say(self, frame: bytes) -> None:
        for at in range(len(frame)):
            os.write(self._master, frame[at : at + 1])
            time.sleep(self._byte_s)


def _frame(unit: int, address: int, count: int) -> bytes:
    data = b"".join(register(unit, at).to_bytes(2, "big") for at in range(address, address + count))
    body = bytes([unit, 3, len(data)]) + data
    return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")
