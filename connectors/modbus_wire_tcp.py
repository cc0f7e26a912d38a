"""Modbus TCP frames: on TCP, inside TLS, in datagrams. Each request has its transaction id."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from connectors.modbus_frames import HEADER, LENGTH_MAX, LENGTH_MIN, Query, tcp_reply
from connectors.modbus_wire import Wire, os_error_text


class TcpWire(Wire):
    """A reply whose transaction id is none of those under way is nobody's, and counted (`stale_replies`)."""

    _transaction = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _write(self, transport: asyncio.Transport, query: Query) -> int:
        self._transaction = (self._transaction + 1) & 0xFFFF
        transport.write(self._transaction.to_bytes(2, "big") + query.frame)
        return self._transaction

    def _take(self) -> None:
        data = self._buffer
        at, end = 0, len(data)
        while end - at >= HEADER.size:
            transaction, protocol, length, unit, function, first = HEADER.unpack_from(data, at)
            if protocol or not LENGTH_MIN <= length <= LENGTH_MAX:
                return self._misread()
            stop = at + 6 + length
            if stop > end:
                break
            if sent := self._sent.get(transaction):
                self._settle(transaction, tcp_reply(sent.query, unit, function, first, data[at + HEADER.size : stop]))
            else:
                self._counters.add("stale_replies")
            at = stop
        self._buffer = data[at:]

    def _misread(self) -> None:
        self._counters.add("bad_replies")
        self._lose("what came is not Modbus TCP: is the port right?")
        self.abort()


class UdpWire(TcpWire):
    """A datagram is a frame; what is more or less than that is dropped and counted (`bad_replies`)."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = _Datagrams(transport)

    def datagram_received(self, data: bytes, _address: Any) -> None:
        """asyncio.DatagramProtocol."""
        self.data_received(data)
        if self._buffer:
            self._buffer = b""
            self._counters.add("bad_replies")

    def error_received(self, error: OSError) -> None:
        """asyncio.DatagramProtocol: the far system says that nobody listens."""
        self._lose(os_error_text(error))

    def _misread(self) -> None:
        """Anybody can send a datagram: the whole of it stays in the buffer, and is dropped."""


class _Datagrams(asyncio.Transport):
    """What a wire wants of a transport."""

    def __init__(self, transport: asyncio.DatagramTransport) -> None:
        super().__init__()
        self._transport = transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.sendto(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()
