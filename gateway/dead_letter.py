"""What a broker will never take is kept in the data folder, `dead-letter/<lane>.jsonl`: a line a batch, why and what.

Each line is `{"reason": ..., "message": <the JSON payload of exactly these rows>}`, on disk before the lane forgets
them. Two files of `FILE_BYTES_MAX` per lane at most: the older one is overwritten, and what it held was counted when it
was rejected (`rejected_rows` of the pump).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from connectors.payload import Format
from gateway import jsonl
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

    async def __call__(self, lane: str, refused: Sequence[tuple[Batch, Sequence[int]]], reason: str) -> None:
        self._say(lane, reason, f"rejected by the destination, kept in {self._folder}: {reason}")
        lines, rows = list[bytes](), sum(len(its) for _, its in refused)
        for batch, its in refused:
            message = self._payload.message(lane, batch.take(np.array(its)), False)
            lines.append(b'{"reason":' + orjson.dumps(reason) + b',"message":' + message + b"}\n")
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(jsonl.append, self._folder / f"{lane}.jsonl", b"".join(lines), FILE_BYTES_MAX)
        except OSError as error:
            self.counters.add("lost_rows", rows)
            self._say(lane, str(error), f"rejected rows cannot be kept: {error}")
        else:
            self.counters.add("rows", rows)

    def _say(self, lane: str, reason: str, message: str) -> None:
        if (lane, reason) not in self._reasons and len(self._reasons) < 1000:
            self._reasons.add((lane, reason))
            self._log.warning(message, route=lane)
