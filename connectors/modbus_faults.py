"""Which tags of a device have no value now, and why; a line in the log when that begins and when it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from connectors.modbus_frames import BAD_CONNECTION_CLOSED, Reply
from connectors.modbus_poll import Poll
from connectors.modbus_rows import ABSENT

if TYPE_CHECKING:
    Log: TypeAlias = logging.LoggerAdapter[logging.Logger]

_NAMES_SHOWN_MAX = 3


class Faults:
    """By tag name, a clear line each."""

    def __init__(self, log: Log) -> None:
        self.failing: dict[str, str] = {}
        """Asked for, in vain."""
        self.absent: dict[str, str] = {}
        """Not asked for: the device has not got them."""
        self._log = log

    @property
    def all(self) -> Mapping[str, str]:
        return self.failing | self.absent

    def clear(self) -> None:
        """Other tags are read from now on."""
        self.failing.clear()
        self.absent.clear()

    def planned(self, poll: Poll) -> None:
        """What a poll does not ask for is absent, what it asks for is not."""
        for point in [point for point in poll.absent if point.name not in self.absent]:
            self.absent[point.name] = self.failing.pop(point.name, f"{point.span}: {ABSENT[1]}")
        for point in poll.points:
            if point.name in self.absent and point not in poll.absent:
                del self.absent[point.name]

    def note(self, poll: Poll, replies: Sequence[Reply]) -> None:
        """What came of a cycle; one line in the log for each block whose state changed."""
        for block, reply in zip(poll.blocks, replies, strict=True):
            if reply.failure and reply.failure.status == BAD_CONNECTION_CLOSED:
                continue  # the connection's trouble, not the tags'
            text = f"{block.place}: {reply.failure.reason}" if reply.failure else None
            names = [point.name for point in block.points if point.name]
            changed = [name for name in names if self.failing.get(name) != text]
            for name in changed:
                if text is None:
                    del self.failing[name]
                else:
                    self.failing[name] = text
            if changed and text:
                self._log.warning("%s (%s)", text, _names(changed))
            elif changed:
                self._log.info("%s is read again (%s)", block.place, _names(changed))

    def recalled(self) -> None:
        """Says what is not asked for because of what was learnt before."""
        if self.absent:
            self._log.warning("not asked for, the device refused them before (%s)", _names(list(self.absent)))


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN_MAX
    return ", ".join(names[:_NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
