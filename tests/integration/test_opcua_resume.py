"""What is not lost at a kill, a stop, a cut and a server's restart: OPC UA sources over real disk lanes, per server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua

from connectors import opcua_link, opcua_plan
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice
from pipelines.errors import NotConnected
from pipelines.gaps import Gap, Reason
from tests.conftest import made
from tests.integration.opcua_rig import Counter, Make, Rig
from tests.services.asyncua_server import AsyncuaServer
from tests.services.milo import Group, Milo, expected_value
from tests.services.node_opcua import NodeOpcua

TAG = "counter"


@dataclass
class Plant:
    """A server with a variable that can be written."""

    server: Any
    node: str
    more: Mapping[str, Any] = field(default_factory=dict)
    """Settings."""
    repeats: int = 0
    """How often it sends the present value again, under a number of its own, when a session is taken up again."""

    def write(self, number: int) -> None:
        self.server.set_value("Double", float(number))

    def settings(self, **options: Any) -> OpcUaDevice:
        tags = {TAG: self.node}
        settings = {"opcua": self.server.url, "security": "none", "every": "50ms", "sampling": 0, "queue": 1000}
        return OpcUaDevice.model_validate({**settings, "timeout": "2s", "tags": tags, **self.more, **options})


@pytest.fixture(scope="module")
def node_opcua_plant() -> Iterator[Plant]:
    # With a user: the standard lets anonymous ones have their subscriptions back on secured channels only.
    with made(lambda: NodeOpcua(user="operator", password="secret")) as server:
        yield Plant(server, "ns=1;s=Double", {"auth": {"user": "operator", "password": "secret"}}, repeats=1)


@pytest.fixture(scope="module")
def asyncua_plant() -> Iterator[Plant]:
    with made(AsyncuaServer) as server:
        yield Plant(server, "ns=2;s=Double")


@pytest.fixture(params=["node_opcua_plant", "asyncua_plant"])
def plant(request: pytest.FixtureRequest) -> Plant:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Plant)
    return found


def once_each(values: list[Any], last: int) -> bool:
    """1 ... last, each once and in order, behind what the variable held at the first connect."""
    return values[-last:] == [float(number) for number in range(1, last + 1)]


async def begun(first: Rig, plant: Plant) -> Counter:
    """Collects what is there, then counts."""
    plant.write(0)
    await first.start()
    await first.has(0.0, TAG)
    return Counter(plant.write)


async def test_after_a_kill_each_lane_gets_what_it_lacks_and_nothing_twice(
    node_opcua_plant: Plant, rig: Make, tmp_path: Path
) -> None:
    """kill -9 while one lane's disk hangs: the subscriptions are taken over, what was not acknowledged is sent again,
    and skipped in the lane that has it."""
    plant = node_opcua_plant
    first = rig(plant.settings(), lanes=2)
    counter = await begun(first, plant)
    await first.has(10.0, TAG, 1)
    first.durable[1].hangs = True
    shutil.copytree(tmp_path / "first" / "lanes" / "lane1", tmp_path / "before")
    await counter.reaches(20)
    await first.has(float(counter.last), TAG, 0)
    await first.kill(tmp_path / "second", {"lane1": tmp_path / "before"})
    await counter.reaches(20)
    second = rig(plant.settings(), "second", lanes=2)
    await second.start()
    await counter.reaches(10)
    last = await counter.stopped()
    for lane in (0, 1):
        assert once_each(await second.has(float(last), TAG, lane), last), f"lane {lane}"
    assert second.skipped(0) > 0 and second.skipped(1) < second.skipped(0)
    assert second.counted["transferred"] == 1 and second.counted["republished_notifications"] > 0
    assert "taken over" in second.source.info and not second.notes


async def test_anonymous_sessions_without_security_are_taken_up_by_the_next_process(
    milo: Callable[..., Milo], rig: Make, tmp_path: Path
) -> None:
    """Milo, 200 variables in two subscriptions every 20 ms: a kill, then a clean stop; every tick of each, once."""
    server = milo([Group("v", "double", 200, 20)])
    tags = {f"v{i}": {"node": f"ns=2;s=v{i}", "every": "50ms" if i % 2 else "100ms"} for i in range(200)}
    settings = OpcUaDevice.model_validate(
        {"opcua": server.url, "security": "none", "sampling": "10ms", "queue": 500, "timeout": "4s", "tags": tags}
    )
    first = rig(settings)
    await first.start()
    await first.until(bool, "v199")
    server.go()
    await first.has(expected_value(199, 20, "double"), "v199")
    await first.kill(tmp_path / "second")
    second = rig(settings, "second")
    await second.start()
    await second.until(lambda values: len(values) > 60, "v199")
    await second.stop()
    third = rig(settings, "second")
    await third.start()
    await third.until(lambda values: len(values) > 100, "v199")
    last = server.stop_ticking()["v"]
    for i in (0, 1, 100, 198, 199):
        values = await third.has(expected_value(i, last, "double"), f"v{i}")
        assert values[-last:] == [expected_value(i, tick, "double") for tick in range(1, last + 1)], i
    assert second.counted["reactivated"] == third.counted["reactivated"] == 1 and not [*second.notes, *third.notes]


async def test_what_was_acknowledged_is_not_sent_again(
    node_opcua_plant: Plant, rig: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill long after the last value: the server has nothing left to send."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 200_000_000)  # acknowledgements go with the next request
    plant = node_opcua_plant
    first = rig(plant.settings())
    counter = await begun(first, plant)
    await counter.reaches(5)
    last = await counter.stopped()
    await first.has(float(last), TAG)
    await _settled(lambda: not first.source._streams._unacknowledged and not first.source._streams._acks)
    assert first.source._link.session is not None
    await first.source._link.session.read_attributes([ua.NodeId(2257)], ua.AttributeIds.Value)  # it is there
    await first.kill(tmp_path / "second")
    second = rig(plant.settings(), "second")
    await second.start()
    plant.write(last + 1)
    assert once_each(await second.has(float(last + 1), TAG), last + 1)
    assert "republished_notifications" not in second.counted and second.skipped() == 0


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_subscriptions_are_handed_over_in_a_secured_channel(
    node_opcua_plant: Plant, rig: Make, tmp_path: Path, end: str
) -> None:
    """SignAndEncrypt, anonymous: the next process takes them over (TransferSubscriptions), and nothing is lost."""
    plant = node_opcua_plant
    settings = plant.settings(security="best", trust=plant.server.thumbprint, auth=None)
    first = rig(settings)
    counter = await begun(first, plant)
    await counter.reaches(10)
    if end == "kill":
        await first.kill(tmp_path / "second")
    else:
        await first.stop()
    await counter.reaches(20)
    second = rig(settings, "second" if end == "kill" else "first")
    await second.start()
    await counter.reaches(10)
    last = await counter.stopped()
    assert once_each(await second.has(float(last), TAG), last)
    assert second.counted["transferred"] == 1 and not second.notes


async def test_milo_hands_subscriptions_over_in_a_secured_channel(rig: Make, tmp_path: Path) -> None:
    """The same with another stack: every tick, also those while nobody was there."""
    with made(lambda: Milo([Group("v", "double", 1, 50)])) as server:
        options = {"opcua": server.url, "every": "50ms", "sampling": 0, "queue": 1000, "tags": {TAG: "ns=2;s=v0"}}
        settings = OpcUaDevice.model_validate({**options, "trust": server.certificate.thumbprint})
        first = rig(settings)
        await first.start()
        await first.has(expected_value(0, 0, "double"), TAG)
        await asyncio.to_thread(server.go, 5)
        await first.has(expected_value(0, 5, "double"), TAG)
        await asyncio.to_thread(server.wait_finished, 30.0)
        await first.kill(tmp_path / "second")
        await asyncio.to_thread(server.go, 5)
        await asyncio.to_thread(server.wait_finished, 30.0)
        second = rig(settings, "second")
        await second.start()
        values = await second.has(expected_value(0, 10, "double"), TAG)
        assert values == [expected_value(0, tick, "double") for tick in range(11)]
        assert second.counted["transferred"] == 1 and not second.notes


async def test_a_clean_stop_loses_nothing_either(node_opcua_plant: Plant, rig: Make) -> None:
    """systemctl restart: the subscriptions stay while the gateway is away, and what they held is delivered."""
    plant = node_opcua_plant
    first = rig(plant.settings())
    counter = await begun(first, plant)
    await counter.reaches(10)
    await first.stop()
    await counter.reaches(20)
    second = rig(plant.settings())
    await second.start()
    last = await counter.stopped()
    assert once_each(await second.has(float(last), TAG), last)
    assert second.counted["transferred"] == 1 and not second.notes


async def test_a_cut_connection_is_taken_up_again(plant: Plant, rig: Make) -> None:
    """Same process, TCP reset twice: the session is reactivated; nothing is missing, nothing twice, in no lane."""
    first = rig(plant.settings(), fast=True)
    counter = await begun(first, plant)
    for _ in range(2):
        await counter.reaches(10)
        first.drop_connection()
        await first.ended()
        await counter.reaches(5)
        await first.start()
        assert "taken up again" in first.source.info
    await counter.reaches(5)
    last = await counter.stopped()
    for lane in (0, 1):
        values = await first.has(float(last), TAG, lane)
        assert once_each(list(dict.fromkeys(values)), last), f"lane {lane}"
        assert len(values) - len(set(values)) <= 2 * plant.repeats, f"lane {lane}"
    assert first.counted["reactivated"] == 2 and not first.notes


async def test_an_attempt_that_fails_forgets_nothing(plant: Plant, rig: Make, tmp_path: Path) -> None:
    """The server does not answer the first attempt, of this process and of the next one: nothing is lost for that."""
    first = rig(plant.settings())
    counter = await begun(first, plant)
    for number in ("first", "second"):
        await counter.reaches(10)
        if number == "first":
            first.drop_connection()
            await first.ended()
        else:
            await first.kill(tmp_path / "second")
            first = rig(plant.settings(), "second")
        await counter.reaches(5)
        plant.server.process.pause()
        with pytest.raises(NotConnected):
            await first.start()
        plant.server.process.resume()
        await first.start()
        assert "taken up again" in first.source.info or "taken over" in first.source.info
    await counter.reaches(5)
    last = await counter.stopped()
    assert once_each(list(dict.fromkeys(await first.has(float(last), TAG))), last)
    assert not first.notes


async def test_a_silent_connection_is_given_up_and_its_session_is_not(
    plant: Plant, rig: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer for some keep-alives: no CloseSession goes out, which would arrive later; nothing is lost, even where
    no lane is durable."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 200_000_000)
    first = rig(plant.settings(), lanes=0, fast=True)
    counter = await begun(first, plant)
    await counter.reaches(10)
    plant.server.process.pause()
    error = await first.ended()
    assert isinstance(error, BaseExceptionGroup) and "no publish response" in str(error.exceptions[0])
    plant.server.process.resume()
    await counter.reaches(5)
    await first.start()
    assert "taken up again" in first.source.info
    last = await counter.stopped()
    assert once_each(list(dict.fromkeys(await first.has(float(last), TAG))), last)
    assert not first.notes


async def test_a_server_that_forgets_is_subscribed_to_anew_and_the_gap_is_in_the_ledger(
    plant: Plant, rig: Make
) -> None:
    """A restarted server: new subscriptions, new streams (nothing is taken for known), one gap that is not filled."""
    first = rig(plant.settings())
    counter = await begun(first, plant)
    await counter.reaches(10)
    last = await counter.stopped()
    await first.has(float(last), TAG)
    await asyncio.to_thread(plant.server.kill)
    await first.ended()
    await asyncio.to_thread(plant.server.start)
    plant.write(1000)
    await first.start()
    await first.has(1000.0, TAG)
    plant.write(1001)
    assert (await first.has(1001.0, TAG))[-2:] == [1000.0, 1001.0]
    assert first.counted["recreated"] == 1 and first.skipped() == 0
    await _settled(lambda: bool(first.notes))
    [gap] = first.notes
    assert (gap.reason, gap.device, gap.backfilled, gap.rows) == (Reason.DISCONNECTED, "press", False, None)
    assert gap.from_ns < gap.to_ns


async def test_a_server_that_hands_over_and_sends_nothing_gets_new_subscriptions(
    node_opcua_plant: Plant, rig: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken over, but nothing comes, not even a keep-alive: noticed before the usual silence, said, and replaced."""
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 200_000_000)
    monkeypatch.setattr("connectors.opcua_silence.PROOF_S", 0.5)
    plant = node_opcua_plant
    first = rig(plant.settings())
    counter = await begun(first, plant)
    await counter.reaches(5)
    await counter.stopped()
    await first.kill(tmp_path / "second")
    second = rig(plant.settings(), "second")
    with monkeypatch.context() as patch:
        patch.setattr(PublishSession, "arm", lambda _session, _acks: None)
        await second.start()
        error = await second.ended()
    assert isinstance(error, BaseExceptionGroup) and error.subgroup(NotConnected)
    assert "sends nothing" in str(error.exceptions[0])
    plant.write(4000)
    await second.start()
    plant.write(5000)
    await second.has(5000.0, TAG)
    await _settled(lambda: bool(second.notes))
    assert [gap.reason for gap in second.notes] == [Reason.DISCONNECTED]


async def test_a_server_that_hands_over_badly_is_coped_with(
    asyncua_plant: Plant, rig: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncua's server answers TransferSubscriptions with Good, and then the dead connection's requests on the new one,
    or none at all: collection goes on within a few sessions, and what is missing is in the ledger."""
    monkeypatch.setattr(opcua_link.KeptSession, "anonymous", lambda _session, _timeout_ms: None)
    monkeypatch.setattr(opcua_plan, "KEEP_ALIVE_NS", 500_000_000)
    monkeypatch.setattr("connectors.opcua_silence.PROOF_S", 0.5)
    plant = asyncua_plant
    first = rig(plant.settings())
    counter = await begun(first, plant)
    await counter.reaches(10)
    await first.kill(tmp_path / "second")
    last = await counter.stopped() + 1
    second = rig(plant.settings(), "second")
    for _ in range(5):
        await second.start()
        plant.write(last)
        try:
            await second.has(float(last), TAG)
            break
        except BaseExceptionGroup as error:
            assert error.subgroup(NotConnected)
            await second.ended()
    found = await second.values(TAG)
    assert once_each(found, last) or "recreated" in second.counted, (
        f"{found} of {last}, {dict(second.counted)}, {second.notes}"
    )
    if "recreated" in second.counted:
        await _settled(lambda: bool(second.notes))


async def test_a_changed_configuration_or_a_damaged_file_means_new_subscriptions(
    node_opcua_plant: Plant, rig: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Said in one line each, and collection goes on."""
    plant = node_opcua_plant
    caplog.set_level("INFO")
    first = rig(plant.settings())
    await first.start()
    await first.until(bool, TAG)
    await first.stop()
    second = rig(plant.settings(every="60ms"))
    await second.start()
    await second.until(lambda values: len(values) >= 2, TAG)
    assert "configuration has changed" in caplog.text and second.counted["recreated"] == 1
    await second.stop()
    file = second.folder / "opcua" / "press.json"
    file.write_bytes(file.read_bytes()[:-1])
    third = rig(plant.settings(every="60ms"))
    await third.start()
    await third.until(lambda values: len(values) >= 3, TAG)
    assert "is damaged" in caplog.text and third.counted["recreated"] == 1


async def test_what_fell_out_of_the_servers_queue_is_in_the_ledger_by_its_own_times(
    asyncua_plant: Plant, rig: Make
) -> None:
    """From the newest value before to the first one that says so, however late it is heard of."""
    first = rig(asyncua_plant.settings())
    begin_ns = 1_700_000_000_000_000_000
    asyncua_plant.server.set_value("Double", 1.0, source_ns=begin_ns)
    await first.start()
    await first.has(1.0, TAG)
    asyncua_plant.server.set_value("Double", 9.0, source_ns=begin_ns + 60_000_000_000, status=0x0480)
    await first.has(9.0, TAG)
    [gap] = first.notes
    assert gap == Gap(Reason.QUEUE_OVERFLOW, "press", "", (TAG,), begin_ns, begin_ns + 60_000_000_000, None)


async def test_a_fast_only_gateway_leaves_nothing_behind(node_opcua_plant: Plant, rig: Make) -> None:
    """No durable lane: no file, and the server has no subscription left after a stop."""
    first = rig(node_opcua_plant.settings(), lanes=0, fast=True)
    await first.start()
    await first.until(bool, TAG)
    [subscription] = first.source._link.state.subscriptions
    assert subscription is not None
    await first.stop()
    assert not (first.folder / "opcua" / "press.json").exists()
    other = rig(node_opcua_plant.settings(), "other", lanes=0, fast=True)
    other.source._link.state.subscriptions = [subscription]
    other.source._link.state.server_start = first.source._link.state.server_start
    await other.start()
    assert other.source.info.startswith("new subscriptions: the old ones are gone")


async def _settled(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110  what is waited for happens elsewhere
            await asyncio.sleep(0.02)
