"""The configuration file as pydantic models: gateway, devices, send (routes), to (destinations).

What stands below a device or a destination belongs to its protocol: `DEVICES` and `TARGETS` name the model by the one
key that such a mapping has (`opcua:`, `mqtt:`, ...). `gateway.config.load` makes a `GatewayFile` from a file.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from connectors import load
from gateway.workers_settings import Worker
from pipelines.commands import WriteRule
from pipelines.contracts import Stage
from pipelines.quantities import Duration, Settings, Size, duration_ns, size_bytes
from pipelines.stages import STAGES
from pipelines.tags import TagTable

DEVICES: Mapping[str, str] = {
    "opcua": "connectors.opcua_settings:OpcUaDevice",
    "modbus": "connectors.modbus_settings:ModbusDevice",
}
"""Key of a device's address -> its model, which has that key as a field, and `tags`."""

TARGETS: Mapping[str, str] = {
    "mqtt": "connectors.mqtt_settings:MqttTarget",
    "kafka": "connectors.kafka_settings:KafkaTarget",
}
"""Key of a destination's address -> its model, which has that key as a field."""


class TagSettings(Protocol):
    """What every protocol's tags have in common; the address is the protocol's own."""

    @property
    def unit(self) -> str: ...
    @property
    def scale(self) -> float: ...
    @property
    def offset(self) -> float: ...
    @property
    def deadband(self) -> float: ...
    @property
    def write(self) -> WriteRule | None:
        """Commands may write it; None: not."""
        ...


class DeviceSettings(Protocol):
    """What every protocol's devices have in common."""

    @property
    def tags(self) -> Mapping[str, TagSettings]: ...
    @property
    def learns_tags(self) -> bool:
        """More tags than those of the file become known when the device is connected."""
        ...


def kind_of(settings: object) -> str:
    """The registry's word (`opcua`, `mqtt`, ...) for a device's or a destination's settings."""
    return _KINDS[type(settings)]


def likely_kind(value: Any, kinds: Mapping[str, str]) -> str | None:
    """Which of `kinds` the mapping of a device or destination means, a slip of the pen allowed; None when unclear."""
    if not isinstance(value, dict):
        return None
    named = [kind for kind in kinds if kind in value]
    if not named:
        named = [found for key in value for found in get_close_matches(key.lower(), kinds, n=1, cutoff=0.7)]
    return named[0] if len(set(named)) == 1 else None


_KINDS: dict[type, str] = {}


def _one_of(kinds: Mapping[str, str]) -> Any:
    """The union of the models in `kinds`, told apart by the key that names the protocol."""
    _KINDS.update((load(place), kind) for kind, place in kinds.items())
    members = [Annotated[load(place), Tag(kind)] for kind, place in kinds.items()]

    def kind(value: Any) -> str | None:
        return likely_kind(value, kinds)

    return Annotated[reduce(or_, members), Discriminator(kind)]


if TYPE_CHECKING:
    Device = DeviceSettings
    Target = Settings
else:
    Device = _one_of(DEVICES)
    Target = _one_of(TARGETS)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Name of a device, a route or a destination."""


class Log(Settings):
    """What the gateway writes about itself, to standard error."""

    format: Literal["auto", "text", "json"] = Field(
        "auto", description="`text` for people, `json` for log collectors; `auto`: text on a terminal, else json."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least important level written.")


class Gateway(Settings):
    """This gateway itself. All of it has defaults."""

    id: Name = Field(
        default_factory=socket.gethostname,
        description="Name of this gateway in everything that it sends; default: the host name.",
        examples=["line1-gw"],
    )
    site: str = Field(
        "", description="Where it stands; first part of topics. Levels are separated by `/`.", examples=["acme/plant1"]
    )
    data_dir: Path = Field(Path("/var/lib/gateway"), description="Folder for everything that the gateway keeps.")
    listen: str | None = Field(
        "127.0.0.1:9273",
        description="`address:port` of the local pages `/metrics` and `/health`; null: none. They have no password: "
        "an address other than this host's own opens them to the network.",
        examples=["0.0.0.0:9273"],
    )
    log: Log = Field(Log(), description="What the gateway writes about itself.")
    stop_timeout: Duration = Field(
        duration_ns("5s"), gt=0, description="At a stop, how long what is buffered in memory may take to be delivered."
    )

    max_clock_error: Duration | None = Field(
        None,
        gt=0,
        description="An alarm (`/health` is degraded, log, status topic, metric) while this host's clock may be off by "
        "more, or nobody keeps it right; collection goes on. null: none. [Clock](clock.md).",
        examples=["100ms"],
    )

    @field_validator("site")
    @classmethod
    def _levels(cls, site: str) -> str:
        if site and (not all(site.split("/")) or set(site) & set("+#\0")):
            raise ValueError(f"{site!r} cannot be part of a topic: write levels such as acme/plant1, without + and #")
        return site

    @field_validator("listen")
    @classmethod
    def _address(cls, listen: str | None) -> str | None:
        return None if listen is None else checked_address(listen)

    def listen_address(self) -> tuple[str, int] | None:
        """Host (IPv6 without brackets) and port of `listen`; None: no local pages."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


def checked_address(listen: str) -> str:
    """`listen` itself. Raises ValueError where it is no `address:port`."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{listen!r} is not an address and port: write 127.0.0.1:9273")
    return listen


class StepBase(Settings):
    """One step: a mapping with a single key, the stage's word."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    @model_validator(mode="before")
    @classmethod
    def _single(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) != 1:
            raise ValueError(f"a step has one key, one of {', '.join(STAGES)}: write each step as an item of its own")
        return value

    @property
    def word(self) -> str:
        """The key in `STAGES`."""
        return next(iter(self.model_fields_set))

    @property
    def setting(self) -> Any:
        """What stands below the word."""
        return getattr(self, self.word)

    def build(self, tags: TagTable) -> Stage:
        """The stage over `tags`; each route needs its own."""
        return STAGES[self.word](tags, self.setting)


def _tried(word: str, setting: Any) -> Any:
    STAGES[word](TagTable(), setting)
    return setting


def _step_field(word: str) -> Any:
    about = (getattr(STAGES[word], "__self__", STAGES[word]).__doc__ or "").strip().partition("\n")[0]
    return Annotated[Any, AfterValidator(partial(_tried, word))], Field(None, description=about)


if TYPE_CHECKING:
    Step = StepBase
else:
    Step = create_model(
        "Step", __base__=StepBase, __doc__=StepBase.__doc__, **{word: _step_field(word) for word in STAGES}
    )


class Buffer(Settings):
    """What a route holds while its destination is slow or away."""

    disk: Size = Field(
        size_bytes("20GiB"),
        ge=size_bytes("16MiB"),
        description="Most bytes on disk, in `data_dir`; survives the gateway and the power. Not with `fast: true`.",
    )
    memory: Size | None = Field(
        None,
        ge=size_bytes("1MiB"),
        description="Most bytes held in memory: copies of what came last (default 16MiB), or with `fast: true` all"
        " there is (default 64MiB), lost when the gateway ends.",
        examples=["64MiB"],
    )
    fsync_every: Duration = Field(
        duration_ns("100ms"),
        ge=duration_ns("1ms"),
        le=duration_ns("10s"),
        description="How often what was buffered is forced to disk; a machine that can wait (OPC UA) gets its "
        "acknowledgement then. While all of it has been delivered already: once a second.",
    )
    max_age: Duration | None = Field(
        None, gt=0, description="Older samples are dropped from disk, counted; null: kept until the buffer is full."
    )
    reserve: Size = Field(size_bytes("256MiB"), description="What the buffer leaves free on its disk, at least.")
    when_full: Literal["drop_oldest", "drop_newest"] = Field(
        "drop_oldest", description="Which samples give way when the buffer is full; each one is counted."
    )


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _single_target(value: Any) -> Any:
    if isinstance(value, list):
        raise ValueError("a route has one destination: write a route for each destination")
    return value


class Route(Settings):
    """Which tags go where, and what is done to them on the way."""

    from_: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = Field(
        alias="from",
        min_length=1,
        description="`*` (everything), a device, `device/tag`, or a list of these; `*` and `?` are wildcards.",
        examples=["*", "press4", ["press4/pressure", "meter*/flow"]],
    )
    to: Annotated[str, BeforeValidator(_single_target, json_schema_input_type=str)] = Field(
        description="Name of the destination, one of those below `to:`.", examples=["plant-mqtt"]
    )
    paths: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = Field(
        (),
        description="Of the destination's `paths:`, those that this route takes, the preferred one first. Default: all,"
        " in the order of the file.",
        examples=[["urllc", "embb"]],
    )
    steps: tuple[Step, ...] = Field((), description="What is done to the samples, in this order.")
    fast: bool = Field(
        False,
        description="true: for low latency; what waits is in memory only, and is written in small pieces. "
        "[Fast routes](fast.md).",
    )
    latency_budget: Duration | None = Field(
        None,
        gt=0,
        description="How long 99 of 100 samples may take, from the machine's time stamp to the broker's "
        "acknowledgement, over the last 10 s. Beyond it the route is `degraded` and says "
        "which leg takes the time; null: any time.",
        examples=["20ms"],
    )
    order: Literal["live_first", "strict"] = Field(
        "live_first",
        description="After an outage. `live_first`: new samples at once, what had to wait behind them, marked "
        "historical; each of the two is in order. `strict`: everything in one order, one write at a time, which is "
        "slower; a `fast` route is never `live_first`.",
    )
    replay_rate: int = Field(
        200_000,
        ge=1,
        description="With `live_first`: most samples per second of what had to wait, so that live ones are not delayed "
        "by it. What arrived together counts as 50 more.",
    )
    buffer: Buffer = Field(Buffer(), description="What the route holds while its destination is slow or away.")

    @property
    def memory_bytes(self) -> int:
        """What `buffer: {memory: }` comes to: little where the disk has it all, so that an outage does not show."""
        return self.buffer.memory or size_bytes("64MiB" if self.fast else "16MiB")


class GatewayFile(Settings):
    """Configuration of the gateway: the machines, the destinations, and the routes between them."""

    gateway: Gateway = Field(default_factory=Gateway, description="This gateway itself.")
    devices: dict[Name, Device] = Field(
        min_length=1, description="The machines: name -> address (`opcua:` or `modbus:`), options and `tags:`."
    )
    send: dict[Name, Route] = Field(
        min_length=1, description="The routes: name -> `from:` some tags, `to:` a destination."
    )
    to: dict[Name, Target] = Field(
        min_length=1, description="The destinations: name -> address (`mqtt:` or `kafka:`) and options."
    )
    workers: dict[Name, Worker] = Field(
        default_factory=dict,
        description="Groups of devices that run in processes of their own, with their routes; devices that are in none "
        "share one process more. None named: all is one process.",
    )

    def listening_on(self, listen: str) -> Self:
        """The same file with another `listen:`. Raises ValueError."""
        gateway = self.gateway.model_copy(update={"listen": checked_address(listen)})
        return self.model_copy(update={"gateway": gateway})
