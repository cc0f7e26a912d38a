"""After an outage: live data first, what had to wait behind it, marked historical; every value, each part in order."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.consumers import Message, Subscriber, missing_seqs, without_repeats
from tests.e2e.gateway_process import Gateway
from tests.services.milo import Group, Milo, expected_value
from tests.services.mosquitto import Mosquitto

ITEMS, PERIOD_MS = 300, 100
OUTAGE_S, BEFORE_S = 6, 2
"""Longer ones only make the wait for the next attempt longer."""


def test_live_first_then_the_backlog(
    milo: Callable[..., Milo], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """3,000 values/s; the broker hangs with acknowledgements outstanding, is killed, is back after OUTAGE_S."""
    keep = ["persistence true", f"persistence_location {tmp_path}/", "autosave_on_changes true", "autosave_interval 1"]
    group = Group("v", "double", ITEMS, PERIOD_MS)
    machine, broker = milo([group]), mosquitto_factory(options=keep)
    gateway = _gateway(machine, broker, group)
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        _wait_rows(gateway, ITEMS)
        machine.go()
        _wait_rows(gateway, ITEMS * (1 + BEFORE_S * 1000 // PERIOD_MS))
        broker.process.pause()
        gateway.wait_state("broker", "down")
        broker.kill()
        ends_s = time.monotonic() + OUTAGE_S
        gateway.process.wait_until(lambda: time.monotonic() > ends_s, OUTAGE_S + 10, "the end of the outage")
        waiting = gateway.health()["lanes"][0]["pending_rows"]
        broker.start()
        _wait_historical(gateway, waiting)
        last = machine.stop_ticking()["v"]
        _wait_rows(gateway, ITEMS * (1 + last))
        assert gateway.gaps() == []
        assert gateway.end() == 0
        messages = subscriber.all_messages()
    assert missing_seqs(messages) == {}
    once = without_repeats(messages)
    _check_order(once, waiting)
    found = defaultdict[str, list[Any]](list)
    for message in sorted(once, key=lambda message: int(message["seq"])):
        for sample in message["samples"]:
            found[sample["tag"]].append(sample["v"])
    for index in range(ITEMS):
        assert found[f"v{index}"] == [expected_value(index, tick, "double") for tick in range(last + 1)]


def _check_order(once: list[Message], waiting: int) -> None:
    """Live and historical each in order of their numbers; live data came before the backlog was through."""
    parts = {kind: [message for message in once if message["historical"] is kind] for kind in (True, False)}
    for messages in parts.values():
        seqs = [int(message["seq"]) for message in messages]
        assert seqs == sorted(seqs)
    historical = {int(message["seq"]) for message in parts[True]}
    assert sum(len(message["samples"]) for message in parts[True]) >= waiting - 2 * ITEMS
    after = [at for at, message in enumerate(once) if not message["historical"] and message["seq"] > max(historical)]
    assert after[0] < max(at for at, message in enumerate(once) if message["historical"])


def _gateway(machine: Milo, broker: Mosquitto, group: Group) -> Gateway:
    tags = {f"v{index}": node_id for index, node_id in enumerate(group.node_ids())}
    press = {"opcua": machine.url, "security": "none", "every": f"{PERIOD_MS}ms", "sampling": "0ms", "tags": tags}
    return Gateway(
        devices={"press": press},
        send={"all": {"from": "*", "to": "broker", "replay_rate": 30_000}},
        to={"broker": {"mqtt": broker.url, "ack_timeout": "2s"}},
    )


def _wait_rows(gateway: Gateway, rows: float) -> None:
    gateway.process.wait_until(
        lambda: gateway.metric("gateway_pump_rows_total", "all") >= rows, 60, f"{rows:g} delivered rows"
    )


def _wait_historical(gateway: Gateway, rows: float) -> None:
    gateway.process.wait_until(
        lambda: gateway.metric("gateway_pump_historical_rows_total", "all") >= rows, 60, f"{rows:g} historical rows"
    )
