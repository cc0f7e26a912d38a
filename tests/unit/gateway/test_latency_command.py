"""`gateway latency`: what it prints and writes, how it reads sockets; a run of it, with real processes."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.cli import main
from gateway.cli_latency import BEGIN, END, with_table
from gateway.latency_host import advice, host
from gateway.latency_measure import Asked, MeasureFailed, Subscriber, measure
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "latency.md"
TIMES = {"p50": 1.0, "p99": 2.0, "p99.9": 3.0, "max": 1234.5}
FOUND: Mapping[str, Any] = {
    "rate": 100.0,
    "seconds": 10.0,
    "machine": "asyncua on loopback",
    "broker": "Mosquitto on loopback",
    "floor": TIMES,
    "gateway": TIMES,
    "difference": TIMES,
    "unrest": TIMES,
    "legs": {"received_to_lane": TIMES},
    "host": dict.fromkeys(host(), "x"),
}


def latency(*arguments: str) -> str:
    """What it prints; no process is left."""
    argv, mark = [sys.executable, "-m", "gateway", "latency", *arguments], uuid.uuid4().hex
    env = os.environ | {"COLUMNS": "200", "TEST_RUN": mark}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert [each for each in psutil.process_iter() if _environment(each).get("TEST_RUN") == mark] == []
    return done.stdout


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_a_run_with_a_machine_and_a_broker_of_ones_own(milo: Callable[..., Milo], mosquitto: Mosquitto) -> None:
    """Both ways and every leg, ordered percentiles, as many samples as the machine gave."""
    group = Group("v", "double", 1, 20)
    machine = milo([group])
    machine.go(0)
    [node] = group.node_ids()
    own = ("--broker", mosquitto.url, "--opcua", machine.url, "--node", node)
    found = json.loads(latency("--seconds", "2", *own, "--json"))
    for which in ("floor", "gateway"):
        times = found[which]
        assert 10 <= times["samples"] <= 150
        assert 0 < times["p50"] <= times["p99"] <= times["p99.9"] <= times["max"] < 60e6
    assert found["rate"] == found["gateway"]["samples"] / 2
    assert found["difference"]["p50"] == pytest.approx(found["gateway"]["p50"] - found["floor"]["p50"], abs=0.2)
    for leg in ("source_to_received", "received_to_lane", "lane_to_ack", "received_to_ack", "source_to_ack"):
        times = found["legs"][leg]
        assert times["samples"] >= 10
        assert 0 <= times["p50"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert all(us >= 0 for us in found["unrest"].values())
    assert (found["machine"], found["broker"]) == (machine.url, mosquitto.url)
    assert set(found["host"]) == set(host())


def test_what_started_here_is_shown_as_a_table() -> None:
    """Without a broker and a server of the user's own: those that the gateway brings or the host has."""
    shown = latency("--seconds", "1")
    for words in (": floor", ": gateway", "the gateway's more", "acknowledged by the broker", "sched fifo"):
        assert words in shown
    assert "asyncua on loopback to " in shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--broker", f"mqtt://{HOST}:1"], 1, "Connection refused"),
        (["--broker", "mqtts://broker.plant"], 1, "without TLS"),
        (["--broker", "mqtt://h:99999"], 1, "--broker mqtt://h:99999: write mqtt://host:port"),
        (["--opcua", "opc.tcp://10.0.0.5:4840"], 2, "--opcua and --node belong together"),
        (["--markdown", str(ROOT / "README.md")], 2, "made by: gateway latency"),
    ],
)
def test_what_is_not_there_is_said(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 1, or 2 for wrong use, at once; nothing on the output, no traceback."""
    assert main(["latency", *arguments]) == code
    output, errors = capsys.readouterr()
    assert output == "" and words in errors and "Traceback" not in errors


def test_a_node_that_is_not_there_is_named(mosquitto: Mosquitto) -> None:
    """The end of what the floor has written comes up."""
    with pytest.raises(MeasureFailed, match="BadNodeIdUnknown"):
        measure(Asked(50, 1, mosquitto.url, node="ns=2;s=Nothing"), lambda _: None)


def test_the_subscriber_reads_whole_messages() -> None:
    """Cut anywhere, several in one read, at QoS 0 or with a packet identifier, beside other packets."""
    messages = [bytes([number]) * number for number in (1, 130, 3)]
    wire = b"\xd0\x00"  # PINGRESP
    for message in messages:
        body = b"\x00\x01a" + message
        size = bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
        wire += b"\x30" + size + body
    wire += b"\x32" + bytes([2 + 1 + 2 + 2]) + b"\x00\x01a" + struct.pack(">H", 7) + b"xy"
    for step in (1, 2, 7, len(wire)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subscriber, found = Subscriber(ours), []
            for at in range(0, len(wire), step):
                theirs.sendall(wire[at : at + step])
                found += subscriber.receive(0.001)
            found += subscriber.receive(0.05)
        assert [payload for _, payload in found] == [*messages, b"xy"]
        assert all(abs(time.time_ns() - at_ns) < 60e9 for at_ns, _ in found)


def test_the_document_has_its_markers_and_keeps_the_rest() -> None:
    """The figures of docs/latency.md are made by the command: all between the markers, nothing else."""
    before = PAGE.read_text("utf-8")
    after = with_table(before, FOUND)
    assert after.split(BEGIN)[0] == before.split(BEGIN)[0] and after.split(END, 1)[1] == before.split(END, 1)[1]
    assert "| gateway: -> in the route's memory | 1 | 2 | 3 | 1,234 |" in after
    assert with_table(after, FOUND) == after
    rows = [line.split("|")[1] for line in before.split(BEGIN)[1].split(END)[0].splitlines() if line.startswith("|")]
    made = [line.split("|")[1] for line in after.split(BEGIN)[1].split(END)[0].splitlines() if line.startswith("|")]
    assert set(made) < set(rows), "the page was made by an older version of the command"


def test_the_host_and_what_stands_in_the_way() -> None:
    """Every fact is a word at least; advice follows the facts, and a tuned host gets none."""
    facts = host()
    assert all(facts.values())
    tuned = facts | {
        "governor": "performance",
        "preempt_rt": "yes",
        "isolated_cpus": "1",
        "clock_source": "tsc",
        "sched_fifo": "allowed",
        "mlock": "allowed",
        "load": "0.0 on 2 CPUs",
    }
    assert advice(tuned) == []
    poor = {"governor": "powersave", "preempt_rt": "no", "isolated_cpus": "none", "clock_source": "hpet"}
    poor |= {"sched_fifo": "refused", "mlock": "refused", "load": "99.0 on 2 CPUs"}
    assert len(advice(facts | poor)) == 7
