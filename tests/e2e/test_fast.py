"""`fast: true` beside a durable record: a session of its own, and nothing lost while the broker hangs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.consumers import Message, Subscriber, missing_seqs
from tests.e2e.gateway_process import Gateway
from tests.services.asyncua_server import AsyncuaServer
from tests.services.libmodbus import LibmodbusServer
from tests.services.mosquitto import Mosquitto

VALUES = 60


def test_fast_tags_over_an_outage_of_the_broker(
    asyncua_server: Callable[..., AsyncuaServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """Two sessions, each tag subscribed once. The broker hangs in the middle: on the fast route and on the durable one
    every value of the fast tag arrives, in the order of the lane's numbers."""
    broker, server = mosquitto_factory(), asyncua_server()
    tags = {"quick": "ns=2;s=Double", "slow": "ns=2;s=Int32"}
    gateway = Gateway(
        devices={"press": {"opcua": server.url, "security": "none", "every": "20ms", "tags": tags}},
        send={"all": {"from": "*", "to": "plant"}, "fast": {"from": "press/quick", "to": "plant", "fast": True}},
        to={"plant": {"mqtt": broker.url, "ack_timeout": "1s"}},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        gateway.wait_state("press", "up")
        gateway.wait_state("press@fast", "up")
        assert server.sessions_and_subscriptions() == (2, 2)
        for value in range(1, VALUES + 1):
            if value == VALUES // 3:
                broker.process.pause()
            if value == 2 * VALUES // 3:
                gateway.wait_state("plant", "down")
                broker.process.resume()
            server.set_value("Double", float(value))
            server.set_value("Int32", value)
        gateway.process.wait_until(lambda: _complete(subscriber.messages()), 60, "all values on both routes")
        messages = subscriber.all_messages()
        assert gateway.end() == 0
    assert missing_seqs(messages) == {}
    assert _values(messages, "fast", "slow") == []
    fast, durable = _values(messages, "fast", "quick"), _values(messages, "all", "quick")
    assert fast == durable == sorted(fast)
    assert _values(messages, "all", "slow")[-1] == VALUES


def test_fast_registers_over_an_outage_of_the_broker(
    libmodbus_server: LibmodbusServer, mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """Two blocks of one fast group, a message each. The broker hangs in the middle: every poll of them arrives, on the
    fast route as on the durable one, in the order of the lane's numbers; a third tag is read by itself."""
    broker = mosquitto_factory()
    tags = {"interlock": "coil 3", "pressure": "holding 10 uint16", "slow": "holding 500 uint16"}
    quick = ["press/interlock", "press/pressure"]
    gateway = Gateway(
        devices={"press": {"modbus": f"{libmodbus_server.url}/1", "every": "50ms", "timeout": "20s", "tags": tags}},
        send={"all": {"from": "*", "to": "plant"}, "fast": {"from": quick, "to": "plant", "fast": True}},
        to={"plant": {"mqtt": broker.url, "ack_timeout": "1s"}},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:

        def polled(more: int) -> None:
            until = gateway.metric("gateway_source_batches_total", "press") + more
            gateway.wait_for(lambda: gateway.metric("gateway_source_batches_total", "press") >= until, "polls")

        gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "fast") > 0, "rows")
        polled(30)
        broker.process.pause()
        gateway.wait_state("plant", "down")
        polled(30)
        broker.process.resume()
        gateway.wait_state("plant", "up")
        polled(30)
        assert gateway.end() == 0
        messages = subscriber.all_messages()
    assert missing_seqs(messages) == {}
    for tag in ("interlock", "pressure"):
        fast, durable = _times(messages, "fast", tag), _times(messages, "all", tag)
        assert fast[: len(durable)] == durable == sorted(set(durable))
        assert len(fast) - len(durable) <= 1  # the stop may come between two replies of a cycle
    assert _times(messages, "fast", "slow") == [] and _times(messages, "all", "slow")
    assert {len(message["samples"]) for message in messages if message["stream"] == "fast"} == {1}


def _complete(messages: list[Message]) -> bool:
    ends = [_values(messages, *of)[-1:] for of in (("fast", "quick"), ("all", "quick"), ("all", "slow"))]
    return all(end == [VALUES] for end in ends)


def _values(messages: list[Message], stream: str, tag: str) -> list[float]:
    """What a route has sent of a tag, in the order of its numbers; what was sent twice counts once."""
    return [sample["v"] for sample in _samples(messages, stream, tag)]


def _times(messages: list[Message], stream: str, tag: str) -> list[int]:
    return [sample["t"] for sample in _samples(messages, stream, tag)]


def _samples(messages: list[Message], stream: str, tag: str) -> list[Any]:
    batches = {message["seq"]: message["samples"] for message in messages if message["stream"] == stream}
    return [sample for _, samples in sorted(batches.items()) for sample in samples if sample["tag"] == tag]
