"""Prometheus text over counters, states and lanes; the event loop's lag."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from gateway.health import Health
from gateway.http import HttpService
from gateway.loopwatch import LoopWatch, own_share
from gateway.metrics import CountersCollector, Metrics, StateCollector
from gateway.supervisor import State
from pipelines.counters import Counters
from pipelines.errors import Permanent
from pipelines.lane_memory import MemoryLane
from tests.services.ports import free_port
from tests.unit.gateway.fakes import FakeClock, batch, component, until


def nothing() -> None:
    return None


async def samples(metrics: Metrics) -> dict[str, float]:
    text = (await metrics.text()).decode()
    families = text_string_to_metric_families(text)
    return {
        ",".join([sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
    }


async def test_counters_become_families() -> None:
    """One family per kind and name, a label value per component; histograms in seconds with cumulative buckets."""
    press, meter = Counters("source", "press4"), Counters("source", "meter7")
    press.add("rows", 5)
    meter.add("rows", 7)
    press.set("subscriptions", 2)
    for duration_ns in (15_000, 3_000_000):
        press.histograms["decode"].observe(duration_ns)
    found = await samples(Metrics([CountersCollector(lambda: [press, meter])], nothing))
    assert found["gateway_source_rows_total,name=press4"] == 5
    assert found["gateway_source_rows_total,name=meter7"] == 7
    assert found["gateway_source_subscriptions,name=press4"] == 2
    assert found["gateway_source_decode_seconds_bucket,le=8e-06,name=press4"] == 0
    assert found["gateway_source_decode_seconds_bucket,le=1.6e-05,name=press4"] == 1
    assert found["gateway_source_decode_seconds_bucket,le=+Inf,name=press4"] == 2
    assert found["gateway_source_decode_seconds_count,name=press4"] == 2
    assert found["gateway_source_decode_seconds_sum,name=press4"] == 0.003015
    assert found["process_resident_memory_bytes"] > 1e6


async def test_states_faults_and_lanes() -> None:
    """1 for the state that a component is in, 0 for the others."""
    lane = MemoryLane("live", bytes_max=2**20)
    await lane.append(batch(rows=4))
    source = component("source", "press4", State.UP, t1="no such node")
    found = await samples(Metrics([StateCollector([source], [lane], FakeClock())], nothing))
    assert found["gateway_component_state,kind=source,name=press4,state=up"] == 1
    assert found["gateway_component_state,kind=source,name=press4,state=down"] == 0
    assert found["gateway_component_faults,kind=source,name=press4"] == 1
    assert found["gateway_lane_pending_rows,name=live"] == 4


async def test_http_service() -> None:
    """/metrics and /health answer; 503 when stopping; nothing else is there; close ends it."""
    health = Health("line1-gw", FakeClock(), [component("source", "press4", State.UP)], [])
    port = free_port()
    service = HttpService(
        ("127.0.0.1", port), health, Metrics([StateCollector(health.components, [], FakeClock())], nothing)
    )
    await service.start()
    assert service.url == f"http://127.0.0.1:{port}"
    async with ClientSession() as client:
        async with client.get(f"{service.url}/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")
        async with client.get(f"{service.url}/metrics") as answer:
            assert answer.content_type == "text/plain"
            assert "gateway_build_info" in await answer.text()
        health.phase = "stopping"
        async with client.get(f"{service.url}/health") as answer:
            assert answer.status == 503
        async with client.get(f"{service.url}/") as answer:
            assert answer.status == 404
    await service.close()
    await service.close()


async def test_loop_watch_sees_a_step_that_blocks() -> None:
    """A step that takes 80 ms of CPU shows as lag, also by our own CPU time; the maximum is since the last flush."""
    watch = LoopWatch()
    watch.start()
    await asyncio.sleep(0)
    began = time.thread_time()
    while time.thread_time() - began < 0.08:
        pass
    await until(lambda: len(watch._lags_ns) >= 2)
    watch.flush()
    assert watch.counters.gauges["lag_max_seconds"] >= 0.04
    assert watch.counters.gauges["lag_cpu_max_seconds"] >= 0.04
    assert watch.counters.histograms["lag"].count >= 2
    watch.flush()
    assert watch.counters.gauges["lag_cpu_max_seconds"] < 0.04
    watch.stop()
    watch.stop()


async def test_loop_watch_needs_no_schedstat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not say how long a thread waited, the watch goes on without."""
    monkeypatch.setattr("gateway.loopwatch.SCHEDSTAT", "/nowhere")
    watch = LoopWatch()
    watch.start()
    await until(lambda: bool(watch._lags_ns))
    watch.stop()
    watch.flush()
    assert watch.counters.histograms["lag_cpu"].count >= 1


@pytest.mark.parametrize(
    ("lag_ns", "cpu_ns", "waited_ns", "own_ns"),
    [(7_800, 9_000, 6_500, 1_300), (6_000, 7_000, 0, 6_000), (6_000, 50, 0, 50), (100, 9_000, 4_000, 0)],
)
def test_waiting_for_a_core_is_not_our_own_work(lag_ns: int, cpu_ns: int, waited_ns: int, own_ns: int) -> None:
    """Preempted, blocked by our own step, suspended, and a wait that was over in time."""
    assert own_share(lag_ns, cpu_ns, waited_ns) == own_ns


async def test_a_port_that_is_taken_is_bad_configuration() -> None:
    """Permanent, naming the key and the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = HttpService(("127.0.0.1", port), Health("g", FakeClock(), [], []), Metrics([], nothing))
        with pytest.raises(Permanent, match=rf"listen: 127\.0\.0\.1:{port}"):
            await service.start()
