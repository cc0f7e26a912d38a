"""`format: value`: one message per row, the bare value as text: `21.37`, `7`, `true`, `running`, `[1,2,3]`.

Numbers are the shortest text that reads back exactly, text is as it is (UTF-8), DateTime is RFC 3339, ByteString is
base64, NaN and infinities are `NaN`, `Infinity`, `-Infinity`, arrays and structures JSON, no value `null`. Time and
quality are not on the wire: where they matter, another format belongs on the route.
"""

from __future__ import annotations

import json
from typing import NoReturn

from connectors.payload import Identity
from connectors.payload_fragments import value_fragments
from pipelines.batch import Batch
from pipelines.tags import TagTable


class ValueFormat:
    """Bare values; see the module's docstring."""

    content_type = "text/plain;charset=utf-8"

    def __init__(self, identity: Identity, tags: TagTable) -> None:
        """Neither is on the wire: the topic says whose value it is."""

    def message(self, stream: str, batch: Batch, historical: bool) -> NoReturn:
        """Raises ValueError: settings refuse `format: value` wherever a message may hold several rows."""
        raise ValueError("format value has no message for a batch: it needs one topic (or key) per tag")

    def rows(self, stream: str, batch: Batch, historical: bool) -> list[bytes]:
        """One message per row, in order."""
        return [_bare(text) if text[0] == _QUOTE else text for text in value_fragments(batch)]


_QUOTE = ord('"')


def _bare(text: bytes) -> bytes:
    """JSON text without its quotes and escapes."""
    if b"\\" not in text:
        return text[1:-1]
    bare: str = json.loads(text)
    return bare.encode(errors="replace")
