"""`/health`: what it says of components and lanes, and the roll-up."""

from __future__ import annotations

import orjson
import pytest

from gateway.health import FAULTS_SHOWN_MAX, Health
from gateway.supervisor import State
from pipelines.lane_memory import MemoryLane
from tests.unit.gateway.fakes import FakeClock, FakeComponent, batch, component

UP, DOWN = State.UP, State.DOWN


def health(*components: FakeComponent) -> Health:
    return Health("line1-gw", FakeClock(), components, [])


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("source up, source up, sink up", "ok"),
        ("source up, source down, sink up", "degraded"),
        ("source faulted, source up, sink up", "degraded"),
        ("source up, sink up, sink down", "degraded"),
        ("source down, source faulted, sink up", "down"),
        ("source up, source up, sink down", "down"),
        ("source connecting, sink connecting", "down"),
    ],
)
def test_roll_up(states: str, expected: str) -> None:
    """ok: all up; down: nothing is collected or nothing is delivered; degraded: between."""
    pairs = [text.split() for text in states.split(", ")]
    assert health(*(component(kind, f"c{i}", State(state)) for i, (kind, state) in enumerate(pairs))).status == expected


class BadClock:
    """A host's clock that is worse than it may be."""

    alarm = "the gateway's clock is worse than max_clock_error (1ms)"

    def report(self) -> dict[str, str]:
        return {"alarm": self.alarm}


def test_a_bad_clock_degrades_and_is_shown() -> None:
    """Whatever is up; it stops nothing, and what is worse stays worse."""
    works, dead = health(component("source", "a", UP)), health(component("source", "a", DOWN))
    assert works.report()["clock"] == {}
    works.clock = dead.clock = BadClock()
    assert (works.status, dead.status) == ("degraded", "down")
    assert works.report()["clock"] == {"alarm": BadClock.alarm}


def test_what_is_up_may_say_how_it_came_about() -> None:
    """A takeover or a backfill is no fault, but to be seen; what is down has its reason instead."""
    up, down = component("source", "a", UP), component("source", "b", State.DOWN, "off")
    up.info = down.info = "3 subscriptions taken over"
    first, second = health(up, down).report()["components"]
    assert first["info"] == "3 subscriptions taken over" and "info" not in second


def test_tag_faults_degrade_and_are_listed() -> None:
    """A wrong node id is a state of its tag: the component is degraded, and so is the gateway; long lists are cut."""
    report = health(
        component("source", "press4", UP, temp="no such node ns=2;s=x"), component("sink", "mqtt", UP)
    ).report()
    assert report["status"] == "degraded"
    assert report["components"][0] == {
        "kind": "source",
        "name": "press4",
        "state": "degraded",
        "since": "2026-11-22T10:35:13Z",
        "reason": "1 tag cannot be read",
        "faults_total": 1,
        "faults": {"temp": "no such node ns=2;s=x"},
    }
    many = health(component("source", "press4", UP, **{f"t{i}": "x" for i in range(50)})).report()["components"][0]
    assert (many["faults_total"], len(many["faults"])) == (50, FAULTS_SHOWN_MAX)


def test_preferred_servers_that_do_not_work() -> None:
    """A sink on its second server works, and needs a person's eye: degraded, with what is used and what is not."""
    sink = component("sink", "plant", UP)
    sink.server, sink.faults = "mqtts://b", {"mqtts://a": "refused"}
    shown = health(sink).report()["components"][0]
    assert (shown["state"], shown["server"], shown["faults"]) == ("degraded", "mqtts://b", {"mqtts://a": "refused"})
    assert shown["reason"] == "1 preferred server cannot be used"


def test_reason_and_attempts_of_what_is_down() -> None:
    """One line why, and how often it was tried."""
    shown = health(component("source", "press4", DOWN, "refused")).report()["components"][0]
    assert (shown["state"], shown["reason"], shown["attempts"]) == ("down", "refused", 3)


def test_503_only_when_stopping_or_failed() -> None:
    """A plant that is switched off is no reason to restart the gateway."""
    answer = health(component("source", "press4", DOWN, "refused"), component("sink", "mqtt", DOWN, "refused"))
    assert (answer.status, answer.http_status) == ("down", 200)
    for phase in ("stopping", "failed"):
        answer.phase = phase
        assert (answer.status, answer.http_status) == (phase, 503)


async def test_lanes_uptime_and_identity() -> None:
    """Pending and dropped rows per lane; the answer is JSON."""
    clock = FakeClock()
    lane = MemoryLane("live", bytes_max=2**20)
    await lane.append(batch(rows=5))
    lane.counters.add("dropped_rows", 2)
    answer = Health("line1-gw", clock, [], [lane])
    clock.forward(61.04)
    report = orjson.loads(orjson.dumps(answer.report()))
    [shown] = report["lanes"]
    assert shown.pop("pending_bytes") > 0
    assert shown == {
        "name": "live",
        "durable": False,
        "pending_rows": 5,
        "oldest_s": 61.0,
        "dropped_rows": 2,
        "corrupt_rows": 0,
    }
    assert (report["gateway"], report["uptime_s"]) == ("line1-gw", 61.0)
    assert report["version"]
