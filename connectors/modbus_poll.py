"""One poll class of one device: its reads, its rows, when it is due. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from connectors.modbus_convert import Meaning
from connectors.modbus_frames import Query, query
from connectors.modbus_plan import Block, Point
from connectors.modbus_rows import Rows
from connectors.modbus_url import ModbusUrl
from pipelines.route import ROWS_PER_BATCH_MAX


class Poll:
    """The schedule is absolute: due at `start + n * every`, whatever a cycle takes."""

    def __init__(
        self,
        every_ns: int,
        url: ModbusUrl,
        points: Sequence[Point],
        tag_ids: Mapping[str, int],
        meanings: Mapping[str, Meaning],
        apart: bool = False,
    ) -> None:
        self.every_ns = every_ns
        self.apart = apart
        """Read by itself, and before what is due at the same time."""
        self.points = tuple(points)
        self.due_ns = 0
        self.version = -1
        """Of what was known of the device when the reads were planned."""
        self.proven = False
        """All of these reads were answered once."""
        self._slot_ns = 0
        self._url = url
        self._tag_ids = tag_ids
        self._meanings = {point.name: meanings[point.name] for point in points if point.name in meanings}

    def adopt(self, blocks: Sequence[Block], absent: Sequence[Point] = ()) -> None:
        """Reads `blocks` from now on; `absent` are the points that are in none of them."""
        self.blocks = tuple(blocks)
        self.absent = tuple(absent)
        self.proven = False
        self.queries = [query(self._url, block) for block in blocks]
        self.rows = Rows(blocks, absent, self._tag_ids, self._meanings)
        self._prompt: dict[Query, Rows] | None = None

    def prompt(self, query: Query) -> Rows | None:
        """What the reply to one of `queries` says by itself; None where its rows need another one too, or are too many
        to be given at once."""
        if self._prompt is None:
            self._prompt = dict(self._by_reply())
        return self._prompt.get(query)

    def _by_reply(self) -> Iterator[tuple[Query, Rows]]:
        if len(self.blocks) == 1 and not self.absent:
            parts = [self.rows]
        elif self._meanings:  # of a value that a device has not got, they know whether it was there before
            parts = []
        else:
            parts = [Rows([block], (), self._tag_ids, {}) for block in self.blocks]
        tied = self.rows.tied(len(parts))
        for at, (asked, rows) in enumerate(zip(self.queries, parts, strict=False)):
            if 0 < len(rows) <= ROWS_PER_BATCH_MAX and at not in tied:
                yield asked, rows

    def restart(self, now_ns: int, shift_ns: int = 0) -> None:
        """Due at once, and then `every` after `shift_ns` from now."""
        self.due_ns = now_ns
        self._slot_ns = now_ns + shift_ns

    def advance(self, now_ns: int) -> int:
        """The cycle of `due_ns` is taken: the next is due. How many periods went by entirely without one."""
        missed = max(0, (now_ns - self._slot_ns) // self.every_ns)
        self._slot_ns += (missed + 1) * self.every_ns
        self.due_ns = self._slot_ns
        return missed

    def query(self, block: Block) -> Query:
        """The request for a part of a block."""
        return query(self._url, block)
