"""Words of the configuration file: durations, sizes and the base of every settings model."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

_SECOND_NS = 10**9
_DURATION_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": _SECOND_NS}
_DURATION_NS |= {"m": 60 * _SECOND_NS, "h": 3600 * _SECOND_NS, "d": 86400 * _SECOND_NS}
_SIZE_BYTES = {"B": 1}
_SIZE_BYTES |= {unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB"), start=1)}
_SIZE_BYTES |= {unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), start=1)}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def _parse(text: Any, units: dict[str, int], what: str, example: str) -> int:
    if text == 0 and not isinstance(text, bool):
        return 0
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not a {what}: write a number and a unit ({', '.join(units)}), such as {example}")
    whole, _, fraction = match[1].partition(".")
    digits = int(whole + fraction)
    amount: int = digits * units[match[2]] // 10 ** len(fraction)
    if digits and not amount:
        raise ValueError(f"{text!r} is too small: the smallest {what} is 1{next(iter(units))}")
    return amount


def duration_ns(text: Any) -> int:
    """Such as "250ms" -> 250_000_000. Units ns, us, ms, s, m, h, d; a bare 0 is allowed. Raises ValueError."""
    return _parse(text, _DURATION_NS, "duration", "250ms")


def size_bytes(text: Any) -> int:
    """Such as "20GiB" -> 21_474_836_480. Units B, kB, MB, ..., KiB, ...; a bare 0 is allowed. Raises ValueError."""
    return _parse(text, _SIZE_BYTES, "size", "20GiB")


def count(number: int, noun: str) -> str:
    """`1 tag`, `2 tags`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_duration(ns: int) -> str:
    """The shortest exact text: 250_000_000 -> "250ms"."""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        if ns and ns % _DURATION_NS[unit] == 0:
            return f"{ns // _DURATION_NS[unit]}{unit}"
    return f"{ns}ns"


Duration = Annotated[
    int,
    BeforeValidator(duration_ns),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? ?(ns|us|ms|s|m|h|d)$", "examples": ["250ms"]}),
]
"""A setting such as `250ms`; in code an integer, nanoseconds."""

Size = Annotated[
    int,
    BeforeValidator(size_bytes),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? ?(B|[kMGT]B|[KMGT]iB)$", "examples": ["64MiB"]}),
]
"""A setting such as `64MiB`; in code an integer, bytes."""


STRICT: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)
"""Unknown keys are refused."""


class Settings(BaseModel):
    """Base of every settings model: unknown keys are refused, nothing changes after the file was read."""

    model_config = ConfigDict(**STRICT, frozen=True)
