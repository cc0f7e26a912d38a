"""`gateway browse` at real servers: what it prints, and that what it exports loads and collects the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from connectors.opcua_settings import OpcUaDevice
from gateway.cli import main
from tests.contract.source_suite import settled
from tests.integration.test_opcua_select import Collected, settings
from tests.services.asyncua_server import VARIABLES, AsyncuaServer
from tests.services.node_opcua import NodeOpcua
from tests.services.ports import HOST, free_port
from tests.services.process import ServerProcess

FILE = """
gateway: {{data_dir: {folder}}}
devices:
  press:
    opcua: {url}
    security: none
    {more}
send: {{all: {{from: "*", to: broker}}}}
to: {{broker: {{mqtt: "mqtt://127.0.0.1:1883"}}}}
"""


def file_with(folder: Path, url: str, more: str) -> str:
    file = folder / "gateway.yaml"
    file.write_text(FILE.format(folder=folder / "data", url=url, more=more), "utf-8")
    return str(file)


async def values_of(folder: Path, device: OpcUaDevice, count: int) -> dict[str, object]:
    collected = Collected(folder, device)
    await collected.connect()
    await collected.until(lambda: len(collected.values) == count)
    await collected.source.close()
    return collected.values


def test_what_is_exported_is_what_a_selection_learns(
    asyncua_server: Callable[..., AsyncuaServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block is valid, has every variable and none of the standard's; names and values are those of `select:`."""
    server = asyncua_server()
    assert main(["browse", server.url, "--insecure", "--export"]) == 0
    block = capsys.readouterr().out
    assert "  Plant.Double: nsu=urn:mec:asyncua;s=Double  # Double, 0.25\n" in block
    file = file_with(tmp_path, server.url, block.replace("\n", "\n    "))
    assert main(["check", file]) == 0
    tags = YAML(typ="safe").load(block)["tags"]
    assert {*tags} == {f"Plant.{name}" for name in VARIABLES}
    count = len(VARIABLES)
    exported = asyncio.run(values_of(tmp_path / "a", settings(server.url, tags=tags), count))
    assert exported == asyncio.run(values_of(tmp_path / "b", settings(server.url, select="/Objects/**"), count))


def test_a_device_of_a_file(node_opcua: NodeOpcua, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its user, and by default what its `select:` means; units, values and the limit; a tree for people."""
    select = "select: {include: [/Objects/Hall/*, /Objects/Plant/Bool*], exclude: '*Array'}"
    file = file_with(tmp_path, node_opcua.url, f"auth: {{user: operator, password: secret}}\n    {select}")
    assert main(["browse", file, "press", "--json"]) == 0
    found = {one["name"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {*found} == {"Hall.Pressure", "Plant.Boolean"}
    pressure = found["Hall.Pressure"]
    assert (pressure["path"], pressure["node"]) == ("/Objects/1:Hall/1:Pressure", "ns=1;s=Hall.Pressure")
    assert (pressure["type"], pressure["unit"], pressure["value"]) == ("Double", "bar", "1.5")
    assert main(["browse", file, "--include", "/Objects/Hall/**", "--properties", "--export", "--by-index"]) == 0
    out = capsys.readouterr().out
    assert "  Hall.Pressure: {node: ns=1;s=Hall.Pressure, unit: bar}  # Double, 1.5\n" in out and "EURange" in out
    assert main(["browse", file, "press", "--limit", "1"]) == 0
    tree = capsys.readouterr()
    assert (
        "Objects\n" in tree.out and "1:Pressure  Double  1.5  bar" in tree.out and "more than 1 variables" in tree.err
    )
    wrong = file_with(tmp_path, node_opcua.url, f"auth: {{user: operator, password: wrong}}\n    {select}")
    assert main(["browse", wrong, "press"]) == 1 and node_opcua.url in capsys.readouterr().err


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes, and one line that says what is wrong."""
    url = f"opc.tcp://{HOST}:{free_port()}"
    assert main(["browse", url, "--insecure"]) == 1 and url in capsys.readouterr().err
    assert main(["browse", url, "--insecure", "--include", "/Machine/**"]) == 2
    assert "/Objects/Machine/**" in capsys.readouterr().err
    assert main(["browse", file_with(tmp_path, url, "tags: {a: i=1}"), "meter"]) == 2
    assert "name one of its OPC UA devices: press" in capsys.readouterr().err


def test_live_values(asyncua_server: Callable[..., AsyncuaServer], tmp_path: Path) -> None:
    """Beside a terminal, a line for each value that has changed, until Ctrl-C."""
    server = asyncua_server()
    argv = [sys.executable, "-m", "gateway", "browse", server.url, "--insecure", "--live", "--include", "Double"]
    process = ServerProcess("browse", argv, tmp_path / "log")
    process.start()
    try:
        process.wait_line(r"^Plant\.Double = 0\.25$", 60)
        server.set_value("Double", 1.5)
        process.wait_line(r"^Plant\.Double = 1\.5$", 60)
        os.kill(process.pid, signal.SIGINT)
        asyncio.run(settled(lambda: not process.running))
        assert process.returncode == 130 and "Traceback" not in process.log_tail()
    finally:
        process.kill()
