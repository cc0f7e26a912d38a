"""Settings -> parts: which stages, routes, lanes and pumps a file leads to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from connectors.modbus_settings import ModbusDevice
from gateway.build import Built, build
from gateway.config import load
from gateway.fast_sessions import with_fast_sessions
from gateway.session import SourceSession
from pipelines.contracts import Part
from pipelines.errors import Permanent
from pipelines.lane_memory import SEQ_PER_INSTANCE
from pipelines.route import Pump, Replay
from pipelines.stage_clock import ClockStepStage
from pipelines.stage_deadband import DeadbandStage
from pipelines.stage_rename import RenameStage
from pipelines.stage_scale import TagScaleStage
from pipelines.stage_select import SelectStage
from tests.unit.gateway.fakes import FakeClock, FakeSink, batch, until

FILE = """
gateway: {{id: line1-gw, site: acme, data_dir: {data_dir}, listen: {listen}, stop_timeout: 3s}}
devices:
  press4:
    opcua: opc.tcp://127.0.0.1:4840
    security: none
    tags: {{temperature: ns=2;s=T, pressure: {{node: ns=2;s=P, deadband: 0.1}}}}
  meter7:
    modbus: tcp://127.0.0.1:1502/1
    tags: {{flow: {{register: input 0 int16, scale: 0.1}}, energy: input 2 uint32}}
send:
  all: {{from: "*", to: broker}}
  hot: {{from: [press4/temp*], to: broker, fast: true, steps: [{{rename: {{temperature: t}}}}]}}
  energy: {{from: meter7/energy, to: other}}
to:
  broker: {{mqtt: "mqtt://127.0.0.1:1883"}}
  other: {{mqtt: "mqtt://127.0.0.1:1884"}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE.format(data_dir=tmp_path / "data", listen="127.0.0.1:0"))
    return path


def built(file: Path) -> Built:
    return build(load(file)[0])


def kinds(stages: object) -> list[type]:
    return [type(stage) for stage in stages]  # type: ignore[attr-defined]


async def test_tags_of_every_device(file: Path) -> None:
    """Sources add their tags with what the file says of them."""
    tags = built(file).tags
    paths = [tag.path for tag in tags][:4]
    assert paths == ["press4/pressure", "meter7/flow", "meter7/energy", "press4/temperature"]
    assert tags[1].scale == 0.1


async def test_stages_only_where_a_tag_asks(file: Path) -> None:
    """scale and offset, deadband: each costs only the devices that use it."""
    press, meter, fast = built(file).app.parts.sources
    assert kinds(press.stages) == [DeadbandStage, ClockStepStage]
    assert kinds(fast.stages) == [ClockStepStage]
    assert kinds(meter.stages) == [TagScaleStage, ClockStepStage]


async def test_a_source_offers_to_matching_routes_only(file: Path) -> None:
    """By selector; `*` needs no select stage. The tags of a fast route have a session of their own."""
    press, meter, fast = built(file).app.parts.sources

    def offered(session: SourceSession) -> dict[str, list[type]]:
        return {route.name: kinds(route.stages) for route in session.routes}

    assert [session.name for session in (press, meter, fast)] == ["press4", "meter7", "press4@fast"]
    assert offered(press) == {"all": []}
    assert offered(fast) == {"all": [], "hot": [SelectStage, RenameStage]}
    assert offered(meter) == {"all": [], "energy": [SelectStage]}


async def test_sinks_have_the_pumps_of_their_routes(file: Path) -> None:
    """One pump per route, at the destination that it names."""
    sinks = built(file).app.parts.sinks
    assert {sink.name: [lane.name for lane in sink.lanes] for sink in sinks} == {
        "broker": ["all", "hot"],
        "other": ["energy"],
    }
    assert [len(sink.pumps) for sink in sinks] == [2, 1]
    assert sinks[0].address == "mqtt://127.0.0.1:1883"


async def test_local_broker(tmp_path: Path) -> None:
    """A second sink with a memory lane of its own for each route that goes there; one embedded broker per address."""
    path = tmp_path / "gateway.yaml"
    text = FILE.format(data_dir=tmp_path / "data", listen="null")
    text = text.replace('1883"}', '1883", local: embedded}').replace('1884"}', '1884", local: embedded}')
    path.write_text(text)
    parts = built(path).app.parts
    assert {sink.name: [lane.name for lane in sink.lanes] for sink in parts.sinks} == {
        "broker": ["all", "hot"],
        "broker@local": ["all@local", "hot@local"],
        "other": ["energy"],
        "other@local": ["energy@local"],
    }
    durable = {lane.name for lane in parts.lanes if lane.durable}
    assert durable == {"all", "energy"}
    assert [broker.address for broker in parts.brokers] == ["127.0.0.1:1883"]
    named = {route.name: [lane.name for lane in route.lanes] for route in parts.sources[-1].routes}
    assert named == {"all": ["all@local", "all"], "hot": ["hot@local", "hot"]}
    for lane in parts.lanes:
        await lane.close()


async def test_a_session_for_each_order_of_paths(tmp_path: Path) -> None:
    """The file's own order has the plain name; the fast one is suspicious sooner."""
    path = tmp_path / "gateway.yaml"
    text = FILE.format(data_dir=tmp_path / "data", listen="null")
    text = text.replace('1883"}', '1883", paths: {a: {dscp: EF}, b: {dscp: CS1}}}')
    path.write_text(text.replace("to: broker", "to: broker, paths: [b, a]", 1))
    built_ = built(path)
    assert {sink.name: [lane.name for lane in sink.lanes] for sink in built_.app.parts.sinks} == {
        "broker": ["hot"],
        "broker@b+a": ["all"],
        "other": ["energy"],
    }
    assert [sink.info for sink in built_.app.parts.sinks] == [
        "a not tried; b not tried",
        "b not tried; a not tried",
        "",
    ]
    for lane in built_.app.parts.lanes:
        await lane.close()


async def test_a_kafka_lane_is_in_one_session_only(tmp_path: Path) -> None:
    """Whatever paths routes name: two producers with its transactional id would shut one another out."""
    path = tmp_path / "gateway.yaml"
    text = FILE.format(data_dir=tmp_path / "data", listen="null")
    text = text.replace('mqtt: "mqtt://127.0.0.1:1883"', "kafka: k1, paths: {a: {dscp: EF}, b: {dscp: CS1}}")
    path.write_text(text.replace("to: broker", "to: broker, paths: [b, a]", 1))
    built_ = built(path)
    assert [(sink.name, [lane.name for lane in sink.lanes], sink.info) for sink in built_.app.parts.sinks] == [
        ("broker", ["hot"], "a not tried; b not tried"),
        ("broker@b+a", ["all"], "b not tried; a not tried"),
        ("other", ["energy"], ""),
    ]
    for lane in built_.app.parts.lanes:
        await lane.close()


async def test_each_start_numbers_on(file: Path) -> None:
    """`seq` begins at the data folder's instance count times 2^36."""
    for instance in (1, 2):
        lanes = built(file).app.parts.lanes
        assert [lane.durable for lane in lanes] == [True, False, True]
        lane = lanes[1]
        await lane.append(batch())
        _, [stored] = await lane.reader(Part.ALL).read(1)
        assert stored.seq == instance * SEQ_PER_INSTANCE
        for open_lane in lanes:
            await open_lane.close()


async def test_two_gateways_cannot_share_a_data_folder(file: Path) -> None:
    """The second one is told so, in one line, before it changes anything in the buffers."""
    first = built(file)
    with pytest.raises(Permanent, match="in use by another gateway"):
        built(file)
    for lane in first.app.parts.lanes:
        await lane.close()


async def left(file: Path, **changes: object) -> Built:
    """A gateway after a change of the file, over buffers of which `all` holds a row."""
    first = built(file)
    await first.app.parts.lanes[0].append(batch())
    await closed(first)
    return build(load(file)[0].model_copy(update=changes))


async def closed(it: Built) -> None:
    for lane in it.app.parts.lanes:
        await lane.close()


async def test_a_buffer_without_its_route_is_drained_then_removed(file: Path) -> None:
    """It goes where the route went, marked historical, to its own stream; at the start after that it is gone."""
    send = load(file)[0].send
    second = await left(file, send={"every": send["all"], "energy": send["energy"]})
    [broker, other] = second.app.parts.sinks
    assert [lane.name for lane in broker.lanes] == ["every", "all"]
    assert [lane.name for lane in other.lanes] == ["energy"]
    sink, lane = FakeSink(), broker.lanes[1]
    sink.open.set()
    replay = Replay(lane.reader(Part.BACKLOG), 10, 10, 1e9)
    pump = Pump(lane, lane.reader(Part.LIVE), sink, FakeClock(), _no_dead_letter, rows_max=10, replay=replay)
    task = asyncio.create_task(pump.run())
    await until(lambda: lane.pending_rows == 0)
    task.cancel()
    await asyncio.wait([task])
    assert (sink.rows, pump.counters.totals["historical_rows"]) == (1, 1)
    await closed(second)
    third = build(load(file)[0].model_copy(update={"send": {"every": send["all"]}}))
    assert [lane.name for lane in third.app.parts.lanes] == ["every"]
    assert not (file.parent / "data" / "lanes" / "all").exists()
    await closed(third)


@pytest.mark.parametrize("change", ["destination gone", "fast now"])
async def test_a_buffer_that_has_nowhere_to_go_is_kept_and_said(
    file: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """With a line in the log at each start."""
    settings = load(file)[0]
    if change == "fast now":
        second = await left(file, send={"all": settings.send["all"].model_copy(update={"fast": True})})
    else:
        second = await left(file, send={"energy": settings.send["energy"]}, to={"other": settings.to["other"]})
    [record] = [record for record in caplog.records if "no longer there is kept" in record.getMessage()]
    assert record.__dict__["fields"]["route"] == "all"
    await closed(second)


async def _no_dead_letter(lane: str, refused: object, reason: str) -> None:
    raise AssertionError("nothing is rejected here")


async def test_no_local_pages(tmp_path: Path) -> None:
    """`listen: null` serves nothing."""
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE.format(data_dir=tmp_path / "data", listen="null"))
    assert built(path).service is None


def test_fast_tags_get_a_session_or_requests_of_their_own(file: Path) -> None:
    """OPC UA: unless all of the device is fast, learnt or dialled in. Modbus: read apart, unless all are fast."""
    text = file.read_text()
    found = with_fast_sessions(load(file)[0]).devices
    assert list(found) == ["press4", "meter7", "press4@fast"]
    assert list(found["press4"].tags) == ["pressure"] and list(found["press4@fast"].tags) == ["temperature"]
    file.write_text(text.replace("[press4/temp*]", "[press4, meter7/flow]"))
    found = with_fast_sessions(load(file)[0]).devices
    assert list(found) == ["press4", "meter7"] and list(found["press4"].tags) == ["temperature", "pressure"]
    assert isinstance(meter := found["meter7"], ModbusDevice) and meter.apart == {"flow"}
    file.write_text(text.replace("[press4/temp*]", '"*"'))
    found = with_fast_sessions(load(file)[0]).devices
    assert list(found) == ["press4", "meter7"]
    assert isinstance(meter := found["meter7"], ModbusDevice) and not meter.apart
    reverse = "reverse: {server: 'urn:press4', endpoint: opc.tcp://press4:4840}"
    file.write_text(text.replace("security: none", f"security: none\n    {reverse}"))
    assert list(with_fast_sessions(load(file)[0]).devices) == ["press4", "meter7"]
