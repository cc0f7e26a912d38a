"""The text that names a register: `<table> <address>[.<bit>|.low|.high] [<type>[<[items]>] [<length>]]` -> Point."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from connectors.modbus_plan import (
    ADDRESSES,
    BITS_PER_REGISTER,
    REGISTERS,
    REGISTERS_MAX,
    DataType,
    Point,
    Range,
    Table,
    WordOrder,
)

_TABLES = {table.word: table for table in Table}
_TYPES = {kind.value: kind for kind in DataType}
_BYTES = frozenset({DataType.INT8, DataType.UINT8})
_NO_ARRAY = _BYTES | {DataType.STRING} | {kind for kind in DataType if kind.is_time}
_NUMBER = r"\d+|0x[0-9a-f]+"
_REGISTER = re.compile(
    rf"\s*(?P<table>[a-z]+)\s+(?P<address>{_NUMBER})(?:\.(?P<part>\d+|low|high))?"
    r"(?:\s+(?P<type>[a-z][a-z0-9-]*)(?:\[(?P<items>\d+)\])?)?(?:\s+(?P<length>\d+))?\s*",
    re.IGNORECASE,
)
_RANGE = re.compile(
    rf"\s*(?P<table>[a-z]+)\s+(?P<first>{_NUMBER})(?:\s*-\s*(?P<last>{_NUMBER}))?\s*",
    re.IGNORECASE,
)
_EXAMPLES = "such as holding 40 int16, input 12 float32, holding 12.3 bool, holding 100 string 16 or coil 7"


def parse_register(text: str, name: str = "", order: WordOrder = WordOrder.BIG) -> Point:
    """The point called `name`. Raises ValueError, one line."""
    match = _REGISTER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a register: write a table, an address and a type, {_EXAMPLES}")
    table, address = _table(text, match["table"]), int(match["address"], 0 if "x" in match["address"].lower() else 10)
    half = (match["part"] or "").lower() if not (match["part"] or "").isdigit() else ""
    bit = int(match["part"]) if match["part"] and not half else None
    kind = _type(text, table, match["type"], bit)
    if kind in _BYTES:
        half = half or "low"
    elif half and kind is not DataType.STRING:
        raise ValueError(f"{text!r}: only int8, uint8 and strings are in one half of a register")
    items, length = _items(text, kind, table, bit, match["items"]), _length(text, kind, match["length"])
    each = REGISTERS.get(kind, length if half else (length + 1) // 2)
    point = Point(name, table, address, each * (items or 1), kind, order, bit or 0, length, half, items)
    if point.stop > ADDRESSES:
        raise ValueError(f"{text!r} ends beyond address {ADDRESSES - 1}, the last one that Modbus has")
    if point.count > REGISTERS_MAX * (BITS_PER_REGISTER if table.of_bits else 1):
        raise ValueError(f"{text!r}: a read has at most {REGISTERS_MAX} registers or {REGISTERS_MAX * 16} bits")
    return point


def _checked(parse: Callable[[str], object], text: str) -> str:
    parse(text)
    return text


RegisterText: TypeAlias = Annotated[str, AfterValidator(partial(_checked, parse_register))]


def parse_point(text: str, name: str, own: WordOrder | None, device: WordOrder) -> Point:
    """The same, of a device: where the value has no word order of its own, a string takes the device's byte order only.

    Raises ValueError, one line.
    """
    point = parse_register(text, name, own or device)
    if own is None and point.type is DataType.STRING:
        return replace(point, order=WordOrder.BIG_BYTE_SWAPPED if device.bytes_swapped else WordOrder.BIG)
    return point


def parse_range(text: str) -> Range:
    """`holding 100-199`, `coil 7` -> addresses. Raises ValueError, one line."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a range: write a table, the first and the last address: holding 100-199")
    first, last = (int(part, 0 if "x" in part.lower() else 10) for part in (match[2], match[3] or match[2]))
    if not first <= last < ADDRESSES:
        raise ValueError(f"{text!r}: addresses go from 0 to {ADDRESSES - 1}, the lower one first")
    return Range(_table(text, match["table"]), first, last + 1)


RangeText: TypeAlias = Annotated[str, AfterValidator(partial(_checked, parse_range))]


def parse_encoding(text: str) -> str:
    """Python's name of a code page. Raises ValueError, one line."""
    try:
        return codecs.lookup(text).name
    except LookupError as error:
        raise ValueError(f"{text!r} is not a code page: write utf-8, ascii, latin-1, cp1252, utf-16-be, ...") from error


def _table(text: str, word: str) -> Table:
    table = _TABLES.get(word.lower())
    if table is None:
        raise ValueError(f"{text!r}: there is no table {word!r}: write {', '.join(_TABLES)}")
    return table


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
    """Bytes of a string; 0 for every other type."""
    if (kind is DataType.STRING) != (word is not None):
        raise ValueError(f"{text!r}: a string, and only a string, has a length in characters: holding 100 string 16")
    length = int(word or 0)
    if kind is DataType.STRING and not 1 <= length <= 2 * REGISTERS_MAX:
        raise ValueError(f"{text!r}: a string has 1 to {2 * REGISTERS_MAX} characters")
    return length


def _items(text: str, kind: DataType, table: Table, bit: int | None, word: str | None) -> int:
    """Values of an array; 0 where it is none."""
    if word is None:
        return 0
    if kind in _NO_ARRAY or bit is not None:
        raise ValueError(f"{text!r}: arrays are of numbers in whole registers, or of coils: holding 100 int16[10]")
    if int(word) < 1:
        raise ValueError(f"{text!r}: an array has 1 value or more")
    return int(word)


ORDERS: Mapping[str, str] = {
    "big": "ABCD",
    "little": "CDAB",
    "big-byte-swapped": "BADC",
    "little-byte-swapped": "DCBA",
}
"""Name of a word order -> where the bytes of a 32-bit value lie, A the most significant."""
