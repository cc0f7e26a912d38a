"""A serial port as an asyncio transport. pyserial sets it up; bytes go by the loop's own readiness events.

Not pyserial-asyncio: it logs a traceback where an adapter is pulled out while something is written.
"""

from __future__ import annotations

import asyncio
import errno
import os
import termios
from typing import Final

import serial
from serial.rs485 import RS485Settings

from connectors.modbus_url import SerialFormat
from pipelines.errors import NotConnected, Permanent

_READ_BYTES: Final = 4096
_OPENING: Final = {
    errno.ENOENT: "there is no such port: is the adapter plugged in?",
    errno.ENXIO: "there is no such device behind the port: is the adapter plugged in?",
    errno.EIO: "the port does not answer: is the adapter plugged in?",
    errno.EBUSY: "the port is in use by another program",
    errno.EAGAIN: "the port is in use by another program",
    errno.EISDIR: "that is a folder, not a port",
    errno.ENOTTY: "that is not a serial port",
}


def open_port(path: str, how: SerialFormat) -> serial.Serial:
    """Opens it for this process alone (flock), with nothing of the past in it. Raises NotConnected, Permanent."""
    try:
        port = serial.Serial(path, how.baud, parity=how.parity, stopbits=how.stop, timeout=0, exclusive=True)
        port.reset_input_buffer()
    except (ValueError, termios.error) as error:
        raise Permanent(f"the port cannot do {how}: {error}") from error
    except OSError as error:  # pyserial's own are some
        number = error.errno or getattr(error.__context__, "errno", None)
        if number in {errno.EACCES, errno.EPERM}:
            raise Permanent("no permission for the port: add the gateway's user to the group `dialout`") from error
        raise NotConnected(_OPENING.get(number or 0, str(error).lower())) from error
    if how.rs485:
        _switch_direction(port)
    return port


def _switch_direction(port: serial.Serial) -> None:
    """RTS is on while it sends, off after it (TIOCSRS485, the kernel's serial-rs485.rst). Raises Permanent."""
    try:
        port.rs485_mode = RS485Settings()
    except (ValueError, OSError, termios.error) as error:
        port.close()
        raise Permanent(
            "the port's driver has no RS-485 mode: write it without `rs485=1`, which a converter that switches by "
            f"itself does not need ({error})"
        ) from error


class SerialTransport(asyncio.Transport):
    """Owns the port. `connection_lost` gets an OSError where it went away by itself, such as a pulled USB adapter."""

    def __init__(self, port: serial.Serial, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._port = port
        self._protocol = protocol
        self._ended = False
        self._loop.add_reader(port.fileno(), self._readable)
        protocol.connection_made(self)

    def waiting(self) -> bool:
        """Bytes have come that `data_received` was not given yet."""
        try:
            return bool(self._port.in_waiting)
        except OSError:
            return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """A request is far shorter than what the system keeps for a port: one that takes no more is broken."""
        if self._ended:
            return
        try:
            if os.write(self._port.fileno(), data) < len(data):
                self._end(OSError(errno.EIO, "the port takes nothing more"))
        except OSError as error:
            self._end(error)

    def is_closing(self) -> bool:
        return self._ended

    def abort(self) -> None:
        self._end(None)

    def _readable(self) -> None:
        try:
            data = os.read(self._port.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._end(OSError(errno.EIO, "the port is gone"))

    def _end(self, error: OSError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._port.fileno())
        self._port.close()
        self._loop.call_soon(self._protocol.connection_lost, error)
