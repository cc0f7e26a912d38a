"""Paths as settings; when one is suspicious; what is said of it."""

import pytest
from pydantic import ValidationError

from connectors.mqtt_settings import MqttTarget
from connectors.network import Network
from connectors.network_paths import STEADY_NS, PathState, Patience
from connectors.network_settings import FAST_SUSPECT_NS
from connectors.tcp_path import Silence, TcpInfo

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
