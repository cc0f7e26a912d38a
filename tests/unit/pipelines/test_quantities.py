"""Durations and sizes as words: every unit, wrong texts, and what the error says."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipelines.quantities import Duration, Settings, Size, duration_ns, format_duration, size_bytes


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1ns", 1),
        ("1us", 1_000),
        ("250ms", 250_000_000),
        ("1s", 10**9),
        ("1m", 60 * 10**9),
        ("1h", 3600 * 10**9),
        ("1d", 86_400 * 10**9),
        ("1.5s", 1_500_000_000),
        ("0.1s", 100_000_000),
        ("0.3ms", 300_000),
        ("1.0000000019s", 1_000_000_001),
        ("  10 s ", 10 * 10**9),
        ("0s", 0),
        (0, 0),
        (0.0, 0),
    ],
)
def test_durations(text: Any, ns: int) -> None:
    """Each unit, fractions in exact arithmetic, spaces around, and the bare 0."""
    assert duration_ns(text) == ns


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1B", 1),
        ("1kB", 1000),
        ("1MB", 10**6),
        ("1GB", 10**9),
        ("1TB", 10**12),
        ("1KiB", 1024),
        ("64MiB", 64 * 2**20),
        ("20GiB", 21_474_836_480),
        ("2TiB", 2 * 2**40),
        ("0.5KiB", 512),
        (0, 0),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    """Each decimal and binary unit."""
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "5",
        "ms",
        "5 parsecs",
        "-1s",
        "1e3s",
        "1,5s",
        "1s 2ms",
        ".5s",
        "5.s",
        "٣s",
        5,
        1.5,
        True,
        False,
        None,
        [],
        "1S",
    ],
)
def test_wrong_durations(wrong: Any) -> None:
    """What is no number with a unit, a bool too, is refused with the text itself, the units, and an example."""
    with pytest.raises(ValueError, match="is not a duration") as error:
        duration_ns(wrong)
    units = "(ns, us, ms, s, m, h, d)"
    assert str(error.value) == f"{wrong!r} is not a duration: write a number and a unit {units}, such as 250ms"


@pytest.mark.parametrize("wrong", ["20", "20gb", "20 G", "1kiB", "1KB", "5ms", -1, False])
def test_wrong_sizes(wrong: Any) -> None:
    """Units are case-sensitive; the message lists those there are."""
    with pytest.raises(ValueError, match="is not a size") as error:
        size_bytes(wrong)
    units = "(B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)"
    assert str(error.value) == f"{wrong!r} is not a size: write a number and a unit {units}, such as 20GiB"


def test_too_small_is_not_zero() -> None:
    """Zero often means "off": a fraction that would round to it is refused."""
    with pytest.raises(ValueError, match=r"'0\.4ns' is too small: the smallest duration is 1ns"):
        duration_ns("0.4ns")
    with pytest.raises(ValueError, match=r"'0\.9B' is too small: the smallest size is 1B"):
        size_bytes("0.9B")


@given(st.integers(0, 10**20))
def test_format_is_read_back(ns: int) -> None:
    """What `format_duration` writes means the same when it is read."""
    assert duration_ns(format_duration(ns)) == ns


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0ns"), (1, "1ns"), (250_000_000, "250ms"), (90 * 10**9, "90s"), (7200 * 10**9, "2h")]
)
def test_format_is_short(ns: int, text: str) -> None:
    """The largest unit that is exact."""
    assert format_duration(ns) == text


class Example(Settings):
    every: Duration = 100_000_000
    most: Size


def test_in_settings() -> None:
    """In a settings model: words in, integers out, unknown keys refused, nothing changed afterwards."""
    settings = Example.model_validate({"every": "1s", "most": "1KiB"})
    assert (settings.every, settings.most) == (10**9, 1024)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Example.model_validate({"most": "1B", "evry": "1s"})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, "every", 5)  # noqa: B010  # mypy knows it, too


@pytest.mark.parametrize(("kind", "good"), [(Duration, "250ms"), (Size, "1.5GiB")])
def test_schema_admits_what_is_admitted(kind: Any, good: str) -> None:
    """The schema that editors use agrees with the parser about a plain text."""
    schema = TypeAdapter(kind).json_schema()
    assert schema["type"] == "string"
    assert re.search(schema["pattern"], good)
    assert not re.search(schema["pattern"], "20gb")
