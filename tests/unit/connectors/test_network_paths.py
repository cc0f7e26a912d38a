"""Paths as settings; when one is suspicious; what is said of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from connectors import network_paths
from connectors.kafka_settings import KafkaTarget
from connectors.mqtt_settings import MqttTarget
from connectors.network import Network
from connectors.network_paths import STEADY_NS, PathState, PathSuspected, Patience, Watched, watch
from connectors.network_settings import FAST_SUSPECT_NS
from connectors.tcp_path import Silence, TcpInfo
from pipelines.errors import GatewayError
from tests.unit.pipelines.fakes import FakeClock, until

MS = 10**6
IDLE = TcpInfo(0, 0, 5000, 4000, 500, 0, 0, 65535)
PATHS = {"urllc": {"bind": "wwan0", "dscp": "EF"}, "embb": {"bind": "wwan1"}}
BOTH = ["mqtt://a", "mqtt://b"]


def _target(**keys: object) -> MqttTarget:
    return MqttTarget.model_validate({"mqtt": "mqtt://a", "paths": PATHS, **keys})


def test_candidates_are_brokers_by_paths() -> None:
    """The preferred broker by all of its paths first; a path may lead to one broker only."""
    paths = {**PATHS, "wire": {"server": "mqtt://b"}}
    target = _target(mqtt=BOTH, paths=paths, network={"dscp": "CS1"})
    assert [one.way for one in target.servers] == [
        "mqtt://a (urllc)",
        "mqtt://a (embb)",
        "mqtt://b (urllc)",
        "mqtt://b (embb)",
        "mqtt://b (wire)",
    ]
    assert [one.network.network for one in target.servers[:2]] == [Network("wwan0", "", 46), Network("wwan1", "", 8)]
    assert [one.way for one in _target(paths={}).servers] == ["mqtt://a"]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"x": {"server": "mqtt://c"}}, "mqtt://c is none of this destination's brokers: mqtt://a, mqtt://b"),
        ({"x": {"server": "mqtt://a"}}, "no path leads to mqtt://b"),
        ({"x": {"dscp": "EEF"}}, "did you mean `EF`"),
        ({"x y": {}}, "pattern"),
    ],
)
def test_paths_that_cannot_be(paths: object, words: str) -> None:
    """Refused by name."""
    with pytest.raises(ValidationError, match=words):
        _target(mqtt=BOTH, paths=paths)


def test_sessions_of_one_destination() -> None:
    """A second one has another client id and no status; a fast one is suspicious sooner, unless the file says when."""
    target = _target(client_id="gw")
    first, second = target.by(["urllc", "embb"], True, first=True), target.by(["embb"], False, first=False)
    assert (first.client_id, first.status_topic, first.suspect_ns) == ("gw", target.status_topic, FAST_SUSPECT_NS)
    assert (second.client_id, second.status_topic, second.suspect_ns) == ("gw-embb", None, 10**9)
    assert [one.path for one in second.servers] == ["embb"]
    assert _target(suspect="3s").by(["embb"], True, first=True).suspect_ns == 3 * 10**9


def test_candidates_of_kafka() -> None:
    """Every path with all of the brokers. Sessions beside one another may have one client id."""
    target = KafkaTarget.model_validate({"kafka": "k1, k2", "paths": PATHS, "network": {"dscp": 8}, "client_id": "gw"})
    assert [one.way for one in target.candidates] == ["k1:9092, k2:9092 (urllc)", "k1:9092, k2:9092 (embb)"]
    assert [one.servers for one in target.candidates][1] == "k1:9092, k2:9092 by embb"
    assert [one.network.network for one in target.candidates] == [Network("wwan0", "", 46), Network("wwan1", "", 8)]
    own = target.by(["embb"], True, first=False)
    assert ([*own.paths], own.client_id, own.suspect_ns, target.suspect_ns) == (["embb"], "gw", FAST_SUSPECT_NS, 10**9)
    plain = KafkaTarget(kafka=("k1:9092",))
    assert [(one.way, one.servers) for one in plain.candidates] == [("", "k1:9092")]
    with pytest.raises(ValidationError, match="urllc: leave out server: each broker of a Kafka cluster is needed"):
        KafkaTarget.model_validate({"kafka": "k1", "paths": {"urllc": {"server": "k1"}}})


@dataclass(eq=False)
class Connection:
    """A socket that says `info`; `oldest` waits for the far side's answer."""

    info: TcpInfo = IDLE
    oldest: object | None = None


@dataclass
class Session:
    """Two connections by one path. `fails`: from when on the second one's peer is silent."""

    clock: FakeClock
    fails_ns: int
    connections: list[Connection] = field(default_factory=lambda: [Connection(), Connection()])
    pings: list[int] = field(default_factory=list)
    error: GatewayError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def watched(self) -> Watched:
        return Watched(self._waiting, lambda: self.pings.append(self.clock.now_ns), self._end, self.ended)

    def _waiting(self) -> Any:
        if self.clock.now_ns >= self.fails_ns:
            self.connections[1].info = IDLE._replace(unacked_segments=2)
        return {one: one.oldest for one in self.connections}

    def _end(self, error: GatewayError) -> None:
        self.error = error
        self.ended.set()


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Watches a session for some seconds: the session, and what is known of its path then."""
    monkeypatch.setattr(network_paths, "tcp_info", lambda sock: sock.info)

    async def run(seconds: float, another: bool = True, **how: Any) -> tuple[Session, PathState]:
        clock = FakeClock()
        clock.now_ns = 0
        session, state = Session(clock, **how), PathState("plant", "a")
        state.begin()
        done = watch(session.watched(), "k (a)", state, Patience(10**9, 2 * 10**9), clock, lambda: another)
        task = asyncio.create_task(done)
        await until(lambda: clock.now_ns >= seconds * 1e9 or task.done())
        task.cancel()
        await asyncio.wait([task])
        return session, state

    return run


async def test_one_silent_connection_of_several(watching: Callable[..., Any]) -> None:
    """Is enough, where another path may work."""
    session, state = await watching(60.0, fails_ns=5 * 10**9)
    assert isinstance(session.error, PathSuspected)
    assert str(session.error).startswith("k (a): nothing acknowledged for 1000 ms")
    assert session.clock.now_ns == 6 * 10**9
    assert state.works is False
    assert state.counters.gauges["unacked_segments"] == 2
    session, state = await watching(60.0, another=False, fails_ns=5 * 10**9)
    assert (session.error, state.works) == (None, True)


async def test_an_idle_session_is_pinged(watching: Callable[..., Any]) -> None:
    """Four times within `suspect`; not while something waits for its answer."""
    session, _ = await watching(2.0, fails_ns=10**18)
    assert session.pings[:4] == [250 * MS, 500 * MS, 750 * MS, 1000 * MS]
    busy = [Connection(), Connection(oldest="request 5")]
    session, state = await watching(2.0, fails_ns=10**18, connections=busy)
    assert session.pings == []
    assert state.counters.gauges["acknowledgement_age_seconds"] >= 1.9


def test_silence() -> None:
    """From when something waits; not longer than since the last acknowledgement; not while the far side's window is
    closed."""
    silence, busy = Silence(), IDLE._replace(unacked_segments=3)
    assert silence.age_ns(IDLE, 0) == 0
    assert silence.age_ns(busy, 50 * MS) == 0, "an idle connection's last acknowledgement is old"
    assert [silence.age_ns(busy, at * MS) for at in (150, 250)] == [100 * MS, 200 * MS]
    assert silence.age_ns(busy._replace(last_ack_ms=10), 300 * MS) == 10 * MS
    assert silence.age_ns(IDLE, 350 * MS) == 0
    silence.age_ns(busy, 360 * MS)
    assert silence.age_ns(busy, 800 * MS) == 0, "nobody looked meanwhile"
    silence.age_ns(IDLE, 850 * MS)
    unsent = IDLE._replace(notsent_bytes=100)
    assert [silence.age_ns(unsent, at * MS) for at in (900, 1000)] == [0, 100 * MS], "the interface is down"
    assert silence.age_ns(unsent._replace(window_bytes=0), 1100 * MS) == 0, "slow to read"


def test_patience_grows_with_mistakes() -> None:
    """A session that is given up early doubles the bound, up to ack_timeout; one that lasted makes it short again."""
    patience = Patience(200 * MS, 10**9)
    bounds = []
    for _ in range(4):
        bounds.append(patience.bound_ns // MS)
        patience.given_up(10**9)
    assert bounds == [200, 400, 800, 1000]
    patience.given_up(STEADY_NS)
    assert patience.bound_ns == 200 * MS


def test_what_is_said_of_a_path() -> None:
    """In health one line for each; as metrics under DESTINATION/PATH."""
    state = PathState("plant", "embb")
    assert str(state) == "embb not tried"
    state.note(True, 12_300_000)
    assert str(state) == "embb works (12.3 ms)"
    state.begin()
    assert str(state) == "embb in use (rtt 0.0 ms, 0 segments resent)"
    state.use(False)
    state.note(False)
    assert str(state) == "embb does not work"
    assert (state.counters.kind, state.counters.name) == ("path", "plant/embb")
    assert state.counters.gauges == {"used": 0, "works": 0, "probe_seconds": 0.0123}
