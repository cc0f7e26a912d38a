"""Machines and brokers are killed and come back: so does every item, and nothing is lost that a lane could hold."""

import asyncio
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.conftest import made
from tests.e2e.consumers import (
    Message,
    Subscriber,
    missing_seqs,
    read_topic,
    samples,
    values,
    without_repeats,
)
from tests.e2e.gateway_process import COMPLAINTS, Gateway
from tests.services.asyncua_server import AsyncuaServer
from tests.services.kafka import Kafka
from tests.services.libmodbus import LibmodbusServer, coil, holding, input_register
from tests.services.milo import Group, Milo, expected_value
from tests.services.mosquitto import Mosquitto

ITEMS = 500
TICKS = 5
UP_AGAIN_S = 120.0
NUMBERS_PER_PHASE = 50
NUMBERS_IN_THE_SOCKET = 5


def test_every_item_is_back_after_the_opcua_server_was_killed(
    milo: Callable[..., Milo], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """Before and after, every change of every item; a line in the log when it goes, when it is back, for the gap."""
    group = Group("v", "double", ITEMS, 100)
    machine, broker = milo([group]), mosquitto_factory()
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": "100ms",
                "sampling": "0ms",
                "tags": {f"v{index}": node_id for index, node_id in enumerate(group.node_ids())},
            }
        },
        send={"all": {"from": "*", "to": "broker"}},
        to={"broker": {"mqtt": broker.url}},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        for run in (1, 2):
            _wait_rows(gateway, run * ITEMS * (TICKS + 1) - ITEMS * TICKS)
            machine.go(TICKS)
            _wait_rows(gateway, run * ITEMS * (TICKS + 1))
            if run == 1:
                machine.kill()
                gateway.wait_state("press", "down")
                machine.start()
                gateway.wait_state("press", "up", UP_AGAIN_S)
        gateway.wait_for(lambda: len(gateway.log_about("source press", *COMPLAINTS)) > 1, "line about the gap")
        [_, gap] = gateway.log_about("source press", *COMPLAINTS)
        assert "no item has a history" in gap
        assert len(gateway.log_about("source press: up again", "info")) == 1
        assert gateway.end() == 0
        messages = subscriber.all_messages()
    assert missing_seqs(messages) == {}
    for index in range(ITEMS):
        ticks = [expected_value(index, tick, "double") for tick in range(TICKS + 1)]
        assert values(messages, "press", f"v{index}") == ticks + ticks


def test_every_register_is_back_after_the_modbus_server_was_killed(
    mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """Before and after, every tag of every poll with its right value."""
    broker = mosquitto_factory()
    expected = {"setting": holding(7), "reading": input_register(1500), "switch": coil(3)}
    with made(LibmodbusServer) as meter, Subscriber(broker.port, tmp_path) as subscriber:
        gateway = Gateway(
            devices={
                "meter": {
                    "modbus": meter.url,
                    "every": "50ms",
                    "tags": {"setting": "holding 7 uint16", "reading": "input 1500 uint16", "switch": "coil 3"},
                }
            },
            send={"all": {"from": "*", "to": "broker"}},
            to={"broker": {"mqtt": broker.url}},
        )
        with gateway:
            _wait_rows(gateway, 30)
            meter.kill()
            gateway.wait_state("meter", "down")
            before = gateway.metric("gateway_pump_rows_total", "all")
            meter.start()
            gateway.wait_state("meter", "up", UP_AGAIN_S)
            _wait_rows(gateway, before + 30)
            assert len(gateway.log_about("source meter", *COMPLAINTS)) == 1
            assert len(gateway.log_about("source meter: up again", "info")) == 1
            gateway.process.wait_until(lambda: bool(gateway.gaps()), 30, "an entry in the gap ledger")
            assert [(gap["reason"], gap["device"]) for gap in gateway.gaps()] == [("machine disconnected", "meter")]
            assert gateway.end() == 0
        messages = subscriber.all_messages()
    assert missing_seqs(messages) == {}
    for tag, value in expected.items():
        good = [sample["v"] for sample in samples(messages, "meter", tag) if sample["q"] == "good"]
        assert len(good) >= 20
        assert set(good) == {value}


def test_nothing_is_lost_while_the_mqtt_broker_is_killed(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """At QoS 1 a subscriber gets each value that the machine had, before, during and after; repeats are allowed."""
    # The broker keeps the subscriber's session on disk: the gateway may well be back before the subscriber is.
    keep = ["persistence true", f"persistence_location {tmp_path}/", "autosave_on_changes true", "autosave_interval 1"]
    machine, broker = asyncua_server(), mosquitto_factory(options=keep)
    gateway = _counting(machine, {"mqtt": broker.url, "ack_timeout": "1m"})
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        last = _write_through_an_outage(gateway, machine, broker, why="connection lost")
        assert gateway.end() == 0
        messages = subscriber.all_messages()
    _check_complete(messages, last)


def test_nothing_is_lost_while_kafka_is_killed(
    asyncua_server: Callable[..., AsyncuaServer], kafka_factory: Callable[..., Kafka]
) -> None:
    """Each value that the machine had, before, during and after, is in the topic, and none is there twice."""
    machine, broker = asyncua_server(), kafka_factory()
    asyncio.run(broker.create_topic("counting"))
    gateway = _counting(machine, {"kafka": broker.bootstrap, "topic": "counting", "request_timeout": "8s"})
    with gateway:
        last = _write_through_an_outage(gateway, machine, broker, why="no acknowledgement within 8 s|[Cc]onnect")
        assert gateway.end() == 0
    messages = read_topic(broker.bootstrap, "counting")
    _check_complete(messages, last)
    assert without_repeats(messages) == messages


def _counting(machine: AsyncuaServer, target: dict[str, str]) -> Gateway:
    """A gateway that sends each change of the machine's Int32."""
    return Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": "50ms",
                "sampling": "0ms",
                "tags": {"count": "ns=2;s=Int32"},
            }
        },
        send={"all": {"from": "*", "to": "target"}},
        to={"target": target},
    )


def _write_through_an_outage(gateway: Gateway, machine: AsyncuaServer, broker: Mosquitto | Kafka, why: str) -> int:
    """Writes 1, 2, ... while the broker is there, hangs, is killed, and there again; the last number, delivered.

    why: a pattern for the one line that the log says of it.
    """
    numbers = itertools.count(1)
    _wait_rows(gateway, 1)
    _write(machine, itertools.islice(numbers, NUMBERS_PER_PHASE))
    _wait_rows(gateway, 1 + NUMBERS_PER_PHASE)
    broker.process.pause()  # what is sent now gets into its socket and no further
    _write(machine, itertools.islice(numbers, NUMBERS_IN_THE_SOCKET))
    read = 1 + NUMBERS_PER_PHASE + NUMBERS_IN_THE_SOCKET
    gateway.wait_for(lambda: gateway.metric("gateway_source_rows_total", "press") >= read, "rows read")
    broker.kill()
    _write(machine, itertools.islice(numbers, NUMBERS_PER_PHASE))
    gateway.wait_state("target", "down")
    assert gateway.component("press")["state"] == "up"
    _write(machine, itertools.islice(numbers, NUMBERS_PER_PHASE))
    rows = read + 2 * NUMBERS_PER_PHASE
    gateway.wait_for(lambda: gateway.metric("gateway_source_rows_total", "press") >= rows, "all rows")
    broker.start()
    gateway.wait_state("target", "up", UP_AGAIN_S)
    _write(machine, itertools.islice(numbers, NUMBERS_PER_PHASE))
    _wait_rows(gateway, rows + NUMBERS_PER_PHASE)
    [complaint] = gateway.log_about("sink target", *COMPLAINTS)
    assert re.search(why, complaint)
    assert len(gateway.log_about("sink target: up again", "info")) == 1
    [lane] = gateway.health()["lanes"]
    assert (lane["name"], lane["pending_rows"], lane["dropped_rows"]) == ("all", 0, 0)
    return next(numbers) - 1


def _write(machine: AsyncuaServer, numbers: Iterable[int]) -> None:
    for number in numbers:
        machine.set_value("Int32", number)


def _wait_rows(gateway: Gateway, rows: float) -> None:
    """Waits until so many rows were delivered since the start."""
    gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= rows, f"{rows:g} delivered rows")


def _check_complete(messages: list[Message], last: int) -> None:
    assert missing_seqs(messages) == {}
    once = sorted(without_repeats(messages), key=lambda message: int(message["seq"]))
    assert values(once, "press", "count")[1:] == list(range(1, last + 1))
