"""JSON text of single values: what the JSON formats and `value` share. Pure.

Columns of numbers are encoded by orjson in one call and cut at the commas, 0.1-0.2 us per value; everything else (text,
arrays, structures, NaN) is encoded value by value. DESIGN section 6 says how each type looks.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from binascii import b2a_base64
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from pipelines.batch import ARRAY, SEVERITY_MASK, SEVERITY_UNCERTAIN, Batch, Flag, Kind
from pipelines.columns import runs
from pipelines.rfc3339 import rfc3339
from pipelines.tags import Tag, TagTable, name_of

NULL = b"null"
SMALL_ROWS = 16
"""Below this many rows plain Python is quicker than numpy's fixed cost per call."""
_INTEGER_KINDS = frozenset(range(Kind.SBYTE, Kind.UINT64 + 1)) | {Kind.STATUS_CODE}
_REAL_KINDS = frozenset((Kind.FLOAT, Kind.DOUBLE))
_PLAIN_ARRAYS = frozenset(kind | ARRAY for kind in (*_INTEGER_KINDS, Kind.BOOLEAN, Kind.STRING, Kind.LOCALIZED_TEXT))
_REAL_ARRAYS = frozenset(kind | ARRAY for kind in _REAL_KINDS)


class TagTexts:
    """What stands for a tag in a message, encoded once: of what never changes, as ids are never reused."""

    def __init__(self, tags: TagTable, encode: Callable[[Tag], bytes]) -> None:
        self._tags = tags
        self._encode = encode
        self._texts: npt.NDArray[np.object_] = np.empty(0, dtype=np.object_)

    def one(self, tag_id: int) -> bytes:
        """The text of one tag."""
        self._grow()
        text: bytes = self._texts[tag_id]
        return text

    def of(self, tag: npt.NDArray[np.uint32]) -> list[bytes]:
        """The text of each row of a tag column: 12 ns a row by numpy, where a dictionary takes 60."""
        self._grow()
        if len(tag) < SMALL_ROWS:
            return [self._texts[tag_id] for tag_id in tag.tolist()]
        texts: list[bytes] = self._texts[tag].tolist()
        return texts

    def _grow(self) -> None:
        known = len(self._texts)
        if known < len(self._tags):
            added = [self._encode(self._tags[tag_id]) for tag_id in range(known, len(self._tags))]
            self._texts = np.array([*self._texts, *added], dtype=np.object_)


class Names:
    """What labelled numbers mean: of enumerations their name, of bit fields the names of the bits that are set."""

    def __init__(self, tags: TagTable) -> None:
        self._tags = tags
        self._version = 0
        self._labels: dict[int, tuple[dict[int, str], bool]] = {}  # of the tags that have any
        self._mask = np.zeros(0, dtype=np.bool_)

    @property
    def known(self) -> bool:
        """Some tag has labels."""
        if self._version != self._tags.version:
            self._look()
        return bool(self._labels)

    def of(self, batch: Batch) -> dict[int, Any]:
        """Row -> a name, or a list of names, for the rows that have one. Nothing is done where no tag has labels."""
        if not self.known:
            return {}
        if len(batch) < SMALL_ROWS:
            rows = [row for row, tag in enumerate(batch.tag.tolist()) if tag in self._labels]
        else:
            rows = np.flatnonzero(self._mask[batch.tag]).tolist()
        return self._of_rows(batch, rows) if rows else {}

    def _of_rows(self, batch: Batch, rows: list[int]) -> dict[int, Any]:
        extra, names = batch.extra or {}, {}
        tags, numbers = batch.tag[rows].tolist(), batch.value[rows].tolist()
        for row, tag, number in zip(rows, tags, numbers, strict=True):
            labels, bits = self._labels[tag]
            name = name_of(extra.get(row, number), labels, bits)
            if name is not None:
                names[row] = name
        return names

    def _look(self) -> None:
        """At tags that are new or described anew."""
        tags = self._tags
        for tag in tags.changed_since(self._version):
            if tags[tag].labels:
                self._labels[tag] = dict(tags[tag].labels), tags[tag].bits
        self._version = tags.version
        self._mask = np.zeros(len(tags), dtype=np.bool_)
        self._mask[list(self._labels)] = True


def microseconds(batch: Batch, end: bytes = b"") -> list[bytes]:
    """Each row's source time as decimal text, us since 1970 UTC, rounded down; and `end` behind it."""
    if len(batch) < SMALL_ROWS:
        return [b"%d%b" % (ns // 1000, end) for ns in batch.ts_ns.tolist()]
    ts_ns = batch.ts_ns
    found = runs(ts_ns)
    if found is None:
        listed = dumps_column(ts_ns // 1000)[1:-1]
        return (listed.replace(b",", end + b"\n") + end).split(b"\n")
    texts: list[bytes] = []
    for time_ns, rows in found:
        texts += [b"%d%b" % (time_ns // 1000, end)] * rows
    return texts


def quality(status: int) -> str:
    """`good`, `uncertain` or `bad`: the severity bits of an OPC UA StatusCode (Part 4, 7.39.1)."""
    severity = status & SEVERITY_MASK
    if severity == 0:
        return "good"
    return "uncertain" if severity == SEVERITY_UNCERTAIN else "bad"


def clock_word(flags: int) -> str | None:
    """What is wrong with the clocks behind a row's time; None where nothing is."""
    suspect, stepped = flags & Flag.MACHINE_CLOCK_SUSPECT, flags & Flag.GATEWAY_CLOCK_STEPPED
    if suspect and stepped:
        return "suspect+stepped"
    if suspect:
        return "suspect"
    return "stepped" if stepped else None


def is_plain(batch: Batch) -> bool:
    """All rows are finite floating point numbers: the value column may be encoded as it is."""
    kind = batch.kind
    if batch.extra or len(kind) == 0:
        return False
    if len(kind) < SMALL_ROWS:
        return _REAL_KINDS.issuperset(kind.tolist()) and all(map(math.isfinite, batch.value.tolist()))
    if not ((kind == Kind.DOUBLE) | (kind == Kind.FLOAT)).all():
        return False
    return bool(np.isfinite(batch.value).all())


def is_clean(batch: Batch) -> bool:
    """All rows are plain Good and have no flag: only times and values are to be told."""
    return not np.count_nonzero(batch.status) and not np.count_nonzero(batch.flags)


def one_fragment(batch: Batch, row: int, value: float, kind: int) -> bytes:
    """That row's value as JSON; `value` and `kind` are what its columns say."""
    extra = batch.extra
    return encode(extra[row], kind) if extra and row in extra else number_fragment(value, kind)


def value_fragments(batch: Batch) -> list[bytes]:
    """Each row's value as JSON, in order."""
    if len(batch) < SMALL_ROWS:
        return _few(batch)
    if not batch.extra and np.isfinite(batch.value).all():
        kinds = set(batch.kind.tobytes())
        if kinds <= _REAL_KINDS:
            return _cut(batch.value)
        if kinds <= _INTEGER_KINDS:
            return _cut(batch.value.astype(np.int64))
    fragments = _numbers(batch)
    if batch.extra:
        kind = batch.kind.tolist()
        for row, value in batch.extra.items():
            fragments[row] = encode(value, kind[row])
    return fragments


def values_of(batch: Batch) -> list[Any]:
    """One Python object a row, as `Batch.values`, but None (not NaN) where a row of text or the like has no value."""
    values = batch.values()
    extra = batch.extra or {}
    kind = batch.kind
    without = ~((kind >= Kind.BOOLEAN) & (kind <= Kind.DOUBLE) | (kind == Kind.STATUS_CODE))
    for row in np.flatnonzero(without).tolist():
        if row not in extra:
            values[row] = None
    return values


def encode(value: Any, kind: int) -> bytes:
    """JSON of one value of `kind`; never raises for what a machine can send.

    The common types first, without a detour through `jsonable`: 0.2-0.5 us each, a fifth of what it takes.
    """
    made = type(value)
    if made is int:
        return b'"%b"' % rfc3339(value).encode() if kind == Kind.DATETIME else b"%d" % value
    if made is bytes:
        return b'"%b"' % b2a_base64(value, newline=False)
    shaped = value if made is str or _is_plain_array(value, kind) else jsonable(value, kind)
    try:
        return orjson.dumps(shaped)
    except orjson.JSONEncodeError:
        # Integers beyond 64 bits, lone surrogates in text, objects that JSON has no word for.
        return json.dumps(shaped, default=str, separators=(",", ":")).encode()


def _is_plain_array(value: Any, kind: int) -> bool:
    """A flat array in which orjson finds nothing that needs another shape."""
    if kind in _PLAIN_ARRAYS:
        return True
    return kind in _REAL_ARRAYS and bool(value) and type(value[0]) is float and all(map(math.isfinite, value))


def jsonable(value: Any, kind: int) -> Any:
    """`value` with everything that JSON lacks replaced: bytes, NaN and infinities, DateTime (int, UTC ns)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _infinity(value)
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [jsonable(element, kind & ~ARRAY) for element in value]
    if isinstance(value, dict):
        return {str(key): jsonable(inner, Kind.NULL) for key, inner in value.items()}
    if kind & ~ARRAY == Kind.DATETIME and isinstance(value, int):
        return rfc3339(value)
    return value


def _few(batch: Batch) -> list[bytes]:
    extra = batch.extra or {}
    rows = zip(batch.value.tolist(), batch.kind.tolist(), strict=True)
    return [
        encode(extra[row], kind) if row in extra else number_fragment(value, kind)
        for row, (value, kind) in enumerate(rows)
    ]


def number_fragment(value: float, kind: int) -> bytes:
    """A value that is in the column."""
    if kind in _REAL_KINDS:
        return orjson.dumps(value) if math.isfinite(value) else b'"%b"' % _infinity(value).encode()
    if not math.isfinite(value):
        return NULL
    if kind in _INTEGER_KINDS:
        return b"%d" % value
    if kind == Kind.BOOLEAN:
        return b"true" if value else b"false"
    return NULL


def _numbers(batch: Batch) -> list[bytes]:
    """The value column alone, as `number_fragment` would put each row."""
    value, kind = batch.value, batch.kind
    finite = np.isfinite(value)
    real = (kind == Kind.DOUBLE) | (kind == Kind.FLOAT)
    integer = ((kind >= Kind.SBYTE) & (kind <= Kind.UINT64) | (kind == Kind.STATUS_CODE)) & finite
    fragments = [NULL] * len(batch)
    _fill(fragments, real & finite, value[real & finite])
    _fill(fragments, integer, value[integer].astype(np.int64))
    boolean = (kind == Kind.BOOLEAN) & finite
    for row, true in zip(np.flatnonzero(boolean).tolist(), value[boolean].tolist(), strict=True):
        fragments[row] = b"true" if true else b"false"
    for row in np.flatnonzero(real & ~finite).tolist():
        fragments[row] = b'"%b"' % _infinity(float(value[row])).encode()
    return fragments


def _fill(fragments: list[bytes], rows: npt.NDArray[np.bool_], numbers: npt.NDArray[Any]) -> None:
    """`numbers` are those of the `rows`."""
    for row, text in zip(np.flatnonzero(rows).tolist(), _cut(numbers), strict=True):
        fragments[row] = text


def _cut(column: npt.NDArray[Any]) -> list[bytes]:
    if len(column) == 0:
        return []
    return dumps_column(column)[1:-1].split(b",")


def dumps_column(column: npt.NDArray[Any]) -> bytes:
    """A JSON list, without an object per row. A column out of a frame may lie at an odd address: copied."""
    dense = column if column.flags.c_contiguous and column.flags.aligned else column.copy()
    return orjson.dumps(dense, option=orjson.OPT_SERIALIZE_NUMPY)


def _infinity(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
