"""One poll class of one device: its reads, its rows, when it is due. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from connectors.modbus_convert import Meaning
from connectors.modbus_frames import Query, query
from connectors.modbus_plan import Block, Point
from connectors.modbus_rows import Rows
from connectors.modbus_url import ModbusUrl


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
        self._meanings = meanings

    def adopt(self, blocks: Sequence[Block], absent: Sequence[Point] = ()) -> None:
        """Reads `blocks` from now on; `absent` are the points that are in none of them."""
        self.blocks = tuple(blocks)
        self.absent = tuple(absent)
        self.proven = False
        self.queries = [query(self._url, block) for block in blocks]
        self.rows = Rows(blocks, absent, self._tag_ids, self._meanings)

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
