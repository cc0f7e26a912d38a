"""Values of commands -> the type that a node or an argument has; and back, as a record shows them. Pure.

Nothing is bent to fit: text is no number, 21.5 is no integer, 300 is no Byte. Names of an enumeration stand for their
numbers.
"""

from __future__ import annotations

import math
import struct
import uuid
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import ua

from pipelines.commands import BAD_OUT_OF_RANGE, BAD_TYPE_MISMATCH, Refused

VT = ua.VariantType

INTEGERS: Final = {
    VT.SByte: (-(2**7), 2**7 - 1),
    VT.Byte: (0, 2**8 - 1),
    VT.Int16: (-(2**15), 2**15 - 1),
    VT.UInt16: (0, 2**16 - 1),
    VT.Int32: (-(2**31), 2**31 - 1),
    VT.UInt32: (0, 2**32 - 1),
    VT.Int64: (-(2**63), 2**63 - 1),
    VT.UInt64: (0, 2**64 - 1),
}


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a node or an argument takes."""

    kind: ua.VariantType
    is_array: bool = False
    names: Mapping[str, int] = field(default_factory=dict)
    """Of an enumeration; then nothing but its numbers is taken."""
    low: float = -math.inf
    high: float = math.inf
    """The machine's own range (Part 8, 5.3.2: InstrumentRange, else EURange)."""


def converted(value: Any, wanted: ValueType) -> ua.Variant:
    """Raises Refused: BadTypeMismatch, BadOutOfRange."""
    if wanted.is_array != isinstance(value, list):
        what = "an array" if wanted.is_array else "a single value"
        raise Refused(BAD_TYPE_MISMATCH, f"{value!r}: the machine takes {what}")
    if wanted.is_array:
        return ua.Variant([_one(each, wanted) for each in value], wanted.kind, is_array=True)
    return ua.Variant(_one(value, wanted), wanted.kind)


def shown(value: Any) -> Any:
    """asyncua's value as JSON has it."""
    match value:
        case list() | tuple():
            return [shown(each) for each in value]
        case None | bool() | str():
            return value
        case int():
            return int(value)  # enumerations too
        case float():
            return value
        case bytes():
            return b64encode(value).decode()
        case datetime():
            return value.replace(tzinfo=value.tzinfo or UTC).isoformat()
        case ua.LocalizedText():
            return value.Text
        case ua.NodeId() | ua.QualifiedName():
            return value.to_string()
        case ua.StatusCode():
            return value.value
        case _:
            return str(value)


def _one(value: Any, wanted: ValueType) -> Any:
    if wanted.names:
        return _of_enumeration(value, wanted.names)
    if wanted.kind in INTEGERS or wanted.kind in (VT.Float, VT.Double):
        return _number(value, wanted)
    if wanted.kind == VT.Boolean:
        if not isinstance(value, bool):
            raise Refused(BAD_TYPE_MISMATCH, f"{value!r} is neither true nor false")
        return value
    convert = _FROM_TEXT.get(wanted.kind)
    if convert is None:
        raise Refused(BAD_TYPE_MISMATCH, f"values of type {wanted.kind.name} cannot be written")
    if not isinstance(value, str):
        raise Refused(BAD_TYPE_MISMATCH, f"{value!r} is not text, as a {wanted.kind.name} needs it")
    try:
        return convert(value)
    except (ValueError, Base64Error, ua.UaError) as error:
        raise Refused(BAD_TYPE_MISMATCH, f"{value!r} is not a {wanted.kind.name}: {error}") from error


def _number(value: Any, wanted: ValueType) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(BAD_TYPE_MISMATCH, f"{value!r} is not a number, the machine takes {wanted.kind.name}")
    if not math.isfinite(value):
        raise Refused(BAD_OUT_OF_RANGE, f"{value} is not a number that can be written")
    limits = INTEGERS.get(wanted.kind)
    if limits and value != int(value):
        raise Refused(BAD_TYPE_MISMATCH, f"{value!r} is not a whole number, the machine takes {wanted.kind.name}")
    low, high = limits or (-math.inf, math.inf)
    if not max(low, wanted.low) <= value <= min(high, wanted.high):
        span = f"{max(low, wanted.low):g} to {min(high, wanted.high):g}"
        raise Refused(BAD_OUT_OF_RANGE, f"{value!r} is outside of what the machine takes, {span}")
    if limits:
        return int(value)
    return _single(value) if wanted.kind == VT.Float else float(value)


def _single(value: float) -> float:
    """As it comes back from 32 bits."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError as error:
        raise Refused(BAD_OUT_OF_RANGE, f"{value!r} is too large for a Float") from error


def _of_enumeration(value: Any, names: Mapping[str, int]) -> int:
    if isinstance(value, str) and value in names:
        return names[value]
    if isinstance(value, int | float) and not isinstance(value, bool) and value in names.values():
        return int(value)
    known = ", ".join(f"{name} ({number})" for name, number in names.items())
    raise Refused(BAD_OUT_OF_RANGE, f"{value!r} is not in the machine's enumeration: {known}")


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)


_FROM_TEXT: Final[Mapping[ua.VariantType, Any]] = {
    VT.String: str,
    VT.XmlElement: ua.XmlElement,
    VT.LocalizedText: ua.LocalizedText,
    VT.DateTime: _time,
    VT.Guid: uuid.UUID,
    VT.ByteString: lambda text: b64decode(text, validate=True),
    VT.NodeId: ua.NodeId.from_string,
}
