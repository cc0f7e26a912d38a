"""The commands: what they print and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.services.ports import free_port

GOOD = """
gateway: {{id: line1-gw, data_dir: {data_dir}, listen: "{listen}", stop_timeout: 1s}}
devices:
  press4:
    opcua: opc.tcp://127.0.0.1:{closed}
    security: none
    tags: {{temperature: ns=2;s=T, pressure: ns=2;s=P}}
  meter7: {{modbus: "tcp://127.0.0.1:{closed}/1", tags: {{flow: input 0 int16}}}}
send:
  all: {{from: "*", to: broker}}
to:
  broker: {{mqtt: "mqtt://127.0.0.1:{closed}"}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    listen = f"127.0.0.1:{free_port()}"
    path.write_text(GOOD.format(data_dir=tmp_path / "data", listen=listen, closed=free_port()))
    return path


def test_check_of_a_good_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts and code 0."""
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == "ok: 2 devices, 3 tags, 1 route\n"


def test_check_of_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mistake with its place, code 2; `run` says the same."""
    path = tmp_path / "gateway.yaml"
    path.write_text("devices: {}\nsend: {a: {frm: x}}\n")
    for command in ("check", "run", "plan"):
        assert main([command, str(path)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) >= 3
        assert all(line.startswith(f"{path}") for line in lines)


def test_plan(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Subscriptions, requests and routes, without touching a machine."""
    assert main(["plan", str(file)]) == 0
    out = capsys.readouterr().out
    for expected in ("press4:", "2 monitored items", "meter7:", "input 0", "route all: * -> broker"):
        assert expected in out


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON document with the top level of the file."""
    assert main(["schema"]) == 0
    assert {"gateway", "devices", "send", "to"} <= set(json.loads(capsys.readouterr().out)["properties"])


def test_wrong_use_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command, a missing argument."""
    assert main(["collect"]) == 2
    assert main(["run"]) == 2


def test_version_imports_nothing_heavy() -> None:
    """It answers at once: no protocol stack, no numpy, no HTTP server is loaded."""
    code = (
        "import sys; from gateway.cli import main; main(['version']); "
        "print(sorted(set(sys.modules) & {'numpy', 'aiohttp', 'asyncua', 'pymodbus', 'aiokafka', 'paho', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def _signal_when(process: subprocess.Popen[str], words: str) -> list[str]:
    """Reads the log until a line holds `words`, then sends SIGTERM; all lines up to the end."""
    lines = []
    assert process.stderr
    for line in process.stderr:
        lines.append(line)
        if words in line:
            process.send_signal(signal.SIGTERM)
            words = "\0"
    return lines


def test_run_with_nothing_there_and_stop(file: Path) -> None:
    """Machines and broker off is a normal state: a line each; SIGTERM ends it with 0."""
    process = subprocess.Popen([sys.executable, "-m", "gateway", "run", str(file)], stderr=subprocess.PIPE, text=True)
    try:
        lines = [json.loads(line) for line in _signal_when(process, '"subject":"sink broker"')]
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()
    down = [line for line in lines if line["message"].startswith("down: ")]
    subjects = [line["subject"] for line in down]
    assert "sink broker" in subjects
    assert len(subjects) == len(set(subjects))
    assert lines[-1]["message"].startswith("stopped")


def test_run_where_the_data_folder_is_a_file(file: Path, tmp_path: Path) -> None:
    """Code 2 and one line that says which key to change."""
    (tmp_path / "data").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "run", str(file)], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 2
    assert "gateway.data_dir" in json.loads(done.stderr.splitlines()[-1])["message"]
