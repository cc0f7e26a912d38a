"""Settings -> tags, sources, routes, sinks, ready to be supervised. The only file that names concrete classes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from socket import socket
from typing import Final

from connectors import SINKS, SOURCES, load
from connectors.kafka_settings import KafkaTarget
from connectors.mqtt_settings import LocalBroker, MqttTarget
from connectors.payload import Identity, make_format
from gateway.app import App, Parts
from gateway.buffer import lanes_folder
from gateway.clock import ClockWatch
from gateway.clock_ptp import Ptp4l
from gateway.clock_readings import Reader, read_chrony, read_kernel
from gateway.dead_letter import DeadLetter
from gateway.embedded_broker import EmbeddedBroker
from gateway.fast_sessions import with_fast_sessions
from gateway.http import HttpService
from gateway.instance import next_instance
from gateway.ledger import GapLedger
from gateway.leftover import leftovers, remember
from gateway.loopwatch import LoopWatch
from gateway.metrics import CountersCollector, GapsCollector, LatencyCollector, Metrics, StateCollector
from gateway.realtime import Asked, answers, granted
from gateway.session import SinkSession, SourceSession
from gateway.settings import DeviceSettings, GatewayFile, kind_of
from gateway.settings import Route as RouteSettings
from gateway.workers_split import Share
from pipelines.clock import Clock, SystemClock
from pipelines.contracts import Lane, OverPaths, Part, Sink, Source, Stage
from pipelines.counters import Counters
from pipelines.gaps import Ledger
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane, WhenFull
from pipelines.latency import Sessions
from pipelines.quantities import Settings
from pipelines.route import Pump, Replay, Route
from pipelines.selector import Selector, matches, may_match
from pipelines.stage_clock import ClockStepStage
from pipelines.stage_deadband import DeadbandStage
from pipelines.stage_scale import TagScaleStage
from pipelines.stage_select import SelectStage
from pipelines.tags import TagTable, device_of

ROWS_PER_WRITE_MAX: Final = 10_000
"""A busy route takes this much at a time: one write, one transaction."""
ROWS_PER_FAST_WRITE_MAX: Final = 1_000
ROWS_PER_REPLAY_WRITE: Final = 2_100
"""Two full batches as `Replay` counts. Live data waits for one such write: larger ones show in its latency."""
ROWS_PER_REPLAY_TRANSACTION: Final = 6_300
"""A transaction costs little beside as many rows."""
LOCAL: Final = "@local"
"""Behind the name of a destination, or of a route's stream: its copy for the broker on site."""


@dataclass(frozen=True)
class Process:
    """What a process has beside its share of the file."""

    instance: int
    """Of `gateway.instance`: this start's own."""
    listen: tuple[str, int] | socket | None = None
    """Where its pages are."""
    brokers: Sequence[EmbeddedBroker] = ()
    asked: Sequence[Asked] = ()
    """What it asked of the host."""


@dataclass(frozen=True)
class Built:
    """A whole gateway; `app` belongs to `service` and `watch` in `app.serve`."""

    app: App
    service: HttpService | None
    watch: LoopWatch
    tags: TagTable


def build(file: GatewayFile, clock: SystemClock | None = None) -> Built:
    """All of `file` in this process; counts the start in the data folder (see `instance` for what it raises)."""
    instance = next_instance(file.gateway.data_dir)
    return build_share(Share(file), Process(instance, file.gateway.listen_address(), embedded_brokers(file)), clock)


def build_share(share: Share, process: Process, clock: SystemClock | None = None) -> Built:
    """What one process runs."""
    file, instance, clock = with_fast_sessions(share.file), process.instance, clock or SystemClock()
    identity, tags = Identity(file.gateway.id, file.gateway.site, share.worker), TagTable()
    ledger = GapLedger(file.gateway.data_dir, clock)
    sources = [_source(file, name, number, tags, clock, ledger) for number, name in enumerate(file.devices)]
    routes = [_route(file, name, tags, instance, clock, ledger) for name in file.send]
    lanes = {lane.name: lane for route in routes for lane in route.lanes}
    served = dict(file.send) | (left := leftovers(share))
    lanes |= {name: _lane(file, name, how, tags, instance, clock, ledger) for name, how in left.items()}
    remember(file)
    dead_letter = DeadLetter(file.gateway.data_dir, make_format("json", identity, tags))
    sessions = Sessions()
    collecting = [
        _source_session(file, source, routes, tags, clock, ledger, partial(sessions.began, number))
        for number, source in enumerate(sources)
    ]
    writing = [
        _sink_session(settings, name + copy, its, lanes, identity, tags, clock, ledger, dead_letter, sessions)
        for name, target in file.to.items()
        for copy, settings, its in _sessions(target, {route: how for route, how in served.items() if how.to == name})
    ]
    kept = _clock_watch(file, clock, ledger)
    budgets = {name: how.latency_budget for name, how in file.send.items() if how.latency_budget}
    parts = Parts(collecting, writing, list(lanes.values()), ledger, process.brokers, kept, budgets)
    app = App(parts, file.gateway.id, clock, random.random, file.gateway.stop_timeout / 1e9)
    app.health.host = answers(process.asked)
    watch = LoopWatch()
    counted = [*_counters(parts, routes), dead_letter.counters, watch.counters, kept.counters]
    counted += [granted(share.worker, process.asked)] if process.asked else []
    return Built(app, _service(process, app, parts, watch, counted, clock, ledger), watch, tags)


def _source(file: GatewayFile, name: str, source_id: int, tags: TagTable, clock: Clock, ledger: Ledger) -> Source:
    settings = file.devices[name]
    source: Source = load(SOURCES[kind_of(settings)])(
        name, source_id, settings, tags, clock, file.gateway.data_dir, ledger
    )
    return source


def _route(file: GatewayFile, name: str, tags: TagTable, instance: int, clock: Clock, ledger: Ledger) -> Route:
    settings = file.send[name]
    lanes = [_lane(file, name, settings, tags, instance, clock, ledger)]
    if local := _local(file.to[settings.to]):  # the first: it never waits
        copy = MemoryLane(
            name + LOCAL,
            bytes_max=local.memory,
            sources=list(file.devices),
            instance=instance,
            ledger=ledger,
            clock=clock,
        )
        lanes.insert(0, copy)
    everything = "*" in settings.from_
    select: list[Stage] = [] if everything else [SelectStage(Selector(tags, settings.from_))]
    return Route(name, [*select, *(step.build(tags) for step in settings.steps)], *lanes)


def _lane(
    file: GatewayFile,
    name: str,
    settings: RouteSettings,
    tags: TagTable,
    instance: int,
    clock: Clock,
    ledger: Ledger,
) -> Lane:
    buffer, when_full = settings.buffer, WhenFull(settings.buffer.when_full)
    sources = list(file.devices)
    if settings.fast:
        return MemoryLane(
            name,
            bytes_max=settings.memory_bytes,
            sources=sources,
            when_full=when_full,
            instance=instance,
            ledger=ledger,
            clock=clock,
        )
    limits = Limits(buffer.disk, settings.memory_bytes, buffer.fsync_every, buffer.max_age, buffer.reserve)
    return DiskLane(
        name,
        lanes_folder(file.gateway.data_dir) / name,
        clock,
        limits,
        tags=tags,
        sources=sources,
        when_full=when_full,
        instance=instance,
        ledger=ledger,
    )


def _source_session(
    file: GatewayFile,
    source: Source,
    routes: Sequence[Route],
    tags: TagTable,
    clock: Clock,
    ledger: Ledger,
    connected: Callable[[int], None],
) -> SourceSession:
    settings = file.devices[source.name]
    device = device_of(source.name)
    names = {*settings.tags, *getattr(settings, "events", ())}
    own = [tag for tag in tags if tag.device == device and tag.name in names]

    def takes(pattern: str) -> bool:
        return may_match(pattern, device) if settings.learns_tags else any(matches(pattern, tag) for tag in own)

    wanted = [route for route in routes if any(map(takes, file.send[route.name].from_))]
    return SourceSession(source, _address(settings), wanted, _tag_stages(settings, tags), clock, ledger, connected)


def _tag_stages(settings: DeviceSettings, tags: TagTable) -> list[Stage]:
    """What the tags of this device ask for themselves, and a look at the clock."""
    own = settings.tags.values()
    stages: list[Stage] = []
    if settings.learns_tags or any(tag.scale != 1.0 or tag.offset != 0.0 for tag in own):
        stages.append(TagScaleStage(tags))
    if settings.learns_tags or any(tag.deadband > 0.0 for tag in own):
        stages.append(DeadbandStage.per_tag(tags))
    return [*stages, ClockStepStage()]


def _sink_session(
    settings: Settings,
    name: str,
    routes: Mapping[str, RouteSettings],
    lanes: Mapping[str, Lane],
    identity: Identity,
    tags: TagTable,
    clock: Clock,
    ledger: Ledger,
    dead_letter: DeadLetter,
    sessions: Sessions,
) -> SinkSession:
    """`name` is a destination's, with LOCAL behind it where the sink is for its broker on site, or with paths."""
    copy = LOCAL if name.endswith(LOCAL) else ""
    its = [(lanes[route + copy], how) for route, how in routes.items() if route + copy in lanes]
    sink: Sink = load(SINKS[kind_of(settings)])(name, settings, identity, tags, clock, [lane.name for lane, _ in its])
    pumps = [_pump(how, lane, sink, clock, dead_letter, sessions) for lane, how in its]
    return SinkSession(sink, _address(settings), [lane for lane, _ in its], pumps, clock, ledger)


def _pump(
    how: RouteSettings, lane: Lane, sink: Sink, clock: Clock, dead_letter: DeadLetter, sessions: Sessions
) -> Pump:
    rows_max = ROWS_PER_FAST_WRITE_MAX if how.fast else ROWS_PER_WRITE_MAX
    strict = how.order == "strict"
    if strict or how.fast:
        alone = lane.reader(Part.ALL, sink.keeps_positions)
        most = 1 if strict else None
        return Pump(lane, alone, sink, clock, dead_letter, rows_max=rows_max, in_flight_max=most, sessions=sessions)
    rows_min = ROWS_PER_REPLAY_TRANSACTION if sink.in_flight_max == 1 else ROWS_PER_REPLAY_WRITE
    replay = Replay(lane.reader(Part.BACKLOG, sink.keeps_positions), rows_min, ROWS_PER_WRITE_MAX, how.replay_rate)
    live = lane.reader(Part.LIVE, sink.keeps_positions)
    return Pump(lane, live, sink, clock, dead_letter, rows_max=rows_max, replay=replay, sessions=sessions)


def _local(target: Settings) -> LocalBroker | None:
    return target.local if isinstance(target, MqttTarget) else None


def _sessions(
    target: Settings, routes: Mapping[str, RouteSettings]
) -> Iterable[tuple[str, Settings, Mapping[str, RouteSettings]]]:
    """What stands behind the destination's name, its settings, its routes: ("", the destination), one more for each
    other order of paths that routes name, and where it has one, (LOCAL, its broker on site)."""
    if isinstance(target, MqttTarget | KafkaTarget) and target.paths:
        for number, order in enumerate(orders := _orders(target, routes)):
            its = orders[order]
            settings = target.by(order, any(how.fast for how in its.values()), first=not number)
            yield f"@{'+'.join(order)}" if number else "", settings, its
    else:
        yield "", target, routes
    if isinstance(target, MqttTarget) and target.local:
        yield LOCAL, target.at_local(target.local), routes


def _orders(
    target: MqttTarget | KafkaTarget, routes: Mapping[str, RouteSettings]
) -> dict[tuple[str, ...], dict[str, RouteSettings]]:
    """Paths in the order of preference -> the routes that take them so; the file's own order first if any does."""
    found: dict[tuple[str, ...], dict[str, RouteSettings]] = {}
    everything = tuple(target.paths)
    for name, how in sorted(routes.items(), key=lambda item: bool(item[1].paths)):
        found.setdefault(how.paths or everything, {})[name] = how
    return found or {everything: {}}


def embedded_brokers(file: GatewayFile) -> list[EmbeddedBroker]:
    """One for each address that some destination has it listen on."""
    own = [local for target in file.to.values() if (local := _local(target)) and not local.mqtt]
    return [EmbeddedBroker(listen) for listen in dict.fromkeys(local.listen for local in own)]


def _clock_watch(file: GatewayFile, clock: SystemClock, ledger: Ledger) -> ClockWatch:
    readers: dict[str, Reader] = {"ptp4l": Ptp4l(file.gateway.data_dir), "chrony": read_chrony, "kernel": read_kernel}
    return ClockWatch(clock, readers, file.gateway.max_clock_error, ledger)


def _address(settings: DeviceSettings | Settings) -> str:
    """The text behind `opcua:`, `mqtt:`, ...; the settings refuse credentials in it."""
    place = getattr(settings, kind_of(settings))
    return ",".join(map(str, place)) if isinstance(place, list | tuple) else str(place)


def _counters(parts: Parts, routes: Iterable[Route]) -> list[Counters]:
    pumps = [pump.counters for session in parts.sinks for pump in session.pumps]
    sources = [session.source.counters for session in parts.sources]
    sinks = [session.sink.counters for session in parts.sinks]
    paths = [each for one in parts.sinks if isinstance(one.sink, OverPaths) for each in one.sink.path_counters]
    lanes = [lane.counters for lane in parts.lanes]
    return [*sources, *(route.counters for route in routes), *lanes, *pumps, *sinks, *paths]


def _service(
    process: Process,
    app: App,
    parts: Parts,
    watch: LoopWatch,
    counted: list[Counters],
    clock: Clock,
    ledger: GapLedger,
) -> HttpService | None:
    if process.listen is None:
        return None
    state = StateCollector(app.health.components, parts.lanes, clock)
    latency = LatencyCollector(app.latency, clock)

    def refresh() -> None:
        watch.flush()
        app.latency.flush()

    metrics = Metrics([CountersCollector(lambda: counted), state, GapsCollector(ledger.totals), latency], refresh)
    return HttpService(process.listen, app.health, metrics)
