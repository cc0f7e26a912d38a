"""Run at a far host: what comes to a port there goes to the same port of 127.0.0.1 there, TCP and UDP.

    python -m tests.services.relay PORT ADDRESS...

For servers that listen on 127.0.0.1 only. Prints `ready`; ends with its input.
"""

import asyncio
import sys
from contextlib import suppress
from typing import Any

from tests.services.link import Link
from tests.services.paths import Paths
from tests.services.ports import HOST
from tests.services.process import Service


class Relay(Service):
    """In front of `server`, at all addresses of the far host. The server runs there, too."""

    def __init__(self, paths: Paths, server: Service) -> None:
        super().__init__("relay", server.port)
        addresses = [paths.address, paths.address6]
        self.run_as(paths.beyond([sys.executable, "-m", "tests.services.relay", str(server.port), *addresses]))

    def wait_ready(self) -> None:
        """Returns when it listens."""
        self.process.wait_line("^ready$", self.ready_s)


def move(server: Service, place: Link | Paths) -> None:
    """From its next start on it runs at the far host."""
    server.run_as(place.beyond(server.process.argv))


async def serve(port: int, *addresses: str) -> None:
    """Until the input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    for address in addresses:
        await asyncio.start_server(lambda reader, writer: _passed(reader, writer, port), address, port)
        await loop.create_datagram_endpoint(lambda: _Datagrams(port), local_addr=(address, port))
    print("ready", flush=True)
    await commands.read()


async def _passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there, back = await asyncio.open_connection(HOST, port)
    await asyncio.gather(_copied(reader, back), _copied(there, writer))


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """Everybody's requests; the newest who asked gets the answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._asker: Any = None
        self._there: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._making = asyncio.ensure_future(self._make())

    async def _make(self) -> None:
        loop, outer = asyncio.get_running_loop(), self

        class Answers(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _: Any) -> None:
                outer._transport.sendto(data, outer._asker)  # type: ignore[attr-defined]

        self._there, _ = await loop.create_datagram_endpoint(Answers, remote_addr=(HOST, self._port))

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._asker = address
        if self._there is not None:
            self._there.sendto(data)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), *sys.argv[2:]))
