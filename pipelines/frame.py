"""Frames: what a segment file is made of. One batch, or what is needed to read batches, as checksummed bytes.

Constraints, in this order: no damaged byte is ever taken for data; a file can be read without the configuration that
wrote it; a batch of 1,000 rows costs tens of microseconds; the format can grow.

    head   magic u32 | format u8 | kind u8 | 0 u16 | length u32 (of the whole frame, a multiple of 8) | checksum u32
    body   by kind; zeros to a multiple of 8

All numbers are little-endian. The checksum is the CRC-32 of all bytes of the frame but its own four: head and body, so
that a flipped length or kind is noticed too. The magic only serves to find the next frame behind a damaged one.

    HEADER  first of a segment: which lane (name, uuid), which segment, when                      (msgpack)
    TABLE   what the tag and source numbers in the frames behind it mean, newest origins so far   (msgpack)
    BATCH   one batch: `_FIXED`, columns ts_ns, value, tag, status, kind, flags; origin, clock, extra (msgpack)
    FOOTER  last of a sealed segment: where each batch is, and all tables again                   (msgpack)
    CURSOR  a file of its own: what is delivered                                                  (msgpack)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final
from zlib import crc32

import msgpack
import numpy as np
import numpy.typing as npt

from pipelines.batch import Batch, Extra
from pipelines.clock import ClockState
from pipelines.errors import Corrupt

FORMAT: Final = 1
MAGIC: Final = b"\xa9GWf"
ALIGNMENT: Final = 8

_HEAD = struct.Struct("<4sBBHI")
_CHECKSUM = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CHECKSUM.size
_FIXED = struct.Struct("<QQqQqIIiIHHI")
"""seq, number, received_ns, synced, clock error_ns, row, rows, bytes of origin (-1: None), of extra (0: None), source
id, bytes of the clock's source and quality (`ntp:locked`), position of the frame in its segment."""
_TRAILER = struct.Struct("<I4s")
TRAILER_BYTES: Final = _TRAILER.size
_ROW_BYTES: Final = 26
_BIG_INTEGER: Final = 1
"""msgpack extension: an integer beyond 64 bits, as decimal text."""


class FrameKind(IntEnum):
    """What a frame holds."""

    HEADER = 1
    TABLE = 2
    BATCH = 3
    FOOTER = 4
    CURSOR = 5


class UnknownFormat(Corrupt):
    """An intact frame of a later version of this program."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that passed its checks: `data[start:end]`, the body behind the head."""

    kind: int
    data: bytes
    start: int
    end: int

    @property
    def body(self) -> int:
        """Where the body starts."""
        return self.start + HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch as it stands in a segment."""

    batch: Batch
    synced: int
    """Every seq of the lane below this one was on disk when the frame was written."""
    row: int
    """Rows of the segment before this batch: tells how many were lost where frames before it are damaged."""
    position: int
    """Where in its segment it was written: a frame that was copied into another frame's bytes is none of ours."""


def encode_batch(batch: Batch, seq: int, synced: int = 0, row: int = 0, position: int = 0) -> bytes:
    """The frame of `batch` as number `seq` of its lane; see `Stored`."""
    origin, extra = batch.origin, _packed_extra(batch.extra)
    clock = f"{batch.clock.source}:{batch.clock.quality}".encode()
    fixed = _FIXED.pack(
        seq,
        batch.number,
        batch.received_ns,
        synced,
        batch.clock.error_ns,
        row,
        len(batch.tag),
        -1 if origin is None else len(origin),
        len(extra),
        batch.source_id,
        len(clock),
        position,
    )
    columns: tuple[npt.NDArray[Any], ...]
    columns = (batch.ts_ns, batch.value, batch.tag, batch.status, batch.kind, batch.flags)
    dense = [column.tobytes() for column in columns]  # quicker than their buffers: numpy describes each of those
    return _framed(FrameKind.BATCH, fixed, *dense, origin or b"", clock, extra)


def encode_packed(kind: FrameKind, content: Any) -> bytes:
    """A frame of anything that msgpack takes."""
    return _framed(kind, _packed(content))


def encode_footer(content: Any, position: int) -> bytes:
    """A FOOTER frame that stands at `position`; its last bytes say so, for `footer_position`."""
    packed = _packed(content)
    return _framed(FrameKind.FOOTER, packed + bytes(-len(packed) % ALIGNMENT) + _TRAILER.pack(position, MAGIC))


def footer_position(tail: bytes) -> int | None:
    """Where the footer stands, told by the last bytes of a file; None where there is none."""
    if len(tail) < TRAILER_BYTES:
        return None
    position, magic = _TRAILER.unpack(tail[-TRAILER_BYTES:])
    return int(position) if magic == MAGIC else None


def decode(data: bytes, start: int = 0) -> Frame:
    """The frame at `start`. Raises Corrupt where any of its bytes is not as it was written, or it is cut off."""
    behind = len(data) - start
    if behind < HEAD_BYTES:
        raise Corrupt(f"frame at {start}: cut off")
    magic, version, kind, _, length = _HEAD.unpack_from(data, start)
    if magic != MAGIC or length % ALIGNMENT or not HEAD_BYTES <= length <= behind:
        raise Corrupt(f"frame at {start}: no frame, or cut off")
    view = memoryview(data)
    (wanted,) = _CHECKSUM.unpack_from(data, start + _HEAD.size)
    checksum = crc32(view[start : start + _HEAD.size])
    if crc32(view[start + HEAD_BYTES : start + length], checksum) != wanted:
        raise Corrupt(f"frame at {start}: wrong checksum")
    if version != FORMAT:
        raise UnknownFormat(f"frame at {start}: format {version} is not known to this version of the gateway")
    return Frame(kind, data, start, start + length)


def decode_batch(frame: Frame) -> Stored:
    """The batch of a BATCH frame; its columns are views of the frame's bytes. Raises Corrupt."""
    if frame.kind != FrameKind.BATCH or frame.end - frame.body < _FIXED.size:
        raise Corrupt(f"frame at {frame.start}: not a batch")
    data, at = frame.data, frame.body + _FIXED.size
    seq, number, received_ns, synced, error_ns, row, rows, *sizes = _FIXED.unpack_from(data, frame.body)
    origin_bytes, extra_bytes, source_id, clock_bytes, position = sizes
    if at + rows * _ROW_BYTES + max(origin_bytes, 0) + clock_bytes + extra_bytes > frame.end:
        raise Corrupt(f"frame at {frame.start}: does not hold what it says")
    at_tail = at + rows * _ROW_BYTES
    at_clock = at_tail + max(origin_bytes, 0)
    at_extra = at_clock + clock_bytes
    batch = Batch(
        source_id,
        number,
        None if origin_bytes < 0 else data[at_tail:at_clock],
        received_ns,
        np.frombuffer(data, _U32, rows, at + 16 * rows),
        np.frombuffer(data, _I64, rows, at),
        np.frombuffer(data, _F64, rows, at + 8 * rows),
        np.frombuffer(data, _U32, rows, at + 20 * rows),
        np.frombuffer(data, _U8, rows, at + 24 * rows),
        np.frombuffer(data, _U8, rows, at + 25 * rows),
        _extra(data[at_extra : at_extra + extra_bytes], frame) if extra_bytes else None,
        _clock(data[at_clock:at_extra], error_ns),
        seq,
    )
    return Stored(batch, synced, row, position)


def decode_packed(frame: Frame) -> Any:
    """The content of a HEADER, TABLE or FOOTER frame. Raises Corrupt."""
    return _unpacked(memoryview(frame.data)[frame.body : frame.end], frame)


def frames(data: bytes, start: int = 0) -> Iterator[Frame]:
    """Every frame that passes its checks from `start` on; what is between them is damaged. Raises UnknownFormat."""
    while start >= 0 and start + HEAD_BYTES <= len(data):
        try:
            frame = decode(data, start)
        except UnknownFormat:
            raise
        except Corrupt:
            start = _next_magic(data, start + 1)
        else:
            yield frame
            start = frame.end


def _next_magic(data: bytes, start: int) -> int:
    """Where a frame may begin, -1 where none does: frames are aligned."""
    while (found := data.find(MAGIC, start)) >= 0 and found % ALIGNMENT:
        start = found + 1
    return found


def _framed(kind: FrameKind, *parts: bytes) -> bytes:
    padding = bytes(-sum(map(len, parts)) % ALIGNMENT)
    body = b"".join((*parts, padding))
    head = _HEAD.pack(MAGIC, FORMAT, kind, 0, HEAD_BYTES + len(body))
    return b"".join((head, _CHECKSUM.pack(crc32(body, crc32(head))), body))


_I64, _F64, _U32, _U8 = (np.dtype(name) for name in ("<i8", "<f8", "<u4", "u1"))


@lru_cache(maxsize=16)
def _clock(words: bytes, error_ns: int) -> ClockState:
    """One object for all batches that were received in that state. `words` without a quality: of a former version."""
    source, _, quality = words.decode("utf-8", "replace").partition(":")
    return ClockState(source, error_ns, quality or "unknown")


def _packed_extra(extra: Extra | None) -> bytes:
    return _packed(extra) if extra else b""


def _packed(content: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(content, unicode_errors="surrogatepass")
    except OverflowError:
        packed = msgpack.packb(_with_big_integers(content), unicode_errors="surrogatepass")
    return packed


def _with_big_integers(value: Any) -> Any:
    """The same with integers beyond 64 bits in a form that msgpack takes."""
    if isinstance(value, dict):
        return {_with_big_integers(key): _with_big_integers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_big_integers(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return msgpack.ExtType(_BIG_INTEGER, str(value).encode())
    return value


def _extension(code: int, data: bytes) -> Any:
    return int(data) if code == _BIG_INTEGER else msgpack.ExtType(code, data)


def _extra(data: bytes, frame: Frame) -> Extra:
    extra = _unpacked(data, frame)
    if not isinstance(extra, dict):
        raise Corrupt(f"frame at {frame.start}: extra is no mapping")
    return extra


def _unpacked(data: bytes | memoryview, frame: Frame) -> Any:
    unpacker = msgpack.Unpacker(
        strict_map_key=False, unicode_errors="surrogatepass", ext_hook=_extension, max_buffer_size=len(data)
    )
    unpacker.feed(data)
    try:
        return unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Corrupt(f"frame at {frame.start}: unreadable content: {error}") from error
