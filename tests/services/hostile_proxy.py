"""Between a client and an OPC UA server: passes on what the client says, and harms what the server answers."""

import asyncio
import random
import struct
from types import TracebackType
from typing import Final, Self

from tests.services.ports import HOST

OVERSIZE: Final = 2**20
_READ_BYTES: Final = 65536


class HostileProxy:
    """As an async context manager. `every` is how many chunks pass untouched for one that is harmed; 0: all pass."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self.every = 0
        self.harmed = 0
        """Chunks that were not passed on as they came."""
        self._port = port
        self._chance = chance
        self._held: bytes = b""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port/"""
        return f"opc.tcp://{HOST}:{self._server.sockets[0].getsockname()[1]}/"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection(HOST, self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, back, False))
                group.create_task(self._pass(there, writer, True))
        except* (OSError, EOFError):
            pass  # one side is gone, and so is the other
        finally:
            writer.close()
            back.close()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_harmed: bool) -> None:
        while data := await reader.read(_READ_BYTES):
            if is_harmed and self.every and self._chance.randrange(self.every) == 0:
                self.harmed += 1
                data = self._harm(data)
            elif self._held and is_harmed:
                data, self._held = data + self._held, b""
            writer.write(data)
            await writer.drain()
        raise EOFError

    def _harm(self, data: bytes) -> bytes:
        """Flipped, cut, doubled, late, of a size that is not true, or with a megabyte of anything behind it."""
        at = self._chance.randrange(len(data))
        match self._chance.randrange(7):
            case 0 | 1:
                return data[:at] + bytes((data[at] ^ 1 << self._chance.randrange(8),)) + data[at + 1 :]
            case 2:
                return data[:at]
            case 3:
                return data + data
            case 4:
                self._held, held = data, self._held
                return held
            case 5:
                return data[:4] + struct.pack("<I", self._chance.choice((0, 8, 2**16, 2**31 - 1, 2**32 - 1))) + data[8:]
            case _:
                return data + self._chance.randbytes(OVERSIZE)
