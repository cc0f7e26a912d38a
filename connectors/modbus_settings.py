"""The keys of a Modbus device in the configuration file, and the text that names a register."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from connectors.modbus_plan import (
    ADDRESSES,
    BITS_PER_REGISTER,
    REGISTERS_MAX,
    DataType,
    Point,
    Table,
    WordOrder,
)
from pipelines.commands import Writing
from pipelines.quantities import Duration, Settings, duration_ns

PORT = 502
LATER = {"rtu", "udp", "tls"}
"""Transports of DESIGN section 6 that are not built yet."""
_TABLES = {table.word: table for table in Table}
_TYPES = {kind.value: kind for kind in DataType}
_REGISTERS = {
    DataType.BOOL: 1,
    DataType.INT16: 1,
    DataType.UINT16: 1,
    DataType.INT32: 2,
    DataType.UINT32: 2,
    DataType.FLOAT32: 2,
    DataType.INT64: 4,
    DataType.UINT64: 4,
    DataType.FLOAT64: 4,
}
_REGISTER = re.compile(
    r"\s*(?P<table>[a-z]+)\s+(?P<address>\d+|0x[0-9a-f]+)(?:\.(?P<bit>\d+))?"
    r"(?:\s+(?P<type>[a-z]+\d*))?(?:\s+(?P<length>\d+))?\s*",
    re.IGNORECASE,
)
_EXAMPLES = "such as holding 40 int16, input 12 float32, holding 12.3 bool, holding 100 string 16 or coil 7"

WordOrderName: TypeAlias = Literal["big", "little", "big-byte-swapped", "little-byte-swapped"]
_ORDERS = "`big` ABCD, `little` CDAB (words swapped), `big-byte-swapped` BADC, `little-byte-swapped` DCBA."


def parse_register(text: str, name: str = "", order: WordOrder = WordOrder.BIG) -> Point:
    """`<table> <address>[.<bit>] [<type> [<length>]]` -> the point called `name`. Raises ValueError, one line."""
    match = _REGISTER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a register: write a table, an address and a type, {_EXAMPLES}")
    table = _TABLES.get(match["table"].lower())
    if table is None:
        raise ValueError(f"{text!r}: there is no table {match['table']!r}: write {', '.join(_TABLES)}")
    address = int(match["address"], 0) if match["address"].lower().startswith("0x") else int(match["address"])
    bit = None if match["bit"] is None else int(match["bit"])
    kind = _type(text, table, match["type"], bit)
    length = _length(text, kind, match["length"])
    count = (length + 1) // 2 if kind is DataType.STRING else _REGISTERS[kind]
    if address + count > ADDRESSES:
        raise ValueError(f"{text!r} ends beyond address {ADDRESSES - 1}, the last one that Modbus has")
    return Point(name, table, address, count, kind, order, bit or 0, length)


def _type(text: str, table: Table, word: str | None, bit: int | None) -> DataType:
    """The type that `word` names, checked against table and bit; bits are `bool` when nothing is said."""
    if word is None and (table.of_bits or bit is not None):
        word = "bool"
    kind = _TYPES.get((word or "").lower())
    if kind is None:
        said = f"there is no type {word!r}" if word else "the type is missing"
        raise ValueError(f"{text!r}: {said}: write {', '.join(_TYPES)}")
    if table.of_bits and (kind is not DataType.BOOL or bit is not None):
        raise ValueError(f"{text!r}: a {table.word} is a single bit: write {table.word} and an address only")
    if not table.of_bits and (kind is DataType.BOOL) != (bit is not None):
        raise ValueError(
            f"{text!r}: a bool in a register needs its bit, 0 to 15, and only a bool has one: holding 12.3 bool"
        )
    if bit is not None and bit >= BITS_PER_REGISTER:
        raise ValueError(f"{text!r}: a register has the bits 0 (least significant) to 15")
    return kind


def _length(text: str, kind: DataType, word: str | None) -> int:
    """Characters of a string; 0 for every other type."""
    if (kind is DataType.STRING) != (word is not None):
        raise ValueError(f"{text!r}: a string, and only a string, has a length in characters: holding 100 string 16")
    length = int(word or 0)
    if kind is DataType.STRING and not 1 <= length <= 2 * REGISTERS_MAX:
        raise ValueError(f"{text!r}: a string has 1 to {2 * REGISTERS_MAX} characters")
    return length


class ModbusTag(Settings):
    """One point: `spare: holding 40 int16`, or a mapping with these keys."""

    # `register` in the file; as an attribute that word belongs to Python's abstract classes.
    place: str = Field(
        alias="register",
        description="`<table> <address> <type>`, such as `holding 40 int16`. Tables: holding, input, coil, discrete. "
        "The address is the protocol's, counted from 0 (a manual's 40041 is `holding 40`); `0x28` is allowed. "
        "Types: int16, uint16, int32, uint32, int64, uint64, float32, float64; `holding 12.3 bool` is bit 3 of a "
        "register (0 is the least significant); `holding 100 string 16` is 16 characters, two a register, cut at the "
        "first NUL; a coil or discrete input needs no type.",
        examples=["holding 40 int16", "input 12 float32", "holding 12.3 bool", "holding 100 string 16", "coil 7"],
    )
    word_order: WordOrderName | None = Field(
        None,
        description=f"Order of words and bytes: {_ORDERS} Strings follow its byte order only. Default: the device's.",
    )
    unit: str = Field("", description="Engineering unit, for people and for formats that carry it.")
    scale: float = Field(1.0, description="Factor applied to numbers; the result is a Double.")
    offset: float = Field(0.0, description="Added after `scale`.")
    deadband: float = Field(
        0.0, ge=0.0, description="Absolute, in engineering units: smaller changes are not sent. 0 sends every poll."
    )
    every: Duration | None = Field(None, gt=0, description="Poll period of this tag; default: the device's.")
    write: Writing = None

    @field_validator("place")
    @classmethod
    def _register(cls, text: str) -> str:
        parse_register(text)
        return text


def _tag_from_text(value: Any) -> Any:
    return {"register": value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class ModbusUrl:
    """`tcp://10.0.0.7:502/1` in parts."""

    scheme: str
    host: str
    port: int
    unit: int

    @property
    def rtu(self) -> bool:
        """Serial frames with a CRC and without a transaction id, inside TCP."""
        return self.scheme == "rtu+tcp"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.unit}"


def parse_url(url: str) -> ModbusUrl:
    """Raises ValueError, one line."""
    parts = urlsplit(url)
    if parts.scheme in LATER:
        raise ValueError(f"{url!r}: {parts.scheme}:// is not in this version: tcp:// and rtu+tcp:// are")
    surplus = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in {"tcp", "rtu+tcp"} or not parts.hostname or surplus:
        raise ValueError(
            f"{url!r} is not a Modbus address: write tcp://host:502/1 or rtu+tcp://host:502/1 (1: unit id)"
        )
    return ModbusUrl(parts.scheme, parts.hostname, _port(url, parts), _unit(url, parts))


def _port(url: str, parts: SplitResult) -> int:
    try:
        port = PORT if parts.port is None else parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: the port is a number from 1 to 65535") from error
    if port == 0:
        raise ValueError(f"{url!r}: the port is a number from 1 to 65535")
    return port


def _unit(url: str, parts: SplitResult) -> int:
    """The unit id behind the host, 1 where none is written. 0 is broadcast on a serial line: nobody would answer."""
    text = parts.path.strip("/") or "1"
    lowest = 1 if parts.scheme == "rtu+tcp" else 0
    if not (text.isascii() and text.isdigit()) or not lowest <= int(text) <= 255:
        raise ValueError(f"{url!r}: the unit id behind the host is a number from {lowest} to 255")
    return int(text)


class ModbusDevice(Settings):
    """A machine that speaks Modbus."""

    modbus: str = Field(
        description="`tcp://host:502/1` (Modbus TCP) or `rtu+tcp://host:502/1` (serial frames through a serial "
        "server). Default port 502; the number behind the host is the unit id, default 1.",
        examples=["tcp://10.0.0.7:502/1", "rtu+tcp://10.0.0.8:4001/17"],
    )
    every: Duration = Field(duration_ns("1s"), gt=0, description="Poll period.")
    timeout: Duration = Field(duration_ns("1s"), gt=0, description="For connecting and for each request.")
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
    tags: Annotated[
        dict[str, Annotated[ModbusTag, BeforeValidator(_tag_from_text)]],
        Field(min_length=1, description="Tag name -> register, or a mapping with `register:` and options."),
    ]

    @field_validator("modbus")
    @classmethod
    def _url(cls, url: str) -> str:
        parse_url(url)
        return url

    @model_validator(mode="after")
    def _fit(self) -> ModbusDevice:
        for name, tag in self.tags.items():
            point = parse_register(tag.place)
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
    def learns_tags(self) -> bool:
        """More tags than `tags` become known when the device is connected."""
        return False

    def points(self) -> Mapping[int, list[Point]]:
        """Poll period in ns -> its points; the shortest period first."""
        periods: defaultdict[int, list[Point]] = defaultdict(list)
        for name, tag in self.tags.items():
            order = WordOrder(tag.word_order or self.word_order)
            periods[tag.every or self.every].append(parse_register(tag.place, name, order))
        return dict(sorted(periods.items()))
