"""Rows -> record batches in Kafka's message format v2, per topic and partition. Pure: no I/O, no event loop.

Design note. `AIOKafkaProducer.send_batch` takes any object with the few methods of aiokafka's own BatchBuilder;
`RecordBatch` is ours, for two measured reasons (169 B of JSON a record, 767 KB a batch): aiokafka's `append` costs 1.0
us a record, its C builder called directly 0.32; and it compresses on the event loop at the slowest levels (lz4 1.7,
gzip 5.4 us a record: 7 and 22 ms without a breath), where `seal` may run in a thread and takes 0.3 (lz4, zstd) and 0.9
us (gzip). Headers cost 0.3 us a record, so only `records: batch`, one record for many rows, carries one.

Layout of what is patched after compression (Kafka protocol guide, "Record Batch"; big endian): length i32 at 8, CRC-32C
u32 at 17 over all that follows, attributes i16 at 21 (codec in bits 0-2), producer id i64 at 43, epoch i16 at 51,
sequence i32 at 53.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cramjam
import numpy as np
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from connectors.kafka_settings import Compression, Records
from connectors.payload import Format
from pipelines.batch import Batch
from pipelines.tags import TagTable

HEADER_BYTES = 61
RECORD_OVERHEAD_BYTES_MAX = 36
"""Attributes and the varints of a record: length 5, attributes 1, time 10, offset 5, key 5, value 5, headers 5."""
TIME_LEAD_MAX_MS = 600_000
"""A record's time is at most this far ahead of its arrival (the payload keeps the source's own): brokers refuse a whole
batch for one time further ahead than `message.timestamp.after.max.ms`, one hour by default since Kafka 4."""

Header = tuple[str, bytes]
NO_HEADERS: list[Header] = []
T = TypeVar("T")
_CODEC_BITS: dict[Compression, int] = {"none": 0, "gzip": 1, "lz4": 3, "zstd": 4}
_CHUNK_BYTES = 128 * 1024
_MAGIC = 2
REQUEST_BYTES = 512 * 1024
"""A produce request carries a record batch for each partition, and sending it is one step on the event loop: 2.5 ms."""
FILL_BYTES_MIN = 32 * 1024
FEW_ROWS = 32
"""Below it plain Python is cheaper than numpy."""


def _gzip(data: bytes) -> bytes:
    return zlib.compress(data, level=1, wbits=31)


def _lz4(data: bytes) -> bytes:
    """One frame of independent blocks (all that Kafka takes), in pieces: the compressor holds the GIL during each."""
    compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
    for start in range(0, len(data), _CHUNK_BYTES):
        compressor.compress(data[start : start + _CHUNK_BYTES])
    return bytes(compressor.finish())


def _zstd(data: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(data, level=1))


_COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {"gzip": _gzip, "lz4": _lz4, "zstd": _zstd}


def key_hash(key: bytes) -> int:
    """What Kafka's default partitioner takes modulo the number of partitions (Utils.toPositive(Utils.murmur2(key)))."""
    return int(murmur2(key)) & 0x7FFF_FFFF


def record_times_ms(batch: Batch) -> list[int]:
    """Per row the source time in ms since 1970, kept within [0, arrival + TIME_LEAD_MAX_MS]."""
    latest = max(batch.received_ns // 1_000_000 + TIME_LEAD_MAX_MS, 0)
    if len(batch) < FEW_ROWS:
        return [min(max(ts_ns // 1_000_000, 0), latest) for ts_ns in batch.ts_ns.tolist()]
    times: list[int] = np.clip(batch.ts_ns // 1_000_000, 0, latest).tolist()
    return times


class RecordBatch:
    """Records for one partition; given to `send_batch`, which calls all but `extend`, `seal` and `bytes`.

    `transactional` has to be said here: brokers take a batch without the mark into a transaction, and every consumer
    sees it at once and for ever.
    """

    def __init__(self, bytes_max: int, compression: Compression = "none", *, transactional: bool = False) -> None:
        self._builder = DefaultRecordBatchBuilder(_MAGIC, 0, int(transactional), -1, -1, 0, bytes_max)
        self._compression = compression
        self._records = 0
        self._closed = False
        self._sealed: bytearray | None = None
        self.bytes = HEADER_BYTES
        """Size before compression, once sealed or closed; an estimate of what the brokers count."""

    def extend(
        self,
        start: int,
        times_ms: Sequence[int],
        keys: Sequence[bytes],
        payloads: Sequence[bytes],
        headers: list[Header],
    ) -> int:
        """Appends records from index `start` on; the index of the first that did not fit. An empty batch takes any."""
        append = self._builder.append
        offset = self._records
        for index in range(start, len(payloads)):
            if append(offset, times_ms[index], keys[index], payloads[index], headers) is None:
                break
            offset += 1
        taken = offset - self._records
        self._records = offset
        self.bytes = self._builder.size()
        return start + taken

    def seal(self) -> None:
        """Compresses; no more records after it. May run in a thread."""
        self._closed = True
        compress = _COMPRESS.get(self._compression)
        if compress is None or self._sealed is not None:
            return
        plain = self._builder.build()
        body = compress(bytes(plain[HEADER_BYTES:]))
        if len(body) < len(plain) - HEADER_BYTES:
            plain[HEADER_BYTES:] = body
            (attributes,) = struct.unpack_from(">h", plain, 21)
            struct.pack_into(">i", plain, 8, len(plain) - 12)
            struct.pack_into(">h", plain, 21, attributes | _CODEC_BITS[self._compression])
        self._sealed = plain

    def record_count(self) -> int:
        """How many records it holds."""
        return self._records

    def closed(self) -> bool:
        """Whether `extend` is over."""
        return self._closed

    def close(self) -> None:
        """No more records."""
        self._closed = True

    def size(self) -> int:
        """Bytes as they will be sent, once sealed."""
        return self.bytes if self._sealed is None else len(self._sealed)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        if self._sealed is None:
            self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)
        else:
            struct.pack_into(">qhi", self._sealed, 43, producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytearray:
        """The bytes to send; called again for each retry."""
        self._closed = True
        if self._sealed is None:
            self._sealed = self._builder.build()
        elif self._compression != "none":
            struct.pack_into(">I", self._sealed, 17, calc_crc32c(memoryview(self._sealed)[21:]))
        return self._sealed


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers describe it now."""

    name: str
    partitions: int
    batch_bytes_max: int

    @property
    def fill_bytes(self) -> int:
        """When a record batch is followed by the next; a single record may be larger, up to `batch_bytes_max`."""
        return min(self.batch_bytes_max, max(REQUEST_BYTES // self.partitions, FILL_BYTES_MIN))


@dataclass(frozen=True, slots=True)
class Part:
    """A record batch and where it goes. Parts of a later round to the same partition follow those of an earlier one."""

    topic: str
    partition: int
    round: int
    batch: RecordBatch


class Assembly:
    """The record batches of one write, filled in order; what can never be sent is in `rejected`."""

    def __init__(self, compression: Compression, *, transactional: bool = False) -> None:
        self._compression = compression
        self._transactional = transactional
        self._open: dict[tuple[str, int], Part] = {}
        self._parts: list[Part] = []
        self.rejected: list[tuple[int, int]] = []
        """(index of the batch in the write, row)."""
        self.reason = ""

    def add(
        self,
        topic: Topic,
        partition: int,
        times_ms: Sequence[int],
        keys: Sequence[bytes],
        payloads: Sequence[bytes],
        headers: list[Header] = NO_HEADERS,
    ) -> None:
        """Appends records for one partition, in new record batches as they fill up."""
        part = self._open.get((topic.name, partition)) or self._next(topic, partition, 0)
        start = part.batch.extend(0, times_ms, keys, payloads, headers)
        while start < len(payloads):
            part = self._next(topic, partition, part.round + 1)
            start = part.batch.extend(start, times_ms, keys, payloads, headers)

    def reject(self, index: int, rows: Sequence[int], reason: str) -> None:
        """Names rows of batch `index` that are not sent."""
        self.rejected.extend((index, row) for row in rows)
        self.reason = self.reason or reason

    def parts(self) -> list[Part]:
        """All record batches in the order to send: every partition's first, then every partition's second, ..."""
        return sorted(self._parts, key=lambda part: part.round)

    def _next(self, topic: Topic, partition: int, round_: int) -> Part:
        part = Part(
            topic.name,
            partition,
            round_,
            RecordBatch(topic.fill_bytes, self._compression, transactional=self._transactional),
        )
        self._open[topic.name, partition] = part
        self._parts.append(part)
        return part


def seal_all(parts: Sequence[Part]) -> None:
    """Compresses each; may run in a thread."""
    for part in parts:
        part.batch.seal()


class Recorder:
    """Batches of rows -> keyed records in an Assembly. Keys and their hashes are kept per tag; the table may grow."""

    def __init__(self, payload: Format, tags: TagTable, records: Records) -> None:
        self._payload = payload
        self._tags = tags
        self._records = records
        self._headers: list[Header] = [("content-type", payload.content_type.encode())]
        self._keys: list[bytes] = []
        self._hashes: list[int] = []

    def device(self, batch: Batch) -> str:
        """The one device of the batch's rows."""
        return self._tags[int(batch.tag[0])].device

    def add(self, assembly: Assembly, topic: Topic, index: int, stream: str, batch: Batch, historical: bool) -> None:
        """Adds batch `index` of a write; rows that are too large for the topic are rejected there."""
        if self._records == "sample":
            self._add_rows(assembly, topic, index, batch, self._payload.rows(stream, batch, historical))
        else:
            self._add_message(assembly, topic, index, stream, batch, historical)

    def _add_rows(self, assembly: Assembly, topic: Topic, index: int, batch: Batch, payloads: list[bytes]) -> None:
        self._learn_tags()
        times = record_times_ms(batch)
        tag_ids = batch.tag.tolist()
        keys = [self._keys[tag] for tag in tag_ids]
        small = _small_enough(topic, keys, payloads)
        if small is not None:
            self._reject_large(assembly, topic, index, payloads, small)
        elif topic.partitions == 1:
            assembly.add(topic, 0, times, keys, payloads)
            return
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row in range(len(tag_ids)) if small is None else small:
            groups[self._hashes[tag_ids[row]] % topic.partitions].append(row)
        for partition, rows in groups.items():
            times_of, keys_of, payloads_of = _pick(times, rows), _pick(keys, rows), _pick(payloads, rows)
            assembly.add(topic, partition, times_of, keys_of, payloads_of)

    def _add_message(
        self, assembly: Assembly, topic: Topic, index: int, stream: str, batch: Batch, historical: bool
    ) -> None:
        key = self.device(batch).encode()
        message = self._payload.message(stream, batch, historical)
        if _small_enough(topic, [key], [message]) is not None:
            rest = self._without_large_rows(assembly, topic, index, stream, batch, historical)
            if rest is None:
                return
            batch, message = rest
        newest_ms = max(record_times_ms(batch))
        assembly.add(topic, key_hash(key) % topic.partitions, [newest_ms], [key], [message], self._headers)

    def _without_large_rows(
        self, assembly: Assembly, topic: Topic, index: int, stream: str, batch: Batch, historical: bool
    ) -> tuple[Batch, bytes] | None:
        """A message that is too large, again without the rows that are so by themselves; else all are rejected.

        It is not split: two records with one (gateway, stream, seq) would look like a duplicate to consumers.
        """
        payloads = self._payload.rows(stream, batch, historical)
        keys = [self.device(batch).encode()] * len(payloads)
        small = _small_enough(topic, keys, payloads)
        if small is not None:
            self._reject_large(assembly, topic, index, payloads, small)
        if small:
            rest = batch.take(np.array(small))
            message = self._payload.message(stream, rest, historical)
            if _small_enough(topic, keys[:1], [message]) is None:
                return rest, message
        rows = range(len(batch)) if small is None else small
        assembly.reject(
            index, rows, f"one record of these rows is larger than {_record_bytes_max(topic)} B: write records: sample"
        )
        return None

    def _reject_large(
        self, assembly: Assembly, topic: Topic, index: int, payloads: list[bytes], small: list[int]
    ) -> None:
        large = sorted(set(range(len(payloads))) - set(small))
        sizes = max(len(payloads[row]) for row in large)
        limit = f"{_record_bytes_max(topic)} B that topic {topic.name} takes (batch_size, or message.max.bytes there)"
        assembly.reject(index, large, f"record of up to {sizes} B, more than the {limit}")

    def _learn_tags(self) -> None:
        for tag_id in range(len(self._keys), len(self._tags)):
            key = self._tags[tag_id].path.encode()
            self._keys.append(key)
            self._hashes.append(key_hash(key))


def _pick(column: list[T], rows: list[int]) -> list[T]:
    return [column[row] for row in rows]


def _record_bytes_max(topic: Topic) -> int:
    return topic.batch_bytes_max - HEADER_BYTES - RECORD_OVERHEAD_BYTES_MAX


def _small_enough(topic: Topic, keys: Sequence[bytes], payloads: Sequence[bytes]) -> list[int] | None:
    """None when every record fits a record batch of the topic by itself, else the rows of those that do."""
    limit = _record_bytes_max(topic)
    if max(map(len, payloads), default=0) + max(map(len, keys), default=0) <= limit:
        return None
    sizes = [len(key) + len(payload) for key, payload in zip(keys, payloads, strict=True)]
    if max(sizes) <= limit:
        return None
    return [row for row, size in enumerate(sizes) if size <= limit]
