"""Latency as a user sees it: a broker that becomes slow breaks a route's budget, which says so and says why."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.gateway_process import ID, Gateway
from tests.services.libmodbus import LibmodbusServer
from tests.services.mosquitto import Mosquitto
from tests.services.packages import program
from tests.services.ports import HOST
from tests.services.process import ServerProcess

BUDGET = "400ms"
SLOW_S = 1.0


class SlowBroker:
    """In front of a broker: what it answers comes `delay_s` late. To be served on a running loop."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self._port = port

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, HOST, 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._port)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pass(reader, back, lambda: 0.0), self._pass(there, writer, lambda: self.delay_s))
        writer.close()
        back.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: Callable[[], float]
    ) -> None:
        while data := await reader.read(65_536):
            await asyncio.sleep(delay_s())
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_a_slow_broker_breaks_the_budget(
    libmodbus_server: LibmodbusServer, mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """Degraded, with the leg to the broker named in health, log and notice; then up again, said once."""
    broker = mosquitto_factory()
    slow = SlowBroker(broker.port)
    async with await slow.serve() as server:
        url = f"mqtt://{HOST}:{server.sockets[0].getsockname()[1]}"
        gateway = Gateway(
            devices={"meter": {"modbus": libmodbus_server.url, "every": "50ms", "tags": {"a": "holding 7 uint16"}}},
            send={"all": {"from": "*", "to": "plant", "fast": True, "latency_budget": BUDGET}},
            to={"plant": {"mqtt": url, "ack_timeout": "20s"}},
        )
        notices = _notices(broker.port, tmp_path)
        with gateway:
            await asyncio.to_thread(_wait_route, gateway, "up")
            slow.delay_s = SLOW_S
            late = await asyncio.to_thread(_wait_route, gateway, "degraded")
            assert await asyncio.to_thread(lambda: gateway.health()["status"]) == "degraded"
            slow.delay_s = 0.0
            await asyncio.to_thread(_wait_route, gateway, "up")
            assert (await asyncio.to_thread(gateway.component, "plant"))["state"] == "up"
            breaches = await asyncio.to_thread(gateway.metric, "gateway_latency_budget_breaches_total", "all")
            logged = [len(gateway.log_about("late: ", "warning")), len(gateway.log_about("in time again", "info"))]
        notices.wait_until(lambda: len(_told(notices)) == 2, 30, "both notices")
        notices.stop()
    assert "lane -> acknowledged by the broker" in late["reason"] and f"budget {BUDGET}" in late["reason"]
    assert late["latency_ms"]["lane_to_ack"]["max"] > 400 > late["latency_ms"]["received_to_lane"]["p50"]
    assert breaches == 1
    assert [(told["late"], told["leg"]) for told in _told(notices)] == [(True, "lane_to_ack"), (False, None)]
    assert logged == [1, 1]


def _wait_route(gateway: Gateway, state: str) -> dict[str, Any]:
    """Waits until the route has figures and that state; what `/health` says of it then."""
    found: dict[str, Any] = {}

    def there() -> bool:
        [lane] = gateway.health()["lanes"]
        found.update(lane)
        return bool(lane["state"] == state and "latency_ms" in lane)

    gateway.process.wait_until(there, 60, f"route {state}")
    return found


def _notices(port: int, folder: Path) -> ServerProcess:
    """mosquitto_sub on the notices about latency; returns when it is subscribed."""
    topic = f"gateway/{ID}/status/latency"
    argv = [program("mosquitto_sub", "mosquitto-clients"), "-h", HOST, "-p", str(port), "-t", topic, "-t", "mark"]
    process = ServerProcess("mosquitto_sub", argv, folder / "notices")
    publish = [
        program("mosquitto_pub", "mosquitto-clients"),
        "-h",
        HOST,
        "-p",
        str(port),
        "-t",
        "mark",
        "-r",
        "-m",
        "x",
    ]
    subprocess.run(publish, check=True, timeout=60)
    process.start()
    process.wait_line("^x$", 60)
    return process


def _told(notices: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notices.log.read_text().splitlines() if line.startswith("{")]
