"""The file that a device's subscriptions are kept in."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.opcua_plan import plan_subscriptions
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_state import (
    KEEP_ALIVE_S_MAX,
    DeviceState,
    MonitoredItem,
    StateFile,
    Subscription,
    fingerprint,
)
from pipelines.errors import Corrupt

STATE = DeviceState(
    "plan",
    "2026-11-23T00:00:00",
    [Subscription(9, 2**60, 100.0, 50, 1200, [MonitoredItem(0, "ns=2;s=a", 4, 0)]), None],
    ("ns=1;i=5", "anonymous"),
    [(1, 2)],
)
PACKED = StateFile(Path(), "press4").pack(STATE)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Also over an older one, and nothing is left beside it; without a file there is nothing."""
    file = StateFile(tmp_path, "press4")
    assert file.load() is None
    file.save(file.pack(DeviceState("older")))
    file.save(PACKED)
    assert StateFile(tmp_path, "press4").load() == STATE
    assert [path.name for path in file.path.parent.iterdir()] == ["press4.json"]
    file.remove()
    file.remove()
    assert file.load() is None


@pytest.mark.parametrize("publishing_ms", [1e9, 1e300, float("inf")])
def test_no_server_is_waited_for_without_end(publishing_ms: float) -> None:
    """Whatever it says of itself."""
    assert Subscription(9, 1, publishing_ms, 2**31, 3 * 2**31, []).keep_alive_s == KEEP_ALIVE_S_MAX


@given(st.integers(0), st.integers(1, 255))
def test_no_damaged_byte_is_believed(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    """A wrong subscription id would take over somebody else's."""
    file = StateFile(tmp_path_factory.getbasetemp(), "press4")
    data = bytearray(PACKED)
    data[at % len(data)] ^= flip
    file.save(bytes(data))
    with pytest.raises(Corrupt, match=r"press4\.json"):
        file.load()


@pytest.mark.parametrize("content", [b"", b"nonsense", PACKED[:-1]])
def test_torn_files_are_damaged(tmp_path: Path, content: bytes) -> None:
    """Said with the file's name."""
    file = StateFile(tmp_path, "press4")
    file.save(content)
    with pytest.raises(Corrupt, match=r"press4\.json"):
        file.load()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"every": "200ms"}, False),
        ({"queue": 7}, False),
        ({"lifetime": "10m"}, False),
        ({"opcua": "opc.tcp://other:4840"}, False),
        ({"tags": {"b": "i=2", "a": "i=1"}}, False),
        ({"tags": {"a": "i=1"}}, False),
        ({"backfill": 0}, True),
        ({"timeout": "9s"}, True),
    ],
)
def test_the_fingerprint_is_that_of_what_is_subscribed_to(change: dict[str, Any], same: bool) -> None:
    """Handles are places in `tags:`, so their order counts; how long to wait for an answer does not."""
    given = {"opcua": "opc.tcp://press4:4840", "tags": {"a": "i=1", "b": "i=2"}}

    def of(settings: dict[str, Any]) -> str:
        device = OpcUaDevice.model_validate(settings)
        return fingerprint(device.opcua, plan_subscriptions(device))

    assert (of(given) == of({**given, **change})) is same


def test_an_unknown_format_is_not_believed(tmp_path: Path) -> None:
    """Written by a later version: new subscriptions rather than a guess."""
    file = StateFile(tmp_path, "press4")
    body = PACKED.partition(b"\n")[2].replace(b'"format":1', b'"format":9')
    file.save(f"{zlib.crc32(body):08x}".encode() + b"\n" + body)
    with pytest.raises(Corrupt, match="another version"):
        file.load()
