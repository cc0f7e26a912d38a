"""The connection under a session: TCP or TLS by asyncio, in the shape of a socket for paho.

asyncio opens it (cancellable, IPv4 and IPv6), so that neither connecting nor a TLS handshake ever blocks the loop; paho
reads what the session puts in `inbox` and writes through `send`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import cast

from connectors.mqtt_errors import opening_error
from connectors.mqtt_settings import MqttTarget
from connectors.network import knock, over
from connectors.tcp import notice_dead_peer, uploaded
from pipelines.errors import GatewayError

WRITE_BUFFER_BYTES_HIGH = 256 * 1024
"""Above this, senders wait until the kernel has taken more."""


class Link(asyncio.Protocol):
    """An asyncio protocol that is also paho's `SocketLike`."""

    def __init__(self) -> None:
        self.inbox = bytearray()
        """Whole packets for paho."""
        self.closed = asyncio.Event()
        self.cause: Exception | None = None
        """Why it closed, where the system or TLS says."""
        self.on_data: Callable[[bytes], None] = self.inbox.extend
        self.on_lost: Callable[[Exception | None], None] = _ignore
        self.on_send: Callable[[bytes], None] = _ignore
        """Told what paho sends, after it was sent."""
        self._transport: asyncio.Transport
        self.writable = asyncio.Event()
        """Not set while the peer is slow to read; set when the connection is gone."""
        self.writable.set()
        self._resting: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        """Sends behind everything sent before; never blocks."""
        self._transport.write(data)

    def abort(self) -> None:
        """Closes now; what was not sent yet is dropped."""
        self._transport.abort()

    @property
    def socket(self) -> socket.socket | None:
        """To ask the system about it."""
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        return sock

    def uploaded(self) -> tuple[int, int]:
        """Bytes that the broker's system has acknowledged so far, and bytes that wait here for that."""
        acknowledged, waiting = uploaded(self.socket)
        return acknowledged, waiting + self._transport.get_write_buffer_size()

    def rest(self, seconds: float) -> None:
        """Reads nothing for so long, so that many small packets are read at once."""
        if self._resting is None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._resting = asyncio.get_running_loop().call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        self._resting = None
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_HIGH)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.on_data(data)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.cause = exc
        if self._resting:
            self._resting.cancel()
        self.closed.set()
        self.writable.set()
        self.on_lost(exc)

    # What paho calls

    def recv(self, buffer_size: int) -> bytes:
        """Raises BlockingIOError where nothing is left, as a non-blocking socket does."""
        if not self.inbox:
            raise BlockingIOError
        data = bytes(self.inbox[:buffer_size])
        del self.inbox[:buffer_size]
        return data

    def send(self, buffer: bytes | bytearray) -> int:
        """Takes everything; paho's packets are few and small."""
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        data = bytes(buffer)
        self._transport.write(data)
        self.on_send(data)
        return len(data)

    def close(self) -> None:
        """Closes once everything is sent."""
        self._transport.close()

    def fileno(self) -> int:
        """None of paho's business: it never selects."""
        return -1

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""


async def open_link(settings: MqttTarget, timeout_s: float) -> Link:
    """Connects to the broker, with TLS where the address says so. Raises NotConnected or Permanent."""
    try:
        async with asyncio.timeout(timeout_s):
            context = await asyncio.to_thread(_context, settings) if settings.secure else None
            with over(settings.network.network):
                transport, link = await asyncio.get_running_loop().create_connection(
                    Link, settings.host, settings.port, ssl=context, server_hostname=settings.host if context else None
                )
        notice_dead_peer(transport.get_extra_info("socket"), settings.ack_timeout)
    except OSError as error:
        raise opening_error(settings, error) from error
    return link


async def reach(settings: MqttTarget, timeout_s: float) -> None:
    """Whether the broker's system takes a TCP connection; nothing is said. Raises NotConnected."""
    try:
        async with asyncio.timeout(timeout_s):
            await knock(settings.network.network, settings.host, settings.port)
    except OSError as error:
        raise opening_error(settings, error) from error


async def tls_refusal(settings: MqttTarget, timeout_s: float) -> GatewayError | None:
    """Whether the broker ends a TLS connection that says nothing, and why; None where it does not.

    In TLS 1.3 a broker judges the client's certificate after the client's handshake is done. A CONNECT that is under
    way then makes its system answer with a reset, and the alert that names the reason may be lost.
    """
    link = await open_link(settings, timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            await link.closed.wait()
    except TimeoutError:
        return None
    finally:
        link.abort()
    return opening_error(settings, link.cause) if isinstance(link.cause, ssl.SSLError) else None


def _context(settings: MqttTarget) -> ssl.SSLContext:
    """Reads the authorities from disk: some ms, hence in a thread; anew each time, so that renewed files count."""
    return settings.tls.context() if settings.tls else ssl.create_default_context()


def _ignore(_: object) -> None:
    """Nobody is interested yet."""
