"""What a broker will never take is kept in the data folder, `dead-letter/<lane>.jsonl`: a line a batch, why and what.

Each line is `{"reason": ..., "message": <the JSON payload of exactly these rows>}`. Two files of `FILE_BYTES_MAX` per
lane at most: the older one is overwritten, and what it held was counted when it was rejected (`rejected_rows` of the
pump).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from connectors.payload import Format
from gateway.log import Log
from pipelines.batch import Batch
from pipelines.counters import Counters

FILE_BYTES_MAX: Final = 16 * 2**20


class DeadLetter:
    """Callable as `pipelines.route.DeadLetter`. A disk that refuses is counted and logged once; delivery goes on."""

    def __init__(self, data_dir: Path, payload: Format) -> None:
        self.counters = Counters("dead_letter", "main")
        self._folder = data_dir / "dead-letter"
        self._payload = payload
        self._log = Log("dead-letter")
        self._reasons: set[tuple[str, str]] = set()

    async def __call__(self, lane: str, batch: Batch, rows: Sequence[int], reason: str) -> None:
        message = self._payload.message(lane, batch.take(np.array(rows)), False)
        line = b'{"reason":' + orjson.dumps(reason) + b',"message":' + message + b"}\n"
        self._say(lane, reason, f"rejected by the destination, kept in {self._folder}: {reason}")
        try:
            await asyncio.to_thread(_append, self._folder / f"{lane}.jsonl", line)
        except OSError as error:
            self.counters.add("lost_rows", len(rows))
            self._say(lane, str(error), f"rejected rows cannot be kept: {error}")
        else:
            self.counters.add("rows", len(rows))

    def _say(self, lane: str, reason: str, message: str) -> None:
        if (lane, reason) not in self._reasons and len(self._reasons) < 1000:
            self._reasons.add((lane, reason))
            self._log.warning(message, route=lane)


def _append(file: Path, line: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    if file.exists() and file.stat().st_size + len(line) > FILE_BYTES_MAX:
        file.replace(file.with_suffix(".1.jsonl"))
    with file.open("ab") as handle:
        handle.write(line)
