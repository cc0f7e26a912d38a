"""What the configuration file says about a Kafka destination."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

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
from pipelines.quantities import Duration, Settings, Size, duration_ns, size_bytes

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
Records = Literal["batch", "sample"]
Delivery = Literal["exactly-once", "at-least-once"]
Compression = Literal["none", "gzip", "lz4", "zstd"]

TOPIC_LETTERS_MAX = 249
"""Kafka's own limit (org.apache.kafka.common.internals.Topic)."""
PLACEHOLDERS = ("gateway", "site", "device", "route")
_PORT_DEFAULT = 9092
_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?")
_ILLEGAL = re.compile(r"[^A-Za-z0-9._-]")


def _servers(value: Any) -> tuple[str, ...]:
    """`k1:9092, k2` or [`k1:9092`, `k2`] -> (`k1:9092`, `k2:9092`). Raises ValueError naming the wrong one."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError("name the brokers as host:port, one text or a list, such as [k1:9092, k2:9092]")
    return tuple(_server(text) for text in texts)


def _server(text: Any) -> str:
    match = _SERVER.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or not 0 < int(match["port"] or _PORT_DEFAULT) < 65536:
        raise ValueError(f"{text!r} is not a broker: write host:port, such as k1:9092")
    return f"{match['host']}:{match['port'] or _PORT_DEFAULT}"


Servers = Annotated[
    tuple[str, ...],
    BeforeValidator(_servers),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


def _topic(template: str) -> str:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"topic {template!r}: {error}") from error
    for literal, name, spec, conversion in parts:
        if _ILLEGAL.search(literal):
            raise ValueError(f"topic {template!r}: Kafka allows letters, digits, '.', '_' and '-' in a topic's name")
        if name == "tag":
            raise ValueError(
                f"topic {template!r}: no topic per tag; write records: sample, where the key is device/tag"
            )
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            raise ValueError(f"topic {template!r}: unknown placeholder {{{name}}}; known are {known}")
    if not template or template in {".", ".."} or len(template) > TOPIC_LETTERS_MAX:
        raise ValueError(f"topic {template!r}: Kafka wants 1 to {TOPIC_LETTERS_MAX} letters, and not '.' or '..'")
    return template


def _position_topic(name: str) -> str:
    if _ILLEGAL.search(name) or not name or name in {".", ".."} or len(name) > TOPIC_LETTERS_MAX:
        raise ValueError(
            f"position_topic {name!r}: Kafka allows 1 to {TOPIC_LETTERS_MAX} letters, digits, '.', '_' and '-'"
        )
    return name


def topic_name(template: str, **names: str) -> str:
    """The template with its placeholders filled. In a filled-in name "/" becomes ".", what Kafka does not allow "_"."""
    return template.format(**{key: _ILLEGAL.sub("_", name.replace("/", ".")) for key, name in names.items()})


class KafkaAuth(Settings):
    """`auth: {user: gateway, password: ${file:/run/secrets/kafka}}`: SASL."""

    mechanism: Mechanism = Field("SCRAM-SHA-512", description="SASL mechanism that the brokers offer.")
    user: str = Field(description="Name that the brokers know the gateway by.", min_length=1)
    password: SecretStr = Field(description="Its password; write `${file:...}` or `${env:...}`.")
    insecure: bool = Field(
        False, description="true lets PLAIN run without `tls`: the password crosses the network readable by anyone."
    )


class KafkaTarget(Settings):
    """`{kafka: [k1:9092, k2:9092], topic: ot.samples}`: a destination in `to:`."""

    kafka: Servers = Field(description="Brokers to ask first, `host:port` (port 9092 if left out); one or a list.")
    topic: Annotated[str, AfterValidator(_topic)] = Field(
        "ot.samples",
        description="Topic. `{gateway}`, `{site}`, `{device}` and `{route}` are filled in; in them `/` becomes `.` and "
        "what Kafka does not allow `_`. The topic must exist or the brokers must create topics by themselves.",
    )
    format: FormatName = Field("json", description="Payload format; `value` needs `records: sample`.")
    records: Records = Field(
        "batch",
        description="`batch`: one record per device and batch, key = device. `sample`: one per row, key = device/tag. "
        "Kafka keeps the order per key either way.",
    )
    delivery: Delivery = Field(
        "exactly-once",
        description="`exactly-once`: rows and the route's position in one transaction; consumers set "
        "`isolation.level=read_committed`. `at-least-once`: idempotent, cheaper for small writes, some 10 ms faster; "
        "after a broken session what has no acknowledgement is sent again. Key against duplicates: (gateway, stream, "
        "seq); with `records: sample` tag and time too.",
    )
    position_topic: Annotated[str, AfterValidator(_position_topic)] = Field(
        "mec-gateway.positions",
        description="Compacted topic where `exactly-once` keeps each route's position (key: gateway/route); made if it "
        "is absent. Gateways may share it; only its partition 0 is used.",
    )
    compression: Compression = Field(
        "none",
        description="Of whole record batches. `none` is the default because every consumer reads it; `lz4` and `zstd` "
        "(JSON 5 to 8 times smaller, 0.3 us CPU per record) and `gzip` (1 us) need support in the consumers.",
    )
    batch_size: Size = Field(
        size_bytes("900KiB"),
        description="Largest record batch, in bytes before compression. Keep it below the brokers' `message.max.bytes` "
        "(1 MiB unless changed there). A record that is larger alone is rejected. Range 1KiB to 64MiB.",
        ge=1024,
        le=64 * 2**20,
    )
    request_timeout: Duration = Field(
        duration_ns("10s"),
        description="Longest wait for a connection, and for the acknowledgement of a write, of a whole transaction: "
        "shorter broker outages are bridged, after longer ones a new session starts. Range 100ms to 10m.",
        ge=duration_ns("100ms"),
        le=duration_ns("10m"),
    )
    ack_timeout: Duration = Field(
        duration_ns("2s"),
        description="A broker's host that acknowledges nothing on a connection (TCP) for so long is a half-open link: "
        "the session ends. A slow upload that moves is not silent. Range 1s to 10m.",
        ge=duration_ns("1s"),
        le=duration_ns("10m"),
    )
    client_id: str = Field("", description="Name in the brokers' logs and quotas; default: the gateway's id.")
    auth: KafkaAuth | None = Field(None, description="User and password (SASL); without it the gateway is anonymous.")
    tls: TlsSettings | None = Field(
        None, description="Encryption; `tls: {}` trusts the host's own authorities. Without it nothing is encrypted."
    )
    network: NetworkSettings = Field(AS_IT_IS, description="Interface, source address and DSCP of its connections.")
    paths: Paths = Field({})
    suspect: Suspect = None
    hold: Duration = Field(
        duration_ns("30s"),
        gt=0,
        description="With `paths`: how long a preferred one must have been healthy before the gateway goes back to it.",
    )

    @field_validator("paths")
    @classmethod
    def _paths(cls, paths: dict[str, PathSettings]) -> dict[str, PathSettings]:
        for name, path in paths.items():
            if path.server is not None:
                raise ValueError(f"{name}: leave out server: each broker of a Kafka cluster is needed by every path")
        return paths

    @model_validator(mode="after")
    def _check(self) -> KafkaTarget:
        if self.format == "value" and self.records == "batch":
            raise ValueError("format: value holds one bare value a record: write records: sample")
        if self.position_topic == self.topic:
            raise ValueError(f"position_topic: {self.topic} is the topic of the rows: take another")
        if self.auth and self.auth.mechanism == "PLAIN" and self.tls is None and not self.auth.insecure:
            raise ValueError(
                "auth: PLAIN without tls sends the password readable by anyone: add `tls: {}`, take SCRAM-SHA-512, "
                "or write `insecure: true` in auth"
            )
        return self

    @property
    def servers(self) -> str:
        """The bootstrap servers as one text, and the path where there are several, for messages."""
        return ", ".join(self.kafka) + (f" by {self.path}" if self.path else "")

    @property
    def candidates(self) -> tuple[KafkaTarget, ...]:
        """These settings for each path by itself, the preferred one first."""
        each = (self.model_copy(update=along(self.network, name, path)) for name, path in self.paths.items())
        return tuple(each) or (self,)

    @property
    def path(self) -> str:
        """The name of the preferred one; empty where there are none."""
        return next(iter(self.paths), "")

    @property
    def way(self) -> str:
        """The bootstrap servers, and by which path; empty where the cluster alone decides what is used."""
        return f"{', '.join(self.kafka)} ({self.path})" if self.path else ""

    @property
    def suspect_ns(self) -> int:
        """As it is without a `fast` route."""
        return self.suspect or SUSPECT_NS

    def by(self, paths: Sequence[str], fast: bool, *, first: bool) -> KafkaTarget:
        """For those routes that take these paths, in this order. Sessions beside one another may have one client id."""
        return self.model_copy(update=by_paths(self.paths, self.suspect, paths, fast))

    @property
    def exactly_once(self) -> bool:
        """Whether writes are transactions."""
        return self.delivery == "exactly-once"

    @property
    def request_timeout_s(self) -> float:
        """`request_timeout` in seconds."""
        return self.request_timeout / 1e9

    @property
    def ack_timeout_s(self) -> float:
        """`ack_timeout` in seconds."""
        return self.ack_timeout / 1e9
