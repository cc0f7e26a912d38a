"""`to: {plant: {mqtt: mqtts://broker.plant:8883, ...}}`: the settings of an MQTT destination."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, WithJsonSchema, field_validator

from connectors.mqtt_topic import check_template
from connectors.payload import FormatName
from connectors.tls_settings import TlsSettings
from pipelines.quantities import Duration, Settings

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_SECOND_NS = 10**9

ProtocolVersion = Annotated[
    Literal["3.1.1", "5"],
    BeforeValidator(lambda value: "5" if value == 5 else value),
    WithJsonSchema({"enum": ["5", 5, "3.1.1"]}),
]
"""In YAML a plain 5 is a number and 3.1.1 a text: both spellings of 5 are taken."""


class MqttAuth(Settings):
    """`auth: {user: gateway, password: ${file:/run/secrets/mqtt}}`."""

    user: str = Field(description="User name for the broker.")
    password: SecretStr | None = Field(None, description="Password of `user`; write ${file:...} or ${env:...}.")


class MqttTarget(Settings):
    """An MQTT broker, version 3.1.1 or 5."""

    mqtt: str = Field(
        description="The broker: mqtt://host:1883 (plain TCP) or mqtts://host:8883 (TLS). The port may be left out."
    )
    topic: str = Field(
        "{site}/{device}",
        description="Topic of the data. Placeholders {gateway} {site} {device} {tag} {route}; with {tag} each row is a"
        " message of its own. + and # in names become _, empty levels are dropped.",
    )
    format: FormatName = Field(
        "json", description="Payload format: json, json-columns, msgpack, or (topic with {tag}) value."
    )
    qos: Literal[0, 1] = Field(
        1,
        description="1: delivered means acknowledged by the broker, message by message. 0: delivered means that the"
        " broker answered a ping sent behind the message, and the broker cannot say that it refused one.",
    )
    protocol: ProtocolVersion = Field("5", description="MQTT version: 5 or 3.1.1.")
    retain: bool = Field(False, description="true: the broker keeps each topic's last message for later subscribers.")
    auth: MqttAuth | None = Field(None, description="User and password; default: none sent.")
    tls: TlsSettings | None = Field(
        None, description="For mqtts:// only; default: TLS that trusts the host's own authorities."
    )
    client_id: str | None = Field(
        None, description="MQTT client id; default: mec-gateway-<gateway id>-<name of this destination>."
    )
    keep_alive: Duration = Field(
        30 * _SECOND_NS,
        description="A ping is sent at least this often (1s to 65535s); default 30s.",
    )
    ack_timeout: Duration = Field(
        10 * _SECOND_NS,
        description="The connection counts as lost when the oldest message in flight waits this long for its"
        " acknowledgement (100ms to 10m); default 10s.",
    )
    status_topic: str | None = Field(
        "gateway/{gateway}/status",
        description="Topic of the retained message that says whether the gateway is online, also the last will; at this"
        " destination's qos. Placeholders {gateway} {site}; null: none.",
    )

    @field_validator("mqtt")
    @classmethod
    def _url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("user and password do not belong in the address: write auth: {user: ..., password: ...}")
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"{url!r} is not a broker address: write mqtt://host:1883 or, with TLS, mqtts://host:8883")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{url!r} has more than host and port: topics are set with topic:")
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r} has no usable port: {error}") from error
        if port == 0:
            raise ValueError(f"{url!r} has no usable port: 0")
        return url

    @field_validator("topic")
    @classmethod
    def _topic(cls, topic: str) -> str:
        return check_template(topic)

    @field_validator("status_topic")
    @classmethod
    def _status_topic(cls, topic: str | None) -> str | None:
        return None if topic is None else check_template(topic, ("gateway", "site"))

    @field_validator("format")
    @classmethod
    def _format(cls, name: FormatName, info: ValidationInfo) -> FormatName:
        if name == "value" and "{tag}" not in info.data.get("topic", "{tag}"):
            raise ValueError(
                "format value is one bare value per message: it needs {tag} in topic, such as {site}/{device}/{tag}"
            )
        return name

    @field_validator("tls")
    @classmethod
    def _tls(cls, tls: TlsSettings | None, info: ValidationInfo) -> TlsSettings | None:
        if tls is not None and not info.data.get("mqtt", "mqtts:").startswith("mqtts:"):
            raise ValueError("tls needs an address with mqtts://; mqtt:// is plain TCP")
        return tls

    @field_validator("keep_alive")
    @classmethod
    def _keep_alive(cls, ns: int) -> int:
        if not _SECOND_NS <= ns <= 65_535 * _SECOND_NS:
            raise ValueError("keep_alive is between 1s and 65535s")
        return ns

    @field_validator("ack_timeout")
    @classmethod
    def _ack_timeout(cls, ns: int) -> int:
        if not _SECOND_NS // 10 <= ns <= 600 * _SECOND_NS:
            raise ValueError("ack_timeout is between 100ms and 10m")
        return ns

    @property
    def host(self) -> str:
        """Host name or address, IPv6 without brackets."""
        return urlsplit(self.mqtt).hostname or ""

    @property
    def port(self) -> int:
        """TCP port, the scheme's default where the file names none."""
        parts = urlsplit(self.mqtt)
        return parts.port or _PORTS[parts.scheme]

    @property
    def secure(self) -> bool:
        """TLS is spoken."""
        return self.mqtt.startswith("mqtts:")

    @property
    def per_tag(self) -> bool:
        """Each row is a message of its own."""
        return "{tag}" in self.topic
