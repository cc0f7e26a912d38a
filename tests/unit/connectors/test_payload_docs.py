"""docs/payloads.md shows what the code sends."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from connectors.mqtt_status import NOTICES_MAX, Status
from connectors.payload import FormatName, Identity, make_format
from pipelines.batch import BAD_TIMEOUT, BatchBuilder, Flag, Kind
from pipelines.clock import ClockState
from pipelines.counters import Counters
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
    state = tags.add(Tag("press4", "state", labels=((0, "IDLE"), (1, "RUNNING"))))
    builder = BatchBuilder()
    builder.add(ids[0], AT_NS, 21.37, Kind.DOUBLE)
    builder.add(ids[1], AT_NS, 2**53 + 1, Kind.INT64, 0x40900000)
    builder.add(state, AT_NS, 1, Kind.INT32)
    builder.add(ids[2], 1_795_343_713_700_000_000, None, Kind.NULL, BAD_TIMEOUT, Flag.ARRIVAL_TIME)
    batch = replace(builder.build(0, 1, AT_NS, clock=ClockState("ntp", 370_000, "locked")), seq=1234)
    message = make_format(name, Identity("line1-gw", "acme/plant1"), tags).message("history", batch, False)
    assert json.loads(example[1]) == json.loads(message)


def test_status_and_notices_are_what_is_sent() -> None:
    """The examples of the status topic, made from what the runtime announces for them."""
    section = PAGE.read_text(encoding="utf-8").split("## The status topic\n")[1]
    online, *notices = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL))
    status = Status("gateway/{gateway}/status", Identity("line1-gw"), Counters("sink", "plant-mqtt"))
    status.announce("status", {"destinations": online["destinations"]})
    for kind, told in zip(("gap", "latency"), notices, strict=True):
        status.announce(kind, {key: value for key, value in told.items() if key != "gateway"})
    assert json.loads(status.payload(True, AT_NS)) == online
    assert json.loads(status.payload(False, AT_NS)) == {"gateway": "line1-gw", "online": False, "t": AT_NS // 1000}
    for kind, told in zip(("gap", "latency"), notices, strict=True):
        notice = status.next_notice()
        assert notice and notice.topic == f"gateway/line1-gw/status/{kind}" and json.loads(notice.payload) == told
    assert status.next_notice() is None


def test_notices_are_bounded() -> None:
    """Without a connection the oldest give way, counted; one that could not be sent is the next again."""
    counters = Counters("sink", "plant-mqtt")
    status = Status("s", Identity("gw"), counters)
    for number in range(NOTICES_MAX + 2):
        status.announce("gap", {"rows": number})
    assert counters.totals["notices_dropped"] == 2
    first = status.next_notice()
    assert first and json.loads(first.payload)["rows"] == 2
    status.put_back(first)
    assert status.next_notice() == first


def test_the_events_example_is_what_is_sent() -> None:
    """An alarm as `opcua_events` makes it, in `format: json`."""
    examples = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    example = next(json.loads(text) for text in examples if '"event"' in text)
    tags = TagTable()
    builder = BatchBuilder()
    fields = example["samples"][0]["v"] | {"EventId": b"\0\1\2"}
    builder.add(tags.add(Tag("press4", "alarms", event=True)), AT_NS, fields, Kind.EXTENSION_OBJECT)
    batch = replace(builder.build(0, 1, AT_NS), seq=1235)
    message = make_format("json", Identity("line1-gw"), tags).message("history", batch, False)
    assert json.loads(message) == example
