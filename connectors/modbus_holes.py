"""What a device has shown that it does not have, kept on disk: addresses, and how much it gives in one read.

A read that is refused with exception 2 (illegal address) or 3 (illegal quantity) is cut, and its parts, until every
part is answered or is a single value (`halves`: gaps first, no value is ever divided). What that shows:

    both parts answered, unread registers between them   these hold an address that does not exist
    both answered, nothing between them                  the read was too long, or may not cross this border: when a
                                                         longer one was answered before, the border; else the length
    a single value refused                               it does not exist

A hole is the smallest stretch known to be refused, so any read that holds all of it is refused as well and is never
sent again; a read that holds a part of it may be tried, once, and makes the hole smaller when it is refused too. So the
plan becomes the best one that the device allows, and no refusal comes twice.

A device that is not itself (starting up, in stop, with another program) refuses as well. So a hole is kept only when
the device answered another read in the same cycle, and what was once read is no hole: it is tried again
after a back-off. All is forgotten when the address, the tags or the device's identity change.

`data_dir/modbus-holes/<device>.json`: see `pipelines/json_file.py`; a damaged one is as good as none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from connectors.modbus_plan import Known, Point, Range, Table
from pipelines.json_file import JsonFile

FORMAT: Final = 1
FOLDER: Final = "modbus-holes"
AGAIN_NS: Final = 60 * 10**9
"""Longest time for which something is left out that may only be refused for now; at first it is `AGAIN_FIRST_NS`."""
AGAIN_FIRST_NS: Final = 10**9
_TABLES: Mapping[str, Table] = {table.word: table for table in Table}


class Holes:
    """What is known of one device; `known` is for the planner."""

    def __init__(self) -> None:
        self.kept = Known()
        """What is worth a place on disk."""
        self.version = 0
        """Another one means that another plan is needed."""
        self._passing: dict[Range, int] = {}
        """Refused, and when it may be tried again (monotonic ns)."""
        self._waits_ns: dict[Range, int] = {}
        """How long the last wait was."""
        self._longest: dict[Table, int] = {}

    @property
    def known(self) -> Known:
        """Kept or not."""
        refused = dict.fromkeys([*self.kept.refused, *self._passing])
        return Known(tuple(_smallest(refused)), self.kept.limits)

    def adopt(self, kept: Known) -> None:
        """What was kept on disk; all else is forgotten."""
        self.kept = kept
        self._passing.clear()
        self._waits_ns.clear()
        self._longest.clear()
        self.version += 1

    def answered(self, span: Range) -> None:
        """The device gave all of `span` in one read."""
        self._longest[span.table] = max(self._longest.get(span.table, 0), span.stop - span.start)

    def refused_single(self, span: Range, keep: bool, now_ns: int) -> None:
        """A read of one value was refused. Not kept: tried again after a back-off."""
        if keep:
            self._keep(span)
        else:
            wait_ns = min(2 * self._waits_ns.get(span, AGAIN_FIRST_NS // 2), AGAIN_NS)
            self._waits_ns[span] = wait_ns
            self._passing[span] = now_ns + wait_ns
            self.version += 1

    def refused_between(self, whole: Range, left: Range, right: Range) -> None:
        """A read of `whole` was refused, and `left` and `right`, its parts, were both answered."""
        if left.stop < right.start:
            self._keep(Range(whole.table, left.stop, right.start))
        elif self._longest.get(whole.table, 0) >= whole.stop - whole.start:
            self._keep(Range(whole.table, right.start - 1, left.stop + 1))
        else:
            longest = max(left.stop - left.start, right.stop - right.start)
            self.kept = Known(self.kept.refused, {**self.kept.limits, whole.table: longest})
            self.version += 1

    def forget_passing(self, now_ns: int) -> None:
        """What may be tried again is no longer known."""
        if self._passing and (over := [span for span, due_ns in self._passing.items() if now_ns >= due_ns]):
            for span in over:
                del self._passing[span]
            self.version += 1

    def _keep(self, span: Range) -> None:
        self.kept = Known(tuple(_smallest([*self.kept.refused, span])), self.kept.limits)
        self.version += 1


def is_absent(point: Point, known: Known) -> bool:
    """It cannot be read: the device has not got its registers, or the one with its scale."""
    return known.refuses(point.span) or (point.scale_from is not None and known.refuses(point.scale_from.span))


def _smallest(spans: Iterable[Range]) -> list[Range]:
    """Without those that hold another one; by table and address."""
    found: list[Range] = []
    for span in sorted(spans, key=lambda span: span.stop - span.start):
        if not any(span.holds(smaller) for smaller in found):
            found.append(span)
    return sorted(found, key=lambda span: (span.table.function, span.start))


def fingerprint(url: str, points: Iterable[Point]) -> str:
    """Equal where the same points are read at the same address."""
    return hashlib.sha256(repr((url, list(points))).encode()).hexdigest()


class HoleFile:
    """The file of one device. Its methods wait for the disk."""

    def __init__(self, data_dir: Path, device: str) -> None:
        self._file = JsonFile(data_dir / FOLDER / f"{device}.json", FORMAT)
        self.path = self._file.path

    def load(self, fingerprint: str, identity: str | None = None) -> Known:
        """What was saved for just this; nothing where it was for another. `identity` None: whoever it is.

        Raises Corrupt, OSError.
        """

        def understood(content: Mapping[str, Any]) -> Known:
            same = content["fingerprint"] == fingerprint and identity in (None, content["identity"])
            return _unpacked(content) if same else Known()

        return self._file.load(understood) or Known()

    def save(self, fingerprint: str, identity: str, known: Known) -> None:
        """Raises OSError; then what was saved before is still there."""
        content = {
            "fingerprint": fingerprint,
            "identity": identity,
            "holes": [[hole.table.word, hole.start, hole.stop] for hole in known.refused],
            "limits": {table.word: limit for table, limit in known.limits.items()},
        }
        self._file.save(self._file.pack(content))


def _unpacked(packed: Mapping[str, Any]) -> Known:
    holes = tuple(Range(_TABLES[word], int(start), int(stop)) for word, start, stop in packed["holes"])
    return Known(holes, {_TABLES[word]: int(limit) for word, limit in packed["limits"].items()})


def describe_known(known: Known, points: Iterable[Point], path: Path) -> list[str]:
    """For people: `hole: holding 6, learnt from the device: no value for spare; forget it: rm PATH`."""
    points = list(points)
    lines = []
    for hole in known.refused:
        names = [point.name for point in points if point.span.holds(hole)]
        lines.append(f"hole: {hole}" + (f", no value for {', '.join(names)}" if names else ""))
    lines += [f"at most {limit} addresses in one read of {table.word}" for table, limit in known.limits.items()]
    return [*lines, f"learnt from the device; to forget it, stop the gateway and remove {path}"] if lines else []
