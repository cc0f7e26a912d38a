"""Rows -> record batches: partitions, sizes, times, what is rejected, and the bytes as aiokafka's reader sees them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.kafka_batches import (
    HEADER_BYTES,
    REQUEST_BYTES,
    TIME_LEAD_MAX_MS,
    Assembly,
    RecordBatch,
    Recorder,
    Topic,
    key_hash,
    record_times_ms,
    seal_all,
)
from connectors.kafka_settings import Compression, Records
from pipelines.batch import Batch, BatchBuilder, Kind
from pipelines.tags import Tag, TagTable

START_NS = 1_795_343_713_695_123_000
COMPRESSIONS: list[Compression] = ["none", "gzip", "lz4", "zstd"]


class TextFormat:
    """A row is its value; a message is all values in one JSON list."""

    content_type = "application/json"

    def message(self, stream: str, batch: Batch, historical: bool) -> bytes:
        return json.dumps(batch.values()).encode()

    def rows(self, stream: str, batch: Batch, historical: bool) -> list[bytes]:
        return [str(value).encode() for value in batch.values()]


def table(tags: int = 20) -> TagTable:
    made = TagTable()
    for number in range(tags):
        made.add(Tag("press4", f"tag{number}"))
    return made


def make_batch(values: Sequence[object], tag_ids: list[int] | None = None, received_ns: int = START_NS) -> Batch:
    builder = BatchBuilder()
    for row, value in enumerate(values):
        tag = tag_ids[row] if tag_ids else row % 20
        builder.add(tag, START_NS + row * 1_000_000, value, Kind.STRING if isinstance(value, str) else Kind.INT64)
    return builder.build(0, 0, received_ns)


def recorder(records: Records, tags: TagTable | None = None) -> Recorder:
    return Recorder(TextFormat(), tags or table(), records)


def records_of(batch: RecordBatch) -> list[tuple[int, bytes, bytes, list[tuple[str, bytes]]]]:
    """(time, key, payload, headers) as aiokafka's reader decodes the batch's bytes, its checksum verified."""
    batch._set_producer_state(7, 3, 11)
    memory = MemoryRecords(bytes(batch._build()))
    found = []
    while (read := memory.next_batch()) is not None:
        assert read.validate_crc()
        assert (read.producer_id, read.producer_epoch, read.base_sequence) == (7, 3, 11)
        found += [(record.timestamp, record.key, record.value, list(record.headers)) for record in read]
    return found


def delivered(assembly: Assembly) -> dict[tuple[str, int], list[tuple[bytes, bytes]]]:
    """(topic, partition) -> (key, payload) in the order of sending."""
    found: dict[tuple[str, int], list[tuple[bytes, bytes]]] = {}
    for part in assembly.parts():
        rows = [(key, payload) for _, key, payload, _ in records_of(part.batch)]
        found.setdefault((part.topic, part.partition), []).extend(rows)
    return found


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_hash_as_in_kafka(key: bytes, murmur2: int) -> None:
    """The vectors of Kafka's own UtilsTest.testMurmur2; toPositive clears the sign bit."""
    assert key_hash(key) == murmur2 & 0x7FFF_FFFF


@pytest.mark.parametrize("partitions", [1, 3, 7])
def test_rows_go_to_their_keys_partition_in_order(partitions: int) -> None:
    """Every row once, in its key's partition; per key in the order of the rows; over several batches."""
    assembly = Assembly("none")
    made = recorder("sample")
    topic = Topic("t", partitions, 4000)
    numbers = list(range(900))
    for index in range(3):
        made.add(assembly, topic, index, "s", make_batch(numbers[index * 300 : index * 300 + 300]), False)
    seen: dict[bytes, list[int]] = {}
    for (_, partition), rows in delivered(assembly).items():
        for key, payload in rows:
            assert partition == key_hash(key) % partitions
            seen.setdefault(key, []).append(int(payload))
    assert sorted(number for order in seen.values() for number in order) == numbers
    assert all(order == sorted(order) for order in seen.values())
    assert len(seen) == 20


def test_a_changed_partition_count_and_new_tags_are_followed() -> None:
    """Nothing is remembered but the keys' hashes; the tag table may grow while running."""
    tags = table()
    made = recorder("sample", tags)
    for partitions in (3, 5):
        new = tags.add(Tag("press4", f"late{partitions}"))
        assembly = Assembly("none")
        made.add(assembly, Topic("t", partitions, 4000), 0, "s", make_batch([1, 2], [0, new]), False)
        for (_, partition), rows in delivered(assembly).items():
            assert all(key_hash(key) % partitions == partition for key, _ in rows)


def test_a_batch_is_one_record_with_the_devices_key_and_the_newest_time() -> None:
    """`records: batch`: one record, key = device, content type as its header."""
    assembly = Assembly("none")
    recorder("batch").add(assembly, Topic("t", 4, 4000), 0, "s", make_batch([1, 2, 3]), False)
    (part,) = assembly.parts()
    assert part.partition == key_hash(b"press4") % 4
    time_ms = START_NS // 1_000_000 + 2
    assert records_of(part.batch) == [(time_ms, b"press4", b"[1, 2, 3]", [("content-type", b"application/json")])]


@pytest.mark.parametrize("records", ["sample", "batch"])
def test_full_record_batches_are_followed_by_the_next(records: Records) -> None:
    """None is larger than the limit, nothing is lost at the seam, rounds alternate over the partitions."""
    assembly = Assembly("none")
    made = recorder(records)
    for index in range(40):
        made.add(
            assembly, Topic("t", 2, 1500), index, "s", make_batch([f"{index:03}-{'x' * 200}"], [index % 20]), False
        )
    parts = assembly.parts()
    assert len(parts) > 4
    assert [part.round for part in parts] == sorted(part.round for part in parts)
    assert all(len(bytes(part.batch._build())) <= 1500 for part in parts)
    assert sum(part.batch.record_count() for part in parts) == 40


def test_a_request_over_many_partitions_stays_small() -> None:
    """One record batch of each partition makes a request; a large record goes alone, in a batch of its own."""
    assembly = Assembly("none")
    topic = Topic("t", 8, 900 * 1024)
    made = recorder("sample")
    made.add(assembly, topic, 0, "s", make_batch(["x" * 1000] * 2000), False)
    made.add(assembly, topic, 1, "s", make_batch(["y" * 700_000, "z"], [0, 0]), False)
    parts = assembly.parts()
    requests = {part.round: 0 for part in parts}
    for part in parts:
        requests[part.round] += part.batch.bytes if part.batch.bytes < 700_000 else 0
    assert max(requests.values()) <= REQUEST_BYTES
    assert [part.batch.record_count() for part in parts if part.batch.bytes > 700_000] == [1]
    assert sum(part.batch.record_count() for part in parts) == 2002
    assert assembly.rejected == []


def test_a_row_that_is_too_large_is_rejected_and_the_others_go() -> None:
    """`records: sample`: by its index in the write, with a reason."""
    assembly = Assembly("none")
    made = recorder("sample")
    values: list[object] = ["a", "x" * 5000, "b", "y" * 3000]
    made.add(assembly, Topic("t", 3, 2000), 0, "s", make_batch(["first"]), False)
    made.add(assembly, Topic("t", 3, 2000), 1, "s", make_batch(values), False)
    sent = sorted(payload for rows in delivered(assembly).values() for _, payload in rows)
    assert sent == [b"a", b"b", b"first"]
    assert assembly.rejected == [(1, 1), (1, 3)]
    assert "5000 B" in assembly.reason
    assert "batch_size" in assembly.reason


def test_a_message_that_is_too_large_goes_without_its_large_rows() -> None:
    """`records: batch`: the rest of the batch is one record still."""
    assembly = Assembly("none")
    recorder("batch").add(assembly, Topic("t", 1, 2000), 4, "s", make_batch(["a", "x" * 5000, "b"]), False)
    assert delivered(assembly) == {("t", 0): [(b"press4", b'["a", "b"]')]}
    assert assembly.rejected == [(4, 1)]


def test_a_message_of_small_rows_that_is_too_large_is_rejected_whole() -> None:
    """It is not split: (gateway, stream, seq) names one record."""
    assembly = Assembly("none")
    recorder("batch").add(assembly, Topic("t", 1, 2000), 0, "s", make_batch(["x" * 500] * 6), False)
    assert assembly.parts() == []
    assert assembly.rejected == [(0, row) for row in range(6)]
    assert "records: sample" in assembly.reason


def test_a_record_that_just_fits_is_sent_within_the_limit() -> None:
    """The bound used for rejecting is never too generous."""
    for length in range(1850, 2000):
        assembly = Assembly("none")
        recorder("sample").add(assembly, Topic("t", 1, 2000), 0, "s", make_batch(["x" * length]), False)
        assert all(len(bytes(part.batch._build())) <= 2000 for part in assembly.parts())
        assert len(assembly.parts()) + len(assembly.rejected) == 1


def test_times_are_the_sources_but_never_far_in_the_future_or_before_1970() -> None:
    """Brokers refuse a whole batch for one time too far ahead; both sizes of batch take the same way."""
    for rows in (1, 100):
        assert record_times_ms(make_batch([1] * rows))[0] == START_NS // 1_000_000
        ahead = record_times_ms(make_batch([1] * rows, received_ns=START_NS - 3600 * 10**9))
        assert set(ahead) == {START_NS // 1_000_000 - 3_600_000 + TIME_LEAD_MAX_MS}
        batch = make_batch([1] * rows)
        batch.ts_ns[:] = -5
        assert set(record_times_ms(batch)) == {0}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2**41), st.binary(max_size=60), st.binary(max_size=300)), min_size=1),
    compression=st.sampled_from(COMPRESSIONS),
    seal=st.booleans(),
)
def test_every_compression_reads_back(
    rows: list[tuple[int, bytes, bytes]], compression: Compression, seal: bool
) -> None:
    """aiokafka's reader finds the very records, with the producer's state and a right checksum."""
    batch = RecordBatch(10**6, compression)
    times, keys, payloads = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    assert batch.extend(0, times, keys, payloads, []) == len(rows)
    if seal:
        batch.seal()
        batch.seal()
    assert batch.record_count() == len(rows)
    read = records_of(batch)
    assert [(key, payload) for _, key, payload, _ in read] == list(zip(keys, payloads, strict=True))
    assert [time for time, *_ in read] == times
    assert batch.closed()


def test_compression_makes_it_smaller_and_a_retry_sends_the_same_bytes() -> None:
    """`_build` is called again for every retry."""
    for compression in COMPRESSIONS[1:]:
        assembly = Assembly(compression)
        recorder("sample").add(assembly, Topic("t", 1, 10**6), 0, "s", make_batch(list(range(5000))), False)
        seal_all(assembly.parts())
        (part,) = assembly.parts()
        assert part.batch.size() < part.batch.bytes * 0.6
        part.batch._set_producer_state(1, 0, 0)
        assert bytes(part.batch._build()) == bytes(part.batch._build())


def test_an_empty_record_batch_takes_any_record() -> None:
    """So that a record larger than the limit cannot loop for ever; sizes are checked before."""
    batch = RecordBatch(HEADER_BYTES + 10)
    assert batch.extend(0, [0, 0], [b"k", b"k"], [b"x" * 100, b"y"], []) == 1
    batch.close()
    assert batch.closed()
