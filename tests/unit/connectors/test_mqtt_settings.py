"""Settings of an MQTT destination, topics, and the words of its errors."""

import socket
import ssl
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.mqtt_errors import connack_error, opening_error
from connectors.mqtt_settings import MqttTarget
from connectors.mqtt_topic import Topics, fill
from connectors.payload import Identity
from pipelines.errors import NotConnected, Permanent
from pipelines.tags import Tag, TagTable


def mqtt(**settings: Any) -> MqttTarget:
    """As in a file; to `h` where no broker is named."""
    return MqttTarget.model_validate({"mqtt": "mqtt://h", **settings})


def test_defaults() -> None:
    """The short file is the right file."""
    target = mqtt(mqtt="mqtts://broker.plant")
    assert (target.host, target.port, target.secure, target.per_tag) == ("broker.plant", 8883, True, False)
    assert (target.topic, target.format, target.qos, target.protocol) == ("{site}/{device}", "json", 1, "5")
    assert (target.keep_alive, target.ack_timeout, target.retain) == (30 * 10**9, 2 * 10**9, False)
    assert mqtt(mqtt="mqtt://[::1]").host == "::1" and mqtt(mqtt="mqtt://h:1").port == 1
    assert mqtt(protocol=5, keep_alive="1m").protocol == "5"


def test_several_brokers() -> None:
    """One address or a list; each broker by itself has the other settings too."""
    target = mqtt(mqtt=["mqtts://a", "mqtts://b:1"], qos=0)
    assert [(one.host, one.port, one.mqtt, one.qos) for one in target.servers] == [
        ("a", 8883, ("mqtts://a",), 0),
        ("b", 1, ("mqtts://b:1",), 0),
    ]
    assert mqtt().servers == (mqtt(),) and target.hold == 30 * 10**9


def test_local_broker() -> None:
    """A word, an address, or keys; the embedded broker has a protocol, a place and an audience of its own."""
    target = mqtt(mqtt="mqtts://h", local="embedded", auth={"user": "u"}, tls={}, client_id="c", format="msgpack")
    assert target.local
    here = target.at_local(target.local)
    assert (here.mqtt, here.protocol, here.format) == (("mqtt://127.0.0.1:1883",), "3.1.1", "msgpack")
    assert (here.auth, here.tls, here.client_id, here.local) == (None, None, None, None)
    named = mqtt(local="mqtt://mes:1883")
    assert named.local and named.at_local(named.local).address == "mqtt://mes:1883"
    assert named.at_local(named.local).protocol == "5"
    everywhere = mqtt(local={"listen": "0.0.0.0:1884", "insecure": True}).local
    assert everywhere and everywhere.url == "mqtt://127.0.0.1:1884"


@pytest.mark.parametrize(
    ("settings", "field", "text"),
    [
        ({"mqtt": "tcp://h"}, "mqtt", "write mqtt://host:1883"),
        ({"mqtt": "broker:1883"}, "mqtt", "write mqtt://host:1883"),
        ({"mqtt": "mqtt://u:p@h"}, "mqtt", "write auth:"),
        ({"mqtt": "mqtt://h:99999"}, "mqtt", "no usable port"),
        ({"mqtt": "mqtt://h:0"}, "mqtt", "no usable port"),
        ({"mqtt": "mqtt://h/topic"}, "mqtt", "topics are set with topic:"),
        ({"mqtt": []}, "mqtt", "name each broker once"),
        ({"mqtt": ["mqtt://a", "mqtt://a"]}, "mqtt", "name each broker once"),
        ({"mqtt": ["mqtts://a", "mqtt://b"]}, "mqtt", "nothing falls back from TLS to plain TCP"),
        ({"mqtt": ["mqtt://a", 5]}, "mqtt", "write mqtt://host:1883"),
        ({"hold": 0}, "hold", "greater than 0"),
        ({"local": "here"}, "local", "write mqtt://host:1883"),
        ({"local": {"mqtt": "mqtt://h", "listen": "127.0.0.1:1"}}, "local", "belong to the embedded broker"),
        ({"local": {"auth": {"user": "u"}}}, "local", "neither users nor TLS"),
        ({"local": {"mqtt": "mqtt://h", "tls": {}}}, "local", "tls needs an address with mqtts"),
        ({"local": {"listen": "1883"}}, "local", "is not an address and port"),
        ({"local": {"listen": "localhost:1883"}}, "local", "is no IP address"),
        ({"local": {"listen": "0.0.0.0:1883"}}, "local", "add insecure: true"),
        ({"topic": "{site}/{devise}"}, "topic", "unknown placeholder {devise}"),
        ({"topic": "{site}/{}"}, "topic", "unknown placeholder {}"),
        ({"topic": "{device!r}"}, "topic", "unknown placeholder"),
        ({"topic": "a/{device"}, "topic", "is no topic"),
        ({"topic": "a/#"}, "topic", "wildcard"),
        ({"topic": "/"}, "topic", "at least one level"),
        ({"format": "value"}, "format", "needs {tag} in topic"),
        ({"tls": {"ca": "x.pem"}}, "tls", "tls needs an address with mqtts"),
        ({"qos": 2}, "qos", "0 or 1"),
        ({"protocol": "3.1"}, "protocol", "3.1.1"),
        ({"keep_alive": "500ms"}, "keep_alive", "between 1s"),
        ({"ack_timeout": "1ms"}, "ack_timeout", "between 100ms"),
        ({"status_topic": "{device}/status"}, "status_topic", "unknown placeholder {device}"),
        ({"topik": "x"}, "topik", "Extra inputs"),
    ],
)
def test_refused(settings: dict[str, Any], field: str, text: str) -> None:
    """Each mistake names its own field in one clear line."""
    with pytest.raises(ValidationError) as caught:
        MqttTarget.model_validate({"mqtt": "mqtt://h"} | settings)
    errors = caught.value.errors()
    assert [error["loc"][0] for error in errors] == [field]
    assert text in errors[0]["msg"]


def test_schema_is_exportable() -> None:
    """Every field has a description."""
    schema = MqttTarget.model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())


def test_topics() -> None:
    """Placeholders, levels, wildcards in names, the worker's part of a lane name, an empty site."""
    identity, tag = Identity("gw", "acme/plant1"), Tag("press4", "zone#1/temp+")
    assert fill("{site}/{device}/{tag}", identity, tag) == "acme/plant1/press4/zone_1/temp_"
    assert fill("{site}/{device}", Identity("gw"), tag) == "press4"
    tags = TagTable()
    tag_id = tags.add(tag)
    topics = Topics("{route}/{gateway}/{device}", identity, tags, "history@2")
    assert topics[tag_id] == b"\x00\x11history/gw/press4"


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (0x01, Permanent, "protocol: 3.1.1"),
        (0x02, Permanent, "set client_id"),
        (0x03, NotConnected, "not available now"),
        (0x04, Permanent, "check auth"),
        (0x05, Permanent, "check auth"),
        (0x84, Permanent, "protocol: 3.1.1"),
        (0x85, Permanent, "'client-7'"),
        (0x86, Permanent, "Bad user name or password (0x86)"),
        (0x87, Permanent, "Not authorized (0x87)"),
        (0x88, NotConnected, "Server unavailable"),
        (0x89, NotConnected, "Server busy"),
        (0x8A, Permanent, "Banned"),
        (0x9B, Permanent, "set qos: 0"),
        (0xF7, Permanent, "reason code 0xF7"),
    ],
)
def test_connack_refusals(code: int, kind: type[Exception], text: str) -> None:
    """What can pass is NotConnected, what needs somebody's hand is Permanent."""
    error = connack_error(mqtt(mqtt="mqtt://h:1884"), "client-7", code)
    assert type(error) is kind
    assert text in str(error) and "h:1884" in str(error) and "\n" not in str(error)


def untrusted(message: str) -> ssl.SSLCertVerificationError:
    """As the ssl module raises it."""
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_message = message
    return error


@pytest.mark.parametrize(
    ("cause", "kind", "text"),
    [
        (None, NotConnected, "before it accepted"),
        (ConnectionRefusedError(111, "Connection refused"), NotConnected, "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), NotConnected, "cannot be resolved"),
        (TimeoutError(), NotConnected, "no answer in time"),
        (ConnectionResetError(104, "Connection reset by peer"), NotConnected, "check that this port speaks TLS"),
        (untrusted("Hostname mismatch, certificate is not valid for 'h'."), Permanent, "for 'h'; set tls: {ca: FILE}"),
        (ssl.SSLError(1, "[SSL: SOMETHING_ELSE] odd"), Permanent, "TLS failed"),
        (ssl.SSLEOFError(8, "EOF occurred"), NotConnected, "during the TLS handshake"),
    ],
)
def test_opening_errors(cause: OSError | None, kind: type[Exception], text: str) -> None:
    """Each names the server and the reason."""
    error = opening_error(mqtt(mqtt="mqtts://[::1]:1884"), cause)
    assert type(error) is kind and text in str(error) and "[::1]:1884" in str(error)
