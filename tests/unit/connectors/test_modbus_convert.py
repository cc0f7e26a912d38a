"""Rows to engineering units: exact decimals, what is uncertain, what a device does not have."""

from __future__ import annotations

from typing import Any

from connectors.modbus_convert import Conversion, Meaning
from connectors.modbus_decode import BAD_NO_DATA
from connectors.modbus_plan import DataType, Point, Table
from pipelines.batch import GOOD, SEVERITY_UNCERTAIN, Batch, BatchBuilder, Flag, Kind

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
            builder.add(
                at, 0, value, KINDS.get(type(value), Kind.NULL), status=GOOD if value is not None else BAD_NO_DATA
            )
        found.append(conversion.apply(builder.build(0, 0, 0)))
    return found


def test_a_tenth_is_a_division() -> None:
    [batch] = converted({"a": Meaning(0.1), "b": Meaning(0.001), "c": Meaning(60.0, 5.0)}, {"a": 2305, "b": 3, "c": 2})
    assert batch.values() == [230.5, 0.003, 125.0]
    assert set(batch.kind.tolist()) == {Kind.DOUBLE}


def test_what_is_not_scaled_stays_an_integer() -> None:
    [batch] = converted({"a": Meaning(), "b": Meaning(double=True)}, {"a": 7, "b": 7})
    assert batch.kind.tolist() == [Kind.INT32, Kind.DOUBLE]


def test_missing_values_are_said_once() -> None:
    """Of the profile's tags; `x` is none of them."""
    meanings = {"a": Meaning(), "b": Meaning()}
    missing = {"a": None, "b": 1, "x": None}
    batches = converted(meanings, missing, missing, {"a": 5, "b": None, "x": None})
    assert [batch.tag.tolist() for batch in batches] == [[0, 1, 2], [1, 2], [0, 1, 2]]
    assert batches[0].status.tolist() == [BAD_NO_DATA, GOOD, BAD_NO_DATA]
    assert batches[2].values() == [5, None, None]


def test_integers_beyond_a_double() -> None:
    """Scaled they are the nearest Double."""
    [batch] = converted({"b": Meaning(0.01), "c": Meaning()}, {"b": 2**60, "c": 2**60})
    assert batch.values() == [2**60 / 100, 2**60]


def test_failed_rows_stay_failed_and_uncertain_ones_are_flagged() -> None:
    meanings = {"a": Meaning(0.1, uncertain=True), "b": Meaning(uncertain=True), "t": Meaning()}
    [batch] = converted(meanings, {"a": None, "b": 3, "t": "text"})
    assert batch.status.tolist() == [BAD_NO_DATA, SEVERITY_UNCERTAIN, GOOD]
    assert batch.flags.tolist() == [Flag.PROFILE_UNCERTAIN, Flag.PROFILE_UNCERTAIN, 0]
    assert batch.values() == [None, 3, "text"]
