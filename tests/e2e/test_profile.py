"""A meter gets another firmware: its registers move and count otherwise. No value is wrong on either side of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.consumers import Subscriber, samples, values, without_repeats
from tests.e2e.gateway_process import COMPLAINTS, Gateway
from tests.services.mosquitto import Mosquitto
from tests.services.pymodbus_server import Image, PymodbusServer

UP_AGAIN_S = 120.0
PROFILE = """
profile: acme-m1
protocol: modbus
vendor: Acme
models: [M1]
grade: C
sources: [this test]
identify:
  - {gives: model, read: holding 0 uint16, values: {4711: M1}}
  - {gives: firmware, read: holding 1 uint16, grammar: hundredths}
match: [{model: M1}]
covers: {firmware: '>=1.0, <3'}
poll: {max_gap: 0}
tags:
  voltage: {register: holding 10 uint16, unit: V, scale: 0.1}
  energy: {register: holding 12 uint32, unit: kW.h}
  relay: holding 14 uint16
overrides:
  - when: {firmware: '>=2.0'}
    note: The block moved by 100, energy counts tenths.
    tags:
      voltage: {register: holding 110 uint16}
      energy: {register: holding 112 uint32, scale: 0.1}
      relay: null
      frequency: {register: holding 114 uint16, unit: Hz, scale: 0.01}
"""
OLD: Image = {"holding": {0: [4711, 107], 10: [2305, 0, 0, 381, 1]}}
NEW: Image = {"holding": {0: [4711, 201], 10: [7, 7, 7, 7, 7], 110: [2305, 0, 0, 3810, 5001]}}
UNKNOWN: Image = {"holding": {0: [4711, 300], 110: [2305, 0, 0, 3810, 5001]}}


def test_the_map_follows_the_firmware(
    pymodbus_server: Callable[..., PymodbusServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """`profile: auto` with a profile of one's own. The log and the ledger say it, a restart remembers it."""
    meter, broker = pymodbus_server(image=OLD), mosquitto_factory()
    gateway = Gateway(
        devices={"meter": {"modbus": f"{meter.url}/1", "profile": "auto", "every": "50ms"}},
        send={"all": {"from": ["meter/voltage", "meter/energy", "meter/freq*", "meter/relay"], "to": "broker"}},
        to={"broker": {"mqtt": broker.url}},
    )
    (gateway.data_dir / "profiles").mkdir(parents=True)
    (gateway.data_dir / "profiles" / "acme-m1.yaml").write_text(PROFILE)
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        _wait_values(gateway)
        assert "model is M1; firmware 1.07" in gateway.component("meter")["info"]
        meter.restart_as(NEW)
        gateway.wait_for(lambda: bool(gateway.log_about("its tags follow", "warning")), "line about the firmware")
        _wait_values(gateway)
        [line] = gateway.log_about("its tags follow", "warning")
        assert "M1 firmware 1.07 -> M1 firmware 2.01" in line
        assert "voltage, energy, relay, frequency changed" in line
        gateway.wait_for(lambda: bool(_changes(gateway)), "entry in the ledger")
        [entry] = _changes(gateway)
        assert set(entry["tags"]) == {"voltage", "energy", "relay", "frequency"}
        assert entry["detail"] in line
        meter.kill()
        assert gateway.end() == 0
        gateway.start()
        gateway.wait_state("meter", "down")
        assert not gateway.log_about("profile", *COMPLAINTS)[1:]
        meter.restart_as(UNKNOWN)
        gateway.wait_state("meter", "up", UP_AGAIN_S)
        assert "does not cover firmware 3.00" in gateway.component("meter")["info"]
        _wait_values(gateway)
        assert gateway.end() == 0
        messages = without_repeats(subscriber.all_messages())
    assert set(_good(messages, "voltage")) == {230.5}
    assert set(_good(messages, "energy")) == {381.0}
    assert set(_good(messages, "relay")) == {1}
    assert set(_good(messages, "frequency")) == {50.01}
    assert {sample["q"] for sample in samples(messages, "meter", "voltage")} == {"good", "uncertain"}
    assert len(values(messages, "meter", "energy")) > len(values(messages, "meter", "frequency"))


def _wait_values(gateway: Gateway) -> None:
    """Some more cycles."""
    count = gateway.metric("gateway_pump_rows_total", "all")
    gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") > count + 20, "values")


def _good(messages: Any, tag: str) -> list[Any]:
    return [sample["v"] for sample in samples(messages, "meter", tag) if sample["q"] != "bad"]


def _changes(gateway: Gateway) -> list[dict[str, Any]]:
    return [gap for gap in gateway.gaps() if "its tags follow" in gap["reason"]]
