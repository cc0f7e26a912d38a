"""`kill -9` of the gateway at random moments: nothing that a machine still had, or was told was safe, is lost.

An OPC UA machine counts on every variable, a Modbus machine on one register; at the end every count is at MQTT and at
Kafka. OPC UA notifications wait at the machine while the gateway is down; a register's past does not, so its only holes
are where no gateway ran.
"""

import asyncio
import itertools
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.consumers import Message, Subscriber, check_ticks, read_topic, samples, without_repeats
from tests.e2e.gateway_process import Gateway
from tests.services.kafka import Kafka
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto
from tests.services.pymodbus_server import PymodbusServer

ROUNDS = int(os.environ.get("E2E_KILLS", "5"))
SEED = int(os.environ.get("E2E_SEED", str(uuid.uuid4().int % 10_000)))
PERIOD_MS = 100
GROUP = Group("v", "double", 450, PERIOD_MS)
REGISTERS = 50
"""Ten times a second, with the variables: 5,000 values/s."""


def test_kill_at_random_moments(
    milo: Callable[..., Milo],
    pymodbus_server: Callable[..., PymodbusServer],
    mosquitto_factory: Callable[..., Mosquitto],
    kafka: Kafka,
    tmp_path: Path,
) -> None:
    """At Kafka each value once; at MQTT each, and what came twice has the same key."""
    chance, topic = random.Random(SEED), f"kill-{uuid.uuid4().hex[:8]}"
    print(f"E2E_SEED={SEED}")
    machine, broker = milo([GROUP]), mosquitto_factory()
    meter = pymodbus_server(image={"holding": {0: [0] * REGISTERS}})
    asyncio.run(kafka.create_topic(topic))
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": f"{PERIOD_MS}ms",
                "sampling": "0ms",
                "queue": 300,
                "tags": {f"v{index}": node_id for index, node_id in enumerate(GROUP.node_ids())},
            },
            "meter": {
                "modbus": f"{meter.url}/1",
                "every": f"{PERIOD_MS}ms",
                "tags": {f"r{index}": f"holding {index} uint16" for index in range(REGISTERS)},
            },
        },
        send={"scada": {"from": "*", "to": "broker"}, "history": {"from": "*", "to": "log"}},
        to={
            "broker": {"mqtt": broker.url},
            "log": {"kafka": kafka.bootstrap, "topic": topic, "position_topic": f"{topic}.positions"},
        },
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway, _counting(meter):
        gateway.process.wait_until(lambda: _delivered(gateway) >= len(GROUP.node_ids()), 60, "first values")
        machine.go(0)
        down = [_kill(gateway, chance) for _ in range(ROUNDS)]
        last = machine.stop_ticking()["v"]
        subscriber.wait_tick(GROUP, last)
        gateway.wait_for(lambda: _idle(gateway), "empty lanes")
        assert gateway.end() == 0
        complete(subscriber.all_messages(), last, down, twice_allowed=True)
    complete(read_topic(kafka.bootstrap, topic), last, down, twice_allowed=False)


def complete(messages: list[Message], last: int, down: Sequence[tuple[int, int]], *, twice_allowed: bool) -> None:
    """AssertionError where a tick of a variable is missing or twice, or a poll outside the gateway's absences."""
    once = without_repeats(messages)
    assert twice_allowed or len(once) == len(messages), "the same seq twice"
    check_ticks(once, "press", GROUP, last)
    polls = sorted(sample["t"] for sample in samples(once, "meter", "r0"))
    assert len(polls) == len(set(polls))
    for before, after in itertools.pairwise(polls):
        absent = any(killed < after and before < up for killed, up in down)
        assert absent or after - before < 20 * PERIOD_MS * 1000, f"no poll from {before} to {after} us"


def _kill(gateway: Gateway, chance: random.Random) -> tuple[int, int]:
    """Kills it within 3 s and starts it again; when it was away, in us since 1970."""
    time.sleep(chance.uniform(0.0, 3.0))
    gateway.kill()
    killed = time.time_ns() // 1000
    time.sleep(chance.uniform(0.0, 1.0))
    gateway.start()
    gateway.wait_state("meter", "up")
    return killed, time.time_ns() // 1000


def _delivered(gateway: Gateway) -> float:
    return min(gateway.metric("gateway_pump_rows_total", route) for route in ("scada", "history"))


def _idle(gateway: Gateway) -> bool:
    return all(lane["pending_rows"] == 0 for lane in gateway.health()["lanes"])


@contextmanager
def _counting(meter: PymodbusServer) -> Iterator[None]:
    """Its first register counts, about ten times a second, until the block ends."""
    over = threading.Event()

    def count() -> None:
        number = 0
        while not over.wait(PERIOD_MS / 1000):
            number += 1
            meter.set_values("holding", 0, [number % 65_536])

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
