"""Frames: what goes in comes out, and no flipped, cut or invented byte is ever taken for data."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import frame
from pipelines.batch import Batch, Kind
from pipelines.clock import ClockState
from pipelines.errors import Corrupt
from pipelines.frame import FrameKind, UnknownFormat, decode, decode_batch, decode_packed, encode_batch, encode_packed
from tests.unit.pipelines.fakes import make_batch, rows_of_batch

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows = draw(st.integers(0, 20))

    def column(dtype: str) -> Any:
        width = np.dtype(dtype).itemsize * rows
        return np.frombuffer(draw(st.binary(min_size=width, max_size=width)), dtype)

    return Batch(
        source_id=draw(st.integers(0, 2**16 - 1)),
        number=draw(st.integers(0, 2**64 - 1)),
        origin=draw(st.none() | st.binary(max_size=50)),
        received_ns=draw(st.integers(-(2**63), 2**63 - 1)),
        tag=column("<u4"),
        ts_ns=column("<i8"),
        value=column("<f8"),
        status=column("<u4"),
        kind=column("u1"),
        flags=column("u1"),
        extra=draw(st.dictionaries(st.integers(0, rows - 1), VALUES, min_size=1, max_size=5) if rows else st.none()),
        clock=ClockState(
            draw(st.sampled_from(["none", "ntp", "ptp"])),
            draw(st.integers(-(2**63), 2**63 - 1)),
            draw(st.sampled_from(["locked", "unknown"])),
        ),
    )


def columns(batch: Batch) -> list[bytes]:
    every = (batch.tag, batch.ts_ns, batch.value, batch.status, batch.kind, batch.flags)
    return [column.tobytes() for column in every]


@given(batches(), st.integers(0, 2**53), st.integers(0, 2**32 - 1))
def test_a_batch_comes_out_as_it_went_in(batch: Batch, seq: int, row: int) -> None:
    """Every bit of every column (NaNs too), every extra, head, clock; whatever stands before and behind the frame."""
    before = encode_packed(FrameKind.TABLE, {"tags": []})
    data = before + encode_batch(batch, seq, synced=7, row=row, position=len(before)) + b"behind"
    stored = decode_batch(decode(data, len(before)))
    again = stored.batch
    assert (stored.synced, stored.row, stored.position, again.seq) == (7, row, len(before), seq)
    assert columns(again) == columns(batch)
    for name in ("source_id", "number", "origin", "received_ns", "extra", "clock"):
        assert getattr(again, name) == getattr(batch, name), name


@pytest.mark.parametrize("rows", [slice(None, None, 2), slice(None, None, -1), slice(3, 7)])
def test_columns_that_are_views(rows: slice) -> None:
    """A stage may leave strided columns."""
    batch = make_batch(1, value=list(range(20))).take(rows)
    assert rows_of_batch(decode_batch(decode(encode_batch(batch, 1))).batch) == rows_of_batch(batch)


def test_a_batch_that_is_read_cannot_be_changed() -> None:
    """Its columns are views of the bytes of the segment."""
    again = decode_batch(decode(encode_batch(make_batch(1, 3), 1))).batch
    with pytest.raises(ValueError, match="read-only"):
        again.value[0] = 5.0


@given(VALUES, st.sampled_from(FrameKind))
def test_packed_content_comes_out_as_it_went_in(content: Any, kind: FrameKind) -> None:
    """Integers beyond 64 bits and lone surrogates too."""
    found = decode(encode_packed(kind, content))
    assert (found.kind, decode_packed(found)) == (kind, content)


def sample() -> bytes:
    batch = make_batch(3, value=[1.5, float("nan"), 3.0], kind=[Kind.DOUBLE, Kind.STRING, Kind.DOUBLE], origin=b"o")
    return encode_batch(replace(batch, extra={1: "text"}), 9)


def test_every_flipped_bit_is_noticed() -> None:
    """In the head as in the body, one by one."""
    data = sample()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            decode(bytes(damaged))


def test_random_damage_is_noticed() -> None:
    """Bytes overwritten, cut out, put in, cut off: Corrupt, or the very same frame; never another error or batch."""
    chance = random.Random(4)
    data = sample()
    for _ in range(20_000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            at, length = chance.randrange(len(damaged)), chance.randint(0, 12)
            damaged[at : at + length] = chance.randbytes(chance.choice([length, chance.randint(0, 12)]))
        try:
            frame = decode(bytes(damaged))
        except Corrupt:
            continue
        assert frame.data[frame.start : frame.end] == data


@given(st.binary(max_size=200))
def test_any_bytes_are_no_frame(data: bytes) -> None:
    """Nor do they raise anything but Corrupt, also behind the right magic."""
    for candidate in (data, frame.MAGIC + data):
        with pytest.raises(Corrupt):
            decode(candidate)


@given(st.binary(max_size=200), st.sampled_from(FrameKind))
def test_intact_frames_with_senseless_content(content: bytes, kind: FrameKind) -> None:
    """A right checksum over a body that makes no sense: Corrupt, no other error."""
    data = frame._framed(kind, content)
    for read in (decode_batch, decode_packed):
        try:
            read(decode(data))
        except Corrupt:
            pass
        else:
            assert kind is FrameKind.BATCH or read is decode_packed


def test_a_later_format_is_told_apart_from_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not be set aside as broken, let alone be deleted."""
    monkeypatch.setattr(frame, "FORMAT", 2)
    later = sample()
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="format 2"):
        decode(later)


def test_frames_behind_damage_are_found() -> None:
    """Whatever is damaged costs its own frames only."""
    parts = [encode_batch(make_batch(number, number + 1), number) for number in range(6)]
    data = bytearray(b"".join(parts))
    starts = [sum(map(len, parts[:index])) for index in range(6)]
    for index in (0, 3, 5):
        data[starts[index] + 9] ^= 0x40  # the length: where the next frame starts is not known any more
    found = [decode_batch(found).batch.seq for found in frame.frames(bytes(data))]
    assert found == [1, 2, 4]
    assert list(frame.frames(bytes(len(data)))) == []
