"""`format: json-columns`: the header of `json`, then one list per column; position i of each list is row i.

    {"gateway":"line1-gw","stream":"history","seq":1234,"device":"press4","historical":false,
     "sync":{"source":"ntp","error_us":370},
     "tags":["temperature","pressure"],"t":[1795343713695123,1795343713695123],"v":[21.37,7.25],
     "status":[0,1083179008],"arrival":[true,false],"clock":["suspect",null]}

(without the line breaks). `t` is us since 1970 UTC. More columns are there only when they say something: `kind`
(`"event"` or null) behind `tags` where some row is an event; `name` (null where a number has none) unless no row has
one, `status` (OPC UA StatusCodes) unless every row is plain Good (0), `arrival` unless no time is the gateway's own,
`clock` unless no clock is in doubt. Where one is there, it has an entry for each row.
"""

from __future__ import annotations

from typing import Any

import orjson

from connectors.payload import Identity
from connectors.payload_fragments import (
    NULL,
    SMALL_ROWS,
    Names,
    TagTexts,
    clock_word,
    dumps_column,
    encode,
    is_clean,
    is_plain,
    microseconds,
    value_fragments,
)
from connectors.payload_json import JsonHeads
from pipelines.batch import Batch, Flag, Kind
from pipelines.tags import Tag, TagTable

_EVENT = b'"event"'
_CLOCK = Flag.MACHINE_CLOCK_SUSPECT | Flag.GATEWAY_CLOCK_STEPPED


class JsonColumnsFormat:
    """Rows as columns; see the module's docstring."""

    content_type = "application/json"

    def __init__(self, identity: Identity, tags: TagTable) -> None:
        self._heads = JsonHeads(identity, tags)
        self._tags = TagTexts(tags, _name)
        self._kinds = TagTexts(tags, _kind)
        self._names = Names(tags)

    def message(self, stream: str, batch: Batch, historical: bool) -> bytes:
        """One message with all rows of the batch (at least one)."""
        tags, names = b",".join(self._tags.of(batch.tag)), self._names.of(batch)
        kinds = self._kinds.of(batch.tag) if batch.extra else ()
        return b'%b,"tags":[%b]%b,"t":%b,"v":%b%b%b}' % (
            self._heads.head(stream, batch, historical),
            tags,
            b',"kind":[%b]' % b",".join(kinds) if _EVENT in kinds else b"",
            _times(batch),
            _values(batch),
            _name_column([names.get(row) for row in range(len(batch))]) if names else b"",
            _rare(batch),
        )

    def rows(self, stream: str, batch: Batch, historical: bool) -> list[bytes]:
        """One message per row, in order: the same schema with lists of one."""
        head = self._heads.head(stream, batch, historical) + b',"tags":['
        values, rare = value_fragments(batch), _rare_rows(batch)
        for row, name in self._names.of(batch).items():
            rare[row] = _name_column([name]) + rare[row]
        tags = self._tags.of(batch.tag)
        kinds = self._kinds.of(batch.tag) if batch.extra else ()
        if _EVENT in kinds:
            tags = [
                tag + b'],"kind":[' + kind if kind == _EVENT else tag for tag, kind in zip(tags, kinds, strict=True)
            ]
        columns = zip(tags, microseconds(batch), values, rare, strict=True)
        return [b'%b%b],"t":[%b],"v":[%b]%b}' % (head, *columns_of_row) for columns_of_row in columns]


def _name_column(names: list[Any]) -> bytes:
    return b',"name":' + encode(names, Kind.NULL)


def _name(tag: Tag) -> bytes:
    return orjson.dumps(tag.name)


def _kind(tag: Tag) -> bytes:
    return _EVENT if tag.event else NULL


def _times(batch: Batch) -> bytes:
    if len(batch) < SMALL_ROWS:
        return b"[%b]" % b",".join(microseconds(batch))
    return dumps_column(batch.ts_ns // 1000)


def _values(batch: Batch) -> bytes:
    if len(batch) >= SMALL_ROWS and is_plain(batch):
        return dumps_column(batch.value)
    return b"[%b]" % b",".join(value_fragments(batch))


def _rare(batch: Batch) -> bytes:
    """The columns that are there only when they say something, each with a comma before it."""
    if is_clean(batch):
        return b""
    text = b""
    if batch.status.any():
        text += b',"status":' + orjson.dumps(batch.status.tolist())
    if batch.flags.any():
        flags = batch.flags.tolist()
        if any(row & Flag.ARRIVAL_TIME for row in flags):
            text += b',"arrival":' + orjson.dumps([bool(row & Flag.ARRIVAL_TIME) for row in flags])
        if any(row & _CLOCK for row in flags):
            text += b',"clock":' + orjson.dumps([clock_word(row) for row in flags])
    return text


def _rare_rows(batch: Batch) -> list[bytes]:
    if is_clean(batch):
        return [b""] * len(batch)
    return [_rare(batch.take(slice(row, row + 1))) for row in range(len(batch))]
