"""Raw rows to engineering units: exact decimals, scale factors from registers, what a device marks as missing."""

from __future__ import annotations

from typing import Any

import numpy as np

from connectors.modbus_convert import BAD_NO_DATA, UNCERTAIN, Conversion, Meaning
from connectors.modbus_plan import DataType, Point, Table
from pipelines.batch import GOOD, Batch, BatchBuilder, Flag, Kind

KINDS = {float: Kind.DOUBLE, int: Kind.INT32, str: Kind.STRING}


def converted(meanings: dict[str, Meaning], *cycles: dict[str, Any]) -> list[Batch]:
    """The batches of cycles with these raw values."""
    names = list(cycles[0])
    points = [Point(name, Table.HOLDING, at, 1, DataType.INT16) for at, name in enumerate(names)]
    conversion = Conversion(points, meanings)
    found = []
    for cycle in cycles:
        builder = BatchBuilder()
        for at, name in enumerate(names):
            value = cycle[name]
            builder.add(at, 0, value, KINDS.get(type(value), Kind.NULL), status=GOOD if value is not None else 1 << 31)
        found.append(conversion.apply(builder.build(0, 0, 0)))
    return found


def test_a_tenth_is_a_division() -> None:
    [batch] = converted({"a": Meaning(0.1), "b": Meaning(0.001), "c": Meaning(60.0, 5.0)}, {"a": 2305, "b": 3, "c": 2})
    assert batch.values() == [230.5, 0.003, 125.0]
    assert set(batch.kind.tolist()) == {Kind.DOUBLE}


def test_what_is_not_scaled_stays_an_integer() -> None:
    [batch] = converted({"a": Meaning(), "b": Meaning(double=True)}, {"a": 7, "b": 7})
    assert batch.kind.tolist() == [Kind.INT32, Kind.DOUBLE]


def test_scale_factors_from_registers() -> None:
    """They may change from cycle to cycle; one that is not implemented, or beyond what SunSpec allows, is no factor."""
    meanings = {"w": Meaning(scale_from="sf"), "sf": Meaning(hidden=True)}
    cycles = [{"w": 123, "sf": exponent} for exponent in (-1, 2, 0, 11)]
    batches = converted(meanings, *cycles)
    assert [batch.values() for batch in batches] == [[12.3], [12300.0], [123.0], [None]]
    assert batches[-1].status.tolist() == [BAD_NO_DATA]


def test_missing_values_are_said_once() -> None:
    meanings = {"a": Meaning(invalid=(-0x8000,)), "b": Meaning(), "c": Meaning(invalid=(float("nan"),))}
    batches = converted(
        meanings, *({"a": a, "b": 1, "c": c} for a, c in [(-0x8000, 1.5), (-0x8000, np.nan), (5, np.nan)])
    )
    assert [batch.tag.tolist() for batch in batches] == [[0, 1, 2], [1, 2], [0, 1]]
    assert batches[0].status.tolist() == [BAD_NO_DATA, GOOD, GOOD]
    assert batches[2].values() == [5, 1]


def test_integers_beyond_a_double() -> None:
    """All ones are the sentinel of 64 bits; another one is scaled to the nearest Double."""
    meanings = {"a": Meaning(0.01, invalid=(2**64 - 1,)), "b": Meaning(0.01, invalid=(2**64 - 1,)), "c": Meaning()}
    [batch] = converted(meanings, {"a": 2**64 - 1, "b": 2**60, "c": 2**60})
    assert batch.values() == [None, 2**60 / 100, 2**60]


def test_failed_rows_stay_failed_and_uncertain_ones_are_flagged() -> None:
    meanings = {"a": Meaning(0.1, uncertain=True), "b": Meaning(uncertain=True), "t": Meaning()}
    [batch] = converted(meanings, {"a": None, "b": 3, "t": "text"})
    assert batch.status.tolist() == [1 << 31, UNCERTAIN, GOOD]
    assert batch.flags.tolist() == [Flag.PROFILE_UNCERTAIN, Flag.PROFILE_UNCERTAIN, 0]
    assert batch.values() == [None, 3, "text"]
