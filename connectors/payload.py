"""What the payload formats have in common: who sends, and the two questions that a sink asks of a format.

A batch that reaches a sink holds rows of one device. The modules `payload_*.py` are the only places that know a wire
schema; the table `FORMATS` names them by the word of the configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from connectors import load
from pipelines.batch import Batch
from pipelines.clock import ClockState
from pipelines.tags import TagTable

FormatName = Literal["json", "json-columns", "msgpack", "value"]

FORMATS: dict[FormatName, str] = {
    "json": "connectors.payload_json:JsonFormat",
    "json-columns": "connectors.payload_columns:JsonColumnsFormat",
    "msgpack": "connectors.payload_msgpack:MsgpackFormat",
    "value": "connectors.payload_value:ValueFormat",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """The gateway as its consumers see it."""

    gateway: str
    site: str = ""
    worker: str = ""
    """Which of its processes; empty where there is one. Consumers of data need not know."""


class Format(Protocol):
    """Batch -> bytes. Constructor: (identity: Identity, tags: TagTable)."""

    content_type: str
    """MIME type, for MQTT 5 and Kafka headers."""

    def message(self, stream: str, batch: Batch, historical: bool) -> bytes:
        """One message with all rows of the batch."""

    def rows(self, stream: str, batch: Batch, historical: bool) -> list[bytes]:
        """One message per row, in order: the same schema with a single sample in it."""


def synchronisation(clock: ClockState) -> dict[str, str | int]:
    """`sync` in messages: who disciplines the gateway's clock, how good it is then; empty where nobody could tell."""
    shown: dict[str, str | int] = {"source": clock.source}
    if clock.quality != "locked":
        shown["state"] = clock.quality
    if clock.error_ns:
        shown["error_ns"] = clock.error_ns
    return shown if clock.quality != "unknown" else {}


def make_format(name: FormatName, identity: Identity, tags: TagTable) -> Format:
    """The format by its word in the file."""
    made: Format = load(FORMATS[name])(identity, tags)
    return made
