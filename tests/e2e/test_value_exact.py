"""What a foreign machine reported is what foreign consumers get: every change, once, in order, to the last digit."""

import asyncio
import datetime
import json
import math
import os
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from asyncua import ua

from tests.e2e.consumers import Message, Subscriber, missing_seqs, read_topic, values
from tests.e2e.gateway_process import COMPLAINTS, Gateway
from tests.services import asyncua_types
from tests.services.asyncua_server import AsyncuaServer
from tests.services.kafka import Kafka
from tests.services.milo import Group, Milo, Started, Value, expected_value
from tests.services.mosquitto import Mosquitto
from tests.services.process import ServiceFailed

SECONDS = float(os.environ.get("E2E_SECONDS", "60"))
"""How long the machine writes; shorter only while one works on this test."""
VARIABLES = 1000
PERIOD_MS = 100
TICKS = int(SECONDS * 1000 / PERIOD_MS)
GROUP = Group("v", "mixed", VARIABLES, PERIOD_MS)
DIFFERENCES_SHOWN_MAX = 10


def test_every_change_arrives_once_in_order_and_exact(
    milo: Callable[..., Milo], mosquitto_factory: Callable[..., Mosquitto], kafka: Kafka, tmp_path: Path
) -> None:
    """1,000 variables of all types at 10 Hz: each change at MQTT and Kafka, with the machine's own source time."""
    machine, broker, topic = milo([GROUP]), mosquitto_factory(), f"exact-{uuid.uuid4().hex[:8]}"
    log = {"kafka": kafka.bootstrap, "topic": topic, "position_topic": f"{topic}.positions"}
    asyncio.run(kafka.create_topic(topic))
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": f"{PERIOD_MS}ms",
                "sampling": "0ms",
                "tags": {f"v{index}": node_id for index, node_id in enumerate(GROUP.node_ids())},
            }
        },
        send={"scada": {"from": "*", "to": "broker"}, "history": {"from": "*", "to": "log"}},
        to={"broker": {"mqtt": broker.url}, "log": log},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        gateway.wait_for(lambda: _delivered(gateway, VARIABLES), "first value of every variable")
        started = machine.go(TICKS)["v"]
        machine.wait_finished(SECONDS + 60)
        _settle(gateway, VARIABLES * (TICKS + 1))
        counted = {name: value for name, value in gateway.metrics().items() if name[0].startswith("gateway_source")}
        assert gateway.end() == 0
        complaints = gateway.log_about("", *COMPLAINTS)
        assert _differences(subscriber.all_messages(), started) == [], f"at MQTT; the source counted {counted}"
    assert _differences(read_topic(kafka.bootstrap, topic), started) == [], f"at Kafka; the source counted {counted}"
    assert complaints == []


def test_numbers_that_json_lacks(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """NaN and the infinities are text, the ends of the 64-bit integers keep every digit, a bad status has no value."""
    machine, broker = asyncua_server(), mosquitto_factory()
    doubles = [math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, 0.1]
    int64s = [2**63 - 1, -(2**63), 2**53 + 1]
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": "50ms",
                "sampling": "0ms",
                "tags": {name: f"ns=2;s={name}" for name in ("Double", "Int64", "UInt64")},
            }
        },
        send={"all": {"from": "*", "to": "broker"}},
        to={"broker": {"mqtt": broker.url}},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= 3, "first values")
        for double in doubles:
            machine.set_value("Double", double)
        for int64 in int64s:
            machine.set_value("Int64", int64)
        machine.set_value("UInt64", 2**64 - 1)
        machine.set_value("UInt64", 1, status=ua.StatusCodes.BadSensorFailure)
        machine.set_value("UInt64", 2)
        total = 3 + len(doubles) + len(int64s) + 3
        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= total, "all values")
        assert gateway.end() == 0
        messages = subscriber.all_messages()
    assert values(messages, "press", "Double")[1:] == ["NaN", "Infinity", "-Infinity", *doubles[3:]]
    assert values(messages, "press", "Int64")[1:] == int64s
    uint64s = [(s["v"], s["q"]) for message in messages for s in message["samples"] if s["tag"] == "UInt64"]
    assert [uint64s[1], uint64s[3]] == [(2**64 - 1, "good"), (2, "good")]
    assert uint64s[2][1] == "bad"


def test_structures_enumerations_and_units(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """What the machine describes arrives as objects and with names, what it does not is whole and said in health."""
    machine, broker = asyncua_server(types=True), mosquitto_factory()
    expected = asyncua_types.EXPECTED
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": "50ms",
                "tags": {name: f"ns=2;s={name}" for name in expected},
            }
        },
        send={"all": {"from": "*", "to": "broker"}},
        to={"broker": {"mqtt": broker.url}},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= len(expected), "all values")
        health = json.dumps(gateway.health())
        assert gateway.end() == 0
        messages = subscriber.all_messages()
    samples = {sample["tag"]: sample for message in messages for sample in message["samples"]}
    assert {name: sample["v"] for name, sample in samples.items()} == expected
    assert {name: sample["name"] for name, sample in samples.items() if "name" in sample} == asyncua_types.NAMES
    assert "1 structures were delivered as they came: of type ns=2;i=99999" in health


def _delivered(gateway: Gateway, rows: int) -> bool:
    metrics = gateway.metrics()
    return all(metrics.get(("gateway_pump_rows_total", route), 0) >= rows for route in ("scada", "history"))


def _settle(gateway: Gateway, rows: int) -> None:
    """Waits for all rows; when they do not come, the comparison says which ones."""
    try:
        gateway.wait_for(lambda: _delivered(gateway, rows), "last row")
    except ServiceFailed as error:
        print(error)


def _differences(messages: Iterable[Message], started: Started) -> list[str]:
    """Where what arrived is not each variable's first value and then its ticks 1, 2, ... TICKS, exact."""
    found: list[str] = []
    last = [-1] * VARIABLES
    messages = [message for message in messages if message["device"] == "press"]
    if gaps := missing_seqs(messages):
        found.append(f"messages that never came: {gaps}")
    for message in messages:
        for sample in message["samples"]:
            index = int(sample["tag"][1:])
            tick = last[index] = last[index] + 1
            # The time of the first value, tick 0, is when the server was started: known to it alone.
            source_us = started.source_ns(tick, PERIOD_MS) // 1000 if tick else sample["t"]
            expected = {"tag": f"v{index}", "t": source_us, "v": _as_json(expected_value(index, tick)), "q": "good"}
            if repr(sample) != repr(expected):
                found.append(f"seq {message['seq']}: {sample} came, {expected} was due")
    found += [f"v{index}: its last change was {tick} of {TICKS}" for index, tick in enumerate(last) if tick != TICKS]
    more = len(found) - DIFFERENCES_SHOWN_MAX
    return [*found[:DIFFERENCES_SHOWN_MAX], *([f"and {more} more"] if more > 0 else [])]


def _as_json(value: Value) -> Any:
    """The value as docs say that JSON carries it."""
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None).isoformat().rstrip("0" if value.microsecond else "") + "Z"
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, uuid.UUID):
        return str(value)
    return value.Text if isinstance(value, ua.LocalizedText) else value
