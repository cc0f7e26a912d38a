"""The gap ledger: what could not be kept or collected, in `gaps/gaps.jsonl` of the data folder; nothing is missing
without an entry.

Gaps of the same reason, device and route that follow each other become one entry: it is written a second after its
first gap; while gaps keep coming the next ones are twice as long each, up to half a minute. So a lane that drops for
hours writes two lines a minute, and what a power cut can take from the ledger is half a minute of a long story.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import orjson

from gateway import jsonl
from gateway.health import utc
from gateway.log import Log
from pipelines.clock import Clock, SystemClock
from pipelines.gaps import Gap, Reason
from pipelines.quantities import duration_ns

FILE_BYTES_MAX: Final = 4 * 2**20
"""Of two: some 30,000 entries in all."""
TAGS_MAX: Final = 20
"""Names in an entry; their number is there, too."""
FIRST_NS, MOST_NS = 10**9, 30 * 10**9
"""How long an entry collects."""
LOOK_EVERY_S: Final = 0.5
OPEN_MAX: Final = 1000
"""Entries that collect at a time; beyond it they are no longer told apart by device."""
UNWRITTEN_MAX: Final = 1000
LATEST_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Entry(Gap):
    """Gaps of one kind that followed each other. `tags` holds the first TAGS_MAX names."""

    tags_total: int = 0
    gaps: int = 1


@dataclass(slots=True)
class _Run:
    """One kind of gap, as long as it keeps coming."""

    due_ns: int
    collects_ns: int
    entry: Entry | None


class GapLedger:
    """A `pipelines.gaps.Ledger`. `latest` holds the newest entries, those of former runs too; `totals` what was noted
    since the start: reason -> entries and rows."""

    def __init__(self, data_dir: Path, clock: Clock) -> None:
        self.latest: deque[Entry] = deque(maxlen=LATEST_MAX)
        self.totals: defaultdict[Reason, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._file = _file(data_dir)
        self._clock = clock
        self._runs: dict[tuple[str, str, str, bool], _Run] = {}
        self._unwritten: deque[Entry] = deque(maxlen=UNWRITTEN_MAX)
        self._subscribers: list[Callable[[Entry], None]] = []
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._refused = False
        self._log = Log("gaps")
        try:
            self.latest.extend(entries(data_dir))
        except OSError as error:
            self._log.warning(f"the gaps of former runs cannot be read: {error}")

    def subscribe(self, callback: Callable[[Entry], None]) -> None:
        """`callback` is told of each new entry, on the event loop; it never waits and never raises."""
        self._subscribers.append(callback)

    def note(self, gap: Gap) -> None:
        key = (gap.reason, gap.device, gap.route, gap.backfilled)
        if key not in self._runs and len(self._runs) >= OPEN_MAX:
            key = (gap.reason, "", gap.route, gap.backfilled)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(self._clock.mono_ns() + FIRST_NS, FIRST_NS, None)
            self._wake.set()
        total, rows = self.totals[gap.reason]
        self.totals[gap.reason] = total + (run.entry is None), rows + (gap.rows or 0)
        run.entry = _merged(run.entry, gap) if run.entry else _first(gap)

    async def run(self) -> None:
        """Never returns: writes what has been collected."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._runs:
                await self._clock.sleep(LOOK_EVERY_S)
                await self._write(self._due())

    async def close(self) -> None:
        """Everything is written."""
        await self._write([run.entry for run in self._runs.values() if run.entry])
        self._runs.clear()
        async with self._turn:
            return

    def _due(self) -> list[Entry]:
        """What has collected long enough; what no longer comes is forgotten."""
        now, found = self._clock.mono_ns(), list[Entry]()
        for key, run in list(self._runs.items()):
            if now < run.due_ns:
                continue
            if run.entry is None:
                del self._runs[key]
            else:
                found.append(run.entry)
                run.entry, run.collects_ns = None, min(2 * run.collects_ns, MOST_NS)
                run.due_ns = now + run.collects_ns
        return found

    async def _write(self, found: Sequence[Entry]) -> None:
        for entry in found:
            shown = replace(entry, tags=entry.tags[:TAGS_MAX])
            self.latest.append(shown)
            self._unwritten.append(shown)
            for tell in self._subscribers:
                tell(shown)
        if self._unwritten:
            await asyncio.shield(self._append())

    async def _append(self) -> None:
        """One at a time, and to its end where a stop cancels who waits for it."""
        async with self._turn:
            writing = list(self._unwritten)
            self._unwritten.clear()
            lines = b"".join(orjson.dumps(asdict(entry), option=orjson.OPT_APPEND_NEWLINE) for entry in writing)
            try:
                await asyncio.to_thread(jsonl.append, self._file, lines, FILE_BYTES_MAX)
            except OSError as error:
                self._unwritten.extendleft(reversed(writing))  # beyond the bound the newest give way; `totals` has them
                if not self._refused:
                    self._log.warning(f"the gap ledger cannot be written, it is tried again with each entry: {error}")
                self._refused = True
            else:
                if self._refused:
                    self._log.info("the gap ledger is written again")
                self._refused = False


def entries(data_dir: Path, since_ns: int = 0, damaged: Callable[[bytes], None] = lambda _: None) -> Iterator[Entry]:
    """What the ledger holds that had not ended before `since_ns`, oldest first; lines that are none go to `damaged`.

    Raises OSError.
    """
    for line in jsonl.read(_file(data_dir)):
        try:
            known = orjson.loads(line)
            entry = Entry(**known | {"reason": Reason(known["reason"]), "tags": tuple(known["tags"])})
        except (ValueError, TypeError, KeyError):
            damaged(line)
            continue
        if entry.to_ns >= since_ns:
            yield entry


def listing(data_dir: Path, since: str | None, as_json: bool) -> tuple[list[str], int]:
    """What `gateway gaps` prints, and how many lines are damaged.

    Raises ValueError where `since` is no duration, OSError where the ledger cannot be read.
    """
    since_ns = SystemClock().wall_ns() - duration_ns(since) if since else 0
    damaged: list[bytes] = []
    found = entries(data_dir, since_ns, damaged.append)
    show = (lambda entry: orjson.dumps(asdict(entry)).decode()) if as_json else _line
    return [show(entry) for entry in found], len(damaged)


def _line(entry: Entry) -> str:
    """For people."""
    what = f"{entry.device or 'unknown device'}{f' -> {entry.route}' if entry.route else ''}"
    rows = "number of rows unknown" if entry.rows is None else f"{entry.rows} rows"
    more = f", ... {entry.tags_total} in all" if entry.tags_total > len(entry.tags) else ""
    tags = f" ({', '.join(entry.tags)}{more})" if entry.tags else ""
    done = ", filled from the machine's history" if entry.backfilled else ""
    detail = f": {entry.detail}" if entry.detail else ""
    return f"{utc(entry.from_ns)} .. {utc(entry.to_ns)}  {what}: {rows}, {entry.reason}{done}{detail}{tags}"


def _file(data_dir: Path) -> Path:
    return data_dir / "gaps" / "gaps.jsonl"


def _first(gap: Gap) -> Entry:
    return Entry(**asdict(gap), tags_total=len(gap.tags))


def _merged(entry: Entry, gap: Gap) -> Entry:
    """Both in one; no tags are all tags, and a number that nobody knows makes the sum unknown."""
    tags = entry.tags
    if gap.tags != tags:
        tags = tuple(dict.fromkeys(tags + gap.tags)) if tags and gap.tags else ()
    return replace(
        entry,
        device=entry.device if entry.device == gap.device else "",
        tags=tags,
        tags_total=len(tags),
        from_ns=min(entry.from_ns, gap.from_ns),
        to_ns=max(entry.to_ns, gap.to_ns),
        rows=None if entry.rows is None or gap.rows is None else entry.rows + gap.rows,
        gaps=entry.gaps + 1,
        detail=gap.detail,
    )
