"""What is taken for a reply: damaged frames, 100,000 random ones and 100,000 foreign ones, with fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from connectors.modbus_frames import Query, RequestFailed, query, rtu_reply, rtu_reply_at_end, tcp_reply
from connectors.modbus_plan import Block, Table
from connectors.modbus_url import parse_url
from tests.unit.connectors.modbus_device import read_pdu, rtu_frame

FRAMES = 100_000
QUERIES = [
    query(parse_url("rtu:///dev/ttyUSB0/7"), Block(table, 16, count, ()))
    for table, count in ((Table.HOLDING, 1), (Table.HOLDING, 4), (Table.INPUT, 2), (Table.COIL, 20))
]


def taken(asked: Query, frame: bytes) -> bytes | None:
    """The data that this frame would be delivered with: as it comes, or judged between two silences."""
    found = rtu_reply(asked, frame)
    if found and found.size and len(frame) >= found.size and isinstance(found.outcome, bytes):
        return found.outcome
    at_end = rtu_reply_at_end(asked, frame)
    return at_end if isinstance(at_end, bytes) else None


def good(asked: Query, source: random.Random) -> bytes:
    return rtu_frame(asked.unit, read_pdu(asked.function, source.randbytes(asked.reply_bytes)))


def flipped(frame: bytes, bits: int, source: random.Random) -> bytes:
    number = int.from_bytes(frame, "big")
    for bit in source.sample(range(8 * len(frame)), bits):
        number ^= 1 << bit
    return number.to_bytes(len(frame), "big")


def test_the_right_reply_is_taken_also_behind_noise() -> None:
    source = random.Random(1)
    for _ in range(1_000):
        asked = source.choice(QUERIES)
        frame = good(asked, source)
        assert taken(asked, frame) == frame[3:-2]
        assert rtu_reply_at_end(asked, source.randbytes(source.randrange(9)) + frame) == frame[3:-2]


def test_up_to_three_flipped_bits_are_always_seen() -> None:
    """CRC-16 has a Hamming distance of 4 at these lengths: nothing gets through."""
    source = random.Random(2)
    for _ in range(FRAMES // 3):
        asked = source.choice(QUERIES)
        assert taken(asked, flipped(good(asked, source), source.randint(1, 3), source)) is None


def test_random_frames_are_taken_as_seldom_as_crc_16_allows() -> None:
    """Unit, function and byte count fit and everything else is random: 1.5 in 100,000 on average, fewer than 4."""
    source = random.Random(3)
    asked = QUERIES[1]
    head = bytes([asked.unit, asked.function, asked.reply_bytes])
    assert sum(taken(asked, head + source.randbytes(asked.reply_bytes + 2)) is not None for _ in range(FRAMES)) < 4


def test_random_bytes_are_never_taken() -> None:
    source = random.Random(4)
    for _ in range(FRAMES // 3):
        assert taken(source.choice(QUERIES), source.randbytes(source.randrange(4, 30))) is None


def _foreign(asked: Query, source: random.Random) -> Iterator[bytes]:
    """Whole, undamaged frames that somebody else is meant by, or another request."""
    data = source.randbytes(asked.reply_bytes)
    yield rtu_frame(
        source.choice([unit for unit in range(1, 248) if unit != asked.unit]), read_pdu(asked.function, data)
    )
    yield rtu_frame(asked.unit, read_pdu(source.choice([f for f in (1, 2, 3, 4) if f != asked.function]), data))
    yield rtu_frame(asked.unit, read_pdu(asked.function, source.randbytes(asked.reply_bytes + source.randint(1, 9))))
    yield rtu_frame(asked.unit, read_pdu(asked.function, source.randbytes(source.randrange(asked.reply_bytes))))
    yield asked.frame


def test_foreign_replies_are_never_taken() -> None:
    """Of another unit, another function, another length; and the request itself, where the converter echoes."""
    source = random.Random(5)
    for _ in range(FRAMES // 5):
        asked = source.choice(QUERIES)
        for frame in _foreign(asked, source):
            assert taken(asked, frame) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda unit, function, first, data: (unit + 1, function, first, data),
        lambda unit, function, first, data: (unit, function + 1, first, data),
        lambda unit, function, first, data: (unit, function, first + 2, data),
        lambda unit, function, first, data: (unit, function, first, data[:-1]),
        lambda unit, function, first, data: (unit, function, first, data + b"\0"),
    ],
)
def test_foreign_tcp_replies_are_never_taken(change: Callable[..., tuple[int, int, int, bytes]]) -> None:
    asked, data = QUERIES[1], bytes(8)
    assert tcp_reply(asked, 7, 3, 8, data) == data
    assert isinstance(tcp_reply(asked, *change(7, 3, 8, data)), RequestFailed)
