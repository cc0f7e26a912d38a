"""What the host says of its clock: the kernel (adjtimex) and chrony; `clock_ptp` has ptp4l and hardware clocks. All of
it may block, for fractions of a second at most: for a thread. No privilege is needed.

chrony is asked in its own protocol (candm.h of its source, version 6, request TRACKING), a datagram each time, because
`chronyc` once a second would be a process a second.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pipelines.clock import Source

TIMEOUT_S: Final = 0.2
"""For an answer from this host."""
CHRONY: Final = ("127.0.0.1", 323)
UPDATES_MISSED: Final = 8
"""chrony has lost its sources when it was not corrected for so many of its intervals."""
UPDATE_MIN_S: Final = 16.0
NOT_DISCIPLINED: Final = (0, 0x7F7F0101)
"""Reference ids of a chrony without a source, and of one that takes its own clock for one (`local`)."""
LEAP_UNSYNC: Final = 3

STA_UNSYNC: Final = 0x40
_TIMEX = struct.Struct("@I4li3l2l4li5li")
"""adjtimex(2): modes, offset, freq, maxerror, esterror, status; ...; the last is tai."""
_TIMEX_BYTES: Final = 512
"""Beyond what any kernel fills in."""
_REQUEST = struct.Struct(">4B2H3I84x")
"""candm.h CMD_Request, as long as the reply: version, type, 2 reserved, command, attempt, sequence, padding."""
_REPLY = struct.Struct(">4B6H3I I18xH HH 3I 9I")
"""CMD_Reply with RPY_Tracking: head; reference id, (address), stratum, leap status, reference time, floats."""
_REQUEST_TRACKING: Final = (6, 1, 0, 0, 33)
_REPLY_TRACKING: Final = (6, 2, 33, 5, 0)
"""Version, type, command, reply, status."""


class Absent(Exception):
    """Not on this host, or not for us: says why."""


@dataclass(frozen=True)
class Reading:
    """What one of them says."""

    source: Source
    locked: bool
    error_ns: int
    """Bound of the wall clock's error, while it is locked."""
    shown: Mapping[str, Any]
    """All that was read, for `/health`."""


Reader = Callable[[], Reading]
"""Raises Absent, OSError (TimeoutError is one) or ValueError."""


def read_kernel() -> Reading:
    """adjtimex(2). It sees nothing of a `chronyd -x`, and in a container what disciplines the host."""
    if sys.platform != "linux":
        raise Absent("there is no adjtimex on this system")
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes 0: nothing is set
    if _libc().adjtimex(timex) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _, _, _, maxerror, esterror, status, *_, tai = _TIMEX.unpack_from(timex)
    synchronised = not status & STA_UNSYNC
    shown = {
        "synchronised": synchronised,
        "max_error_us": maxerror,
        "estimated_error_us": esterror,
        "tai_offset_s": tai,
    }
    return Reading("kernel", synchronised, max(maxerror, 1) * 1000, shown)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def read_chrony(address: tuple[str, int] = CHRONY) -> Reading:
    """`chronyc tracking`: the bound is |offset| + root dispersion + root delay / 2 (RFC 5905, root distance)."""
    sequence = time.monotonic_ns() & 0xFFFF_FFFF
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as wire:
        wire.settimeout(TIMEOUT_S)
        wire.connect(address)
        try:
            wire.send(_REQUEST.pack(*_REQUEST_TRACKING, 0, sequence, 0, 0))
            reply = wire.recv(1024)
        except ConnectionRefusedError as error:
            raise Absent("no chrony on this host (or cmdport is not 323)") from error
    return _tracking(reply, sequence, time.time())


def _tracking(reply: bytes, sequence: int, now_s: float) -> Reading:
    """A TRACKING reply. Raises ValueError for anything else."""
    if len(reply) < _REPLY.size:
        raise ValueError(f"chrony: answer of {len(reply)} bytes")
    version, kind, _, _, command, what, status, _, _, _, number, _, _, *tracking = _REPLY.unpack_from(reply)
    if (version, kind, command, what, status) != _REPLY_TRACKING or number != sequence:
        raise ValueError(f"chrony: unexpected answer (version {version}, reply {what}, status {status})")
    reference, _, stratum, leap, high_s, low_s, part_ns, *floats = tracking
    offset_s, _, _, frequency_ppm, _, _, delay_s, dispersion_s, interval_s = map(_float, floats)
    age_s = max(now_s - ((high_s << 32 | low_s) + part_ns / 1e9), 0.0)
    name = _name(reference)
    locked = leap != LEAP_UNSYNC and reference not in NOT_DISCIPLINED
    shown = {
        "reference": name,
        "stratum": stratum,
        "offset_us": round(offset_s * 1e6, 3),
        "root_delay_us": round(delay_s * 1e6, 3),
        "root_dispersion_us": round(dispersion_s * 1e6, 3),
        "frequency_ppm": round(frequency_ppm, 3),
        "updated_s_ago": round(age_s, 1) if locked else None,
        "leap_status": leap,
    }
    error_ns = int((abs(offset_s) + dispersion_s + delay_s / 2) * 1e9) + 1
    heard = age_s <= UPDATES_MISSED * max(interval_s, UPDATE_MIN_S)
    return Reading("ptp" if name[:3] in ("PHC", "PTP") else "ntp", locked and heard, error_ns, shown)


def _float(word: int) -> float:
    """candm.h Float: exponent of 7 bits, coefficient of 25, both signed."""
    exponent, coefficient = word >> 25, word & 0x1FF_FFFF
    exponent -= 128 if exponent >= 64 else 0
    coefficient -= 2**25 if coefficient >= 2**24 else 0
    return float(coefficient) * 2.0 ** (exponent - 25)


def _name(reference: int) -> str:
    """A reference clock's four letters (`PHC0`, `GPS`), else the id of a server in hexadecimal, as chronyc shows it."""
    letters = reference.to_bytes(4, "big").rstrip(b"\0")
    return letters.decode() if letters.isalnum() and letters[:1].isalpha() else f"{reference:08X}"
