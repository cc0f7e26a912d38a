"""The address of a Modbus unit, and how its line is treated.

    tcp://10.0.0.7:502/1        rtu+tcp://10.0.0.8:4001/17        udp://10.0.0.9:502/1        tls://10.0.0.7:802/1
    rtu:///dev/ttyUSB0?baud=19200&parity=E&stop=1/1

The number at the end is the unit id, 1 where none is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from connectors.network import PLAIN, Network
from connectors.tls_settings import TlsSettings

PORTS: Final[Mapping[str, int]] = {"tcp": 502, "rtu+tcp": 502, "udp": 502, "tls": 802}
"""Scheme -> default port. 802: Modbus/TCP Security V2.1, section 5."""
SERIAL: Final = "rtu"
BAUDS: Final = range(300, 4_000_001)
_BITS_PER_CHARACTER: Final = 11
"""Start, eight data, parity or a second stop, stop (Serial Line V1.02, section 2.5.1)."""
_FAST_BAUD: Final = 19_200
_FAST_SILENCE_S: Final = 0.00175


@dataclass(frozen=True, slots=True)
class SerialFormat:
    """How characters are put on a serial line; the defaults are those of Serial Line V1.02, section 2.5.1."""

    baud: int = 19_200
    parity: str = "E"
    stop: int = 1
    rs485: bool = False
    """The port's driver switches the line's direction (Linux, TIOCSRS485)."""

    @property
    def character_s(self) -> float:
        """Seconds that a byte takes."""
        return _BITS_PER_CHARACTER / self.baud

    @property
    def silence_s(self) -> float:
        """t3.5: how long a line is silent between two frames, at least (Serial Line V1.02, section 2.5.1.1)."""
        return _FAST_SILENCE_S if self.baud > _FAST_BAUD else 3.5 * self.character_s

    def __str__(self) -> str:
        return f"{self.baud} 8{self.parity}{self.stop}{' RS-485' if self.rs485 else ''}"


@dataclass(frozen=True, slots=True)
class Manners:
    """How the line to a device is treated; what `ModbusDevice` says of it."""

    shared: bool = False
    """One connection with the other devices of the same endpoint. A serial port always is."""
    pipeline: int = 1
    """Requests outstanding at most."""
    pause_ns: int = 0
    """From a reply to the next request, at least."""
    echo: bool = False
    """What is sent comes back before the reply."""
    tls: TlsSettings | None = None
    network: Network = PLAIN


@dataclass(frozen=True, slots=True)
class ModbusUrl:
    """`tcp://10.0.0.7:502/1` in parts."""

    scheme: str
    host: str
    """Of `rtu://`: the port's path."""
    port: int
    unit: int
    serial: SerialFormat | None = None

    @property
    def rtu(self) -> bool:
        """Serial frames with a CRC and without a transaction id."""
        return self.scheme in {SERIAL, "rtu+tcp"}

    @property
    def endpoint(self) -> str:
        """The URL without unit and format: what may be shared."""
        if self.serial:
            return f"{self.scheme}://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.unit}"


def parse_url(url: str) -> ModbusUrl:
    """Raises ValueError, one line."""
    parts = urlsplit(url)
    if parts.scheme == SERIAL:
        return _serial_url(url, parts)
    surplus = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in PORTS or not parts.hostname or surplus:
        raise ValueError(
            f"{url!r} is not a Modbus address: write tcp://host:502/1 (1: unit id), rtu+tcp://, udp://, tls://, or "
            "rtu:///dev/ttyUSB0?baud=19200&parity=E/1"
        )
    return ModbusUrl(parts.scheme, parts.hostname, _port(url, parts), _unit(url, parts.scheme, parts.path.strip("/")))


def _serial_url(url: str, parts: SplitResult) -> ModbusUrl:
    """The unit id stands at the end: behind the options, or else behind the path."""
    path, query, unit = parts.path, parts.query, ""
    if query:
        query, _, unit = query.partition("/")
    elif path.rpartition("/")[2].isdigit():
        path, _, unit = path.rpartition("/")
    if parts.netloc or parts.fragment or not path.startswith("/") or path == "/":
        raise ValueError(f"{url!r}: write three slashes and the port: rtu:///dev/ttyUSB0?baud=19200&parity=E/1")
    return ModbusUrl(SERIAL, path, 0, _unit(url, SERIAL, unit), _serial_format(url, query))


def _serial_format(url: str, query: str) -> SerialFormat:
    said: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name == "baud" and text.isdigit() and int(text) in BAUDS:
            said[name] = int(text)
        elif name == "parity" and text.upper() in {"N", "E", "O"}:
            said[name] = text.upper()
        elif name == "stop" and text in {"1", "2"}:
            said[name] = int(text)
        elif name == "rs485" and text in {"0", "1"}:
            said[name] = text == "1"
        else:
            raise ValueError(
                f"{url!r}: `{name}={text}` is none of baud={BAUDS.start} to {BAUDS.stop - 1}, parity=N, E or O, "
                "stop=1 or 2, rs485=0 or 1"
            )
    return SerialFormat(**said)


def _port(url: str, parts: SplitResult) -> int:
    try:
        port = PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: the port is a number from 1 to 65535") from error
    if port == 0:
        raise ValueError(f"{url!r}: the port is a number from 1 to 65535")
    return port


def _unit(url: str, scheme: str, text: str) -> int:
    """The unit id, 1 where none is written. 0 is broadcast on a serial line: nobody would answer."""
    text = text or "1"
    lowest, highest = (1 if scheme in {SERIAL, "rtu+tcp"} else 0), (247 if scheme == SERIAL else 255)
    if not (text.isascii() and text.isdigit()) or not lowest <= int(text) <= highest:
        place = "port" if scheme == SERIAL else "host"
        raise ValueError(f"{url!r}: the unit id behind the {place} is a number from {lowest} to {highest}")
    return int(text)
