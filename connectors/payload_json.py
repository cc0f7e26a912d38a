"""`format: json`, the default: one message per device and batch, a row is an object.

    {"gateway":"line1-gw","stream":"history","seq":1234,"device":"press4","historical":false,
     "sync":{"source":"ntp","error_us":370},"samples":[
      {"tag":"temperature","t":1795343713695123,"v":21.37,"q":"good"},
      {"tag":"state","t":1795343713695123,"v":7,"name":"RUNNING","q":"good"},
      {"tag":"flow","t":1795343713695123,"v":7,"q":"uncertain","status":1083179008,"arrival":true,"clock":"suspect"}]}

(without the line breaks). `sync` is the quality of the gateway's clock when the batch came, `"state"` in it unless it
is locked; it is not there while nobody can tell. `t` is source time in us since 1970 UTC. `"kind":"event"` stands
behind `tag` where the value is an event's fields. `name` stands only beside numbers that have one (a list beside bit
fields and arrays), `status` only where it is not plain 0, `arrival` only where the time is the gateway's own, `clock`
only where a clock is in doubt: `suspect` (the machine's), `stepped` (the gateway's), `suspect+stepped`. Values:
`connectors.payload_fragments`.

Rows are pieced together from cached bytes per tag, so that only times and values are encoded: 0.2 us per value where
orjson on a list of dicts takes 0.6 us (1000 Doubles).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import add

import orjson

from connectors.payload import Identity, synchronisation
from connectors.payload_fragments import (
    SMALL_ROWS,
    Names,
    TagTexts,
    clock_word,
    encode,
    microseconds,
    number_fragment,
    one_fragment,
    quality,
    value_fragments,
)
from pipelines.batch import Batch, Flag, Kind
from pipelines.clock import UNDISCIPLINED, ClockState
from pipelines.columns import uniform
from pipelines.few import Row, few_rows, first_tag
from pipelines.tags import Tag, TagTable

_VALUE = b',"v":'
_TEMPLATES_MAX = 10_000
_Key = tuple[str, int, int, int, bool]
"""stream, tag, status, flags, historical"""
_Template = tuple[ClockState | None, bytes, bytes, bytes]
_NO_TEMPLATE: _Template = (None, b"", b"", b"")
_AROUND_MAX = 128
"""Batches whose texts are kept; 130 bytes a row."""


class JsonFormat:
    """Rows as objects; see the module's docstring."""

    content_type = "application/json"

    def __init__(self, identity: Identity, tags: TagTable) -> None:
        self._heads = JsonHeads(identity, tags)
        self._opens = TagTexts(tags, _opening)
        self._around = _Around(self._opens)
        self._names = Names(tags)
        self._templates: dict[_Key, _Template] = {}

    def message(self, stream: str, batch: Batch, historical: bool) -> bytes:
        """One message with all rows of the batch (at least one)."""
        if few := few_rows(batch):
            return self._message_of(few, stream, batch, historical)
        rows = len(batch)
        around = self._around.of(batch)
        if around:
            parts = [b""] * (3 * rows + 1)
            parts[0::3] = around
            parts[1::3] = microseconds(batch, _VALUE)
            parts[2::3] = self._values(batch)
        else:
            parts = [b""] * (4 * rows)
            parts[0::4] = self._opens.of(batch.tag)
            parts[1::4] = microseconds(batch, _VALUE)
            parts[2::4] = self._values(batch)
            parts[3::4] = _tails(batch, b"},")
            parts[-1] = parts[-1][:-1] + b"]}"
        return self._heads.head(stream, batch, historical) + b',"samples":[' + b"".join(parts)

    def rows(self, stream: str, batch: Batch, historical: bool) -> list[bytes]:
        """One message per row, in order, each with a single sample."""
        head = self._heads.head(stream, batch, historical) + b',"samples":['
        columns = zip(
            self._opens.of(batch.tag),
            microseconds(batch, _VALUE),
            self._values(batch),
            _tails(batch, b"}]}"),
            strict=True,
        )
        return [head + tag + time + value + tail for tag, time, value, tail in columns]

    def _message_of(self, few: Sequence[Row], stream: str, batch: Batch, historical: bool) -> bytes:
        if batch.extra or len(few) > 1 or self._names.known:
            return self._pieced(few, stream, batch, historical)
        tag, ts_ns, value, status, kind, flags = few[0]
        key = stream, tag, status, flags, historical
        clock, before, between, after = self._templates.get(key) or _NO_TEMPLATE
        if clock is not batch.clock:
            clock, before, between, after = self._template(key, batch)
        return b"%b%d%b%d%b%b%b" % (
            before,
            batch.seq,
            between,
            ts_ns // 1000,
            _VALUE,
            number_fragment(value, kind),
            after,
        )

    def _template(self, key: _Key, batch: Batch) -> _Template:
        """What stands before seq, between it and the time, behind the value, as long as the clock is as it is."""
        stream, tag, status, flags, historical = key
        before, between = self._heads.around_seq(stream, batch, historical)
        if len(self._templates) >= _TEMPLATES_MAX:
            self._templates.clear()
        between += b',"samples":[' + self._opens.one(tag)
        made = self._templates[key] = batch.clock, before, between, _tail(status, flags) + b"}]}"
        return made

    def _pieced(self, few: Sequence[Row], stream: str, batch: Batch, historical: bool) -> bytes:
        names, samples = self._names.of(batch), []
        for row, (tag, ts_ns, value, status, kind, flags) in enumerate(few):
            shown = one_fragment(batch, row, value, kind)
            if row in names:
                shown += b',"name":' + encode(names[row], Kind.NULL)
            samples.append(b"%b%d%b%b%b}" % (self._opens.one(tag), ts_ns // 1000, _VALUE, shown, _tail(status, flags)))
        return b'%b,"samples":[%b]}' % (self._heads.head(stream, batch, historical), b",".join(samples))

    def _values(self, batch: Batch) -> list[bytes]:
        """Each row's value and, where it has one, its name."""
        values = value_fragments(batch)
        for row, name in self._names.of(batch).items():
            values[row] += b',"name":' + encode(name, Kind.NULL)
        return values


class _Around:
    """The texts around a message's times and values, kept while the same tags come with the same quality.

    Polled registers do so, and a server that reports everything. Made when rows come for the second time: a machine
    whose batches are never alike pays for the comparison only.
    """

    def __init__(self, opens: TagTexts) -> None:
        self._opens = opens
        self._known: dict[bytes, tuple[tuple[bytes, bytes, bytes], list[bytes]]] = {}  # first tag -> columns, texts

    def of(self, batch: Batch) -> list[bytes]:
        """Before the first time, between each value and the next time, behind the last value; else nothing."""
        if len(batch) < SMALL_ROWS:
            return []
        columns = (batch.tag.tobytes(), batch.status.tobytes(), batch.flags.tobytes())
        first = columns[0][:4]
        known, texts = self._known.get(first, (None, []))
        if known == columns:
            if not texts:
                opens, tails = self._opens.of(batch.tag), _tails(batch, b"},")
                texts += [opens[0], *map(add, tails, opens[1:]), tails[-1][:-1] + b"]}"]
            return texts
        if len(self._known) >= _AROUND_MAX:
            self._known.clear()
        self._known[first] = (columns, [])
        return []


class JsonHeads:
    """`{"gateway":...,"stream":...,"seq":...,"device":...,"historical":...,"sync":...`: what JSON formats share."""

    def __init__(self, identity: Identity, tags: TagTable) -> None:
        self._gateway = identity.gateway
        self._tags = tags
        self._cache: dict[tuple[str, str, bool], tuple[bytes, bytes]] = {}
        self._clock, self._sync = UNDISCIPLINED, b""

    def head(self, stream: str, batch: Batch, historical: bool) -> bytes:
        """The header of a batch, without its closing brace."""
        before, behind = self.around_seq(stream, batch, historical)
        return b"%b%d%b" % (before, batch.seq, behind)

    def around_seq(self, stream: str, batch: Batch, historical: bool) -> tuple[bytes, bytes]:
        """The header, before and behind the batch's seq."""
        device = self._tags[first_tag(batch)].device
        known = self._cache.get((stream, device, historical))
        if known is None:
            known = self._cache[(stream, device, historical)] = self._encode(stream, device, historical)
        if batch.clock is not self._clock:
            self._clock, self._sync = batch.clock, _sync(batch.clock)
        return known[0], known[1] + self._sync

    def _encode(self, stream: str, device: str, historical: bool) -> tuple[bytes, bytes]:
        before: Mapping[str, object] = {"gateway": self._gateway, "stream": stream}
        after: Mapping[str, object] = {"device": device, "historical": historical}
        return orjson.dumps(before)[:-1] + b',"seq":', b"," + orjson.dumps(after)[1:-1]


@lru_cache(maxsize=100)
def _sync(clock: ClockState) -> bytes:
    """The key of the gateway's clock with a comma before it; nothing where nobody could tell."""
    shown: dict[str, str | int | float] = {**synchronisation(clock)}
    if shown.pop("error_ns", 0):
        shown["error_us"] = clock.error_ns / 1000 if clock.error_ns % 1000 else clock.error_ns // 1000
    return b"," + orjson.dumps({"sync": shown})[1:-1] if shown else b""


def _opening(tag: Tag) -> bytes:
    kind = b',"kind":"event"' if tag.event else b""
    return b'{"tag":%b%b,"t":' % (orjson.dumps(tag.name), kind)


def _tails(batch: Batch, end: bytes) -> list[bytes]:
    """What follows each row's value: quality, and the rare words; then `end`."""
    if uniform(batch.status) and uniform(batch.flags):
        return [_tail(int(batch.status[0]), int(batch.flags[0])) + end] * len(batch)
    known: dict[tuple[int, int], bytes] = {}
    tails = []
    for key in zip(batch.status.tolist(), batch.flags.tolist(), strict=True):
        tail = known.get(key)
        if tail is None:
            tail = known[key] = _tail(*key) + end
        tails.append(tail)
    return tails


@lru_cache(maxsize=1000)
def _tail(status: int, flags: int) -> bytes:
    words: dict[str, object] = {"q": quality(status)}
    if status:
        words["status"] = status
    if flags & Flag.ARRIVAL_TIME:
        words["arrival"] = True
    clock = clock_word(flags)
    if clock:
        words["clock"] = clock
    return b"," + orjson.dumps(words)[1:-1]
