"""`local: embedded`: the MQTT broker that comes with Python packages, as a supervised process of its own.

The process is this module: `python -m gateway.embedded_broker ADDRESS:PORT PARENT`. It says `listening` on standard
output once, what is wrong on standard error, and ends with the gateway. It speaks MQTT 3.1.1, keeps nothing on disk and
lets everybody in; for users, TLS or many subscribers a Mosquitto is named in its place (`local: mqtt://...`). Known of
amqtt 0.12: a client that connects is sent the retained messages of other clients' subscriptions too, and what a slow
subscriber has not read waits in the broker's memory without a limit.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.child import end_with_parent
from pipelines.errors import NotConnected, Permanent

START_S: Final = 30.0
TERM_S: Final = 1.0
"""What it may take after SIGTERM before it gets SIGKILL."""
CONNECTIONS_MAX: Final = 100
READY: Final = b"listening\n"


@dataclass
class EmbeddedBroker:
    """A `supervisor.Session`: starts the process, waits for its end, ends it."""

    address: str
    """`address:port` that it listens on."""
    kind: str = field(default="broker", init=False)
    server: str = field(default="", init=False)
    info: str = field(default="", init=False)
    faults: Mapping[str, str] = field(default_factory=dict, init=False)
    _process: Process | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.address

    async def connect(self) -> None:
        """Returns when it listens. Raises NotConnected, or Permanent where it is not installed."""
        await self.close()
        if importlib.util.find_spec("amqtt") is None:
            raise Permanent(
                "the embedded MQTT broker is not installed: pip install 'mec-gateway[broker]', or write local: mqtt://..."
            )
        command = [sys.executable, "-m", __name__, self.address, str(os.getpid())]
        # A session of its own: Ctrl-C in the terminal is for the gateway, which ends it in order.
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        assert self._process.stdout
        try:
            async with asyncio.timeout(START_S):
                ready = await self._process.stdout.readline() == READY
        except TimeoutError as error:
            raise NotConnected(f"the embedded broker does not listen on {self.address}") from error
        if not ready:
            await self.run()

    async def run(self) -> None:
        """Ends with the process: NotConnected with the end of what it wrote."""
        process, said = self._process, b""
        if process is None or process.stderr is None:
            raise NotConnected("the embedded broker is not running")
        while more := await process.stderr.read(4096):
            said = (said + more)[-4096:]
        lines = said.decode(errors="replace").splitlines() or [""]
        code = await process.wait()
        raise NotConnected(f"the embedded broker on {self.address} ended with code {code}: {lines[-1]}".rstrip(": "))

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(TERM_S):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


async def serve_broker(listen: str) -> None:
    """Runs the broker in this process; never returns."""
    from amqtt.broker import Broker

    listener = {"type": "tcp", "bind": listen, "max_connections": CONNECTIONS_MAX}
    anonymous = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker({"listeners": {"default": listener}, "plugins": anonymous})
    await broker.start()
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    await asyncio.Event().wait()


def main(listen: str, parent: str) -> None:
    """Never returns but by an error or a signal."""
    end_with_parent(int(parent))
    asyncio.run(serve_broker(listen))


if __name__ == "__main__":
    main(*sys.argv[1:])
