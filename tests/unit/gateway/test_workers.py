"""`workers:`: whose device is whose, what each process runs of the file, and several reports as one."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path
from typing import NoReturn

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.build import lanes_folder
from gateway.config import ConfigErrors, load
from gateway.leftover import DESTINATION, leftovers
from gateway.plan import lines
from gateway.realtime import Asked, answers, ask, granted
from gateway.settings import GatewayFile
from gateway.workers_merge import Crew, merged_health, merged_metrics, worker_metrics
from gateway.workers_run import Crew as RunningCrew
from gateway.workers_run import Member
from gateway.workers_settings import Worker, owners
from gateway.workers_split import ALONE, Share, shares
from pipelines.errors import Poisoned

FILE = """\
gateway: {{data_dir: {folder}}}
devices:
  press4: {{opcua: opc.tcp://10.0.0.5, tags: {{a: ns=2;s=A}}}}
  meter1: {{modbus: tcp://10.0.0.6/1, tags: {{a: holding 1 uint16}}}}
  meter2: {{modbus: tcp://10.0.0.7/1, tags: {{a: holding 1 uint16}}}}
  spare: {{modbus: tcp://10.0.0.8/1, tags: {{a: holding 1 uint16}}}}
send:
  all: {{from: "*", to: plant}}
  alarm: {{from: press4, to: site, fast: true}}
  meters: {{from: ["meter*"], to: history}}
to:
  plant: {{mqtt: mqtt://a}}
  site: {{mqtt: mqtt://b}}
  history: {{kafka: c}}
"""
WORKERS = """\
workers:
  fast: {devices: press4, realtime: 10}
  bulk: {devices: ["meter*"]}
"""
LINES = FILE.count("\n")


def read(folder: Path, workers: str = WORKERS) -> GatewayFile:
    file = folder / "gateway.yaml"
    file.write_text(FILE.format(folder=folder) + workers)
    return load(file)[0]


def test_names_in_full_go_before_wildcards() -> None:
    """And what nobody names is the others'."""
    workers = {"all": Worker(devices=("m*",)), "one": Worker(devices=("meter2",))}
    found = owners(["meter1", "meter2", "press4"], workers)
    assert found == {"meter1": "all", "meter2": "one", "press4": "others"}


def test_each_worker_runs_its_devices_with_their_routes(tmp_path: Path) -> None:
    """A route of one worker keeps its name as its stream's, one of several has a stream in each."""
    found = shares(read(tmp_path))
    assert list(found) == ["fast", "bulk", "others"]
    parts = {name: (list(s.file.devices), list(s.file.send), list(s.file.to)) for name, s in found.items()}
    assert parts == {
        "fast": (["press4"], ["all@fast", "alarm"], ["plant", "site"]),
        "bulk": (["meter1", "meter2"], ["all@bulk", "meters"], ["plant", "history"]),
        "others": (["spare"], ["all@others"], ["plant"]),
    }
    assert {*found["fast"].elsewhere} == {"all@bulk", "meters", "all@others"}
    assert "  route all@bulk: * -> plant" in list(lines(read(tmp_path)))


def test_without_workers_one_process_has_all_of_the_file(tmp_path: Path) -> None:
    """As if there were no such key."""
    file = read(tmp_path, "")
    assert shares(file) == {ALONE: Share(file)}
    assert "route all: * -> plant" in list(lines(file))


def test_a_buffer_that_is_left_over_is_drained_by_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has its destination, and no real-time worker where another has it, too."""
    file = read(tmp_path)
    streams = {"all": "plant", "alarm@old": "site", "meters@old": "history", "gone": "nowhere", "all@bulk": "plant"}
    for stream, to in streams.items():
        folder = lanes_folder(file.gateway.data_dir) / stream
        folder.mkdir(parents=True)
        (folder / DESTINATION).write_text(to)
    monkeypatch.setattr("gateway.leftover.pending_rows", lambda folder: 1)
    found = {name: set(leftovers(share)) for name, share in shares(file).items()}
    assert found == {"fast": {"alarm@old"}, "bulk": {"all", "meters@old"}, "others": set()}
    assert set(leftovers(Share(read(tmp_path, "")))) == {"alarm@old", "meters@old", "all@bulk"}


@pytest.mark.parametrize(
    ("workers", "mistake"),
    [
        ("  fast: {devices: pres4}", "2:19: `pres4` is no device below `devices:`: did you mean `press4`?"),
        ('  fast: {devices: "x*"}', "2:19: `x*` matches no device"),
        ("  fast: {devices: press4/a}", "2:19: `devices`: 'press4/a': a worker has whole devices"),
        ("  fast: {devices: []}", "2:19:"),
        ("  others: {devices: press4}", "2:3: `others` cannot be the name of a worker"),
        ("  a: {devices: press4}\n  b: {devices: press4}", "3:16: `press4` is in worker `a` already"),
        ('  a: {devices: "m*"}\n  b: {devices: "*1"}', "3:16: `meter1` is in worker `a` already"),
        ('  a: {devices: "press*"}\n  b: {devices: press4}', "2:3: worker `a` has no device"),
        ("  a: {devices: press4, cpu: -1}", "2:29:"),
        ("  a: {devices: press4, realtime: 100}", "2:34:"),
    ],
)
def test_mistakes_are_shown_where_they_are(tmp_path: Path, workers: str, mistake: str) -> None:
    """One line each, at its place."""
    line, _, rest = mistake.partition(":")
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, f"workers:\n{workers}\n")
    [error] = caught.value.errors
    assert f"{error.line - LINES}:{error.column}: {error.message}".startswith(f"{line}:{rest}")


def test_what_is_one_connection_stays_in_one_worker(tmp_path: Path) -> None:
    """A serial port can be opened by one process only."""
    bus = "  bus{0}: {{modbus: 'rtu:///dev/ttyS9/{0}', tags: {{a: holding 1 uint16}}}}\n"
    text = FILE.format(folder=tmp_path).replace("send:\n", bus.format(1) + bus.format(2) + "send:\n")
    file = tmp_path / "gateway.yaml"
    file.write_text(f"{text}workers:\n  a: {{devices: bus1}}\n")
    with pytest.raises(ConfigErrors, match=r"`bus2` .worker `others`. and `bus1` .worker `a`. share .*ttyS9"):
        load(file)


CREW: Crew = {
    "phase": "running",
    "workers": [
        {"name": "fast", "state": "running", "since_ns": 0, "pid": 7, "restarts": 1, "reason": ""},
        {"name": "bulk", "state": "running", "since_ns": 0, "pid": 8, "restarts": 0, "reason": ""},
    ],
}


def report(status: str, *gaps: str, **more: object) -> dict[str, object]:
    parts = [{"name": "b", "state": "up"}]
    known = {"status": status, "components": parts, "lanes": parts, "clock": {}, "gaps": [{"to": at} for at in gaps]}
    return known | more


@pytest.mark.parametrize(
    ("fast", "bulk", "status"),
    [
        ("ok", "ok", "ok"),
        ("ok", "degraded", "degraded"),
        ("ok", "down", "degraded"),
        ("down", "down", "down"),
        ("ok", None, "degraded"),
        ("down", None, "down"),
        (None, None, "down"),
    ],
)
def test_the_roll_up_is_over_all_workers(fast: str | None, bulk: str | None, status: str) -> None:
    """One that is silent is a trouble as any other."""
    reports = {name: report(said) for name, said in (("fast", fast), ("bulk", bulk)) if said}
    assert merged_health(report("ok"), CREW, reports)["status"] == status
    stopping: Crew = {"phase": "stopping", "workers": CREW["workers"]}
    assert merged_health(report("stopping"), stopping, reports)["status"] == "stopping"


def test_reports_become_one() -> None:
    """Every part says whose it is; the ledger, which all have read, is there once; an alarm of any clock is shown."""
    fast = report("ok", "1", "2", clock={"state": "locked"}, host={"realtime": {"granted": False}})
    bulk = report("ok", "2", "3", clock={"state": "unsync", "alarm": "bad"})
    merged = merged_health(report("ok"), CREW, {"fast": fast, "bulk": bulk})
    assert [(part["name"], part["worker"]) for part in merged["lanes"]] == [("b", "fast"), ("b", "bulk")]
    assert [gap["to"] for gap in merged["gaps"]] == ["1", "2", "3"]
    assert merged["clock"]["alarm"] == "bad"
    assert [worker["state"] for worker in merged["workers"]] == ["running", "running"]
    assert merged["workers"][0]["host"] == {"realtime": {"granted": False}}
    [_, silent] = merged_health(report("ok"), CREW, {"fast": fast})["workers"]
    assert (silent["state"], silent["reason"]) == ("silent", "it does not answer")


def test_metrics_become_one_text() -> None:
    """Each family once, each sample with its worker, what a label holds untouched."""
    first = b'# HELP a_total A\n# TYPE a_total counter\na_total{name="x{y} z"} 1.0\n# HELP b B\n# TYPE b gauge\nb 2.0\n'
    second = b'# HELP b B\n# TYPE b gauge\nb 3.0\n# HELP a_total A\n# TYPE a_total counter\na_total{name="\\n"} 4.0\n'
    text = (worker_metrics(CREW, ["bulk"]) + merged_metrics({"fast": first, "bulk": second})).decode()
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert names == ["gateway_worker_up", "gateway_worker_restarts", "a", "b"]
    assert re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)[2:] == ["a_total", "b"]
    found = {(s.name, s.labels["worker"], s.labels.get("name")): s.value for f in families for s in f.samples}
    assert found["gateway_worker_up", "fast", None] == 0.0
    assert found["gateway_worker_restarts_total", "fast", None] == 1.0
    assert found["a_total", "fast", "x{y} z"] == 1.0
    assert found["a_total", "bulk", "\n"] == 4.0
    assert (found["b", "fast", None], found["b", "bulk", None]) == (2.0, 3.0)


def test_what_the_host_refuses_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A core that is not there, for one; the rest is asked for all the same."""
    pinned: list[object] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(os, "setpriority", lambda *asked: pinned.append(asked))
    asked = ask(Worker(devices=("a",), cpu=(1, 7), nice=3))
    assert pinned == [(os.PRIO_PROCESS, 0, 3)]
    assert answers(asked)["cpu"] == {"asked": (1, 7), "granted": False, "reason": asked[0].refused}
    assert "core 7 is not there" in asked[0].refused
    assert asked[1] == Asked("nice", 3, "")
    assert "the host refuses cpu" in caplog.text
    assert granted("fast", asked).gauges == {"cpu_granted": 0, "nice_granted": 1}
    assert ask(Worker(devices=("a",))) == []


def test_a_host_that_cannot_start_a_process_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No memory, no processes left: tried again later, while the other workers go on; no descriptor is left."""

    def refused() -> NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)  # one attempt is enough to see
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refused)
    before = os.listdir("/proc/self/fd")
    member = Member("bulk", lambda: lambda orders: 0)
    assert RunningCrew([member], [], 1.0).run() == 0
    assert "worker bulk cannot be started: Cannot allocate memory, it is started again" in caplog.text
    assert (member.state, member.starts) == ("stopped", 0)
    assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_keeps_one_worker_down_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Its start cannot be counted: said, and tried again; only a gateway that never ran ends with it."""
    starts = 0

    def prepared() -> NoReturn:
        nonlocal starts
        starts += 1
        if starts > 1:  # the second attempt follows at once
            os.kill(os.getpid(), signal.SIGTERM)
        raise Poisoned("data_dir cannot be used: No space left on device") from OSError(errno.ENOSPC, "")

    member = Member("bulk", prepared)
    with pytest.raises(Poisoned):
        RunningCrew([member], [], 1.0).run()
    member.starts = 1
    assert RunningCrew([member], [], 1.0).run() == 0
    assert "worker bulk cannot be started: data_dir cannot be used" in caplog.text
