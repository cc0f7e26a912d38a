"""Prometheus metrics: every component's counters, read when they are asked for. Nothing is counted for this file only.

A counter `rows` of source press4 becomes `gateway_source_rows_total{name="press4"}`, a gauge
`gateway_lane_bytes{...}`, a histogram `gateway_pump_source_to_ack_seconds{...}`. The state of a component is
`gateway_component_state{kind, name, state}`: 1 for the state that it is in, 0 for the others, so that a sum over time
shows how long it was where.
"""

from __future__ import annotations

import asyncio
import gc
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.health import Component, oldest_s
from gateway.latency import LatencyWatch
from gateway.supervisor import State
from gateway.version import version
from pipelines.clock import Clock
from pipelines.contracts import Lane
from pipelines.counters import OCTAVE_BOUNDS_NS, STEPS, Counters, Histogram
from pipelines.gaps import Reason
from pipelines.latency import KEPT_S

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BOUNDS = [*(f"{bound / 1e9:.10g}" for bound in OCTAVE_BOUNDS_NS.tolist()), "+Inf"]
"""2 us, 4 us, 8 us, ...: every sixteenth bucket; the finer ones are for our own quantiles."""


class CountersCollector(Collector):
    """Families over all counters that `counted` names at the time of the scrape."""

    def __init__(self, counted: Callable[[], Iterable[Counters]]) -> None:
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for counters in self._counted():
            for name, total in list(counters.totals.items()):
                _counter(families, counters, name).add_metric([counters.name], total)
            for name, value in list(counters.gauges.items()):
                _gauge(families, counters, name).add_metric([counters.name], value)
            for name, histogram in list(counters.histograms.items()):
                _histogram(families, counters, name).add_metric([counters.name], *_buckets(histogram))
        yield from families.values()


class StateCollector(Collector):
    """What no counter holds: states, faults, what lanes hold, build and garbage collection."""

    def __init__(self, components: Sequence[Component], lanes: Sequence[Lane], clock: Clock) -> None:
        self._components = components
        self._lanes = lanes
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "gateway_component_state", "1 for the state it is in", labels=["kind", "name", "state"]
        )
        faults = GaugeMetricFamily(
            "gateway_component_faults", "Tags, or servers, that do not work now", labels=["kind", "name"]
        )
        for component in self._components:
            for each in State:
                here = component.status.state is each
                state.add_metric([component.kind, component.name, str(each)], float(here))
            faults.add_metric([component.kind, component.name], len(component.faults))
        build = GaugeMetricFamily("gateway_build_info", "Always 1", labels=["version", "python"])
        build.add_metric([version(), platform.python_version()], 1)
        yield from (state, faults, *self._pending(), build, _garbage())

    def _pending(self) -> Iterator[Metric]:
        rows = GaugeMetricFamily("gateway_lane_pending_rows", "Rows neither delivered nor dropped", labels=["name"])
        size = GaugeMetricFamily("gateway_lane_pending_bytes", "What the lane takes, memory or disk", labels=["name"])
        age = GaugeMetricFamily("gateway_lane_oldest_seconds", "Age of the oldest pending row", labels=["name"])
        for lane in self._lanes:
            rows.add_metric([lane.name], lane.pending_rows)
            size.add_metric([lane.name], lane.pending_bytes)
            age.add_metric([lane.name], oldest_s(lane, self._clock))
        yield from (rows, size, age)


class GapsCollector(Collector):
    """What the gap ledger noted since the start."""

    def __init__(self, totals: Mapping[Reason, tuple[int, int]]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        gaps = CounterMetricFamily("gateway_gaps", "Entries in the gap ledger", labels=["reason"])
        rows = CounterMetricFamily("gateway_gap_rows", "Rows that they lack, as far as known", labels=["reason"])
        for reason, (entries, missing) in list(self._totals.items()):
            gaps.add_metric([str(reason)], entries)
            rows.add_metric([str(reason)], missing)
        yield from (gaps, rows)


class LatencyCollector(Collector):
    """What the routes take now, and which of them are late."""

    def __init__(self, watch: LatencyWatch, clock: Clock) -> None:
        self._watch = watch
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        now = GaugeMetricFamily(
            "gateway_latency_seconds", f"Quantiles of the last {KEPT_S:.0f} s", labels=["name", "way", "quantile"]
        )
        ahead = CounterMetricFamily(
            "gateway_latency_clock_ahead_rows", "Samples with a source time after their arrival", labels=["name"]
        )
        budget = GaugeMetricFamily("gateway_latency_budget_seconds", "Of p99, as the file says", labels=["name"])
        late = GaugeMetricFamily("gateway_latency_budget_exceeded", "1 while the route is late", labels=["name"])
        breaches = CounterMetricFamily("gateway_latency_budget_breaches", "How often it became late", labels=["name"])
        for name, route in self._watch.routes.items():
            for way, found in route.quantiles(self._clock.mono_ns()).items():
                if found.rows:
                    for quantile, ns in (("0.5", found.p50_ns), ("0.99", found.p99_ns), ("0.999", found.p999_ns)):
                        now.add_metric([name, way, quantile], ns / 1e9)
            ahead.add_metric([name], route.ahead_rows)
            if route.budget_ns is not None:
                budget.add_metric([name], route.budget_ns / 1e9)
                late.add_metric([name], float(bool(route.reason)))
                breaches.add_metric([name], route.breaches)
        yield from (now, ahead, budget, late, breaches)


class Metrics:
    """The text that `/metrics` answers with. `refresh` runs before each scrape."""

    def __init__(self, collectors: Sequence[Collector], refresh: Callable[[], None]) -> None:
        self._collectors = (*collectors, ProcessCollector(registry=CollectorRegistry()))
        self._refresh = refresh

    async def text(self) -> bytes:
        """One scrape. Gives the event loop a chance between two families, so that no step of it takes long."""
        self._refresh()
        parts = []
        for collector in self._collectors:
            for family in collector.collect():
                parts.append(exposition(family))
                await asyncio.sleep(0)
        return b"".join(parts)


def exposition(family: Metric) -> bytes:
    """The text of one family."""
    return generate_latest(_One(family))


class _One(CollectorRegistry):
    """A registry that holds one finished family."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


def _counter(families: dict[str, Metric], counters: Counters, name: str) -> CounterMetricFamily:
    full = f"gateway_{counters.kind}_{name}"
    family = families.setdefault(f"{full}_total", CounterMetricFamily(full, _help(counters, name), labels=["name"]))
    assert isinstance(family, CounterMetricFamily)
    return family


def _gauge(families: dict[str, Metric], counters: Counters, name: str) -> GaugeMetricFamily:
    full = f"gateway_{counters.kind}_{name}"
    family = families.setdefault(full, GaugeMetricFamily(full, _help(counters, name), labels=["name"]))
    assert isinstance(family, GaugeMetricFamily)
    return family


def _histogram(families: dict[str, Metric], counters: Counters, name: str) -> HistogramMetricFamily:
    full = f"gateway_{counters.kind}_{name}_seconds"
    family = families.setdefault(full, HistogramMetricFamily(full, _help(counters, name), labels=["name"]))
    assert isinstance(family, HistogramMetricFamily)
    return family


def _help(counters: Counters, name: str) -> str:
    return f"{name.replace('_', ' ')} of each {counters.kind}"


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    every = histogram.counts.cumsum()
    cumulative = [*every[:-1:STEPS].tolist(), int(every[-1])]
    return list(zip(_BOUNDS, cumulative, strict=True)), histogram.sum_ns / 1e9


def _garbage() -> Metric:
    family = CounterMetricFamily("gateway_gc_collections", "Garbage collections", labels=["generation"])
    for generation, stats in enumerate(gc.get_stats()):
        family.add_metric([str(generation)], stats["collections"])
    return family
