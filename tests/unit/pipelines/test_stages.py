"""select, scale and rename, and the table that names the stages. deadband has a file of its own."""

from typing import Any

import numpy as np
import pytest

from pipelines.batch import ARRAY, Batch, Kind
from pipelines.contracts import Stage
from pipelines.stage_rename import RenameStage
from pipelines.stage_scale import ScaleStage, TagScaleStage
from pipelines.stage_select import SelectStage
from pipelines.stages import STAGES
from pipelines.tags import Tag, TagTable
from tests.unit.pipelines.fakes import make_batch, rows_of_batch


def table(*paths: str) -> TagTable:
    tags = TagTable()
    for path in paths:
        device, _, name = path.partition("/")
        tags.add(Tag(device, name))
    return tags


def process(stage: Stage, batch: Batch) -> Batch:
    processed = stage.process(batch)
    assert processed is not None
    return processed


@pytest.mark.parametrize(
    ("word", "setting"),
    [
        ("select", []),
        ("select", ""),
        ("select", [""]),
        ("select", 5),
        ("select", ["a", 5]),
        ("select", {"a": 1}),
        ("scale", True),
        ("scale", "2"),
        ("scale", None),
        ("scale", {}),
        ("scale", {"faktor": 2}),
        ("scale", {"factor": [1]}),
        ("scale", float("nan")),
        ("scale", {"offset": float("inf")}),
        ("deadband", -1),
        ("deadband", True),
        ("deadband", "1"),
        ("deadband", {}),
        ("deadband", {"relative": 1}),
        ("deadband", {"percent": -1}),
        ("deadband", float("nan")),
        ("rename", "a"),
        ("rename", ["a"]),
        ("rename", {"a": ""}),
        ("rename", {"a": 5}),
    ],
)
def test_wrong_settings(word: str, setting: Any) -> None:
    """A setting that cannot be meant is a ValueError of one line that begins with the stage's word."""
    with pytest.raises(ValueError, match=rf"^{word} takes [^\n]+$"):
        STAGES[word](TagTable(), setting)


@pytest.mark.parametrize(
    ("word", "setting"),
    [
        ("select", "a"),
        ("select", ["a", "b/*"]),
        ("scale", 2),
        ("scale", 0.1),
        ("scale", {"offset": 1}),
        ("deadband", 0.5),
        ("deadband", {"percent": 1}),
        ("deadband", {"absolute": 1, "percent": 1}),
        ("rename", {"a": "b"}),
    ],
)
@pytest.mark.parametrize("rows", [0, 2])
def test_stages_of_the_table_take_any_batch(word: str, setting: Any, rows: int) -> None:
    """Each documented form of each setting works; a batch without rows passes every stage without an error."""
    stage = STAGES[word](table("a/x", "a/y"), setting)
    processed = stage.process(make_batch(rows=rows))
    assert processed is None or len(processed) <= rows


def test_select_takes_rows_of_its_tags() -> None:
    """Only chosen tags go on; a batch of chosen tags is passed as it is, one of others is None."""
    tags = table("press4/temp", "meter7/flow", "press4/pressure")
    stage = SelectStage.from_setting(tags, "press4")
    mixed = make_batch(tag=[0, 1, 2, 1, 0])
    assert process(stage, mixed).tag.tolist() == [0, 2, 0]
    chosen = make_batch(tag=[0, 2])
    assert stage.process(chosen) is chosen
    assert stage.process(make_batch(tag=[1])) is None


def test_select_judges_tags_that_come_later() -> None:
    """A tag that a profile adds while running is selected by the same patterns."""
    tags = table("press4/temp")
    stage = SelectStage.from_setting(tags, ["*/flow"])
    assert stage.process(make_batch(tag=[0])) is None
    tags.add(Tag("meter7", "flow"))
    assert process(stage, make_batch(tag=[0, 1])).tag.tolist() == [1]


def test_scale_makes_doubles() -> None:
    """Integers and floats become Double in engineering units; the offered batch keeps its own columns."""
    batch = make_batch(value=[10.0, 20.0], kind=[Kind.INT16, Kind.FLOAT])
    scaled = process(ScaleStage(0.1, 5.0), batch)
    assert scaled.values() == [10.0 * 0.1 + 5.0, 20.0 * 0.1 + 5.0]
    assert scaled.kind.tolist() == [Kind.DOUBLE, Kind.DOUBLE]
    assert batch.values() == [10, 20.0]


def test_scale_leaves_what_is_no_number() -> None:
    """Booleans, null, text, DateTime, status codes and arrays keep value and kind beside a scaled number."""
    nan = float("nan")
    kinds = [Kind.BOOLEAN, Kind.NULL, Kind.STRING, Kind.DATETIME, Kind.STATUS_CODE, Kind.INT32 | ARRAY, Kind.INT32]
    batch = make_batch(
        value=[1.0, nan, nan, nan, 7.0, nan, 3.0],
        kind=kinds,
        extra={2: "a", 3: 5, 5: [1, 2]},
    )
    scaled = process(ScaleStage(2.0, 0.0), batch)
    assert scaled.values() == [True, None, "a", 5, 7, [1, 2], 6.0]
    assert scaled.kind.tolist() == [*kinds[:-1], Kind.DOUBLE]


def test_scale_takes_big_integers_out_of_extra() -> None:
    """An integer beyond 2^53 is scaled as the nearest Double; other extras stay; the offered batch is not changed."""
    nan = float("nan")
    batch = make_batch(value=[nan, nan], kind=[Kind.UINT64, Kind.STRING], extra={0: 2**64 - 1, 1: "a"})
    scaled = process(ScaleStage(0.5, 1.0), batch)
    assert scaled.values() == [float(2**64 - 1) * 0.5 + 1.0, "a"]
    assert scaled.extra == {1: "a"}
    assert batch.values() == [2**64 - 1, "a"]
    assert np.isnan(batch.value).all()
    only = process(ScaleStage(0.5, 0.0), make_batch(value=[nan], kind=Kind.INT64, extra={0: -(2**60)}))
    assert (only.values(), only.extra) == ([-(2.0**59)], None)


def test_neutral_scale_passes_the_batch() -> None:
    """Factor 1 and offset 0 keep integers integers, big ones too: the very same batch goes on."""
    batch = make_batch(value=[float("nan")], kind=Kind.UINT64, extra={0: 2**60})
    assert ScaleStage(1.0, 0.0).process(batch) is batch


def test_scale_overflows_to_infinity() -> None:
    """Infinities and overflow are results, not warnings (warnings are errors here)."""
    batch = make_batch(value=[1e308, float("inf"), float("nan")])
    doubled = process(ScaleStage(10.0, 0.0), batch)
    assert doubled.value[:2].tolist() == [float("inf"), float("inf")]
    nothing = process(ScaleStage(0.0, 0.0), batch)
    assert nothing.value[0] == 0.0
    assert np.isnan(nothing.value[1])


def test_scale_per_tag_follows_the_table() -> None:
    """Each tag has its own factor and offset, neutral ones stay untouched, and tags added later have theirs."""
    tags = TagTable()
    tags.add(Tag("d", "raw"))
    tags.add(Tag("d", "tenth", scale=0.1))
    stage = TagScaleStage(tags)
    first = process(stage, make_batch(tag=[0, 1], value=[7.0, 7.0], kind=Kind.INT32))
    assert first.values() == [7, 7.0 * 0.1]
    tags.add(Tag("d", "shifted", offset=100.0))
    second = process(stage, make_batch(tag=[2, 0, 1], value=[7.0, 7.0, 7.0], kind=Kind.INT32))
    assert second.values() == [107.0, 7, 7.0 * 0.1]


def test_rename_by_path_and_by_name() -> None:
    """A path renames one tag, a name that tag in every device (the path counts first); unit and id of others stay."""
    tags = TagTable()
    tags.add(Tag("press4", "t", unit="C"))
    tags.add(Tag("meter7", "t"))
    tags.add(Tag("meter7", "flow"))
    stage = RenameStage.from_setting(tags, {"t": "temperature", "press4/t": "oil_temperature"})
    renamed = process(stage, make_batch(tag=[0, 1, 2, 0]))
    assert [tags[tag].path for tag in renamed.tag.tolist()] == [
        "press4/oil_temperature",
        "meter7/temperature",
        "meter7/flow",
        "press4/oil_temperature",
    ]
    assert tags[int(renamed.tag[0])].unit == "C"


def test_rename_swaps_and_meets_existing_tags() -> None:
    """Names may be swapped; a new name that exists in the device is that tag; a tag is renamed once, not in a chain."""
    tags = table("d/a", "d/b", "d/c")
    swapped = process(RenameStage.from_setting(tags, {"a": "b", "b": "a"}), make_batch(tag=[0, 1, 2]))
    assert swapped.tag.tolist() == [1, 0, 2]
    chained = process(RenameStage.from_setting(tags, {"a": "b", "b": "c"}), make_batch(tag=[0, 1, 2]))
    assert chained.tag.tolist() == [1, 2, 2]
    assert len(tags) == 3


def test_rename_of_tags_that_come_later() -> None:
    """A tag that is added while running is renamed too; the table's growth by rename itself ends."""
    tags = table("d/a")
    stage = RenameStage.from_setting(tags, {"a": "x", "b": "y"})
    process(stage, make_batch(tag=[0]))
    late = tags.add(Tag("d", "b"))
    renamed = process(stage, make_batch(tag=[late, 0]))
    assert [tags[tag].path for tag in renamed.tag.tolist()] == ["d/y", "d/x"]
    process(stage, make_batch(tag=[0]))
    assert len(tags) == 4


def test_rename_tells_the_new_name_what_is_learned() -> None:
    """Unit and labels that become known later are the renamed tag's too."""
    tags = table("d/a")
    stage = RenameStage.from_setting(tags, {"a": "x"})
    process(stage, make_batch(tag=[0]))
    tags.learn(0, "bar", ((1, "ON"),))
    [renamed] = process(stage, make_batch(tag=[0])).tag.tolist()
    assert tags[renamed] == Tag("d", "x", unit="bar", labels=((1, "ON"),))


def test_rename_changes_nothing_else() -> None:
    """Every column but the tag's is the offered one."""
    tags = table("d/a")
    batch = make_batch(3, tag=[0], value=[float("nan")], kind=Kind.STRING, extra={0: "x"}, origin=b"o")
    renamed = process(RenameStage.from_setting(tags, {"a": "b"}), batch)
    assert [row[1:] for row in rows_of_batch(renamed)] == [row[1:] for row in rows_of_batch(batch)]
    assert (renamed.number, renamed.origin) == (3, b"o")
