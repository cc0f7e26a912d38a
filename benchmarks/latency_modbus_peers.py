"""What `benchmarks.latency_modbus` compares the gateway with: each reads on an absolute grid and publishes each reply.

python -m benchmarks.latency_modbus_peers (floor|stock) MODBUS_PORT REGISTERS PERIOD_MS HOST PORT TOPIC

floor: two blocking sockets, request out, reply in, its bytes out in a PUBLISH of QoS 0, without a look into them.
stock: pymodbus's client on uvloop and paho, as their manuals show them.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import sys
import time
from typing import Final

import orjson
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from pymodbus.client import AsyncModbusTcpClient

from benchmarks.measure import on_loop
from connectors.mqtt_wire import PublishEncoder
from gateway.latency_floor import _broker
from tests.services.ports import HOST

UNIT: Final = 1
READ_INPUT_REGISTERS: Final = 4


def floor(machine: int, registers: int, period_s: float, host: str, port: int, topic: str) -> None:
    """For ever."""
    request = struct.pack(">HHHBBHH", 1, 0, 6, UNIT, READ_INPUT_REGISTERS, 0, registers)
    encoder, name = PublishEncoder(0, False, None), struct.pack(">H", len(topic)) + topic.encode()
    with socket.create_connection((HOST, machine)) as device, _broker(host, port) as broker:
        device.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print("relaying", flush=True)
        gc.collect()
        gc.disable()
        due_s = time.monotonic()
        while True:
            device.sendall(request)
            data = device.recv(1 << 16)
            broker.sendall(encoder.encode([name], [data], range(0)))
            if not data:
                raise ConnectionError("the machine closed the connection")
            due_s += period_s
            time.sleep(max(due_s - time.monotonic(), 0.0))


async def stock(machine: int, registers: int, period_s: float, host: str, port: int, topic: str) -> None:
    """For ever."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(0)  # no limit: with one, every PUBACK walks through all messages in flight
    client.connect(host, port)
    client.loop_start()
    device = AsyncModbusTcpClient(HOST, port=machine)
    await device.connect()
    print("relaying", flush=True)
    due_s = time.monotonic()
    while True:
        answer = await device.read_input_registers(0, count=registers, device_id=UNIT)
        stamp = client_value(answer.registers[:4])
        now_us = time.time_ns() // 1000
        rows = [{"tag": "stamp", "t": now_us, "v": stamp, "q": "good"}]
        rows += [
            {"tag": f"r{at}", "t": now_us, "v": value, "q": "good"} for at, value in enumerate(answer.registers[4:], 4)
        ]
        client.publish(topic, orjson.dumps({"device": "machine", "samples": rows}), 1)
        due_s += period_s
        await asyncio.sleep(max(due_s - time.monotonic(), 0.0))


def client_value(registers: list[int]) -> int:
    """An int64, the most significant register first."""
    value = AsyncModbusTcpClient.convert_from_registers(registers, AsyncModbusTcpClient.DATATYPE.INT64)
    assert isinstance(value, int)
    return value


def main(who: str, machine: str, registers: str, period_ms: str, host: str, port: str, topic: str) -> None:
    """Runs one of them."""
    place = int(machine), int(registers), int(period_ms) / 1e3, host, int(port), topic
    if who == "stock":
        on_loop(stock(*place))
    else:
        floor(*place)


if __name__ == "__main__":
    main(*sys.argv[1:])
