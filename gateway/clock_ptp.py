"""What ptp4l says of its port and its grandmaster, and how far a network card's clock is from the system's.

ptp4l is asked in its own protocol, datagrams on its Unix socket, because four times `pmc` a second would be a process a
second: management messages of IEEE 1588-2019 clause 15, linuxptp's own data sets TIME_STATUS_NP and PORT_PROPERTIES_NP.
The socket is root's as a rule (/var/run/ptp4l, mode 0660); linuxptp 4 has one for everybody (/var/run/ptp4lro).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from gateway.clock_readings import TIMEOUT_S, Absent, Reading, read_kernel

SOCKETS: Final = ("/var/run/ptp4lro", "/var/run/ptp4l")
DOMAINS: Final = (0, 24, 44, 127, 254)
"""IEEE 1588's own, and those of the telecom, broadcast and power profiles."""
TIME_STATUS_NP, CURRENT, PARENT, TIME_PROPERTIES, PORT_PROPERTIES_NP = 0xC000, 0x2001, 0x2002, 0x2003, 0xC004
STATES: Final = (
    *("none", "initializing", "faulty", "disabled", "listening"),
    *("pre-master", "master", "passive", "uncalibrated", "slave", "grandmaster"),
)
SOFTWARE: Final = 0
PTP_TIMESCALE: Final = 0x08
PORTS_MAX: Final = 16
ACCURACY_NS: Final = {
    0x20 + step: bound
    for step, bound in enumerate(
        (25, 100, 250, 1000, 2500, 10_000, 25_000, 100_000, 250_000, 10**6, 2_500_000, 10**7, 25 * 10**6, 10**8)
    )
}
"""clockAccuracy of the grandmaster (IEEE 1588-2019 table 5); others are worse than 0.1 s, or unknown."""

_MESSAGE = struct.Struct(">BBHB15x10sHBb10s4x3H")
"""Type, version, length, domain; source port, sequence, control, interval; target port; TLV: type, length, data set."""
_MANAGEMENT, _ALL_PORTS, _TLV = 0x0D, b"\xff" * 10, 1


class Ptp4l:
    """A `clock_readings.Reader`; remembers its domain."""

    def __init__(
        self,
        folder: Path,
        sockets: Sequence[str] = SOCKETS,
        kernel: Callable[[], Reading] = read_kernel,
        card: Callable[[str], int | None] | None = None,
    ) -> None:
        """folder: for the answers, where ptp4l sees it, too: it sends to no nameless (abstract) socket."""
        self._own = folder / f"ptp4l.{os.getpid()}"
        self._sockets = sockets
        self._kernel = kernel
        self._card = card or card_ahead_ns
        self._domain: int | None = None

    def __call__(self) -> Reading:
        """Raises Absent, OSError or ValueError."""
        path = next(filter(os.path.exists, self._sockets), None)
        if path is None:
            raise Absent("no ptp4l on this host")
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as wire:
            wire.settimeout(TIMEOUT_S / 2)
            try:
                wire.connect(path)
            except PermissionError as error:
                raise Absent(f"{path} is not for us: give the gateway's group the right to write to it") from error
            except ConnectionRefusedError as error:
                raise Absent(f"nobody listens on {path}") from error
            self._own.unlink(missing_ok=True)
            wire.bind(str(self._own))
            try:
                if self._domain is None:
                    self._domain = _domain(wire)
                return self._read(wire, self._domain)
            except TimeoutError:
                self._domain = None  # perhaps it works in another one now
                raise
            finally:
                self._own.unlink(missing_ok=True)

    def _read(self, wire: socket.socket, domain: int) -> Reading:
        """The bound is |offset| + path delay + the grandmaster's own accuracy, as far as it says that."""
        offset_ns, present = _fields(">q32xi", _get(wire, domain, TIME_STATUS_NP))
        (path_ns,) = _fields(">10xq", _get(wire, domain, CURRENT))
        clock_class, accuracy = _fields(">19xBB", _get(wire, domain, PARENT))
        utc_offset_s, scale = _fields(">hB", _get(wire, domain, TIME_PROPERTIES))
        state, stamping, interface = _port(wire, domain)
        error_ns = abs(offset_ns) + abs(path_ns >> 16) + ACCURACY_NS.get(accuracy, 0) + 1
        shown: dict[str, Any] = {
            "port_state": state,
            "offset_ns": offset_ns,
            "path_delay_ns": path_ns >> 16,
            "grandmaster_class": clock_class,
            "grandmaster_accuracy": f"0x{accuracy:02x}",
            "interface": interface,
            "timestamping": "software" if stamping == SOFTWARE else "hardware",
        }
        locked = state == "slave" and bool(present)
        if stamping != SOFTWARE:
            between_ns = self._between(interface, utc_offset_s if scale & PTP_TIMESCALE else 0, shown)
            locked, error_ns = locked and between_ns is not None, error_ns + (between_ns or 0)
        return Reading("ptp", locked, error_ns, shown)

    def _between(self, interface: str, card_ahead_s: int, shown: dict[str, Any]) -> int | None:
        """How far the system's clock is from the card's, which is the one that ptp4l steers then: phc2sys steers the
        system's by that. Where the card cannot be read the kernel's own bound counts, if it has any (else None)."""
        ahead_ns = self._card(interface)
        if ahead_ns is None:
            kernel = self._kernel()
            return kernel.error_ns if kernel.locked else None
        shown["card_minus_system_ns"] = ahead_ns - card_ahead_s * 10**9
        return abs(ahead_ns - card_ahead_s * 10**9)


def card_ahead_ns(interface: str, root: Path = Path("/")) -> int | None:
    """By how much a network card's hardware clock (PHC) is ahead of the system's; None where it cannot be read."""
    names = sorted((root / "sys/class/net" / interface / "device/ptp").glob("ptp*"))
    try:
        device = os.open(root / "dev" / names[0].name, os.O_RDONLY)
    except (IndexError, OSError):
        return None
    try:
        before = time.time_ns()
        card = time.clock_gettime_ns((~device << 3) | 3)  # FD_TO_CLOCKID of clock_gettime(2)
        return card - (before + time.time_ns()) // 2
    except OSError:
        return None
    finally:
        os.close(device)


def _domain(wire: socket.socket) -> int:
    """The one that ptp4l works in: it answers in no other. Raises TimeoutError."""
    for domain in DOMAINS:
        try:
            _get(wire, domain, CURRENT)
        except TimeoutError:
            continue
        return domain
    raise TimeoutError(f"ptp4l does not answer in any of the domains {', '.join(map(str, DOMAINS))}")


def _get(wire: socket.socket, domain: int, data_set: int) -> bytes:
    """A data set of the clock."""
    return next(_answers(wire, domain, data_set))


def _port(wire: socket.socket, domain: int) -> tuple[str, int, str]:
    """State, time stamping and interface of the port that is slave, else of the one that answers first."""
    found: list[tuple[str, int, str]] = []
    for data in _answers(wire, domain, PORT_PROPERTIES_NP):
        state, stamping, length = _fields(">10xBBB", data)
        name = data[13 : 13 + length].decode("ascii", "replace")
        found.append((STATES[state] if state < len(STATES) else str(state), stamping, name))
        if found[-1][0] == "slave" or len(found) == PORTS_MAX:
            return found[-1]
        wire.settimeout(TIMEOUT_S / 10)
    return found[0]


def _answers(wire: socket.socket, domain: int, data_set: int) -> Iterator[bytes]:
    """What is answered to GET: once by the clock, once by each port. Raises TimeoutError where nothing comes."""
    sequence = time.monotonic_ns() & 0xFFFF
    length = _MESSAGE.size
    wire.send(
        _MESSAGE.pack(_MANAGEMENT, 2, length, domain, bytes(10), sequence, 4, 0x7F, _ALL_PORTS, _TLV, 2, data_set)
    )
    some = False
    while True:
        try:
            reply = wire.recv(2048)
        except TimeoutError:
            if some:
                return
            raise
        _, _, _, _, _, number, _, _, _, kind, _, what = _fields(_MESSAGE.format, reply)
        if (number, kind, what) == (sequence, _TLV, data_set):
            some = True
            yield reply[length:]


def _fields(layout: str, data: bytes) -> tuple[Any, ...]:
    """Raises ValueError where there are not enough bytes: another version of linuxptp."""
    try:
        return struct.unpack_from(layout, data)
    except struct.error as error:
        raise ValueError(f"ptp4l: unexpected answer of {len(data)} bytes") from error
