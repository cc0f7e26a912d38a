"""Values to registers: the inverse of decoding, what is refused, and which function writes what."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.modbus_frames import RequestFailed
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import DATE_TIMES, WordOrder
from connectors.modbus_register import parse_register
from connectors.modbus_url import parse_url
from connectors.modbus_write import Written, _decoded, encode, raw_of, write
from pipelines.clock import SystemClock
from pipelines.counters import Counters
from tests.unit.connectors.modbus_device import Device, tcp_frame

INTEGERS = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
    "bcd16": (0, 9_999),
    "bcd32": (0, 99_999_999),
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(*limits) for kind, limits in INTEGERS.items()},
    "float16": st.floats(width=16),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    **{kind.value: st.integers(946_684_800, 3_786_911_999).map((10**9).__mul__) for kind in DATE_TIMES},
}
TIMES = {kind.value for kind in DATE_TIMES}
ORDERS = st.sampled_from(WordOrder)


@given(st.data(), st.sampled_from(sorted(VALUES)), ORDERS, st.sampled_from(["", ".low", ".high"]), st.integers(0, 5))
def test_what_is_encoded_is_decoded(data: st.DataObject, kind: str, order: WordOrder, half: str, items: int) -> None:
    part = half if kind in {"int8", "uint8"} else ""
    array = f"[{items}]" if items and kind not in {"int8", "uint8", *TIMES} else ""
    point = parse_register(f"holding 7{part} {kind}{array}", "p", order)
    one = VALUES[kind]
    value = data.draw(st.lists(one, min_size=items, max_size=items) if array else one)
    came = _decoded(point, encode(point, value))
    assert came == value or repr(came) == repr(value)  # NaN


@given(st.text(max_size=8), ORDERS, st.sampled_from(["utf-8", "latin-1", "utf-16-be"]), st.sampled_from(["", ".low"]))
def test_text_is_encoded_or_refused(text: str, order: WordOrder, encoding: str, half: str) -> None:
    point = replace(parse_register(f"holding 7{half} string 8", "p", order), encoding=encoding)
    try:
        data = encode(point, text)
    except ValueError:
        assert len(text.encode(encoding, "replace")) > 8 or encoding == "latin-1"
    else:
        assert _decoded(point, data) == text.partition("\0")[0].strip()


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_coils_are_eight_a_byte(bits: list[bool]) -> None:
    point = parse_register(f"coil 3 bool[{len(bits)}]", "p")
    assert _decoded(point, encode(point, bits)) == bits


@pytest.mark.parametrize(
    ("register", "value", "part"),
    [
        ("holding 0 int16", 40_000, "int16 holds -32768 to 32767"),
        ("holding 0 uint16", -1, "uint16 holds 0 to 65535"),
        ("holding 0 uint16", 1.5, "a whole number"),
        ("holding 0 uint16", math.nan, "a whole number"),
        ("holding 0 uint16", math.inf, "a whole number"),
        ("holding 0 uint16", True, "a whole number"),
        ("holding 0 uint16", "5", "a whole number"),
        ("holding 0 uint64", 2**64, "uint64 holds"),
        ("holding 0 bcd16", 10_000, "bcd16 holds 0 to 9999"),
        ("holding 0 float32", 1e39, "cannot hold"),
        ("holding 0 float16", 70_000, "cannot hold"),
        ("holding 0 float32", "1", "takes a number"),
        ("holding 0 string 4", "12345", "has 5 bytes"),
        ("holding 0 string 4", 12, "takes a text"),
        ("holding 0.3 bool", 2, "true or false"),
        ("coil 3", "on", "true or false"),
        ("holding 0 int16[3]", [1, 2], "a list of 3"),
        ("holding 0 int16[3]", 1, "a list of 3"),
        ("holding 0 unix32", "yesterday", "Invalid isoformat"),
        ("holding 0 unix32", "2026-11-23T14:05:09", "takes a time"),
        ("holding 0 unix32", -(10**9), "cannot hold that time"),
        ("input 0 int16", 1, "can only be read"),
        ("discrete 0", True, "can only be read"),
    ],
)
def test_what_a_point_cannot_hold_is_refused(register: str, value: Any, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        encode(parse_register(register, "p"), value)


@given(st.integers(-(2**15), 2**15 - 1), st.sampled_from([0.1, 0.001, 10.0, 2.5]), st.sampled_from([0.0, -40.0]))
def test_engineering_units_come_back_to_the_same_raw_value(raw: int, scale: float, offset: float) -> None:
    assert raw_of(parse_register("holding 0 int16", "p"), raw * scale + offset, scale, offset) == raw


def test_a_time_may_be_a_text() -> None:
    point = parse_register("holding 0 unix32", "p")
    assert encode(point, "2026-11-23T15:05:09+01:00") == encode(point, 1_795_442_709 * 10**9)


class Memory:
    """A device that is written to. `without`: functions that it answers with exception 1."""

    def __init__(self, without: tuple[int, ...] = ()) -> None:
        self.registers = [0x1234] * 50
        self.coils = [False] * 50
        self.without = without
        self.functions: list[int] = []
        self.reply = self.answer

    def __call__(self, frame: bytes) -> bytes:
        pdu = frame[7:]
        self.functions.append(pdu[0])
        return tcp_frame(int.from_bytes(frame[:2], "big"), frame[6], self.reply(pdu))

    def answer(self, pdu: bytes) -> bytes:
        function, at = pdu[0], int.from_bytes(pdu[1:3], "big")
        number = int.from_bytes(pdu[3:5], "big")
        if function in self.without:
            return bytes([function | 0x80, 1])
        if at >= 50:
            return bytes([function | 0x80, 2])
        if function == 1:
            bits = sum(bit << place for place, bit in enumerate(self.coils[at : at + number]))
            return bytes([1, (number + 7) // 8]) + bits.to_bytes((number + 7) // 8, "little")
        if function == 5:
            self.coils[at] = number == 0xFF00
        elif function == 6:
            self.registers[at] = number
        elif function == 15:
            value = int.from_bytes(pdu[6:], "little")
            self.coils[at : at + number] = [bool(value >> place & 1) for place in range(number)]
        elif function == 16:
            self._store(at, pdu[6:])
        elif function == 22:
            self.registers[at] = self.registers[at] & number | int.from_bytes(pdu[5:7], "big") & ~number
            return pdu
        elif function == 23:
            self._store(int.from_bytes(pdu[5:7], "big"), pdu[10:])
        if function in (3, 23):
            data = b"".join(word.to_bytes(2, "big") for word in self.registers[at : at + number])
            return bytes([function, len(data)]) + data
        return pdu[:5]

    def _store(self, at: int, data: bytes) -> None:
        words = [int.from_bytes(data[place : place + 2], "big") for place in range(0, len(data), 2)]
        self.registers[at : at + len(words)] = words


@asynccontextmanager
async def linked(memory: Memory) -> AsyncIterator[Any]:
    async with Device(memory) as device:
        url = parse_url(device.url)
        link = ModbusLink(url, 60 * 10**9, SystemClock(), Counters("source", "m"))
        await link.connect()
        try:
            yield lambda point, value, **how: write(link, url, point, value, **how)
        finally:
            await link.close()


@pytest.mark.parametrize(
    ("register", "value", "how", "functions"),
    [
        ("holding 3 int16", -5, {}, [6, 3]),
        ("holding 3 int16", -5, {"function": 16}, [16, 3]),
        ("holding 3 int16", -5, {"function": 23}, [23]),
        ("holding 3 float32", 12.5, {}, [16, 3]),
        ("holding 3 float32", 12.5, {"function": 23}, [23]),
        ("holding 3 uint16[4]", [1, 2, 3, 4], {}, [16, 3]),
        ("holding 3 string 6", "abc", {}, [16, 3]),
        ("holding 3.0 bool", True, {}, [22, 3]),
        ("holding 3.2 bool", False, {}, [22, 3]),
        ("holding 3.high uint8", 7, {}, [22, 3]),
        ("holding 3 int8", -7, {}, [22, 3]),
        ("coil 9", True, {}, [5, 1]),
        ("coil 9 bool[10]", [True, False] * 5, {}, [15, 1]),
    ],
)
async def test_each_point_has_its_function_and_is_read_back(
    register: str, value: Any, how: dict[str, Any], functions: list[int]
) -> None:
    memory = Memory()
    async with linked(memory) as writes:
        assert await writes(parse_register(register, "p"), value, **how) == Written(value, True)
    assert memory.functions == functions


@pytest.mark.parametrize("without", [(), (22,)])
@pytest.mark.parametrize(
    ("register", "order", "value", "word"),
    [
        ("holding 3.0 bool", WordOrder.BIG, True, 0x1235),
        ("holding 3.2 bool", WordOrder.BIG, False, 0x1230),
        ("holding 3.0 bool", WordOrder.BIG_BYTE_SWAPPED, True, 0x1334),
        ("holding 3.high uint8", WordOrder.BIG, 0xAB, 0xAB34),
        ("holding 3.high uint8", WordOrder.BIG_BYTE_SWAPPED, 0xAB, 0x12AB),
        ("holding 3 uint8", WordOrder.BIG, 0xAB, 0x12AB),
    ],
)
async def test_a_part_of_a_register_leaves_the_rest(
    register: str, order: WordOrder, value: Any, word: int, without: tuple[int, ...]
) -> None:
    memory = Memory(without)
    async with linked(memory) as writes:
        assert await writes(parse_register(register, "p", order), value) == Written(value, True)
    assert memory.registers[2:5] == [0x1234, word, 0x1234]
    assert memory.functions == ([22, 3, 6, 3] if without else [22, 3])


async def test_engineering_units_and_a_scale_from_a_register() -> None:
    memory = Memory()
    memory.registers[40] = 0xFFFF  # -1
    point = replace(parse_register("holding 3 int16", "p"), scale_from=parse_register("holding 40 int16"))
    async with linked(memory) as writes:
        assert await writes(point, 23.1) == Written(23.1, True)
        assert memory.registers[3] == 231
        assert await writes(parse_register("holding 4 uint16", "p"), 50, scale=0.5, offset=-10) == Written(50.0, True)
        assert memory.registers[4] == 120
        memory.registers[40] = 0x8000
        with pytest.raises(ValueError, match="no power of ten"):
            await writes(point, 1)


async def test_a_device_that_takes_another_value_says_so() -> None:
    memory = Memory()
    memory.reply = lambda pdu: pdu[:5] if pdu[0] == 6 else memory.answer(pdu)  # said, and not done
    async with linked(memory) as writes:
        assert await writes(parse_register("holding 3 uint16", "p"), 5) == Written(0x1234, False)


async def test_refusals_keep_their_status() -> None:
    memory = Memory()
    async with linked(memory) as writes:
        with pytest.raises(RequestFailed, match="illegal data address") as caught:
            await writes(parse_register("holding 60 uint16", "p"), 5)
        assert caught.value.status == 0x8034_0000
        memory.reply = lambda pdu: bytes([6, 0, 9, 9, 9])
        with pytest.raises(RequestFailed, match="does not repeat"):
            await writes(parse_register("holding 3 uint16", "p"), 5)
