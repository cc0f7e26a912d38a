"""`to: {plant: {mqtt: mqtts://broker.plant:8883, ...}}`: the settings of an MQTT destination."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from connectors.mqtt_topic import check_template
from connectors.network_settings import (
    AS_IT_IS,
    SUSPECT_NS,
    NetworkSettings,
    Paths,
    PathSettings,
    Suspect,
    along,
    by_paths,
)
from connectors.payload import FormatName
from connectors.tls_settings import TlsSettings
from pipelines.quantities import Duration, Settings, Size, size_bytes

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_SECOND_NS = 10**9

ProtocolVersion = Annotated[
    Literal["3.1.1", "5"],
    BeforeValidator(lambda value: "5" if value == 5 else value),
    WithJsonSchema({"enum": ["5", 5, "3.1.1"]}),
]
"""In YAML a plain 5 is a number and 3.1.1 a text: both spellings of 5 are taken."""


def _server(url: Any) -> str:
    """The address itself. Raises ValueError where it is none."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
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
    return str(url)


def _servers(value: Any) -> tuple[str, ...]:
    """An address or a list of them -> addresses, the preferred one first. Raises ValueError."""
    servers = tuple(_server(url) for url in (value if isinstance(value, list | tuple) else [value]))
    if not servers or len(set(servers)) < len(servers):
        raise ValueError("name each broker once, such as [mqtts://first:8883, mqtts://second:8883]")
    if len({urlsplit(url).scheme for url in servers}) > 1:
        raise ValueError("all of them with mqtts:// or all with mqtt://: nothing falls back from TLS to plain TCP")
    return servers


def _reached(servers: Iterable[str], paths: Iterable[PathSettings]) -> set[str]:
    return {url for url in servers for path in paths if path.server in (None, url)}


Servers = Annotated[
    tuple[str, ...],
    BeforeValidator(_servers),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class MqttAuth(Settings):
    """`auth: {user: gateway, password: ${file:/run/secrets/mqtt}}`."""

    user: str = Field(description="User name for the broker.")
    password: SecretStr | None = Field(None, description="Password of `user`; write ${file:...} or ${env:...}.")


class LocalBroker(Settings):
    """`local: embedded`, `local: mqtt://127.0.0.1:1883`, or a mapping with options of either."""

    mqtt: Annotated[str, BeforeValidator(_server)] | None = Field(
        None, description="Address of a broker on site, such as a Mosquitto; default: the embedded one is started."
    )
    auth: MqttAuth | None = Field(None, description="User and password at that broker; default: none sent.")
    tls: TlsSettings | None = Field(
        None, description="For mqtts:// only; default: TLS that trusts the host's own authorities."
    )
    listen: str = Field(
        "127.0.0.1:1883",
        description="`address:port` on which the embedded broker listens. It asks nobody for a password.",
        examples=["192.168.1.10:1883"],
    )
    insecure: bool = Field(
        False,
        description="true lets the embedded broker listen on the network, where anybody may subscribe and publish.",
    )
    memory: Size = Field(
        size_bytes("32MiB"),
        ge=size_bytes("1MiB"),
        description="Most bytes held per route while the local broker is slow or away; then the oldest are dropped,"
        " counted.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.mqtt and {"listen", "insecure"} & self.model_fields_set:
            raise ValueError("listen and insecure belong to the embedded broker: leave them out, or leave out mqtt")
        if not self.mqtt and (self.auth or self.tls):
            raise ValueError("the embedded broker has neither users nor TLS: for these name a broker with mqtt:")
        if self.tls and not (self.mqtt or "").startswith("mqtts:"):
            raise ValueError("tls needs an address with mqtts://; mqtt:// is plain TCP")
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65_535:
            raise ValueError(f"{self.listen!r} is not an address and port: write 127.0.0.1:1883")
        if not self.insecure and not _is_loopback(host):
            raise ValueError(
                f"whoever reaches {self.listen} could read and publish without a password: add insecure: true, or name"
                " a broker that asks for one with mqtt:"
            )
        return self

    @property
    def url(self) -> str:
        """Where the gateway itself finds it."""
        host, _, port = self.listen.rpartition(":")
        return self.mqtt or f"mqtt://{_REACHED_BY.get(host, host)}:{port}"


def _broker_from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {} if value == "embedded" else {"mqtt": value}


_REACHED_BY = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError as error:
        raise ValueError(f"listen: {host!r} is no IP address: write 127.0.0.1:1883") from error


class MqttTarget(Settings):
    """An MQTT broker, version 3.1.1 or 5; or several, of which one is used."""

    mqtt: Servers = Field(
        description="The broker: mqtt://host:1883 (plain TCP) or mqtts://host:8883 (TLS). The port may be left out. Or"
        " a list of brokers, the preferred one first: the first that works is used.",
        examples=["mqtts://broker.plant", ["mqtts://broker.plant", "mqtts://spare.plant"]],
    )
    hold: Duration = Field(
        30 * _SECOND_NS,
        gt=0,
        description="With several brokers or paths: how long a preferred one must have been healthy before the gateway"
        " goes back to it; default 30s.",
    )
    network: NetworkSettings = Field(AS_IT_IS, description="Interface, source address and DSCP of its connections.")
    paths: Paths = Field({})
    suspect: Suspect = None
    local: Annotated[LocalBroker, BeforeValidator(_broker_from_text)] | None = Field(
        None,
        description="A broker on site that always gets the live data too, same topics and format, so that subscribers"
        " there go on while the uplink is down: `embedded`, an address, or keys.",
        examples=["embedded", "mqtt://127.0.0.1:1883"],
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
        None,
        description="MQTT client id; default: mec-gateway-<gateway id>-<name of this destination>. With `workers:` each"
        " has `-<worker>` behind it.",
    )
    keep_alive: Duration = Field(
        30 * _SECOND_NS,
        description="A ping is sent at least this often (1s to 65535s); default 30s.",
    )
    ack_timeout: Duration = Field(
        2 * _SECOND_NS,
        description="The connection counts as lost when the oldest message in flight, or the ping of an idle"
        " connection, waits this long for its answer (100ms to 10m); default 2s. On Linux an upload that moves is not"
        " counted, else keep it well above the time that one message takes. Where one packet of ten is lost, 10s keeps"
        " connections that 2s now and then gives up.",
    )
    status_topic: str | None = Field(
        "gateway/{gateway}/status",
        description="Topic of the retained message that says whether the gateway is online, also the last will; at this"
        " destination's qos. Placeholders {gateway} {site}; null: none. With `workers:`, `/<worker>` is put behind it.",
    )

    @field_validator("paths")
    @classmethod
    def _paths(cls, paths: dict[str, PathSettings], info: ValidationInfo) -> dict[str, PathSettings]:
        servers = info.data.get("mqtt", ())
        for name, path in paths.items():
            if servers and path.server not in (None, *servers):
                raise ValueError(f"{name}: {path.server} is none of this destination's brokers: {', '.join(servers)}")
        if servers and paths and (lone := {*servers} - _reached(servers, paths.values())):
            raise ValueError(f"no path leads to {', '.join(sorted(lone))}")
        return paths

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
        if tls is not None and not info.data.get("mqtt", ("mqtts:",))[0].startswith("mqtts:"):
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
    def servers(self) -> tuple[MqttTarget, ...]:
        """These settings for each broker by itself, by each path that leads to it; the preferred one first."""
        if not self.paths:
            return tuple(self.model_copy(update={"mqtt": (url,)}) for url in self.mqtt)
        return tuple(
            self.model_copy(update={"mqtt": (url,), **along(self.network, name, path)})
            for url in self.mqtt
            for name, path in self.paths.items()
            if path.server in (None, url)
        )

    @property
    def path(self) -> str:
        """The name of the preferred one; empty where there are none."""
        return next(iter(self.paths), "")

    @property
    def suspect_ns(self) -> int:
        """As it is without a `fast` route."""
        return self.suspect or SUSPECT_NS

    def by(self, paths: Sequence[str], fast: bool, *, first: bool) -> MqttTarget:
        """For those routes that take these paths, in this order. One session after another is `first`, and has the
        client id and the status for itself."""
        own = by_paths(self.paths, self.suspect, paths, fast)
        if not first:
            own["status_topic"] = None
            own["client_id"] = self.client_id and "-".join((self.client_id, *paths))
        return self.model_copy(update=own)

    @property
    def address(self) -> str:
        """The broker; the preferred one where there are several, and so for the next four."""
        return self.mqtt[0]

    @property
    def way(self) -> str:
        """The broker, and by which path."""
        return f"{self.address} ({self.path})" if self.path else self.address

    @property
    def host(self) -> str:
        """Host name or address, IPv6 without brackets."""
        return urlsplit(self.address).hostname or ""

    @property
    def port(self) -> int:
        """TCP port, the scheme's default where the file names none."""
        parts = urlsplit(self.address)
        return parts.port or _PORTS[parts.scheme]

    @property
    def secure(self) -> bool:
        """TLS is spoken."""
        return self.address.startswith("mqtts:")

    @property
    def per_tag(self) -> bool:
        """Each row is a message of its own."""
        return "{tag}" in self.topic

    def at_local(self, local: LocalBroker) -> MqttTarget:
        """The settings of the destination that is the broker on site. The embedded one speaks MQTT 3.1.1 only."""
        own: dict[str, Any] = {"mqtt": (local.url,), "auth": local.auth, "tls": local.tls}
        own |= {"client_id": None, "local": None, "network": AS_IT_IS, "paths": {}}
        return self.model_copy(update=own if local.mqtt else {**own, "protocol": "3.1.1"})
