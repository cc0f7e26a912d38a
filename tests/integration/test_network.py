"""`network:` of every connector: what the system refuses is one clear line, and TLS looks at the name as ever."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors import SINKS, SOURCES, load
from connectors.payload import Identity
from gateway.settings import DEVICES, TARGETS
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected, Permanent
from pipelines.gaps import NoLedger
from pipelines.tags import TagTable
from tests.contract.source_suite import within
from tests.services.kafka import Kafka
from tests.services.mosquitto import Mosquitto
from tests.services.ports import free_port
from tests.services.tls import Certificates

MODBUS = {"tags": {"level": "holding 1 int16"}}
ADDRESSES = [
    ("opcua", {"opcua": "opc.tcp://127.0.0.1:{port}", "security": "none", "tags": {"x": "i=2258"}}),
    ("opcua", {"opcua": "opc.tcp://127.0.0.1:{port}", "tags": {"x": "i=2258"}}),
    ("modbus", {"modbus": "tcp://127.0.0.1:{port}/1", **MODBUS}),
    ("modbus", {"modbus": "rtu+tcp://127.0.0.1:{port}/1", **MODBUS}),
    ("modbus", {"modbus": "udp://127.0.0.1:{port}/1", **MODBUS}),
    ("modbus", {"modbus": "tls://127.0.0.1:{port}/1", **MODBUS}),
    ("mqtt", {"mqtt": "mqtt://127.0.0.1:{port}"}),
    ("mqtt", {"mqtt": "mqtts://127.0.0.1:{port}"}),
    ("mqtt", {"mqtt": "mqtt://127.0.0.1:{port}", "paths": {"a": {}, "b": {}}}),
    ("kafka", {"kafka": "127.0.0.1:{port}"}),
]
REFUSED = [
    ({"bind": "lo0"}, "bind: there is no interface `lo0`: did you mean `lo`?"),
    ({"source": "203.0.113.9"}, "source: 203.0.113.9: Cannot assign requested address"),
]


def _made(kind: str, settings: dict[str, Any], folder: Path) -> Any:
    tags, clock = TagTable(), SystemClock()
    if kind in DEVICES:
        device = load(DEVICES[kind]).model_validate(settings)
        return load(SOURCES[kind])("press", 0, device, tags, clock, folder, NoLedger())
    target = load(TARGETS[kind]).model_validate(settings)
    return load(SINKS[kind])("plant", target, Identity("gw"), tags, clock, ["all"])


@pytest.mark.parametrize(("keys", "line"), REFUSED)
@pytest.mark.parametrize(("kind", "address"), ADDRESSES)
async def test_what_the_system_refuses(
    kind: str, address: dict[str, Any], keys: dict[str, str], line: str, tmp_path: Path
) -> None:
    """NotConnected, so that it is tried again; the reason, as `/health` shows it, says which key and what is wrong."""
    port = free_port()
    settings = {key: text.format(port=port) if isinstance(text, str) else text for key, text in address.items()}
    made = _made(kind, {**settings, "network": keys}, tmp_path)
    arguments = [[]] if kind in DEVICES else []
    with pytest.raises(NotConnected) as refused:
        await within(made.connect(*arguments))
    assert line in str(refused.value)
    await made.close()


async def test_tls_looks_at_the_name(
    mosquitto_factory: Callable[..., Mosquitto],
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """That of the address, also where the gateway makes the socket itself: another name of the same host is refused."""
    broker = mosquitto_factory(tls=certificates)
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def other_name(_: object, host: str, *place: Any, **options: Any) -> Any:
        return await real("127.0.0.1" if host == "other.plant" else host, *place, **options)

    monkeypatch.setattr(type(loop), "getaddrinfo", other_name)
    common = {"tls": {"ca": certificates.ca}, "network": {"bind": "lo", "dscp": "EF"}}
    good = _made("mqtt", {"mqtt": broker.tls_url, **common}, tmp_path)
    await within(good.connect())
    assert good.server == broker.tls_url
    await good.close()
    wrong = _made("mqtt", {"mqtt": f"mqtts://other.plant:{broker.tls_port}", **common}, tmp_path)
    with pytest.raises(Permanent, match="its certificate is not trusted: Hostname mismatch"):
        await within(wrong.connect())


async def test_kafka_goes_on_by_itself(kafka: Kafka, tmp_path: Path) -> None:
    """With a network, all of its connections: the first, those of its tasks, and at-least-once as well."""
    for delivery in ("exactly-once", "at-least-once"):
        keys = {"kafka": kafka.bootstrap, "topic": f"network.{delivery}", "delivery": delivery}
        sink = _made("kafka", {**keys, "network": {"bind": "lo", "source": "127.0.0.7", "dscp": 26}}, tmp_path)
        await within(sink.connect())
        [channel] = sink._channels.values()
        sockets = [one._writer.get_extra_info("socket") for one in channel.session.client._conns.values()]
        assert sockets and {sock.getsockname()[0] for sock in sockets} == {"127.0.0.7"}
        await sink.close()
