"""The machines of `gateway demo`, each a process: `python -m gateway.demo_machines WHAT PORT PARENT FOLDER`.

opcua: a packaging press as an OPC UA server. modbus: an energy meter as a Modbus TCP server. mosquitto, amqtt: an MQTT
broker. All of them listen on 127.0.0.1 only and end with the process that started them.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import struct
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from gateway.child import end_with_parent
from gateway.embedded_broker import serve_broker

HOST: Final = "127.0.0.1"
STEP_S: Final = 0.1
SBIN: Final = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


class PressTag(NamedTuple):
    """One variable of the press: OPC UA type and unit."""

    type: str
    unit: str


PRESS: Mapping[str, PressTag] = {
    "die_temperature": PressTag("Double", "°C"),
    "oil_temperature": PressTag("Float", "°C"),
    "hydraulic_pressure": PressTag("Double", "bar"),
    "press_force": PressTag("Float", "kN"),
    "motor_current": PressTag("Float", "A"),
    "speed": PressTag("Double", "1/min"),
    "strokes": PressTag("UInt32", ""),
    "good_parts": PressTag("UInt64", ""),
    "rejects": PressTag("UInt16", ""),
    "state": PressTag("Int32", ""),
    "running": PressTag("Boolean", ""),
    "guard_closed": PressTag("Boolean", ""),
    "order": PressTag("String", ""),
}
"""Variable -> what it is; node ids are `ns=2;s=Press4.<variable>`."""

METER: Mapping[str, tuple[str, str]] = {
    "voltage_l1": ("input 0 float32", "V"),
    "voltage_l2": ("input 2 float32", "V"),
    "voltage_l3": ("input 4 float32", "V"),
    "current_l1": ("input 6 float32", "A"),
    "current_l2": ("input 8 float32", "A"),
    "current_l3": ("input 10 float32", "A"),
    "power": ("input 12 float32", "kW"),
    "energy": ("input 20 uint32", "Wh"),
    "cabinet_temperature": ("input 22 int16", "°C"),
    "breaker_closed": ("input 23.0 bool", ""),
}
"""Tag -> register and unit of the meter. The temperature is in tenths of a degree: `scale: 0.1`."""


class Press:
    """A packaging press: an order is pressed, with a short stop now and then; temperatures lag behind the work."""

    RUNNING, STOPPED = 3, 1

    def __init__(self, random: Random) -> None:
        self._random = random
        self._die_c, self._oil_c = 61.0, 42.0
        self._phase = 0.0
        self._stop_s = 0.0
        self._order = 4711
        self.strokes, self.good, self.rejects = 128_400, 127_911, 489

    def step(self, seconds: float) -> dict[str, Any]:
        """The state `seconds` later: variable -> value."""
        noise = self._random.gauss
        self._stop_s = max(0.0, self._stop_s - seconds)
        if not self._stop_s and self._random.random() < seconds / 40.0:
            self._stop_s = self._random.uniform(2.0, 6.0)
        running = self._stop_s == 0.0
        speed = 92.0 + 3.0 * math.sin(self._phase / 40.0) + noise(0, 0.2) if running else 0.0
        self._work(speed / 60.0 * seconds)
        self._die_c += ((78.0 if running else 55.0) - self._die_c) * seconds / 120.0
        self._oil_c += ((51.0 if running else 44.0) - self._oil_c) * seconds / 300.0
        load = max(0.0, math.sin(2 * math.pi * self._phase)) if running else 0.0
        return {
            "die_temperature": round(self._die_c + noise(0, 0.08), 3),
            "oil_temperature": round(self._oil_c + noise(0, 0.05), 2),
            "hydraulic_pressure": round(38.0 + 172.0 * load + noise(0, 0.6), 2),
            "press_force": round(max(0.0, 640.0 * load + noise(0, 2.0)), 1),
            "motor_current": round(max(0.0, (11.0 if running else 1.2) + 24.0 * load + noise(0, 0.2)), 2),
            "speed": round(speed, 2),
            "strokes": self.strokes,
            "good_parts": self.good,
            "rejects": self.rejects,
            "state": self.RUNNING if running else self.STOPPED,
            "running": running,
            "guard_closed": running or self._stop_s < 1.0,
            "order": f"ORD-{self._order}",
        }

    def _work(self, strokes: float) -> None:
        before = math.floor(self._phase)
        self._phase += strokes
        for _ in range(math.floor(self._phase) - before):
            self.strokes += 1
            bad = self._random.random() < 0.01
            self.rejects, self.good = (self.rejects + bad) % 65536, self.good + (not bad)
            self._order += self.strokes % 40 == 0


def meter_registers(seconds: float, random: Random) -> list[int]:
    """The energy meter's input registers 0..23 at a time, big-endian words."""
    swing = math.sin(seconds / 17.0)
    volts = [231.0 + phase + 1.5 * swing + random.gauss(0, 0.15) for phase in (0.0, -0.8, 0.6)]
    amps = [14.0 + phase + 6.0 * max(0.0, swing) + random.gauss(0, 0.2) for phase in (0.0, 1.1, -0.4)]
    kilowatts = sum(v * a for v, a in zip(volts, amps, strict=True)) * 0.93 / 1000.0
    energy_wh = 48_211_500 + int(seconds * 9.6 / 3.6)
    temperature = int(312 + 8 * swing + random.gauss(0, 0.6))
    layout = struct.pack(">7f12xIhH", *volts, *amps, kilowatts, energy_wh & 0xFFFF_FFFF, temperature, 1)
    return list(struct.unpack(f">{len(layout) // 2}H", layout))


async def serve_press(port: int) -> None:
    """An OPC UA server without security; writes every variable that changed ten times a second."""
    from asyncua import Server, ua

    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{HOST}:{port}")
    server.set_server_name("Demo press")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    space = await server.register_namespace("urn:mec-gateway:demo:press4")
    node_id: Any = ua.NodeId  # asyncua's types ask for its own integers and texts, its code does not
    folder = await server.nodes.objects.add_object(node_id("Press4", space), f"{space}:Press4")
    press = Press(Random(4))
    last = press.step(0.0)
    types = {name: ua.VariantType[tag.type] for name, tag in PRESS.items()}
    nodes = {
        name: await folder.add_variable(node_id(f"Press4.{name}", space), f"{space}:{name}", last[name], types[name])
        for name in PRESS
    }
    async with server:
        while True:
            await asyncio.sleep(STEP_S)
            now: Any = datetime.now(UTC)
            values = press.step(STEP_S)
            for name, value in values.items():
                if value != last[name]:
                    await nodes[name].write_value(ua.DataValue(ua.Variant(value, types[name]), SourceTimestamp=now))
            last = values


async def serve_meter(port: int) -> None:
    """A Modbus TCP server, unit 1; its registers are made when they are read."""
    from pymodbus.server import ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    random, started = Random(7), time.monotonic()
    size = len(meter_registers(0.0, random))

    async def measure(
        function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        written: list[int] | list[bool] | None,
    ) -> None:
        registers[:size] = meter_registers(time.monotonic() - started, random)

    memory = SimData(0, values=meter_registers(0.0, random), datatype=DataType.REGISTERS)
    server = ModbusTcpServer(SimDevice(1, [memory], action=measure), address=(HOST, port))
    await server.serve_forever()


def mosquitto() -> str | None:
    """The path of Mosquitto, which distributions put where a user's PATH may not lead."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{SBIN}")


def become_mosquitto(port: int, folder: Path) -> None:
    """Does not return."""
    program, file = mosquitto() or "mosquitto", folder / "mosquitto.conf"
    # It stays the user that it is: a process that changes its user is no longer killed with its parent.
    user = "user root\n" if os.geteuid() == 0 else ""
    file.write_text(f"listener {port} {HOST}\nallow_anonymous true\nset_tcp_nodelay true\n{user}")
    os.execv(program, [program, "-c", str(file)])


def main(arguments: list[str]) -> None:
    """`what port parent folder`: never returns but by an error or a signal."""
    what, port, parent, folder = arguments[0], int(arguments[1]), int(arguments[2]), Path(arguments[3])
    end_with_parent(parent)
    if what == "mosquitto":
        become_mosquitto(port, folder)
    elif what == "amqtt":
        asyncio.run(serve_broker(f"{HOST}:{port}"))
    else:
        serve = {"opcua": serve_press, "modbus": serve_meter}[what]
        asyncio.run(serve(port))


if __name__ == "__main__":
    main(sys.argv[1:])
