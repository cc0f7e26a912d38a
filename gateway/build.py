"""Settings -> tags, sources, routes, sinks, ready to be supervised. The only file that names concrete classes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from connectors import SINKS, SOURCES, load
from connectors.mqtt_settings import LocalBroker, MqttTarget
from connectors.payload import Identity, make_format
from gateway.app import App, Parts
from gateway.buffer import lanes_folder
from gateway.dead_letter import DeadLetter
from gateway.embedded_broker import EmbeddedBroker
from gateway.http import HttpService
from gateway.instance import next_instance
from gateway.log import Log
from gateway.loopwatch import LoopWatch
from gateway.metrics import CountersCollector, Metrics, StateCollector
from gateway.session import SinkSession, SourceSession
from gateway.settings import DeviceSettings, GatewayFile, kind_of
from pipelines.clock import Clock, SystemClock
from pipelines.contracts import Lane, Part, Sink, Source, Stage
from pipelines.counters import Counters
from pipelines.gaps import NoLedger
from pipelines.journal import SUFFIX
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import MemoryLane, WhenFull
from pipelines.quantities import Settings
from pipelines.route import Pump, Route
from pipelines.selector import Selector, matches
from pipelines.stage_deadband import DeadbandStage
from pipelines.stage_scale import TagScaleStage
from pipelines.stage_select import SelectStage
from pipelines.tags import TagTable

ROWS_PER_WRITE_MAX: Final = 10_000
"""A busy route takes this much at a time: one write, one transaction."""
ROWS_PER_FAST_WRITE_MAX: Final = 1_000
LOCAL: Final = "@local"
"""Behind the name of a destination, or of a route's stream: its copy for the broker on site."""


@dataclass(frozen=True)
class Built:
    """A whole gateway; `app` belongs to `service` and `watch` in `app.serve`."""

    app: App
    service: HttpService | None
    watch: LoopWatch
    tags: TagTable


def build(file: GatewayFile, clock: Clock | None = None) -> Built:
    """Everything that `file` describes; counts the start in the data folder (see `instance` for what it raises)."""
    clock = clock or SystemClock()
    instance = next_instance(file.gateway.data_dir)
    identity, tags = Identity(file.gateway.id, file.gateway.site), TagTable()
    sources = [_source(file, name, number, tags, clock) for number, name in enumerate(file.devices)]
    routes = {name: _route(file, name, tags, instance, clock) for name in file.send}
    _say_what_is_left_over(file)
    dead_letter = DeadLetter(file.gateway.data_dir, make_format("json", identity, tags))
    collecting = [_source_session(file, source, list(routes.values()), tags) for source in sources]
    lanes = {lane.name: lane for route in routes.values() for lane in route.lanes}
    writing = [
        _sink_session(file, name + copy, settings, lanes, identity, tags, clock, dead_letter)
        for name, target in file.to.items()
        for copy, settings in _with_local(target)
    ]
    parts = Parts(collecting, writing, list(lanes.values()), _embedded_brokers(file))
    app = App(parts, file.gateway.id, clock, random.random, file.gateway.stop_timeout / 1e9)
    watch = LoopWatch()
    counted = [*_counters(parts, routes.values()), dead_letter.counters, watch.counters]
    return Built(app, _service(file, app, parts, watch, counted, clock), watch, tags)


def _source(file: GatewayFile, name: str, source_id: int, tags: TagTable, clock: Clock) -> Source:
    settings = file.devices[name]
    source: Source = load(SOURCES[kind_of(settings)])(
        name, source_id, settings, tags, clock, file.gateway.data_dir, NoLedger()
    )
    return source


def _route(file: GatewayFile, name: str, tags: TagTable, instance: int, clock: Clock) -> Route:
    settings = file.send[name]
    lanes = [_lane(file, name, tags, instance, clock)]
    if local := _local(file.to[settings.to]):  # the first: it never waits
        lanes.insert(0, MemoryLane(name + LOCAL, bytes_max=local.memory, instance=instance))
    everything = "*" in settings.from_
    select: list[Stage] = [] if everything else [SelectStage(Selector(tags, settings.from_))]
    return Route(name, [*select, *(step.build(tags) for step in settings.steps)], *lanes)


def _lane(file: GatewayFile, name: str, tags: TagTable, instance: int, clock: Clock) -> Lane:
    settings = file.send[name]
    buffer, when_full = settings.buffer, WhenFull(settings.buffer.when_full)
    if settings.fast:
        return MemoryLane(name, bytes_max=buffer.memory, when_full=when_full, instance=instance)
    limits = Limits(buffer.disk, buffer.memory, buffer.fsync_every, buffer.max_age, buffer.reserve)
    folder = lanes_folder(file.gateway.data_dir) / name
    sources = list(file.devices)
    return DiskLane(name, folder, clock, limits, tags=tags, sources=sources, when_full=when_full, instance=instance)


def _say_what_is_left_over(file: GatewayFile) -> None:
    """Lanes of routes that are gone from the file, or fast now, are kept: nothing reads them yet."""
    durable = {name for name, route in file.send.items() if not route.fast}
    for folder in sorted(lanes_folder(file.gateway.data_dir).glob("*/")):
        if folder.is_dir() and folder.name not in durable and any(folder.glob(f"*{SUFFIX}*")):
            Log("gateway").warning(
                "the buffer of a route that is no longer there is kept; look into it with `gateway buffer cat`, delete "
                "its folder when it is not needed",
                route=folder.name,
                folder=str(folder),
            )


def _source_session(file: GatewayFile, source: Source, routes: Sequence[Route], tags: TagTable) -> SourceSession:
    settings = file.devices[source.name]
    own = [tag for tag in tags if tag.device == source.name]
    wanted = [route for route in routes if any(matches(p, tag) for p in file.send[route.name].from_ for tag in own)]
    return SourceSession(source, _address(settings), wanted, _tag_stages(settings, tags))


def _tag_stages(settings: DeviceSettings, tags: TagTable) -> list[Stage]:
    """What the tags of this device ask for themselves; nothing where they ask for nothing."""
    own = settings.tags.values()
    stages: list[Stage] = []
    if any(tag.scale != 1.0 or tag.offset != 0.0 for tag in own):
        stages.append(TagScaleStage(tags))
    if any(tag.deadband > 0.0 for tag in own):
        stages.append(DeadbandStage.per_tag(tags))
    return stages


def _sink_session(
    file: GatewayFile,
    name: str,
    settings: Settings,
    lanes: Mapping[str, Lane],
    identity: Identity,
    tags: TagTable,
    clock: Clock,
    dead_letter: DeadLetter,
) -> SinkSession:
    """`name` is a destination's, with LOCAL behind it where the sink is for its broker on site."""
    target, copy, _ = name.partition(LOCAL)
    served = {lanes[route + copy]: how for route, how in file.send.items() if how.to == target}
    sink: Sink = load(SINKS[kind_of(settings)])(name, settings, identity, tags, clock, [lane.name for lane in served])
    pumps = []
    for lane, how in served.items():
        rows_max = ROWS_PER_FAST_WRITE_MAX if how.fast else ROWS_PER_WRITE_MAX
        pumps.append(Pump(lane, lane.reader(Part.ALL), sink, clock, dead_letter, rows_max=rows_max))
    return SinkSession(sink, _address(settings), list(served), pumps)


def _local(target: Settings) -> LocalBroker | None:
    return target.local if isinstance(target, MqttTarget) else None


def _with_local(target: Settings) -> Iterable[tuple[str, Settings]]:
    """("", the destination), and where it has one, (LOCAL, its broker on site)."""
    yield "", target
    if isinstance(target, MqttTarget) and target.local:
        yield LOCAL, target.at_local(target.local)


def _embedded_brokers(file: GatewayFile) -> list[EmbeddedBroker]:
    """One for each address that some destination has it listen on."""
    own = [local for target in file.to.values() if (local := _local(target)) and not local.mqtt]
    return [EmbeddedBroker(listen) for listen in dict.fromkeys(local.listen for local in own)]


def _address(settings: DeviceSettings | Settings) -> str:
    """The text behind `opcua:`, `mqtt:`, ...; the settings refuse credentials in it."""
    place = getattr(settings, kind_of(settings))
    return ",".join(map(str, place)) if isinstance(place, list | tuple) else str(place)


def _counters(parts: Parts, routes: Iterable[Route]) -> list[Counters]:
    pumps = [pump.counters for session in parts.sinks for pump in session.pumps]
    sources = [session.source.counters for session in parts.sources]
    sinks = [session.sink.counters for session in parts.sinks]
    lanes = [lane.counters for lane in parts.lanes]
    return [*sources, *(route.counters for route in routes), *lanes, *pumps, *sinks]


def _service(
    file: GatewayFile, app: App, parts: Parts, watch: LoopWatch, counted: list[Counters], clock: Clock
) -> HttpService | None:
    listen = file.gateway.listen_address()
    if listen is None:
        return None
    state = StateCollector(app.health.components, parts.lanes, clock)
    metrics = Metrics([CountersCollector(lambda: counted), state], watch.flush)
    return HttpService(*listen, app.health, metrics)
