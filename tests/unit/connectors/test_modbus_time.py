"""Date-times of devices: known registers, and any time there and back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.modbus_plan import DATE_TIMES, REGISTERS, DataType
from connectors.modbus_time import from_ns, to_ns

MOMENT = datetime(2026, 11, 23, 14, 5, 9, tzinfo=UTC)
NS = int(MOMENT.timestamp()) * 10**9
LAST_CENTURY_NS = int(MOMENT.replace(year=1999).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("kind", "data", "ns"),
    [
        (DataType.UNIX32, "6A22B2D5", int(datetime(2026, 6, 5, 11, 28, 21, tzinfo=UTC).timestamp()) * 10**9),
        (DataType.UNIX64, "FFFFFFFFFFFFFFFF", -(10**9)),
        (DataType.UNIX64_MS, "00000000000003E9", 1_001_000_000),
        (DataType.IEC870, "001A 0B37 0E05 23BE", NS + 150 * 10**6),
        (DataType.POWERLOGIC, "0B17 7E0E 0509", NS),
        (DataType.S7_DATETIME, "2611 2314 0509 1502", NS + 150 * 10**6),
        (DataType.S7_DATETIME, "9911 2314 0509 0003", LAST_CENTURY_NS),
        (DataType.BCD_DATETIME, "2611 2314 0509", NS),
        (DataType.DATETIME6, "07EA 000B 0017 000E 0005 0009", NS),
    ],
)
def test_registers_of_a_known_time(kind: DataType, data: str, ns: int) -> None:
    assert to_ns(kind, bytes.fromhex(data)) == ns


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (DataType.IEC870, "001A 0B37 0E85 23BE"),
        (DataType.IEC870, "001A 0D37 0E05 23BE"),
        (DataType.IEC870, "001A 0B37 0E05 EA60"),
        (DataType.POWERLOGIC, "0000 0000 0000"),
        (DataType.S7_DATETIME, "2611 2314 0509 15A2"),
        (DataType.BCD_DATETIME, "2A11 2314 0509"),
        (DataType.DATETIME6, "0000 0000 0000 0000 0000 0000"),
    ],
)
def test_what_is_no_date_is_none(kind: DataType, data: str) -> None:
    assert to_ns(kind, bytes.fromhex(data)) is None


@given(st.sampled_from(sorted(DATE_TIMES, key=str)), st.integers(946_684_800, 3_786_911_999))
def test_there_and_back(kind: DataType, second: int) -> None:
    """The years 2000 to 2089."""
    ns = second * 10**9
    data = from_ns(kind, ns)
    assert len(data) == 2 * REGISTERS[kind]
    assert to_ns(kind, data) == ns


def test_a_year_beyond_a_type_is_refused() -> None:
    for kind in (DataType.IEC870, DataType.BCD_DATETIME, DataType.UNIX32, DataType.POWERLOGIC):
        with pytest.raises(ValueError):
            from_ns(kind, int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 10**9)
