"""Modbus TCP devices behind one port, as cheap as can be: 100 registers each, one connection and one unit id a device.

    python -m benchmarks.fleet_server PORT

Units from DEAD_FROM on accept the connection and never answer. Line out: `ready`. Each line in is the seconds to look
back over, from each connection's last request; the answer is a line of JSON, and what was counted is forgotten:
{"requests": per second over all, "missed": polls that did not come, "jitter_ms": p99}. Jitter is how far a request came
from where the device's other requests say it should: absolute schedules, PERIOD_S apart.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from statistics import median
from typing import Final

import uvloop

from tests.services.ports import HOST

REGISTERS: Final = 100
PERIOD_S: Final = 0.1
DEAD_FROM: Final = 240
_REQUEST_BYTES = 12
_BODY: Final = bytes([3, 2 * REGISTERS]) + b"".join(at.to_bytes(2, "big") for at in range(REGISTERS))
_LENGTH: Final = b"\0\0" + (1 + len(_BODY)).to_bytes(2, "big")


class Device(asyncio.Protocol):
    """One connection."""

    def __init__(self, fleet: set[Device]) -> None:
        self.arrivals_s: list[float] = []
        self._fleet = fleet

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._fleet.add(self)

    def data_received(self, data: bytes) -> None:
        if data[6] < DEAD_FROM:
            for at in range(0, len(data), _REQUEST_BYTES):
                self._transport.write(data[at : at + 2] + _LENGTH + data[at + 6 : at + 7] + _BODY)
            self.arrivals_s.append(time.monotonic())


def report(fleet: set[Device], seconds: float) -> dict[str, float]:
    """What the module's head says; the connections start afresh."""
    deviations: list[float] = []
    requests, missed = 0.0, 0
    for device in fleet:
        since_s = device.arrivals_s[-1] - seconds if device.arrivals_s else 0.0
        arrivals = [at_s for at_s in device.arrivals_s if at_s > since_s]
        device.arrivals_s = []
        if len(arrivals) < 2:
            continue
        places = [round((at_s - arrivals[0]) / PERIOD_S) for at_s in arrivals]
        offsets = [at_s - place * PERIOD_S for at_s, place in zip(arrivals, places, strict=True)]
        middle = median(offsets)
        deviations += [abs(offset - middle) for offset in offsets]
        requests += len(arrivals) / seconds
        missed += places[-1] + 1 - len(set(places))
    deviations.sort()
    jitter_s = deviations[int(0.99 * len(deviations))] if deviations else 0.0
    fleet.clear()
    return {"requests": requests, "missed": missed, "jitter_ms": jitter_s * 1e3}


async def serve(port: int) -> None:
    """Until stdin ends."""
    fleet: set[Device] = set()
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    server = await loop.create_server(lambda: Device(fleet), HOST, port, backlog=1000)
    print("ready", flush=True)
    while line := await commands.readline():
        print(json.dumps(report(fleet, float(line))), flush=True)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
