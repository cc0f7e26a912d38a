"""docs/payloads.md shows what the code sends."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.payload import FormatName, Identity, make_format
from pipelines.batch import BAD_TIMEOUT, BatchBuilder, Flag, Kind
from pipelines.tags import Tag, TagTable

PAGE = Path(__file__).parents[3] / "docs" / "payloads.md"
AT_NS = 1_795_343_713_695_123_000


@pytest.mark.parametrize("name", ["json", "json-columns"])
def test_the_example_is_what_is_sent(name: FormatName) -> None:
    """The fenced JSON below the format's heading equals the message for the batch that it describes."""
    section = PAGE.read_text(encoding="utf-8").split(f"## `format: {name}`\n")[1]
    example = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert example
    tags = TagTable()
    ids = [tags.add(Tag("press4", tag)) for tag in ("temperature", "order", "flow")]
    builder = BatchBuilder()
    builder.add(ids[0], AT_NS, 21.37, Kind.DOUBLE)
    builder.add(ids[1], AT_NS, 2**53 + 1, Kind.INT64, 0x40900000)
    builder.add(ids[2], 1_795_343_713_700_000_000, None, Kind.NULL, BAD_TIMEOUT, Flag.ARRIVAL_TIME)
    batch = replace(builder.build(0, 1, AT_NS), seq=1234)
    message = make_format(name, Identity("line1-gw", "acme/plant1"), tags).message("history", batch, False)
    assert json.loads(example[1]) == json.loads(message)
