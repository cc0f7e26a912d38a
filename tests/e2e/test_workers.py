"""`workers:`: processes that know nothing of each other, and one over them. Killed ones are back, the others go on."""

import http.client
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.consumers import Subscriber, check_ticks, missing_seqs, retained, without_repeats
from tests.e2e.gateway_process import ID, Gateway
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST, free_port
from tests.services.pymodbus_server import PymodbusServer

STORAGE_FAILED = 3
GROUP = Group("v", "double", 20, 100)
ROWS = 10
CORE = min(os.sched_getaffinity(0))
WITHOUT_PRIVILEGES = """
import ctypes, os, resource, sys
for capability in (14, 23):  # CAP_IPC_LOCK, CAP_SYS_NICE
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: gone at the next exec
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
os.execv(sys.executable, [sys.executable, "-m", "gateway", "run", sys.argv[1]])
"""


def test_a_killed_worker_is_back_and_nothing_is_lost(
    milo: Callable[..., Milo],
    pymodbus_server: Callable[..., PymodbusServer],
    mosquitto_factory: Callable[..., Mosquitto],
    tmp_path: Path,
) -> None:
    """Each tick of its machine once, on the route that it shares too; the other worker is the same process as before.

    Both pages are there all the time, and say who is who.
    """
    machine, meter, broker = milo([GROUP]), pymodbus_server(), mosquitto_factory()
    gateway = Gateway(
        devices={
            "press": {
                "opcua": machine.url,
                "security": "none",
                "every": "100ms",
                "sampling": "0ms",
                "queue": 300,
                "tags": {f"v{index}": node_id for index, node_id in enumerate(GROUP.node_ids())},
            },
            "meter1": _meter(meter),
        },
        send={"all": {"from": "*", "to": "broker"}, "own": {"from": "press", "to": "broker"}},
        to={"broker": {"mqtt": broker.url}},
        workers={"fast": {"devices": "press", "cpu": CORE}},
    )
    with Subscriber(broker.port, tmp_path) as subscriber, gateway:
        _wait_up(gateway, ("press", "fast"), ("meter1", "others"), ("broker", "fast"), ("broker", "others"))
        gateway.wait_for(lambda: _rows(gateway, "fast", "own") >= GROUP.count, "first values")
        machine.go(0)
        _pages(gateway)
        fast, others = _pid(gateway, "fast"), _pid(gateway, "others")
        assert os.sched_getaffinity(fast) == {CORE}
        rows = _rows(gateway, "others", "all@others")
        os.kill(fast, signal.SIGKILL)
        killed_s = time.monotonic()
        _wait_up(gateway, ("press", "fast"), restarts=1)
        print(f"back {time.monotonic() - killed_s:.2f} s after the kill")
        gateway.wait_for(lambda: _rows(gateway, "fast", "own") > 0, "values of the new process")
        gateway.wait_for(lambda: _rows(gateway, "others", "all@others") > rows, "values of the other worker")
        assert (_pid(gateway, "others"), _worker(gateway, "others")["restarts"]) == (others, 0)
        last = machine.stop_ticking()["v"]
        subscriber.wait_tick(GROUP, last)
        gateway.wait_for(lambda: [_pending(gateway).get(name) for name in ("own", "all@fast")] == [0, 0], "empty lanes")
        statuses = [retained(broker.port, f"gateway/{ID}/status/{worker}") for worker in ("fast", "others")]
        assert [(status["worker"], status["online"]) for status in statuses] == [("fast", True), ("others", True)]
        assert gateway.end() == 0
        assert gateway.log_about("worker fast was killed by SIGKILL", "error")
        messages = subscriber.all_messages()
    once = without_repeats(messages)
    assert {message["stream"] for message in once} == {"own", "all@fast", "all@others"}
    for stream in ("own", "all@fast"):
        check_ticks([message for message in once if message["stream"] == stream], "press", GROUP, last)
    assert missing_seqs(message for message in once if message["stream"] == "all@others") == {}


def test_nothing_is_left_of_a_killed_gateway(pymodbus_server: Callable[..., PymodbusServer]) -> None:
    """kill -9 of the process over the workers ends them and the embedded broker; it starts again at once.

    Without privileges: real-time priority and locked memory are refused with a line each, and everything works. Pages
    and broker come back when their process is killed; a worker that hangs is shown as silent, and keeps no page from
    coming; storage that fails under a new worker ends the gateway, code 3.
    """
    meter, port = pymodbus_server(), free_port()
    gateway = Gateway(
        devices={"meter1": _meter(meter), "meter2": _meter(meter)},
        send={"all": {"from": "*", "to": "broker"}},
        to={"broker": {"mqtt": f"mqtt://{HOST}:{free_port()}", "local": {"listen": f"{HOST}:{port}"}}},
        workers={"fast": {"devices": ["meter1"], "realtime": 10, "lock_memory": True}, "bulk": {"devices": "*2"}},
    )
    gateway.run_as([sys.executable, "-c", WITHOUT_PRIVILEGES, gateway.file])
    with gateway:
        _wait_up(gateway, ("broker@local", "fast"), ("broker@local", "bulk"))
        gateway.wait_for(lambda: "host" in _worker(gateway, "fast"), "what it got of the host")
        host = _worker(gateway, "fast")["host"]
        assert not any(asked["granted"] for asked in host.values())
        for needed in ("CAP_SYS_NICE", "CAP_IPC_LOCK"):
            assert len(gateway.log_about(needed, "warning")) == 1
            assert needed in str(host)
        family = _family(gateway.process.pid)
        assert len(family) == 4, "two workers, the pages, the broker"
        gateway.kill()
        _wait_gone(family)
        gateway.start()
        _wait_up(gateway, ("meter1", "fast"), ("meter2", "bulk"), ("broker@local", "fast"))
        [shared] = {*gateway.children()} - {_pid(gateway, "fast"), _pid(gateway, "bulk")}
        os.kill(shared, signal.SIGKILL)
        gateway.wait_for(lambda: shared not in gateway.children() and _answers(gateway), "pages")
        _wait_up(gateway, ("broker@local", "fast"), ("broker@local", "bulk"))
        bulk = _pid(gateway, "bulk")
        os.kill(bulk, signal.SIGSTOP)
        gateway.wait_for(lambda: _worker(gateway, "bulk")["state"] == "silent", "a silent worker")
        assert gateway.health()["status"] in ("degraded", "down")
        (gateway.data_dir / "instance").write_text("seven")
        os.kill(bulk, signal.SIGKILL)
        assert gateway.wait_end() == STORAGE_FAILED
        assert gateway.log_about("restore it", "error")
    _wait_gone(family)


def test_a_backlog_outlives_the_workers_that_made_it(
    pymodbus_server: Callable[..., PymodbusServer], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """What waited in one process is delivered by workers, and the other way round, under the stream that it had."""
    meter, broker = pymodbus_server(), mosquitto_factory()

    def gateway(**workers: Any) -> Gateway:
        return Gateway(
            devices={"meter1": _meter(meter), "meter2": _meter(meter)},
            send={"all": {"from": "*", "to": "broker"}},
            to={"broker": {"mqtt": broker.url, "ack_timeout": "500ms"}},
            options={"data_dir": str(tmp_path / "data")},
            workers=workers,
        )

    with Subscriber(broker.port, tmp_path) as subscriber:
        broker.process.pause()
        with gateway() as one:
            waited = _end_with_backlog(one, "all")
        with gateway(a={"devices": "meter1"}, b={"devices": "meter2"}) as two:
            broker.process.resume()
            two.wait_for(lambda: _pending(two).get("all") == 0, "the backlog of the one process")
            broker.process.pause()
            waited |= _end_with_backlog(two, "all@a", "all@b")
        broker.process.resume()
        with gateway() as three:
            three.wait_for(
                lambda: not any(_pending(three)[name] for name in ("all@a", "all@b")), "the workers' backlog"
            )
            assert three.end() == 0
        messages = subscriber.all_messages()
    assert set(waited) == {"all", "all@a", "all@b"}
    for stream, rows in waited.items():
        times = {sample["t"] for message in messages if message["stream"] == stream for sample in message["samples"]}
        assert len(times) >= rows, f"{stream}: {len(times)} of {rows} rows"


def _end_with_backlog(gateway: Gateway, *streams: str) -> dict[str, int]:
    """Ends it when each stream has a few rows that wait; how many, at least."""
    gateway.wait_for(lambda: all(_pending(gateway).get(stream, 0) >= ROWS for stream in streams), "rows that wait")
    assert gateway.end() == 0
    return dict.fromkeys(streams, ROWS)


def _pending(gateway: Gateway) -> dict[str, int]:
    return {lane["name"]: lane["pending_rows"] for lane in gateway.health()["lanes"]}


def _pages(gateway: Gateway) -> None:
    """Every family once, every sample with its worker; the roll-up over all of them."""
    gateway.wait_for(
        lambda: gateway.page("/metrics")[1].count("gateway_build_info{worker=") == 3, "every worker's metrics"
    )
    gateway.wait_for(lambda: gateway.health()["status"] == "ok", "a good word from every worker")
    text, report = gateway.page("/metrics")[1], json.loads(gateway.page("/health?over=5s")[1])
    assert {*Counter(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)).values()} == {1}
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all("worker" in sample.labels for sample in samples)
    assert {s.labels["worker"] for s in samples if s.name == "gateway_worker_up"} == {"fast", "others"}
    assert report["gateway"] == ID
    lanes = {"fast": {"own", "all@fast"}, "others": {"all@others"}}
    assert all(lane["name"] in lanes[lane["worker"]] for lane in report["lanes"])


def _meter(server: PymodbusServer) -> dict[str, Any]:
    return {"modbus": server.url, "every": "50ms", "tags": {"count": "holding 7 uint16"}}


def _wait_up(gateway: Gateway, *wanted: tuple[str, str], restarts: int = 0) -> None:
    """(component, worker) that are up, in workers that were started again so often."""

    def up() -> bool:
        report = gateway.health()
        again = {worker["name"] for worker in report["workers"] if worker["restarts"] == restarts}
        parts = {(part["name"], part["worker"]) for part in report["components"] if part["state"] == "up"}
        return {*wanted} <= parts and {worker for _, worker in wanted} <= again

    gateway.wait_for(up, f"{wanted} up")


def _worker(gateway: Gateway, name: str) -> dict[str, Any]:
    [found] = [worker for worker in gateway.health()["workers"] if worker["name"] == name]
    return dict(found)


def _pid(gateway: Gateway, worker: str) -> int:
    return int(_worker(gateway, worker)["pid"])


def _answers(gateway: Gateway) -> bool:
    try:
        return gateway.page("/health")[0] == http.client.OK
    except OSError:
        return False


def _rows(gateway: Gateway, worker: str, stream: str) -> float:
    families = text_string_to_metric_families(gateway.page("/metrics")[1])
    named = {"worker": worker, "name": stream}
    samples = (sample for family in families if family.name == "gateway_pump_rows" for sample in family.samples)
    return next((sample.value for sample in samples if sample.labels == named), 0.0)


def _family(pid: int) -> set[int]:
    """All processes below one."""
    children = {
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    }
    return children.union(*map(_family, children))


def _wait_gone(pids: set[int]) -> None:
    deadline_s = time.monotonic() + 30
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline_s, f"{left} are left"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
