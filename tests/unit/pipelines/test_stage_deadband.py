"""deadband against a model that looks at one row after the other, in whichever way the stage goes through a batch."""

from math import inf, isfinite, nan
from random import Random
from typing import Any

import pytest

from pipelines.batch import SMALL_ROWS, Batch, Kind
from pipelines.stage_deadband import DeadbandStage
from pipelines.tags import Tag, TagTable
from tests.unit.pipelines.fakes import make_batch

TAGS = 60
NUMERIC = set(range(Kind.SBYTE, Kind.DOUBLE + 1))


class Model:
    """Row by row, after the words of the stage's docstring."""

    def __init__(self, absolute: list[float], percent: float) -> None:
        self.absolute, self.percent = absolute, percent
        self.went_on: dict[int, tuple[float | None, int]] = {}

    def keeps(self, tag: int, value: float, kind: int, status: int) -> bool:
        number = value if kind in NUMERIC and isfinite(value) else None
        last, last_status = self.went_on.get(tag, (None, -1))
        if number is not None and last is not None and status == last_status:
            band = max(self.absolute[tag], self.percent / 100.0 * abs(last))
            if band > 0 and abs(number - last) <= band:
                return False
        self.went_on[tag] = (number, status)
        return True


def table(deadband: list[float]) -> TagTable:
    tags = TagTable()
    for index, width in enumerate(deadband):
        tags.add(Tag("d", f"t{index}", deadband=width))
    return tags


def random_batch(random: Random) -> Batch:
    """Few rows, many rows of few tags, or many tags with few rows each: each a different way through the stage."""
    tag = random.choice(
        [
            [random.randrange(4) for _ in range(random.randrange(SMALL_ROWS + 1))],
            [random.randrange(3) for _ in range(100)],
            random.sample(range(TAGS), 50),
            random.sample(range(TAGS), TAGS) + random.sample(range(TAGS), 20),
        ]
    )
    value = [
        random.choice([0.0, 1.0, 1.4, 1.5, 1.6, 2.0, -1.0, -1.01, 100.0, 100.9, 101.0, nan, inf, -inf]) for _ in tag
    ]
    kind = [random.choice([Kind.DOUBLE] * 8 + [Kind.INT32, Kind.BOOLEAN, Kind.STRING, Kind.NULL]) for _ in tag]
    status = [random.choice([0] * 9 + [0x80000000]) for _ in tag]
    return make_batch(tag=tag, value=value, kind=kind, status=status)


def kept_rows(stage: DeadbandStage, batch: Batch) -> list[tuple[Any, ...]]:
    kept = stage.process(batch)
    return rows(kept) if kept is not None else []


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    columns = (batch.tag, batch.value, batch.kind, batch.status)
    return [tuple(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True)]


@pytest.mark.parametrize("setting", [0, 0.5, {"absolute": 0.5}, {"percent": 1}, {"absolute": 0.1, "percent": 10}])
@pytest.mark.parametrize("seed", range(8))
def test_same_as_row_by_row(setting: Any, seed: int) -> None:
    """Absolute, percent and both: exactly the model's rows go on, over batches with one and with many rows of a tag."""
    random = Random(seed)
    stage = DeadbandStage.from_setting(table([0.0] * TAGS), setting)
    parts = setting if isinstance(setting, dict) else {"absolute": setting}
    model = Model([parts.get("absolute", 0.0)] * TAGS, parts.get("percent", 0.0))
    for _ in range(12):
        batch = random_batch(random)
        judged = zip(*(c.tolist() for c in (batch.tag, batch.value, batch.kind, batch.status)), strict=True)
        expected = [row for row, keep in zip(rows(batch), [model.keeps(*row) for row in judged], strict=True) if keep]
        assert kept_rows(stage, batch) == expected


@pytest.mark.parametrize("seed", range(4))
def test_per_tag_same_as_row_by_row(seed: int) -> None:
    """Each tag's own width of the file, also for tags that are added while running."""
    random = Random(seed)
    widths = [random.choice([0.0, 0.1, 0.5, 5.0]) for _ in range(TAGS)]
    tags = table(widths[: TAGS // 2])
    stage = DeadbandStage.per_tag(tags)
    stage.process(make_batch(tag=[0], value=[-50.0]))
    model = Model(widths, 0.0)
    model.keeps(0, -50.0, Kind.DOUBLE, 0)
    for index in range(TAGS // 2, TAGS):
        tags.add(Tag("d", f"t{index}", deadband=widths[index]))
    for _ in range(12):
        batch = random_batch(random)
        judged = zip(*(c.tolist() for c in (batch.tag, batch.value, batch.kind, batch.status)), strict=True)
        expected = [row for row, keep in zip(rows(batch), [model.keeps(*row) for row in judged], strict=True) if keep]
        assert kept_rows(stage, batch) == expected


def passed(setting: Any, *values: float) -> list[float]:
    """What goes on of one tag's values, each in a batch of its own."""
    stage = DeadbandStage.from_setting(table([0.0]), setting)
    return [value for value in values if stage.process(make_batch(tag=[0], value=[value])) is not None]


def test_compares_with_the_last_that_went_on() -> None:
    """A slow drift is not swallowed: the distance counts from what was sent, not from the last value seen."""
    assert passed(1.0, 0.0, 0.6, 1.2, 1.8, 2.4) == [0.0, 1.2, 2.4]


def test_exactly_the_width_is_within() -> None:
    """A step of exactly the width stays, anything more goes on; so for percent of the last value."""
    assert passed(0.5, 1.0, 1.5, 1.5000001) == [1.0, 1.5000001]
    assert passed({"percent": 10}, 100.0, 110.0, 90.0, 89.0, 98.0) == [100.0, 89.0, 98.0]


def test_zero_width_passes_everything() -> None:
    """A width of 0, or percent of 0, passes equal values too."""
    assert passed(0, 1.0, 1.0) == [1.0, 1.0]
    assert passed({"percent": 5}, 0.0, 0.0) == [0.0, 0.0]


@pytest.mark.parametrize("setting", [1.0, {"percent": 50}, {"absolute": 1.0, "percent": 50}])
@pytest.mark.parametrize("odd", [nan, inf, -inf])
def test_first_number_after_nan_or_infinity_goes_on(setting: Any, odd: float) -> None:
    """NaN and infinities go on and leave no band behind: the next number goes on, and then the band holds again."""
    assert len(passed(setting, 5.0, odd, 5.0, 5.1)) == 3


def test_status_change_goes_on() -> None:
    """The same value with another status is news, and so is the way back."""
    stage = DeadbandStage.from_setting(table([0.0]), 1.0)
    statuses = [0, 0, 0x40000000, 0x40000000, 0]
    kept = [stage.process(make_batch(tag=[0], value=[5.0], status=status)) is not None for status in statuses]
    assert kept == [True, False, True, False, True]


def test_overflow_is_a_distance() -> None:
    """The distance of two extreme numbers overflows to infinity, without a warning, and they go on: in both ways."""
    assert passed(1.0, 1e308, -1e308) == [1e308, -1e308]
    stage = DeadbandStage.from_setting(table([0.0] * TAGS), 1.0)
    for sign in (1.0, -1.0):
        batch = make_batch(tag=range(TAGS), value=[sign * 1.7e308] * TAGS)
        assert stage.process(batch) is batch


def test_a_batch_that_all_goes_on_is_the_same() -> None:
    """No copy where nothing is left out; None where nothing is left."""
    stage = DeadbandStage.from_setting(table([0.0] * TAGS), 1.0)
    for count in (3, TAGS):
        batch = make_batch(tag=range(count), value=[1000.0 * count] * count)
        assert stage.process(batch) is batch
        assert stage.process(batch) is None
