"""A link to the brokers that goes silent, comes and goes, or loses packets: nothing is missing at MQTT or at Kafka, and
the gap ledger is empty. The machine does not notice."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import made
from tests.e2e.consumers import Subscriber, check_ticks, read_topic, without_repeats
from tests.e2e.gateway_process import Gateway
from tests.services.far import FarKafka, FarMosquitto
from tests.services.link import Link
from tests.services.milo import Group, Milo

GROUP = Group("v", "double", 500, 100)
TICK_S = GROUP.period_ms / 1000
TOPIC = "link"
ROUTES = {"scada": "broker", "history": "log"}
DELAY_S = 0.005
"""One way, as over a private 5G network."""
SILENCE_S, LOSS_S = 3.0, 6.0
FLAPS, FLAP_S = 3, 2.0
LOSS = 0.1


def black_hole(gateway: Gateway, link: Link) -> None:
    """No reset and no ICMP: both destinations are down because they acknowledge nothing."""
    link.cut()
    for destination in ROUTES.values():
        gateway.wait_state(destination, "down")
    _collect(gateway, SILENCE_S)
    assert gateway.component("press")["state"] == "up"
    link.mend()


def flapping(gateway: Gateway, link: Link) -> None:
    """Each time the link works something is delivered: no back-off sleeps through all of them."""
    before = _delivered(gateway)
    for _ in range(FLAPS):
        link.cut()
        time.sleep(FLAP_S)
        link.mend()
        time.sleep(FLAP_S)
    after = _delivered(gateway)
    assert all(after[route] > before[route] for route in ROUTES)


def lossy(gateway: Gateway, link: Link) -> None:
    """One packet of ten, either way: both destinations go on."""
    link.lose(LOSS)
    before = _delivered(gateway)
    _collect(gateway, LOSS_S)
    gateway.wait_for(lambda: all(_delivered(gateway)[route] > before[route] for route in ROUTES), "progress")
    link.mend()


@pytest.fixture
def link() -> Iterator[Link]:
    with made(lambda: Link(DELAY_S)) as bad:
        yield bad


@pytest.fixture
def far_kafka(link: Link) -> Iterator[FarKafka]:
    with made(lambda: FarKafka(link)) as broker:
        yield broker


def test_nothing_is_lost_over_a_bad_link(
    milo: Callable[..., Milo], link: Link, far_kafka: FarKafka, far_mosquitto: FarMosquitto, tmp_path: Path
) -> None:
    """Each tick of each variable is there, at Kafka once, at MQTT a repeat has the same key. One run for all faults: to
    start everything takes longer than they last."""
    machine = milo([GROUP])
    asyncio.run(far_kafka.create_topic(TOPIC))
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": f"{GROUP.period_ms}ms",
                "sampling": "0ms",
                "queue": 300,
                "tags": {f"v{index}": node_id for index, node_id in enumerate(GROUP.node_ids())},
            }
        },
        send={route: {"from": "*", "to": destination} for route, destination in ROUTES.items()},
        to={"broker": {"mqtt": far_mosquitto.url}, "log": {"kafka": far_kafka.bootstrap, "topic": TOPIC}},
    )
    with Subscriber(far_mosquitto.port, tmp_path, beyond=link) as subscriber, gateway:
        gateway.wait_for(lambda: min(_delivered(gateway).values()) >= GROUP.count, "first values")
        machine.go(0)
        for fault in (black_hole, flapping, lossy):
            _collect(gateway, 1.0)
            lost_before = link.lost
            fault(gateway, link)
            assert link.lost > lost_before
            _wait_made_up(gateway, fault.__name__)
        last = machine.stop_ticking()["v"]
        gateway.wait_for(lambda: _collected(gateway) >= GROUP.count * (last + 1), "the last tick")
        gateway.wait_for(lambda: all(lane["pending_rows"] == 0 for lane in gateway.health()["lanes"]), "empty lanes")
        assert gateway.gaps() == []
        assert gateway.end() == 0
        received = subscriber.all_messages()
    once = without_repeats(received)
    print(f"MQTT: {len(received) - len(once)} repeats of {len(received)} messages")
    check_ticks(once, "press", GROUP, last)
    records = read_topic(far_kafka.bootstrap, TOPIC)
    assert len(without_repeats(records)) == len(records)
    check_ticks(records, "press", GROUP, last)


def _wait_made_up(gateway: Gateway, fault: str) -> None:
    """Until all that was collected by now is delivered."""
    began_s, rows = time.monotonic(), _collected(gateway)
    gateway.wait_for(lambda: min(_delivered(gateway).values()) >= rows, f"delivery after {fault}")
    sessions = {name: gateway.metric("gateway_sink_sessions_total", name) for name in ROUTES.values()}
    print(f"{fault}: all delivered {time.monotonic() - began_s:.1f} s after the link was whole; sessions: {sessions}")


def _collect(gateway: Gateway, seconds: float) -> None:
    """Waits until the machine has given what it gives in that time."""
    rows = _collected(gateway) + GROUP.count * int(seconds / TICK_S)
    gateway.wait_for(lambda: _collected(gateway) >= rows, f"{rows:g} collected rows")


def _collected(gateway: Gateway) -> float:
    return gateway.metric("gateway_source_rows_total", "press")


def _delivered(gateway: Gateway) -> dict[str, float]:
    numbers = gateway.metrics()
    return {route: numbers.get(("gateway_pump_rows_total", route), 0.0) for route in ROUTES}
