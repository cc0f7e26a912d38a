"""The keys of a Modbus device in the configuration file, and the text that names a register."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from connectors.modbus_plan import DATE_TIMES, REGISTERS_MAX, DataType, Point, Range, WordOrder, scaled_by
from connectors.modbus_register import RangeText, RegisterText, parse_encoding, parse_point, parse_range, parse_register
from connectors.modbus_url import Manners, ModbusUrl, parse_url
from connectors.network_settings import AS_IT_IS, NetworkSettings
from connectors.profile import ProfileName
from connectors.tls_settings import TlsSettings
from pipelines.commands import Writing
from pipelines.quantities import Duration, Settings, duration_ns

WordOrderName: TypeAlias = Literal["big", "little", "big-byte-swapped", "little-byte-swapped"]
_ORDERS = "`big` ABCD, `little` CDAB (words swapped), `big-byte-swapped` BADC, `little-byte-swapped` DCBA."


class ModbusTag(Settings):
    """One point: `spare: holding 40 int16`, or a mapping with these keys."""

    # `register` in the file; as an attribute that word belongs to Python's abstract classes.
    place: RegisterText = Field(
        alias="register",
        description="`<table> <address> <type>`, such as `holding 40 int16`. Tables: holding, input, coil, discrete. "
        "The address is the protocol's, counted from 0 (a manual's 40041 is `holding 40`); `0x28` is allowed. "
        "Types: int16, uint16, int32, uint32, int64, uint64, float16, float32, float64, bcd16, bcd32; int8 and uint8 "
        "(`holding 40.high uint8`, default the low byte); `holding 12.3 bool` is bit 3 of a register (0 is the least "
        "significant); `holding 100 string 16` is 16 characters, two a register, cut at the first NUL (`holding "
        "100.low string 16`: one a register); date-times, taken as UTC: unix32, unix64, unix64-ms, iec870, "
        "powerlogic, s7-datetime, bcd-datetime, datetime6 (docs/modbus.md); `holding 100 int16[10]` is an array of "
        "any number type; a coil or discrete input needs no type.",
        examples=["holding 40 int16", "input 12 float32", "holding 12.3 bool", "holding 100 string 16", "coil 7"],
    )
    word_order: WordOrderName | None = Field(
        None,
        description=f"Order of words and bytes: {_ORDERS} Strings follow the device's byte order only, and their own "
        "`word_order` wholly. Default: the device's.",
    )
    encoding: str = Field("utf-8", description="Code page of a string, such as latin-1, cp1252, utf-16-be.")
    values: dict[int, str] = Field(
        {}, description="What numbers mean: names of an enumeration.", examples=[{0: "STOP", 1: "RUN"}]
    )
    bits: dict[int, str] = Field(
        {}, description="Names of single bits of an unsigned integer, 0 the least significant.", examples=[{0: "FAULT"}]
    )
    scale_from: str | None = Field(
        None,
        description="Register with the power of ten that the value is to be multiplied by (SunSpec `sunssf`), read in "
        "the same request; outside of -10 to 10 there is no value.",
        examples=["holding 40080 int16"],
    )
    invalid: list[int | float | str] = Field(
        [],
        description="Raw values by which the device says that it has none: the row has no value and the status "
        "BadNoData. For floats `.nan` too; for strings texts.",
        examples=[[-32768]],
    )
    unit: str = Field("", description="Engineering unit, for people and for formats that carry it.")
    scale: float = Field(1.0, description="Factor applied to numbers; the result is a Double.")
    offset: float = Field(0.0, description="Added after `scale`.")
    deadband: float = Field(
        0.0, ge=0.0, description="Absolute, in engineering units: smaller changes are not sent. 0 sends every poll."
    )
    every: Duration | None = Field(None, gt=0, description="Poll period of this tag; default: the device's.")
    write: Writing = None

    @field_validator("encoding")
    @classmethod
    def _encoding(cls, text: str) -> str:
        return parse_encoding(text)

    @model_validator(mode="after")
    def _agree(self) -> ModbusTag:
        """Each option says something about the type that the register has."""
        point = parse_register(self.place)
        whole, text = point.type.value.startswith(("int", "uint", "bcd")), point.type is DataType.STRING
        if self.encoding != "utf-8" and not text:
            raise ValueError("encoding is for strings")
        if self.values and self.bits:
            raise ValueError("values names numbers, bits names single bits: a tag has one of them")
        if (self.values or self.bits) and (not whole or self.scale != 1.0 or self.offset or self.scale_from):
            raise ValueError("values and bits are for integers without scale")
        if self.bits and not all(0 <= bit < 8 * (1 if point.half else 2 * point.count) for bit in self.bits):
            raise ValueError(f"bits: {self.place} has the bits 0 to {8 * (1 if point.half else 2 * point.count) - 1}")
        if (self.scale != 1.0 or self.offset) and point.items:
            raise ValueError("scale and offset are for single numbers, not for arrays")
        if self.invalid and (point.items or point.type in DATE_TIMES or point.type is DataType.BOOL):
            raise ValueError("invalid is for numbers and strings")
        if any(isinstance(raw, str) is not text for raw in self.invalid):
            raise ValueError("invalid: write numbers for a number, texts for a string")
        if self.scale_from:
            scaled_by(point, parse_register(self.scale_from))
        return self

    def point(self, name: str, order: WordOrder) -> Point:
        """The point of this tag in a device whose word order is `order`. Raises ValueError, one line."""
        own = WordOrder(self.word_order) if self.word_order else None
        point = replace(parse_point(self.place, name, own, order), encoding=self.encoding, invalid=tuple(self.invalid))
        return scaled_by(point, parse_register(self.scale_from, order=order)) if self.scale_from else point

    @property
    def labels(self) -> tuple[tuple[int, str], ...]:
        """Of the tag, for `pipelines.tags.Tag`."""
        return tuple(sorted((self.bits or self.values).items()))


def _tag_from_text(value: Any) -> Any:
    return {"register": value} if isinstance(value, str) else value


class ModbusDevice(Settings):
    """A machine that speaks Modbus."""

    modbus: str = Field(
        description="`tcp://host:502/1` (Modbus TCP), `rtu:///dev/ttyUSB0?baud=19200&parity=E/1` (a serial port), "
        "`rtu+tcp://host:502/1` (serial frames through a serial server), `udp://host:502/1`, `tls://host:802/1` "
        "(Modbus/TCP Security). The number at the end is the unit id, default 1. Serial: `parity` N, E or O, `stop` 1 "
        "or 2; default 19200 baud, E, 1; `rs485=1` has the port's driver switch the line's direction.",
        examples=["tcp://10.0.0.7:502/1", "rtu:///dev/ttyUSB0?baud=9600&parity=N/17", "rtu+tcp://10.0.0.8:4001/17"],
    )
    connection: Literal["own", "shared"] = Field(
        "own",
        description="`shared`: one connection for all devices with this host and port that say so, such as the units "
        "behind a serial gateway. A serial port is always shared by its devices.",
    )
    pipeline: int = Field(
        1,
        ge=1,
        le=16,
        description="Requests outstanding at once, for a device that allows it; 1 waits for each reply. Not on serial "
        "frames. On a shared connection the lowest of its devices counts.",
    )
    pause: Duration = Field(
        0,
        ge=0,
        description="Left between a reply and the next request, for devices, radios and RS-485 converters that need "
        "it. A serial port keeps the silence of 3.5 characters anyway. On a shared connection the longest counts.",
    )
    echo: bool = Field(
        False, description="Serial frames only: the converter sends back what it is sent; that is taken off."
    )
    tls: TlsSettings | None = Field(
        None, description="Certificates of `tls://`; most such devices want the gateway's own (`cert` and `key`)."
    )
    network: NetworkSettings = Field(
        AS_IT_IS,
        description="Interface, source address and DSCP of the connection. On a shared connection that of "
        "whoever connects last.",
    )
    every: Duration = Field(duration_ns("1s"), gt=0, description="Poll period.")
    timeout: Duration = Field(
        duration_ns("1s"),
        gt=0,
        description="For connecting and for each request; the time that the bytes take on a serial port comes on top.",
    )
    word_order: WordOrderName = Field("big", description=f"Order of words and bytes in this device: {_ORDERS}")
    max_gap: int = Field(
        8,
        ge=0,
        le=REGISTERS_MAX,
        description="Unused registers read along to save a request; bit tables: 16 times as many bits. 8 cost less "
        "than a request even at 9600 baud. 0 for a device that refuses reads across addresses it does not have.",
    )
    max_block: int = Field(
        REGISTERS_MAX,
        ge=1,
        le=REGISTERS_MAX,
        description="Registers in one request at most; bit tables: 16 times as many bits. Lower it to what the "
        "device's manual allows.",
    )
    forbidden: list[RangeText] = Field(
        [],
        description="Ranges that no read may touch, gaps bridged between tags included: `holding 100-199`.",
        examples=[["holding 100-199", "input 7"]],
    )
    profile: ProfileName | None = Field(
        None,
        description="Tags and manners of a known device: the name of a profile (`gateway profile ls`), or `auto`: "
        "chosen by what the device says it is. Its version is looked at whenever the device is connected.",
        examples=["eastron-sdm630", "auto"],
    )
    firmware: str | None = Field(
        None, description="The device's firmware, in place of what it says itself. Only with `profile`."
    )
    recheck: Duration = Field(
        duration_ns("6h"), gt=0, description="How often a device with a profile is asked again what it is."
    )
    tags: Annotated[
        dict[str, Annotated[ModbusTag, BeforeValidator(_tag_from_text)]],
        Field(
            description="Tag name -> register, or a mapping with `register:` and options. Beside a `profile`: tags "
            "that are added to its own, or take the place of one of the same name."
        ),
    ] = {}  # noqa: RUF012
    _apart: frozenset[str] = PrivateAttr(frozenset())

    @field_validator("modbus")
    @classmethod
    def _url(cls, url: str) -> str:
        parse_url(url)
        return url

    @model_validator(mode="after")
    def _wire(self) -> ModbusDevice:
        if self.pipeline > 1 and self.url.rtu:
            raise ValueError("pipeline: serial frames have no transaction id: one request at a time")
        if self.echo and not self.url.rtu:
            raise ValueError("echo: only serial frames (rtu://, rtu+tcp://) can come back")
        if self.network.network and self.url.serial:
            raise ValueError("network: a serial port has none")
        if self.tls and self.url.scheme != "tls":
            raise ValueError("tls: the address says otherwise: write tls://host:802")
        return self

    @model_validator(mode="after")
    def _fit(self) -> ModbusDevice:
        if not self.tags and not self.profile:
            raise ValueError("a device needs `tags:`, or a `profile:` that has them")
        if self.firmware and not self.profile:
            raise ValueError("`firmware:` says which version of a `profile:` to use: write that, too")
        for name, tag in self.tags.items():
            point = parse_register(tag.place)
            if hole := next((hole for hole in self.holes if hole.touches(point.span)), None):
                raise ValueError(f"tag {name}: {point.span} is in the forbidden range {hole}")
            if not point.table.of_bits and point.count > self.max_block:
                raise ValueError(
                    f"tag {name}: needs {point.count} registers in one read, max_block is {self.max_block}"
                )
        return self

    @property
    def url(self) -> ModbusUrl:
        """`modbus` in parts."""
        return parse_url(self.modbus)

    @property
    def manners(self) -> Manners:
        """How the line is treated."""
        return Manners(
            self.connection == "shared", self.pipeline, self.pause, self.echo, self.tls, self.network.network
        )

    @property
    def holes(self) -> list[Range]:
        """`forbidden` as addresses."""
        return [parse_range(text) for text in self.forbidden]

    @property
    def learns_tags(self) -> bool:
        """More tags than `tags` become known when the device is connected."""
        return self.profile is not None

    @property
    def apart(self) -> Collection[str]:
        """Tags that are read by themselves: those of fast routes."""
        return self._apart

    def with_apart(self, tags: Collection[str]) -> ModbusDevice:
        """The same device with these tags read by themselves."""
        device = self.model_copy()
        device._apart = frozenset(tags)
        return device

    def points(self) -> Mapping[int, list[Point]]:
        """Poll period in ns -> its points; the shortest period first."""
        periods: defaultdict[int, list[Point]] = defaultdict(list)
        for name, tag in self.tags.items():
            periods[tag.every or self.every].append(tag.point(name, WordOrder(self.word_order)))
        return dict(sorted(periods.items()))
