"""`gateway latency`: what it prints and writes, how it reads sockets; a run of it, with real processes."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.cli_latency import BEGIN, COLUMNS, END, with_tables
from gateway.latency_host import advice, host
from gateway.latency_measure import Asked, MeasureFailed, Subscriber, measure
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST, free_port

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
    "legs": {"received_to_lane": TIMES},
    "host": dict.fromkeys(host(), "x"),
}


def latency(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "gateway", "latency", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=180, env=os.environ | {"COLUMNS": "200"})


def test_a_run(mosquitto: Mosquitto) -> None:
    """Both ways and every leg, ordered percentiles, as many samples as the rate says; no process is left."""
    done = latency("--seconds", "2", "--rate", "50", "--broker", mosquitto.url, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for which in ("floor", "gateway"):
        times = found[which]
        assert 20 <= times["samples"] <= 150
        assert 0 < times["p50"] <= times["p99"] <= times["p99.9"] <= times["max"] < 60e6
    assert found["difference"]["p50"] == pytest.approx(found["gateway"]["p50"] - found["floor"]["p50"], abs=0.2)
    for leg in ("source_to_received", "received_to_lane", "lane_to_ack", "received_to_ack", "source_to_ack"):
        times = found["legs"][leg]
        assert times["samples"] >= 20
        assert 0 <= times["p50"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert found["broker"] == mosquitto.url and set(found["host"]) == set(host())
    assert not [each for each in psutil.process_iter(["cmdline"]) if "mec-latency" in str(each.info["cmdline"])]


def test_what_started_here_is_shown_as_a_table() -> None:
    """Without a broker and a server of the user's own: those that the gateway brings or the host has."""
    done = latency("--seconds", "1")
    assert done.returncode == 0, done.stderr
    for words in ("by the floor", "by the gateway", "the gateway's more", "acknowledged by the broker", "sched fifo"):
        assert words in done.stdout
    assert "asyncua on loopback to " in done.stdout


def test_what_is_not_there_is_said() -> None:
    """One line and code 1, or 2 for wrong use; no traceback."""
    away = latency("--broker", f"mqtt://{HOST}:{free_port()}")
    assert (away.returncode, away.stdout) == (1, "") and "Connection refused" in away.stderr
    secured = latency("--broker", "mqtts://broker.plant")
    assert secured.returncode == 1 and "without TLS" in secured.stderr
    assert latency("--opcua", "opc.tcp://10.0.0.5:4840").returncode == 2
    assert "Traceback" not in away.stderr + secured.stderr


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
                found += subscriber.receive(0.02)
            found += subscriber.receive(0.05)
        assert [payload for _, payload in found] == [*messages, b"xy"]
        assert all(abs(time.time_ns() - at_ns) < 60e9 for at_ns, _ in found)


def test_the_document_has_its_markers_and_keeps_the_rest() -> None:
    """The figures of docs/latency.md are made by the command: all between the markers, nothing else."""
    before = PAGE.read_text("utf-8")
    after = with_tables(before, FOUND)
    assert after.split(BEGIN)[0] == before.split(BEGIN)[0] and after.split(END, 1)[1] == before.split(END, 1)[1]
    assert "| -> in the route's memory | 1 | 2 | 3 | 1,234 |" in after.replace("of it: ", "")
    assert with_tables(after, FOUND) == after
    table = before.split(BEGIN)[1].split(END)[0]
    assert "on this machine: " in table and f"| us | {' | '.join(COLUMNS)} |" in table
    with pytest.raises(ValueError, match="made by"):
        with_tables("# Another page", FOUND)


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
