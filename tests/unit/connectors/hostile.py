"""A hostile server's PublishResponses, and what has to hold of what the decoder makes of them."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Final

from connectors.opcua_binary import DecodeError
from connectors.opcua_decode import decode_changes, decode_few
from connectors.opcua_event_decode import decode_events
from connectors.opcua_response import parse_response
from connectors.opcua_structures import Structures
from connectors.payload import FORMATS, Format, Identity, make_format
from pipelines.batch import BatchBuilder
from pipelines.frame import encode_batch
from pipelines.tags import Tag, TagTable
from tests.unit.connectors.opcua_messages import ARRIVAL_NS, Row, is_well_typed, recorded, rows, rows_of

_LENGTHS: Final = [0, 1, -1, -(2**31), 2**31 - 1, 2**16, 255, 256, 2**24]
_PARTS_OF_THE_PLAIN_WAY: Final = 5
"""Fewer rows than a run: each is read by itself."""


def mutated(body: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to three things go wrong: bits, bytes, lengths, and pieces that are gone, doubled, swapped or foreign."""
    made = bytearray(body)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not made:
            break
        at = chance.randrange(len(made))
        size = min(chance.choice((1, 2, 4, 8, 16, 30, 100)), len(made) - at)
        match chance.randrange(10):
            case 0 | 1:
                made[at] ^= 1 << chance.randrange(8)
            case 2:
                made[at] = chance.randrange(256)
            case 3 | 4:
                made[at : at + 4] = struct.pack("<i", chance.choice(_LENGTHS))
            case 5:
                del made[at:]
            case 6:
                del made[at : at + size]
            case 7:
                made[at:at] = made[at : at + size] * chance.choice((1, 2, 50))
            case 8:
                other = chance.randrange(len(made))
                made[at : at + size], made[other : other + size] = made[other : other + size], made[at : at + size]
            case _:
                foreign = chance.choice(others)
                start = chance.randrange(len(foreign))
                made[at : at + size] = foreign[start : start + size]
    return bytes(made)


class Oracle:
    """Judges one message after the other; counts how many were refused."""

    def __init__(self, structures: Structures) -> None:
        self.structures = structures
        self.refused = self.read = self.rows = self.events = 0
        self._fields = {handle: names for line in recorded() for handle, names in line["fields"].items()}
        tags = TagTable()
        self._tag = tags.add(Tag("press", "t", labels=((1, "ON"), (2, "OFF"))))
        self._formats: list[Format] = [make_format(name, Identity("gw"), tags) for name in FORMATS]

    def judge(self, body: bytes, thoroughly: bool) -> None:
        """AssertionError where something does not hold; any error but DecodeError is one too.

        thoroughly: the plain way, junk behind the records and all that follows (frame, payloads) as well.
        """
        try:
            found = rows(body)
        except DecodeError:
            found = None
        if thoroughly:
            assert repr(_plainly(body)) == repr(found), "columns and single rows differ"
            assert repr(_without_columns(body)) == repr(found), "columns and rows without columns differ"
        if found is None:
            self.refused += 1
            return
        self.read += 1
        self.rows += len(found)
        self._judge_events(body, thoroughly)
        for _, ts_ns, value, _, kind, _ in found:
            assert is_well_typed(kind, value), f"kind {kind} has the value {value!r}"
            assert -(2**63) <= ts_ns < 2**63
        if thoroughly:
            self._deliver(found)
            assert repr(_with_junk_behind(body)) == repr(found), "a value is made of bytes from beyond its field"

    def _judge_events(self, body: bytes, thoroughly: bool) -> None:
        try:
            parts = [part for part, _ in decode_events(body, parse_response(body), self._fields, ARRIVAL_NS)]
        except DecodeError:
            return
        found = [row for part in parts for row in rows_of(part)]
        self.events += len(found)
        assert all(isinstance(fields, dict) for _, _, fields, *_ in found)
        if thoroughly:
            self._deliver(found)

    def _deliver(self, found: list[Row]) -> None:
        builder = BatchBuilder()
        for _, ts_ns, value, status, kind, flags in found[:200]:
            builder.add(self._tag, ts_ns, self.structures.value(value), kind, status, flags)
        if not len(builder):
            return
        batch = replace(builder.build(0, 1, 0), seq=1)
        encode_batch(batch, 1, 0, 0, 0)
        for format in self._formats:
            format.rows("s", batch, False)


def _plainly(body: bytes) -> list[Row] | None:
    try:
        return rows(body, _PARTS_OF_THE_PLAIN_WAY)
    except DecodeError:
        return None


def _without_columns(body: bytes) -> list[Row] | None:
    try:
        found, extra = decode_few(body, parse_response(body), ARRIVAL_NS)
    except DecodeError:
        return None
    return [
        (handle, ts_ns, extra[row] if row in extra else repr(float(value)), status, kind, flags)
        for row, (handle, ts_ns, value, status, kind, flags) in enumerate(found)
    ]


def _with_junk_behind(body: bytes) -> list[Row]:
    """The rows when everything behind the last record's field is something else."""
    response = parse_response(body)
    end = max((change.end for change in response.changes), default=len(body))
    other = body[:end] + bytes(byte ^ 0x5A for byte in body[end:]) + b"\x01" * 64
    return [row for part in decode_changes(other, response, ARRIVAL_NS, 1000) for row in rows_of(part)]
