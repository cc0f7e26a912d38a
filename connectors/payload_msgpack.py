"""`format: msgpack`: one MessagePack map, the header of `json` and `samples` as columns; times in ns.

    {"gateway": "line1-gw", "stream": "history", "seq": 1234, "device": "press4", "historical": false,
     "sync": {"source": "ntp", "error_ns": 370000},
     "samples": {"tag": ["temperature", "photo"], "t": [1795343713695123400, 1795343713695123400],
                 "v": [21.37, <bin 89 50 4e 47>],
                 "status": [0, 1083179008], "arrival": [true, false], "clock": ["suspect", null]}}

`t` is int64, ns since 1970 UTC. Values keep their types: integers exact, floating point as float64 (NaN and infinities
too), booleans, text as str, ByteString as bin, DateTime as MessagePack's own timestamp type (exact to the ns), arrays
as arrays, structures as maps, no value as nil. The last three columns, `kind` and `name` are there only when they say
something, as in `json-columns`.
"""

from __future__ import annotations

from typing import Any

import msgpack

from connectors.payload import Identity, synchronisation
from connectors.payload_fragments import Names, TagTexts, clock_word, is_clean, is_plain, values_of
from pipelines.batch import ARRAY, Batch, Flag, Kind
from pipelines.tags import TagTable

_CLOCK = Flag.MACHINE_CLOCK_SUSPECT | Flag.GATEWAY_CLOCK_STEPPED
_EVENT = b"event"
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


class MsgpackFormat:
    """Rows as MessagePack columns; see the module's docstring."""

    content_type = "application/vnd.msgpack"

    def __init__(self, identity: Identity, tags: TagTable) -> None:
        self._gateway = identity.gateway
        self._tags = tags
        self._names = Names(tags)
        self._kinds = TagTexts(tags, lambda tag: _EVENT if tag.event else b"")
        self._packer = msgpack.Packer(unicode_errors="replace", default=str)

    def message(self, stream: str, batch: Batch, historical: bool) -> bytes:
        """One message with all rows of the batch (at least one)."""
        return self._pack(self._head(stream, batch, historical) | {"samples": self._samples(batch)})

    def rows(self, stream: str, batch: Batch, historical: bool) -> list[bytes]:
        """One message per row, in order: the same schema with lists of one."""
        # A map of six entries opens with 0x86: the header is packed once, `samples` for each row.
        known = self._head(stream, batch, historical)
        head = bytes([0x80 + len(known) + 1]) + self._pack(known)[1:] + self._pack("samples")
        if not is_clean(batch) or self._has_events(batch) or self._names.of(batch):
            return [head + self._pack(self._samples(part)) for part in batch.split(1)]
        tags, pack = self._tags, self._packer.pack
        columns = zip(batch.tag.tolist(), batch.ts_ns.tolist(), _values(batch), strict=True)
        return [head + pack({"tag": [tags[tag].name], "t": [t], "v": [v]}) for tag, t, v in columns]

    def _pack(self, value: Any) -> bytes:
        packed: bytes = self._packer.pack(value)
        return packed

    def _has_events(self, batch: Batch) -> bool:
        return bool(batch.extra) and _EVENT in self._kinds.of(batch.tag)

    def _head(self, stream: str, batch: Batch, historical: bool) -> dict[str, Any]:
        head = {
            "gateway": self._gateway,
            "stream": stream,
            "seq": batch.seq,
            "device": self._tags[int(batch.tag[0])].device,
            "historical": historical,
        }
        sync = synchronisation(batch.clock)
        return head | {"sync": sync} if sync else head

    def _samples(self, batch: Batch) -> dict[str, Any]:
        tags = self._tags
        samples: dict[str, Any] = {
            "tag": [tags[tag_id].name for tag_id in batch.tag.tolist()],
            "t": batch.ts_ns.tolist(),
            "v": _values(batch),
        }
        if names := self._names.of(batch):
            samples["name"] = [names.get(row) for row in range(len(batch))]
        if self._has_events(batch):
            samples["kind"] = ["event" if tags[tag_id].event else None for tag_id in batch.tag.tolist()]
        if is_clean(batch):
            return samples
        if batch.status.any():
            samples["status"] = batch.status.tolist()
        flags = batch.flags.tolist()
        if any(row & Flag.ARRIVAL_TIME for row in flags):
            samples["arrival"] = [bool(row & Flag.ARRIVAL_TIME) for row in flags]
        if any(row & _CLOCK for row in flags):
            samples["clock"] = [clock_word(row) for row in flags]
        return samples


def _values(batch: Batch) -> list[Any]:
    if is_plain(batch):
        plain: list[Any] = batch.value.tolist()
        return plain
    values = values_of(batch)
    for row in batch.extra or ():
        values[row] = _packable(values[row], int(batch.kind[row]))
    return values


def _packable(value: Any, kind: int) -> Any:
    """`value` with DateTime as timestamps, and as text what MessagePack has no type for."""
    if isinstance(value, (list, tuple)):
        return [_packable(element, kind & ~ARRAY) for element in value]
    if isinstance(value, dict):
        return {str(key): _packable(inner, Kind.NULL) for key, inner in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        if kind & ~ARRAY == Kind.DATETIME:
            return msgpack.Timestamp(*divmod(value, 10**9))
        return value if _INT64_MIN <= value <= _UINT64_MAX else str(value)
    return value
