"""The machine of `gateway latency`: an OPC UA server that stamps a variable at a steady pace.

    python -m gateway.latency_machine PORT RATE PARENT

`ns=2;s=Stamp` is the time when it was written, us since 1970, and that is its source time too. Ends with its parent.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import Server, ua

from gateway.child import end_with_parent
from gateway.command import on_loop

HOST: Final = "127.0.0.1"
NODE: Final = "ns=2;s=Stamp"


async def serve(port: int, rate: float) -> None:
    """Never returns."""
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{HOST}:{port}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    space = await server.register_namespace("urn:mec-gateway:latency")
    name: Any = f"{space}:Stamp"  # asyncua's types ask for its own texts, its code does not
    node = await server.nodes.objects.add_variable(ua.NodeId.from_string(NODE), name, 0, ua.VariantType.Int64)
    async with server:
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + 1 / rate, time.monotonic() - 1.0)
            await asyncio.sleep(due_s - time.monotonic())
            now_us = time.time_ns() // 1000
            at: Any = datetime.fromtimestamp(now_us / 1e6, UTC)
            await node.write_value(ua.DataValue(ua.Variant(now_us, ua.VariantType.Int64), SourceTimestamp=at))


def main(port: str, rate: str, parent: str) -> None:
    """Never returns but by an error or a signal."""
    end_with_parent(int(parent))
    on_loop(lambda: serve(int(port), float(rate)))


if __name__ == "__main__":
    main(*sys.argv[1:])
