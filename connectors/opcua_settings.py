"""The keys of an OPC UA device in the configuration file."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from connectors import opcua_address
from connectors.opcua_event_settings import OpcUaEvents, events_from_text
from connectors.opcua_node_id import NodeIdText
from connectors.opcua_select import OpcUaSelect, select_from_text
from pipelines.commands import CallRule, Writing
from pipelines.quantities import Duration, Settings, duration_ns

QUEUE_NS: Final = 10 * 10**9
"""A gateway that is restarted is back by then."""
QUEUE_MAX: Final = 1000


def _tag_from_text(value: Any) -> Any:
    return {"node": value} if isinstance(value, str) else value


class OpcUaTag(Settings):
    """One monitored item: `temperature: ns=2;s=Press4.Temp`, or a mapping with these keys."""

    node: Annotated[str, AfterValidator(opcua_address.checked)] = Field(
        description="Node id (`ns=2;s=Press4.Temp`, `ns=3;i=2258`, `nsu=http://vendor.com/UA/;s=Temp`) or browse path "
        "(`/Objects/Press4/Temp`, `/Objects/2:Press4/2:Temp`)."
    )
    unit: str = Field("", description="Engineering unit, for people and for formats that carry it.")
    scale: float = Field(1.0, description="Factor applied to numbers; the result is a Double.")
    offset: float = Field(0.0, description="Added after `scale`.")
    deadband: float = Field(
        0.0, ge=0.0, description="Absolute, in engineering units: smaller changes are not sent. 0 sends every change."
    )
    every: Duration | None = Field(None, description="Publishing interval of this tag; default: the device's.")
    sampling: Duration | None = Field(None, description="Sampling interval of this tag; default: the device's.")
    queue: int | None = Field(None, ge=1, le=100_000, description="Server-side queue in values; default: the device's.")
    write: Writing = None


class OpcUaAuth(Settings):
    """`auth: {user: collector, password: ${file:/run/secrets/press4}}`."""

    user: str = Field(description="User name.")
    password: SecretStr = Field(SecretStr(""), description="Password; write `${file:...}` or `${env:...}`.")


class OpcUaMethod(CallRule):
    """`reset: {object: ns=2;s=Press4, method: ns=2;s=Press4.Reset}`: that it is there allows calling it."""

    object: NodeIdText = Field(description="The object whose method it is.")
    method: NodeIdText = Field(description="The method.")


class OpcUaDevice(Settings):
    """A machine with an OPC UA server."""

    opcua: str = Field(description="Endpoint URL, `opc.tcp://host:4840`.")
    security: Literal["best", "none"] = Field(
        "best",
        description="`best`: SignAndEncrypt with the best policy that the server offers, and nothing less; "
        "`none`: no signature and no encryption, insecure, has to be written out.",
    )
    auth: OpcUaAuth | None = Field(None, description="User and password; default: anonymous.")
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
    tags: Annotated[
        dict[str, Annotated[OpcUaTag, BeforeValidator(_tag_from_text)]],
        Field(
            default_factory=dict,
            description="Tag name -> node id or browse path, or a mapping with `node:` and options.",
        ),
    ]
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
        if not self.tags and self.select is None:
            raise ValueError("give it `tags:`, `select:` or both")
        return self

    @field_validator("opcua")
    @classmethod
    def _endpoint(cls, url: str) -> str:
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

    @property
    def learns_tags(self) -> bool:
        """More tags than `tags` become known when the device is connected."""
        return self.select is not None

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
