"""TagTable and Selector: ids mean the same for ever, and patterns judge tags that come later too."""

import pytest

from pipelines.selector import Selector, matches
from pipelines.tags import Tag, TagTable, name_of


def test_ids_count_up_and_never_change() -> None:
    """Ids are 0, 1, 2, ... in order of `add`; the same tag again gives its first id."""
    tags = TagTable()
    press, flow = Tag("press4", "temp"), Tag("meter7", "flow", unit="m3/h")
    assert [tags.add(press), tags.add(flow), tags.add(press), tags.add(flow)] == [0, 1, 0, 1]
    assert (len(tags), list(tags)) == (2, [press, flow])
    assert tags[1] is flow
    assert tags.id_of("meter7/flow") == 1
    assert tags.id_of("meter7/none") is None


def test_another_description_of_a_path_is_refused() -> None:
    """An id never comes to mean something else: the same path with another unit raises and changes nothing."""
    tags = TagTable()
    tags.add(Tag("press4", "temp", unit="C"))
    with pytest.raises(ValueError, match="press4/temp is already described differently"):
        tags.add(Tag("press4", "temp", unit="F"))
    assert (len(tags), tags[0].unit) == (1, "C")


def test_a_machine_completes_what_was_left_open() -> None:
    """What the file says stays; what a machine says is replaced by what it says next; `changed_since` tells of it."""
    tags = TagTable()
    given, bare = tags.add(Tag("d", "given", unit="bar")), tags.add(Tag("d", "bare"))
    tags.learn(given, "Pa", ((1, "ON"),))
    assert (tags[given].unit, tags[given].labels) == ("bar", ((1, "ON"),))
    tags.learn(bare, "Pa")
    before = tags.version
    tags.learn(bare, "kPa", ((0, "MOTOR"),), bits=True)
    tags.learn(bare, "kPa")
    assert tags[bare] == Tag("d", "bare", unit="kPa", labels=((0, "MOTOR"),), bits=True)
    assert (tags.changed_since(0), tags.changed_since(before), tags.version) == ([given, bare], [bare], before + 1)
    assert tags.add(Tag("d", "bare")) == bare and tags[bare].unit == "kPa"


def test_what_was_left_open_may_be_said_by_another_add() -> None:
    """A tag that a segment named first; the file's words count from then on."""
    tags = TagTable()
    one = tags.add(Tag("d", "t"))
    tags.learn(one, "Pa")
    assert tags.add(Tag("d", "t", unit="bar")) == one and tags[one].unit == "bar"
    with pytest.raises(ValueError, match="described differently"):
        tags.add(Tag("d", "t", unit="bar", scale=2.0))


def test_names_of_numbers() -> None:
    """Of enumerations, bits, arrays; what is no whole number has none."""
    labels = {0: "A", 3: "B"}
    assert [name_of(value, labels) for value in (0, 3.0, 7, 0.5, None, "x", [3, [0]])] == [
        "A", "B", None, None, None, None, ["B", ["A"]]
    ]  # fmt: skip
    assert [name_of(value, labels, bits=True) for value in (9, 8.0, 0, -1, float("nan"))] == [
        ["A", "B"], ["B"], [], ["A", "B"], None
    ]  # fmt: skip


def test_column_by_id_and_from_an_id_on() -> None:
    """A column is indexed by id; stages read only what is new of a growing table."""
    tags = TagTable()
    for index in range(4):
        tags.add(Tag("d", f"t{index}", scale=float(index)))
    assert tags.column("scale").tolist() == [0.0, 1.0, 2.0, 3.0]
    assert tags.column("scale", 2).tolist() == [2.0, 3.0]
    assert tags.column("scale", 4).tolist() == []


@pytest.mark.parametrize(
    ("pattern", "path", "chosen"),
    [
        ("*", "press4/temp", True),
        ("press4", "press4/temp", True),
        ("press4/", "press4/temp", True),
        ("press", "press4/temp", False),
        ("press?", "press4/temp", True),
        ("press?", "press44/temp", False),
        ("press*/temp*", "press4/temperature", True),
        ("press*/temp*", "press4/pressure", False),
        ("*/temp", "meter7/temp", True),
        ("press4/temp", "press4/temperature", False),
        ("press4/TEMP", "press4/temp", False),
        ("db1/value[3]", "db1/value[3]", True),
        ("db1/value[3]", "db1/value3", False),
        ("db1/value[*]", "db1/value[12]", True),
        ("db1/a.b", "db1/aXb", False),
        ("db1/line\n*", "db1/line\n2", True),
        ("db1/area/*", "db1/area/valve/open", True),
        ("*", "db1/area/valve", True),
        ("p*/valve", "press4/area/valve", False),
    ],
)
def test_patterns(pattern: str, path: str, chosen: bool) -> None:
    """`*` and `?` are the only wildcards (brackets are part of names), case counts, a device alone means all of it."""
    device, _, name = path.partition("/")
    tag = Tag(device, name)
    tags = TagTable()
    tags.add(tag)
    assert matches(pattern, tag) is chosen
    assert Selector(tags, [pattern]).mask().tolist() == [chosen]


def test_mask_grows_with_the_table() -> None:
    """A tag that is added while running is judged by the next mask; ids judged before keep their answer."""
    tags = TagTable()
    selector = Selector(tags, ["press4", "*/flow"])
    assert selector.mask().tolist() == []
    tags.add(Tag("press4", "temp"))
    tags.add(Tag("meter7", "temp"))
    assert selector.mask().tolist() == [True, False]
    tags.add(Tag("meter7", "flow"))
    assert selector.mask().tolist() == [True, False, True]
    assert selector.mask() is selector.mask()
