"""Packets of the loopback interface with the kernel's time stamps: what a program does, seen from outside.

An AF_PACKET socket with SO_TIMESTAMPNS (packet(7), socket(7)) keeps what a filter lets through in its own buffer until
the measurement is over; nothing runs beside what is measured. Loopback hands a packet over within the sender's `send`,
so its arrival, which is stamped, ends the one side's writing and makes it readable on the other. Root.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

ETH_P_IP: Final = 0x0800
SO_ATTACH_FILTER: Final = 26
SO_RCVBUFFORCE: Final = 33
SO_TIMESTAMPNS: Final = 35
BUFFER_BYTES: Final = 512 << 20
SNAP_BYTES: Final = 1 << 16
PACKET_STATISTICS: Final = 6
SOL_PACKET: Final = 263
EMPTY_PACKET_BYTES: Final = 52
"""IP and TCP headers with the time-stamp option, no data."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One TCP segment with data; `at_ns` is UTC ns."""

    at_ns: int
    source_port: int
    target_port: int
    data: bytes


class Capture:
    """`with Capture(ports) as capture: ...; capture.packets()`: segments with data from or to these ports."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._socket: socket.socket

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        code = b"".join(_filter(self._ports))
        kept = ctypes.create_string_buffer(code)
        program = struct.pack("HL", len(code) // 8, ctypes.addressof(kept))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        self._socket.bind(("lo", ETH_P_IP))
        self._socket.setblocking(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def packets(self) -> Iterator[Packet]:
        """Everything until now. RuntimeError where the buffer was too small."""
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if dropped:
            raise RuntimeError(f"{dropped} packets did not fit into the capture's buffer")
        now_ns = time.time_ns()  # on a busy machine more may come than is read
        while True:
            try:
                data, extra, _, _ = self._socket.recvmsg(SNAP_BYTES, 128)
            except BlockingIOError:
                return
            seconds, ns = struct.unpack("qq", extra[0][2])
            if (at_ns := seconds * 10**9 + ns) > now_ns:
                return
            yield _packet(at_ns, data)


def _packet(at_ns: int, data: bytes) -> Packet:
    header = (data[0] & 0x0F) * 4
    source, target = struct.unpack_from(">HH", data, header)
    end = int.from_bytes(data[2:4], "big")
    return Packet(at_ns, source, target, data[header + (data[header + 12] >> 4) * 4 : end])


def _filter(ports: Sequence[int]) -> Iterator[bytes]:
    """Classic BPF (linux/filter.h) over an IPv4 packet: has data, and one of the ports."""

    def code(operation: int, yes: int, no: int, k: int) -> bytes:
        return struct.pack("HBBI", operation, yes, no, k)

    load_half, load_x_header, load_half_x = 0x28, 0xB1, 0x48
    if_equal, if_greater, give = 0x15, 0x25, 0x06
    left = 2 * len(ports) + 1
    yield code(load_half, 0, 0, 2)
    yield code(if_greater, 0, left + 2, EMPTY_PACKET_BYTES)
    yield code(load_x_header, 0, 0, 0)
    for at in (0, 2):
        yield code(load_half_x, 0, 0, at)
        for index, port in enumerate(ports):
            rest = len(ports) - index - 1 + (len(ports) + 1 if at == 0 else 0)
            yield code(if_equal, rest + 1, 0, port)
    yield code(give, 0, 0, 0)
    yield code(give, 0, 0, 0xFFFF)
