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


def test_defaults() -> None:
    """The short file is the right file."""
    target = MqttTarget(mqtt="mqtts://broker.plant")
    assert (target.host, target.port, target.secure, target.per_tag) == ("broker.plant", 8883, True, False)
    assert (target.topic, target.format, target.qos, target.protocol) == ("{site}/{device}", "json", 1, "5")
    assert (target.keep_alive, target.ack_timeout, target.retain) == (30 * 10**9, 10 * 10**9, False)
    assert MqttTarget(mqtt="mqtt://[::1]").host == "::1" and MqttTarget(mqtt="mqtt://h:1").port == 1
    assert MqttTarget.model_validate({"mqtt": "mqtt://h", "protocol": 5, "keep_alive": "1m"}).protocol == "5"


@pytest.mark.parametrize(
    ("settings", "field", "text"),
    [
        ({"mqtt": "tcp://h"}, "mqtt", "write mqtt://host:1883"),
        ({"mqtt": "broker:1883"}, "mqtt", "write mqtt://host:1883"),
        ({"mqtt": "mqtt://u:p@h"}, "mqtt", "write auth:"),
        ({"mqtt": "mqtt://h:99999"}, "mqtt", "no usable port"),
        ({"mqtt": "mqtt://h:0"}, "mqtt", "no usable port"),
        ({"mqtt": "mqtt://h/topic"}, "mqtt", "topics are set with topic:"),
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
    error = connack_error(MqttTarget(mqtt="mqtt://h:1884"), "client-7", code)
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
    error = opening_error(MqttTarget(mqtt="mqtts://[::1]:1884"), cause)
    assert type(error) is kind and text in str(error) and "[::1]:1884" in str(error)
