"""The keys of an OPC UA device in the configuration file."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from sys import float_info
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as record

from connectors.network_settings import AS_IT_IS, NetworkSettings
from connectors.opcua_address import NodeIdText, NodeText
from connectors.opcua_event_settings import OpcUaEvents, events_from_text
from connectors.opcua_select import OpcUaSelect, select_from_text
from connectors.profile import ProfileName
from pipelines.commands import CallRule, Writing
from pipelines.quantities import STRICT, Duration, Settings, duration_ns

QUEUE_NS: Final = 10 * 10**9
"""A gateway that is restarted is back by then."""
QUEUE_MAX: Final = 1000


def _joined(value: Any) -> Any:
    """Of a list of endpoints one text, as people would write it: no URL has a comma."""
    listed = isinstance(value, list) and value and all(isinstance(url, str) and "," not in url for url in value)
    return ",".join(value) if listed else value


def _deadband(value: Any) -> Any:
    percent = isinstance(value, str) and value.strip().endswith("%")
    try:
        number = float(value.strip().removesuffix("%")) if percent else float(value)
        if isinstance(value, bool) or not 0 <= number <= (100 if percent else float_info.max):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no deadband: write 0.5 (the machine's units) or 1% (of EURange)") from None
    return f"{number:g}%" if percent else number


Trigger = Literal["status", "status-value", "status-value-timestamp"]
Discard = Literal["oldest", "newest"]
ServerDeadband = Annotated[
    float | str, BeforeValidator(_deadband, json_schema_input_type=float | str), Field(examples=[0.5, "1%"])
]


@dataclass(frozen=True, slots=True)
class Filter:
    """What the server is asked to report of an item (DataChangeFilter, Part 4, 7.22.2)."""

    trigger: Trigger = "status-value"
    deadband: Literal["", "absolute", "percent"] = ""
    value: float = 0.0
    """In the machine's own units, or percent of the item's EURange."""

    @classmethod
    def parsed(cls, trigger: Trigger, deadband: float | str | None) -> Self:
        """`deadband` as the file has it: a number, or `1%`."""
        percent = isinstance(deadband, str)
        value = float(str(deadband or 0).removesuffix("%"))
        return cls(trigger, "percent" if percent else "absolute", value) if value else cls(trigger)

    def __str__(self) -> str:
        band = f"server deadband {self.value:g}{'%' if self.deadband == 'percent' else ''}" if self.deadband else ""
        trigger = f"trigger {self.trigger}" if self.trigger != "status-value" else ""
        return ", ".join(filter(None, (band, trigger)))


def _tag_from_text(value: Any) -> Any:
    return {"node": value} if isinstance(value, str) else value


@record(frozen=True, slots=True, kw_only=True, config=STRICT)
class OpcUaTag:
    """One monitored item: `temperature: ns=2;s=Press4.Temp`, or a mapping with these keys.

    With slots, as there are many: 150 bytes each, a fifth of a model's.
    """

    node: NodeText = Field(
        description="Node id (`ns=2;s=Press4.Temp`, `ns=3;i=2258`, `nsu=http://vendor.com/UA/;s=Temp`) or browse path "
        "(`/Objects/Press4/Temp`, `/Objects/2:Press4/2:Temp`)."
    )
    unit: str = Field(default="", description="Engineering unit; default: what the server says (`EngineeringUnits`).")
    scale: float = Field(default=1.0, description="Factor applied to numbers; the result is a Double.")
    offset: float = Field(default=0.0, description="Added after `scale`.")
    deadband: float = Field(
        default=0.0,
        ge=0.0,
        description="Absolute, in engineering units: smaller changes are not sent. 0 sends every change.",
    )
    every: Duration | None = Field(default=None, description="Publishing interval of this tag; default: the device's.")
    sampling: Duration | None = Field(default=None, description="Sampling interval of this tag; default: the device's.")
    queue: int | None = Field(
        default=None, ge=1, le=100_000, description="Server-side queue in values; default: the device's."
    )
    server_deadband: ServerDeadband | None = Field(
        default=None,
        description="As the device's; `0`: none. Not together with `deadband`, which has the gateway decide.",
    )
    heartbeat: Duration | None = Field(default=None, description="As the device's, for this tag; `0`: none.")
    trigger: Trigger | None = Field(default=None, description="What counts as a change; default: the device's.")
    discard: Discard | None = Field(default=None, description="What a full queue drops; default: the device's.")
    write: Writing = None

    @model_validator(mode="after")
    def _one_deadband(self) -> Self:
        if self.deadband and self.server_deadband and float(str(self.server_deadband).removesuffix("%")):
            raise ValueError("write `deadband` (the gateway decides) or `server_deadband`, not both: errors add up")
        return self

    def at(self, node: str) -> OpcUaTag:
        """The same at a node id that a server gave: not checked again."""
        moved = copy(self)
        object.__setattr__(moved, "node", node)
        return moved


class OpcUaAuth(Settings):
    """`auth: {user: collector, password: ${file:/run/secrets/press4}}`, or `auth: {certificate: ..., key: ...}`."""

    user: str = Field("", description="User name.")
    password: SecretStr = Field(SecretStr(""), description="Password; write `${file:...}` or `${env:...}`.")
    certificate: Path | None = Field(
        None,
        description="In place of user and password: file with the user's X.509 certificate, PEM or DER; needs `key`.",
    )
    key: Path | None = Field(None, description="File with the private key of `certificate`, PEM or DER.")
    key_password: SecretStr | None = Field(None, description="Password of `key`, if it has one.")

    @model_validator(mode="after")
    def _one_kind(self) -> OpcUaAuth:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or neither")
        if bool(self.user) == bool(self.certificate):
            raise ValueError("write user and password, or certificate and key")
        return self


Policy = Literal["best", "Aes256_Sha256_RsaPss", "Aes128_Sha256_RsaOaep", "Basic256Sha256"]


class OpcUaSecurity(Settings):
    """`security: {policy: Basic256Sha256, mode: sign}`; the short words for it are below `security`."""

    policy: Policy = Field("best", description="Security policy; `best`: the best that the server offers.")
    mode: Literal["encrypt", "sign"] = Field(
        "encrypt", description="`encrypt`: signature and encryption; `sign`: signature only, everyone can read along."
    )


def _known_policy(value: Any) -> Any:
    named = value.get("policy") if isinstance(value, dict) else value
    if named in ("Basic256", "Basic128Rsa15"):
        raise ValueError(f"{named} can be broken and is not supported: write Basic256Sha256, or best")
    return value


_TEXT_OR_LIST: Final = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})


def _thumbprints(value: Any) -> Any:
    """One or several, as people copy them: `AB:CD:...`, with spaces, in capitals."""
    marks = [value] if isinstance(value, str) else value
    if not isinstance(marks, list) or not all(isinstance(mark, str) for mark in marks):
        return value
    plain = [re.sub(r"[:\s]", "", mark).lower() for mark in marks]
    for mark, text in zip(plain, marks, strict=True):
        if re.fullmatch(r"[0-9a-f]{40}", mark):
            raise ValueError(
                f"{text!r} is a SHA-1 thumbprint, which can be forged: write the SHA-256 one, 64 hex digits"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", mark):
            raise ValueError(f"{text!r} is not a SHA-256 thumbprint: 64 hex digits, `gateway trust ls` shows them")
    return plain


class OpcUaReverse(Settings):
    """`reverse: {server: urn:press4, endpoint: opc.tcp://press4:4840}`: the server dials the gateway."""

    server: str = Field(min_length=1, description="The server's ApplicationUri, as it says in its ReverseHello.")
    endpoint: str = Field(
        pattern=r"^opc\.tcp://.+", description="The server's endpoint URL, as it says in its ReverseHello."
    )


class OpcUaMethod(CallRule):
    """`reset: {object: ns=2;s=Press4, method: ns=2;s=Press4.Reset}`: that it is there allows calling it."""

    object: NodeIdText = Field(description="The object whose method it is.")
    method: NodeIdText = Field(description="The method.")


class OpcUaDevice(Settings):
    """A machine with an OPC UA server."""

    opcua: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[str])] = Field(
        description="Endpoint URL, `opc.tcp://host:4840`; a list of them for redundant servers with the same nodes, of "
        "which the fittest is used (ServiceLevel), and the first again when it is as fit as the others."
    )
    security: Annotated[
        Literal["best", "sign", "none", "Aes256_Sha256_RsaPss", "Aes128_Sha256_RsaOaep", "Basic256Sha256"]
        | OpcUaSecurity,
        BeforeValidator(_known_policy),
    ] = Field(
        "best",
        description="`best`: SignAndEncrypt with the best policy that the server offers, and nothing less; a policy's "
        "name: SignAndEncrypt with this one; `sign`: signature without encryption; "
        "`none`: no signature and no encryption, insecure, has to be written out.",
        examples=["sign"],
    )
    trust: Annotated[list[str], BeforeValidator(_thumbprints), _TEXT_OR_LIST] = Field(
        [],
        description="SHA-256 thumbprint of the server's certificate, or a list of them: this one and no other is "
        "accepted, without `gateway trust approve`.",
        examples=["3F:0C:5A:..."],
    )
    auth: OpcUaAuth | None = Field(None, description="User and password, or a certificate; default: anonymous.")
    every: Duration = Field(
        duration_ns("1s"), gt=0, description="Publishing interval: how often the server sends what changed."
    )
    sampling: Duration | None = Field(
        None, description="How often the server looks at a value; `0` asks for every change; default: `every`."
    )
    queue: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Values that the server keeps per tag while they cannot be sent; default: those of 10 s, at least "
        "10 and at most 1,000; 100 with `sampling: 0`.",
    )
    server_deadband: ServerDeadband | None = Field(
        None,
        description="Smaller changes are not even reported by the server (DataChangeFilter), compared with what it "
        "reported last: `0.5` in the machine's own units, before `scale`, or `1%` of the variable's EURange. Numbers "
        "only. Where the server refuses it, the gateway does it and says so. Not for tags with a `deadband`.",
    )
    trigger: Trigger = Field(
        "status-value",
        description="What counts as a change at the server: of the status; of status or value; or also of the source "
        "time alone.",
    )
    discard: Discard = Field("oldest", description="What a full queue at the server drops: `oldest` or `newest` value.")
    items_per_subscription: int | None = Field(
        None,
        ge=1,
        description="More tags than this of one interval get several subscriptions; default: what the server states, "
        "or is known to take.",
    )
    timeout: Duration = Field(duration_ns("4s"), gt=0, description="For connecting and for each request.")
    lifetime: Duration = Field(
        duration_ns("2m"),
        gt=0,
        description="How long the server keeps the subscriptions, and in them what it cannot send, while the gateway "
        "is away; the server may shorten it.",
    )
    backfill: Duration = Field(
        duration_ns("1m"),
        ge=0,
        description="Time that may be spent on filling a gap from the server's history, beside the live values; `0` "
        "never asks for it.",
    )
    redundancy: Literal["auto", "cold", "warm", "hot"] = Field(
        "auto",
        description="Only with several servers. `auto`: what they say they are. `cold`: a standby may not answer, it "
        "is asked when it is needed; `warm`: a session is held at each standby, to know how fit it is; `hot`: all "
        "items are made there as well, sampled and not reported.",
    )
    heartbeat: Duration = Field(
        0,
        ge=0,
        description="A tag of which the server has reported nothing for so long is read: where its value is not what "
        "was delivered last, it is delivered and counted (`missed_by_server`). `0`: never.",
    )
    reverse: OpcUaReverse | None = Field(
        None,
        description="The server dials (reverse connect): `opcua` is then where the gateway listens, "
        "`opc.tcp://0.0.0.0:4843`, which devices may share; only the server named here is let in.",
    )
    network: NetworkSettings = Field(
        AS_IT_IS,
        description="Interface, source address and DSCP of its connections. With `reverse` only `dscp` and `priority`.",
    )
    clock: Literal["keep", "flag", "replace"] = Field(
        "flag",
        description="What becomes of the times that the machine gives while its clock is off by more than "
        "`clock_tolerance`: they stay as they are; or are flagged; or the time of arrival takes their place, flagged.",
    )
    clock_tolerance: Duration = Field(
        duration_ns("5s"), ge=0, description="How far the machine's clock may be off the gateway's."
    )
    tags: Annotated[
        dict[str, Annotated[OpcUaTag, BeforeValidator(_tag_from_text)]],
        Field(
            default_factory=dict,
            description="Tag name -> node id or browse path, or a mapping with `node:` and options. Beside a "
            "`profile`: tags that are added to its own, or take the place of one of the same name.",
        ),
    ]
    profile: ProfileName | None = Field(
        None,
        description="Tags and limits of a known server: the name of a profile (`gateway profile ls`), or `auto`: all "
        "that fit what the server says it is. Which, and in which version, is looked at whenever it is connected.",
        examples=["opcua-machinery", "auto"],
    )
    firmware: str | None = Field(
        None, description="The server's firmware, in place of what it says itself. Only with `profile`."
    )
    select: Annotated[OpcUaSelect, BeforeValidator(select_from_text)] | None = Field(
        None,
        description="Tags that the server is looked through for, beside `tags` or instead of them.",
        examples=["/Objects/Machine/**"],
    )

    events: dict[str, Annotated[OpcUaEvents, BeforeValidator(events_from_text)]] = Field(
        {}, description="Events and alarms: name -> notifier's node id, or a mapping; `{}` has all of the server's."
    )

    methods: dict[str, OpcUaMethod] = Field(
        {}, description="Methods that may be called (`gateway call`): name -> object and method. No other one may."
    )

    @model_validator(mode="after")
    def _has_tags(self) -> OpcUaDevice:
        if not self.tags and not self.learns_tags:
            raise ValueError("give it `tags:`, `select:` or a `profile:` that has them")
        if self.firmware and not self.profile:
            raise ValueError("`firmware:` says which version of a `profile:` to use: write that, too")
        return self

    @field_validator("opcua")
    @classmethod
    def _endpoint(cls, urls: str) -> str:
        return ",".join(map(cls._checked, urls.split(",")))

    @classmethod
    def _checked(cls, url: str) -> str:
        if not url.startswith("opc.tcp://") or not url.removeprefix("opc.tcp://").strip("/"):
            raise ValueError(f"{url!r} is not an OPC UA endpoint: write opc.tcp://host:4840")
        if "@" in url:
            raise ValueError("user and password do not belong into the URL: use `auth: {user: ..., password: ...}`")
        return url

    @model_validator(mode="after")
    def _told_apart(self) -> OpcUaDevice:
        for name in self.events:
            if name in self.tags:
                raise ValueError(f"`{name}` is a tag and a stream of events: give them different names")
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.reverse and ("," in self.opcua or not re.search(r":\d+/?$", self.opcua)):
            raise ValueError(
                "with `reverse`, `opcua` is the one address where the gateway listens: opc.tcp://0.0.0.0:4843"
            )
        if self.reverse and (self.network.bind or self.network.source):
            raise ValueError("with `reverse` the server dials: the address in `opcua` says where it may come in")
        return self

    @property
    def servers(self) -> list[str]:
        """The endpoints; one, or a redundant set."""
        return self.opcua.split(",")

    def at(self, url: str) -> Self:
        """These settings for one of the servers."""
        return self.model_copy(update={"opcua": url})

    @property
    def secured(self) -> OpcUaSecurity | None:
        """What `security` stands for; None for `none`."""
        if isinstance(self.security, OpcUaSecurity):
            return self.security
        if self.security == "none":
            return None
        if self.security == "sign":
            return OpcUaSecurity(mode="sign")
        return OpcUaSecurity(policy=self.security)

    @property
    def learns_tags(self) -> bool:
        """More tags than `tags` become known when the device is connected."""
        return self.select is not None or self.profile is not None

    def filter_of(self, tag: OpcUaTag) -> Filter:
        """What the server is asked to report of a tag."""
        inherits = tag.server_deadband is None and not tag.deadband
        return Filter.parsed(tag.trigger or self.trigger, self.server_deadband if inherits else tag.server_deadband)

    def discard_of(self, tag: OpcUaTag) -> Discard:
        """What a full queue drops."""
        return tag.discard or self.discard

    def heartbeat_ns(self, tag: OpcUaTag) -> int:
        """How long a tag may be silent; 0: for ever."""
        return self.heartbeat if tag.heartbeat is None else tag.heartbeat

    def publishing_ns(self, tag: OpcUaTag) -> int:
        """Publishing interval of a tag."""
        return self.every if tag.every is None else tag.every

    def sampling_ns(self, tag: OpcUaTag) -> int:
        """Sampling interval of a tag; 0 asks for every change."""
        own = self.sampling if tag.sampling is None else tag.sampling
        return self.publishing_ns(tag) if own is None else own

    def queue_values(self, tag: OpcUaTag) -> int:
        """Queue size of a tag at the server."""
        own = self.queue if tag.queue is None else tag.queue
        if own is not None:
            return own
        sampling = self.sampling_ns(tag)
        if not sampling:
            return 100
        return max(10, 2 * self.publishing_ns(tag) // sampling, min(QUEUE_NS // sampling, QUEUE_MAX))
