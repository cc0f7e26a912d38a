"""Writing to and calling methods of three independent servers: done, refused for each reason, recorded every time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from asyncua import Server, ua

from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_write import BAD_TIMEOUT, OpcUaWriter
from gateway.audit import AuditFile, entries
from gateway.cli import main
from pipelines.clock import SystemClock
from pipelines.commands import Commands, Outcome, Refused, Writer
from pipelines.errors import NotConnected
from tests.integration.opcua_plant import empty_server
from tests.services.node_opcua_plant import NodePlant

To = Callable[..., Commands]
UNCERTAIN, BAD_NOT_CONNECTED = 0x4000_0000, 0x808A_0000


@pytest.fixture
async def asyncua_plant() -> AsyncIterator[Server]:
    """The same plant as asyncua's server, in this process."""
    server = await empty_server()
    await server.register_namespace("urn:test")
    plant = await server.nodes.objects.add_object(ua.NodeId("Plant", 2), "2:Plant")
    values: dict[str, tuple[Any, ua.VariantType]] = {
        "Setpoint": (20.0, ua.VariantType.Double),
        "Count": (0, ua.VariantType.Int16),
        "Name": ("plant", ua.VariantType.String),
        "Limits": ([1.0, 2.0], ua.VariantType.Double),
    }
    for name, (value, kind) in values.items():
        await (await plant.add_variable(ua.NodeId(name, 2), f"2:{name}", value, kind)).set_writable()
    await plant.add_variable(ua.NodeId("Fixed", 2), "2:Fixed", 7.0)

    def add(_parent: ua.NodeId, a: ua.Variant, b: ua.Variant) -> list[ua.Variant]:
        return [ua.Variant(a.Value + b.Value, ua.VariantType.Double)]

    arguments = [ua.Argument("a", ua.NodeId(ua.Int32(11)), -1), ua.Argument("b", ua.NodeId(ua.Int32(6)), -1)]
    await plant.add_method(ua.NodeId("Add", 2), "2:Add", add, arguments, [ua.VariantType.Double])
    async with server:
        yield server


@pytest.fixture(params=["node_plant", "milo_plant", "asyncua_plant"])
def plant(request: pytest.FixtureRequest) -> tuple[str, int]:
    """(URL, the plant's namespace)."""
    server = request.getfixturevalue(request.param)
    url = str(server.endpoint.geturl()) if isinstance(server, Server) else server.url
    return url, 1 if isinstance(server, NodePlant) else 2


def device(url: str, namespace: int, **more: Any) -> OpcUaDevice:
    def node(name: str) -> str:
        return f"ns={namespace};s={name}"

    tags = {
        "setpoint": {"node": node("Setpoint"), "write": True},
        "slow": {"node": node("Setpoint"), "write": {"min": 10, "max": 90, "rate": "1/1h"}},
        "count": {"node": node("Count"), "write": True, "scale": 0.1},
        "name": {"node": node("Name"), "write": True},
        "limits": {"node": node("Limits"), "write": True},
        "fixed": {"node": node("Fixed"), "write": True},
        "closed": node("Setpoint"),
        "gone": {"node": node("Gone"), "write": True},
        **more,
    }
    plant = node("Press" if namespace == 1 else "Plant")
    methods = {"add": {"object": plant, "method": node("Add")}, "refuse": {"object": plant, "method": node("Refuse")}}
    return OpcUaDevice.model_validate({"opcua": url, "security": "none", "tags": tags, "methods": methods})


@pytest.fixture
async def to(tmp_path: Path) -> AsyncIterator[To]:
    """Commands to a device, recorded below tmp_path."""
    writers: list[Writer] = []

    def make(settings: OpcUaDevice) -> Commands:
        writers.append(OpcUaWriter(settings, tmp_path))
        return Commands("press", settings.tags, settings.methods, writers[-1], AuditFile(tmp_path), SystemClock())

    yield make
    for writer in writers:
        await writer.close()


def recorded(data_dir: Path) -> list[tuple[str, str, int]]:
    """(step, target, status) of every line but the attempts, which each must have one."""
    lines = list(entries(data_dir))
    attempts = [line["id"] for line in lines if line["step"] == "attempt"]
    assert attempts == [line["id"] for line in lines if line["step"] == "done"]
    return [(line["step"], line["target"], line["status"]) for line in lines if line["step"] != "attempt"]


async def test_what_is_allowed_is_done(plant: tuple[str, int], to: To, tmp_path: Path) -> None:
    """Numbers, scaled integers, text, arrays, a method: read back, and with what was there before."""
    press = to(device(*plant))
    assert (await press.write("setpoint", 33, "me")).value == 33.0
    outcome = await press.write("setpoint", 21.5, "me")
    assert (outcome.status, outcome.before, outcome.value) == (0, 33.0, 21.5)
    assert (await press.write("count", -12.3, "me")).value == -12.3
    assert (await press.write("name", "new", "me")).value == "new"
    assert (await press.write("limits", [3, 4.5, 6], "me")).value == [3.0, 4.5, 6.0]
    assert (await press.call("add", [1.5, 2], "me")).value == [3.5]
    assert [line[0] for line in recorded(tmp_path)] == ["done"] * 6
    last_write = [line for line in entries(tmp_path) if line["target"] == "press/limits"][-1]
    assert last_write["result"] == [3.0, 4.5, 6.0] and last_write["who"] == "me"


async def test_what_is_not_is_refused_and_nothing_changes(plant: tuple[str, int], to: To, tmp_path: Path) -> None:
    """Type, range, list of the file, rate, access, unknown node, wrong arguments: a status each, all in the record."""
    press = to(device(*plant))
    await press.write("setpoint", 50, "me")
    cases: list[tuple[Outcome, str]] = [
        (await press.write("setpoint", "fast", "me"), "80740000"),  # BadTypeMismatch
        (await press.write("count", 0.05, "me"), "80740000"),
        (await press.write("name", 42, "me"), "80740000"),
        (await press.write("limits", 1, "me"), "80740000"),
        (await press.write("count", 4000, "me"), "803c0000"),  # BadOutOfRange
        (await press.write("slow", 95, "me"), "803c0000"),
        (await press.write("closed", 1, "me"), "803b0000"),  # BadNotWritable
        (await press.write("fixed", 1, "me"), "803b0000"),
        (await press.write("gone", 1, "me"), "80340000"),  # BadNodeIdUnknown
        (await press.call("add", [1.0], "me"), "80760000"),  # BadArgumentsMissing
        (await press.call("add", [1.0, 2, 3], "me"), "80e50000"),  # BadTooManyArguments
        (await press.call("add", [1.0, 2.5], "me"), "80740000"),
        (await press.call("wipe", [], "me"), "80750000"),  # BadMethodInvalid
        (await press.write("slow", 50, "me"), "00000000"),
        (await press.write("slow", 51, "me"), "80e40000"),  # BadRequestNotAllowed
    ]
    assert [f"{outcome.status:08x}" for outcome, _ in cases] == [status for _, status in cases]
    assert all(outcome.reason for outcome, status in cases if int(status, 16))
    assert [f"{status:08x}" for _, _, status in recorded(tmp_path)[1:]] == [status for _, status in cases]
    assert (await press.write("setpoint", 50, "me")).before == 50.0


async def test_what_only_a_machine_knows(node_plant: NodePlant, to: To) -> None:
    """Its own range, the names of an enumeration, a value that it does not keep, a method that it refuses now."""
    more = {
        "mode": {"node": "ns=1;s=Mode", "write": True},
        "stubborn": {"node": "ns=1;s=Stubborn", "write": {"read_back": "100ms"}},
        "wide": {"node": "ns=1;s=Setpoint", "write": {"max": 150}},
    }
    press = to(device(node_plant.url, 1, **more))
    outside = await press.write("setpoint", 100.5, "me")
    assert outside.status == 0x803C0000 and "0 to 100" in outside.reason
    assert (await press.write("wide", 100.5, "me")).good  # the file's max goes before the machine's ...
    assert (await press.write("wide", -0.5, "me")).status == 0x803C0000  # ... which has the least value still
    assert (await press.write("mode", "Manual", "me")).value == 2
    unknown = await press.write("mode", "Turbo", "me")
    assert unknown.status == 0x803C0000 and "Off (0), Auto (1), Manual (2)" in unknown.reason
    stubborn = await press.write("stubborn", 5, "me")
    assert (stubborn.status, stubborn.value) == (UNCERTAIN, 1.0) and "instead of 5.0" in stubborn.reason
    refused = await press.call("refuse", [], "me")
    assert (refused.status, refused.reason) == (0x80AF0000, "the server answers BadInvalidState")


async def test_a_machine_that_is_gone_and_comes_back(node_plant: NodePlant, to: To, tmp_path: Path) -> None:
    """Not connected, said and recorded; the same commands work when it is there again."""
    press = to(device(node_plant.url, 1))
    assert (await press.write("setpoint", 40, "me")).good
    await asyncio.to_thread(node_plant.kill)
    for _ in range(2):
        outcome = await press.write("setpoint", 41, "me")
        assert outcome.status == BAD_NOT_CONNECTED and node_plant.url in outcome.reason
    await asyncio.to_thread(node_plant.start)
    assert (await press.write("setpoint", 42, "me")).value == 42.0
    assert [status for _, _, status in recorded(tmp_path)] == [0, BAD_NOT_CONNECTED, BAD_NOT_CONNECTED, 0]


async def test_no_answer_is_not_taken_for_not_done(node_plant: NodePlant, tmp_path: Path) -> None:
    """The server stops between the question and the write: it may have been written, and that is said."""
    settings = device(node_plant.url, 1)
    writer = OpcUaWriter(settings, tmp_path)
    try:
        await writer.write("setpoint", 44)
        assert writer._client is not None
        writer._client.uaclient.protocol.timeout = 0.5
        node_plant.process.pause()
        outcome = await writer.write("setpoint", 45)
    finally:
        node_plant.process.resume()
        await writer.close()
    assert outcome.status == BAD_TIMEOUT and "may have been done" in outcome.reason
    with pytest.raises((NotConnected, Refused)):
        await OpcUaWriter(settings, tmp_path).read("gone")


def test_the_command_line(node_plant: NodePlant, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`gateway write`, `call` and `audit`: what they print, and their codes."""
    file = tmp_path / "gateway.yaml"
    file.write_text(f"""
gateway: {{data_dir: {tmp_path / "data"}}}
devices:
  press:
    opcua: {node_plant.url}
    security: none
    tags:
      setpoint: {{node: ns=1;s=Setpoint, write: {{max: 50}}}}
      closed: ns=1;s=Count
    methods:
      add: {{object: ns=1;s=Press, method: ns=1;s=Add}}
  meter: {{modbus: "tcp://127.0.0.1:1", tags: {{flow: {{register: holding 1 int16, write: true}}}}}}
send: {{all: {{from: "*", to: broker}}}}
to: {{broker: {{mqtt: "mqtt://127.0.0.1:1"}}}}
""")

    def run(*words: str) -> tuple[int, str, str]:
        code = main([words[0], str(file), *words[1:]])
        said = capsys.readouterr()
        return code, said.out.strip(), said.err.strip()

    assert run("write", "press/setpoint", "30")[0] == 0
    code, _, said = run("write", "press/setpoint", "-0.5")
    assert code == 1 and said == "press/setpoint: -0.5 is outside of what the machine takes, 0 to inf (0x803c0000)"
    assert run("write", "press/setpoint", "31.5")[:2] == (0, "ok press/setpoint: 30.0 -> 31.5")
    code, _, said = run("write", "press/setpoint", "51")
    assert code == 1 and said == "press/setpoint: 51 is above the file's max, 50 (0x803c0000)"
    assert run("write", "press/closed", "1")[0] == 1
    assert run("write", "prss/closed", "1")[0] == 2 == run("write", "press", "1")[0]
    assert run("call", "press/add", "1.5", "-2")[:2] == (0, "ok press/add: [-0.5]")
    assert run("call", "press/add", "1.5")[0] == 1
    lines = run("audit")[1].splitlines()
    assert len(lines) == 12 and all("at the command line" in line for line in lines)
