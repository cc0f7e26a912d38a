"""`gateway demo` as a newcomer runs it, and its parts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Timer

import psutil

from gateway import demo
from gateway.config import load
from gateway.demo_machines import METER, PRESS, Press, meter_registers
from gateway.demo_table import Moment, View, line, table

DEADLINE_S = 120.0
LINE = re.compile(r"^(\w+): (\d+) tags  (\d+) values/s  (\d+) messages/s  ")
HEALTH = {
    "status": "ok",
    "components": [{"kind": "source", "name": "press4", "state": "up"}],
    "lanes": [{"name": "live", "pending_rows": 0, "dropped_rows": 0}],
}


@contextmanager
def running(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """The demo without a terminal, its files below `folder`; killed at the end, or after DEADLINE_S."""
    process = subprocess.Popen(
        [sys.executable, *(command or ("-m", "gateway", "demo"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    deadline = Timer(DEADLINE_S, process.kill)
    deadline.start()
    try:
        yield process
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def output_until_values(process: subprocess.Popen[str], tags: int = 1) -> str:
    """What it says up to a second in which values arrived, and all is well, and so many tags have been seen."""
    assert process.stdout and process.stderr
    said = ""
    for text in process.stdout:
        said += text
        match = LINE.match(text)
        if match and match[1] == "ok" and int(match[2]) >= tags and int(match[3]) > 0:
            return said
    raise AssertionError(f"the demo ended: {said}{process.stderr.read()}")


def test_ctrl_c_stops_all_of_it(tmp_path: Path) -> None:
    """Values of every tag are shown; SIGINT: code 0, and no process and no file of it is left."""
    with running(tmp_path) as process:
        output_until_values(process, tags=len(PRESS) + len(METER))
        started = children(process)
        assert len(started) == 3
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert not [child for child in started if child.is_running()]
        assert not list(tmp_path.iterdir())


def test_ends_by_itself(tmp_path: Path) -> None:
    """After `--seconds`: code 0, and nothing is left."""
    with running(tmp_path, "-m", "gateway", "demo", "--seconds", "1") as process:
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert not list(tmp_path.iterdir())


def test_runs_with_the_embedded_broker(tmp_path: Path) -> None:
    """Where no Mosquitto is installed, amqtt carries the same messages."""
    code = (
        "import sys, gateway.demo as demo; demo.mosquitto = lambda: None; from gateway.cli import main; "
        "sys.exit(main(['demo']))"
    )
    with running(tmp_path, "-c", code) as process:
        assert "broker   amqtt:" in output_until_values(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 0, err


def test_a_killed_demo_leaves_no_orphan(tmp_path: Path) -> None:
    """SIGKILL to the demo: its children die with it."""
    with running(tmp_path) as process:
        output_until_values(process)
        started = children(process)
        process.kill()
        _, alive = psutil.wait_procs(started, timeout=60)
        assert not alive


def test_a_child_that_does_not_start_is_named(tmp_path: Path) -> None:
    """Which one, how it ended, and the end of its log."""
    log = tmp_path / "opcua.log"
    with log.open("wb") as output:
        code = "import sys; print('Traceback: no module'); sys.exit(3)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output)
    process.wait()
    text = demo.Child("opcua", 1, process, log).failure()
    assert text.startswith("the OPC UA machine did not start (ended with code 3)")
    assert text.endswith("Traceback: no module")


def test_its_file_is_a_good_one(tmp_path: Path) -> None:
    """The generated file passes the check; insecure choices are written out and explained."""
    path = tmp_path / "gateway.yaml"
    text = demo.configuration(tmp_path, {"opcua": 4840, "modbus": 1502, "broker": 1883}, 9273)
    path.write_text(text)
    settings, _ = load(path)
    assert {name: len(device.tags) for name, device in settings.devices.items()} == {
        "press4": len(PRESS),
        "meter7": len(METER),
    }
    assert "security: none            # insecure" in text


def test_press_lives() -> None:
    """Same seed, same life; counters only grow; it stops and goes on; types are those of its variables."""
    press, again = Press(Random(1)), Press(Random(1))
    states = [press.step(0.1) for _ in range(3000)]
    assert states == [again.step(0.1) for _ in range(3000)]
    assert {state["running"] for state in states} == {True, False}
    assert all(later["strokes"] >= earlier["strokes"] for earlier, later in pairwise(states))
    assert states[-1]["strokes"] > states[0]["strokes"]
    assert len({state["order"] for state in states}) > 1
    assert set(states[0]) == set(PRESS)
    python = {"Double": float, "Float": float, "Boolean": bool, "String": str}
    for name, tag in PRESS.items():
        assert type(states[-1][name]) is python.get(tag.type, int), name


def test_meter_registers() -> None:
    """24 registers, each 16 bits."""
    registers = meter_registers(12.5, Random(1))
    assert len(registers) == 24
    assert all(0 <= register < 65536 for register in registers)


def _message(t_us: int) -> bytes:
    sample = {"tag": "speed", "t": t_us, "v": 91.5, "q": "good"}
    return json.dumps({"device": "press4", "samples": [sample]}).encode()


def test_view_counts_and_measures() -> None:
    """Rates per second, latency from source time to reception; a tag's first value is no measure of latency."""
    view = View()
    view.rates(10**9)
    view.take([(5_000_000_000, _message(1_000)), (6_000_000_000, _message(5_900_000)), (7, b"online"), (8, b'{"a":1}')])
    assert (view.values, view.messages) == (2, 2)
    assert view.rates(2 * 10**9) == (2, 2)
    assert view.quantile_ms("press4", 0.99) == 100.0
    assert view.quantile_ms("nobody", 0.5) == 0.0


def _head_at_80(view: View, moment: Moment) -> list[str]:
    """What stands above the table at 80 columns: each line as it was written, none is broken in two."""
    from rich.console import Console

    legs = {leg: {"p50": 58.6, "p99": 151.6} for leg in ("source_to_received", "received_to_lane", "lane_to_ack")}
    health = HEALTH | {"lanes": [lane | {"latency_ms": legs} for lane in HEALTH["lanes"]]}
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(width=80, file=nowhere, record=True)
        console.print(table(view, Moment(1234.0, 567.0, health, moment.now_us), {}, "FOOTER"))
        head = console.export_text().partition("FOOTER")[0].splitlines()
    assert len(head) == 4, head
    return head


def test_what_is_shown() -> None:
    """The line matches what the test above reads; the table names device, tag, value, unit and age."""
    from rich.console import Console

    view = View()
    view.take([(5_000_000_000, _message(1_000)), (6_000_000_000, _message(5_900_000))])
    moment = Moment(2.0, 2.0, HEALTH, 6_400_000)
    assert LINE.match(line(view, moment))
    assert line(view, moment).endswith("press4 p50 100.0 ms p99 100.0 ms  route live: 0 rows waiting, 0 dropped")
    console = Console(width=100, file=open(os.devnull, "w", encoding="utf-8"), record=True)  # noqa: SIM115
    with console.file:
        console.print(table(view, moment, {("press4", "speed"): "1/min"}, "Ctrl-C stops all of it."))
        shown = console.export_text()
    assert all(len(text) <= 80 for text in _head_at_80(view, moment))
    for expected in ("press4", "speed", "91.500", "1/min", "good", "0.5 s", "Ctrl-C", "2 values/s"):
        assert expected in shown
