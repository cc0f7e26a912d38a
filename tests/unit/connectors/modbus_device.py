"""A Modbus device in the test's own loop, on a real socket, that answers as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from pymodbus.framer import FramerRTU

from connectors.modbus_link import ModbusLink

Answer = Callable[[bytes], bytes | None]
"""Request frame -> what to send (b"" for nothing), or None to cut the connection."""


def registers(*values: int) -> bytes:
    """Data bytes of a reply."""
    return b"".join(value.to_bytes(2, "big") for value in values)


def tcp_frame(transaction: int, unit: int, pdu: bytes) -> bytes:
    return transaction.to_bytes(2, "big") + b"\0\0" + (len(pdu) + 1).to_bytes(2, "big") + bytes([unit]) + pdu


def rtu_frame(unit: int, pdu: bytes) -> bytes:
    body = bytes([unit]) + pdu
    return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")


def read_pdu(function: int, data: bytes) -> bytes:
    return bytes([function, len(data)]) + data


async def until(condition: Callable[[], bool]) -> None:
    """Waits for the condition; the deadline is far away and fails the test."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what is waited for is a counter, not an event)
            await asyncio.sleep(0.001)


@contextmanager
def within(link: ModbusLink, seconds: float) -> Iterator[None]:
    """Requests that begin in here time out so soon: those that are to; on a busy machine, others would as well."""
    patience_s = link._timeout_s
    set_timeout(link, seconds)
    try:
        yield
    finally:
        set_timeout(link, patience_s)


def set_timeout(link: ModbusLink, seconds: float) -> None:
    """Of requests from now on."""
    link._timeout_s = seconds
    for exchange in link._exchanges:
        exchange.timeout_s = seconds


class Device:
    """`async with Device(answer) as device:`; `answers` may be changed while it runs."""

    def __init__(self, answer: Answer, *, rtu: bool = False) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self._rtu = rtu
        self._server: asyncio.Server | None = None
        self.writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"{'rtu+tcp' if self._rtu else 'tcp'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/7"

    def send(self, data: bytes) -> None:
        """On the newest connection, without having been asked."""
        self.writers[-1].write(data)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        self.writers.append(writer)
        self.connections += 1
        try:
            while True:
                request = await self._request(reader)
                self.requests.append(request)
                reply = self.answer(request)
                if reply is None:
                    return
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        if self._rtu:
            return await reader.readexactly(8)
        head = await reader.readexactly(6)
        return head + await reader.readexactly(int.from_bytes(head[4:], "big"))


class Image:
    """An answer: 65,536 holding registers with holes, `value(address)` each. Reads that touch a hole: exception 2."""

    def __init__(self, holes: Sequence[int] = (), value: Callable[[int], int] = lambda address: address) -> None:
        self.holes = set(holes)
        self.value = value
        self.silent = False
        self.reads: list[tuple[int, int]] = []

    def __call__(self, request: bytes) -> bytes:
        start, count = int.from_bytes(request[8:10], "big"), int.from_bytes(request[10:12], "big")
        self.reads.append((start, count))
        if self.silent:
            return b""
        unit, function, transaction = request[6], request[7], int.from_bytes(request[:2], "big")
        wanted = range(start, start + count)
        if self.holes.intersection(wanted):
            return tcp_frame(transaction, unit, bytes([function | 0x80, 2]))
        return tcp_frame(transaction, unit, read_pdu(function, registers(*map(self.value, wanted))))
