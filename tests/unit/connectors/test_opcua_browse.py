"""What `gateway browse` prints of what it has found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from connectors.opcua_browse import Seen, Value, tags_block
from pipelines.batch import ARRAY, GOOD, Kind

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20)


@given(TEXT, TEXT, st.one_of(st.just(""), TEXT), TEXT)
def test_whatever_a_server_has_is_yaml(name: str, node: str, unit: str, value: str) -> None:
    """Names, node ids and units come out as they are; a value stays in its comment."""
    seen = Seen(name, ("Objects", name), "ns=2;s=a", f"ns=2;s={node}", unit, Value(Kind.STRING, value, GOOD))
    block = "\n".join(tags_block([seen])) + "\n  end: i=1\n"
    tags = YAML(typ="safe").load(block)["tags"]
    address = tags.pop(name) if name != "end" else f"ns=2;s={node}"
    assert address == ({"node": f"ns=2;s={node}", "unit": unit} if unit and name != "end" else f"ns=2;s={node}")
    assert tags == {"end": "i=1"}


def test_values_as_people_read_them() -> None:
    """Types by the standard's names, times, bytes, and what is not good."""
    assert (Value(Kind.DOUBLE, 1.5, 0).type, Value(Kind.DOUBLE, 1.5, 0).text) == ("Double", "1.5")
    assert Value(Kind.INT32 | ARRAY, [1, 2], 0).type == "Int32[]"
    assert Value(Kind.BOOLEAN, True, 0).text == "true" and Value(Kind.BYTESTRING, b"\0\1", 0).text == "0001"
    assert Value(Kind.DATETIME, 1_577_836_800_000_000_000, 0).text == "2020-01-01T00:00:00+00:00"
    assert Value(Kind.NULL, None, 0x8032_0000).text == "BadWaitingForInitialData"
    assert Value(Kind.STRING, "a\nb" * 40, 0).text.endswith("...") and "\n" not in Value(Kind.STRING, "a\nb", 0).text
