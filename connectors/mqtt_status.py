"""What the gateway says about itself at a broker: the retained status, and notices, which are not retained.

    {"gateway":"line1-gw","online":true,"t":1795343713695123, ...}

`t` is us since 1970 UTC. In the last will, which the broker sends when the connection breaks, it is the time at which
that connection was made, and `online` is false. What follows `t` while online is the runtime's (`gateway.status`).
A notice of kind `gap` goes to `<status topic>/gap`. Of several workers each has `<status topic>/<worker>` for itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from connectors.mqtt_topic import fill
from connectors.payload import Identity
from pipelines.counters import Counters

NOTICES_MAX: Final = 1000
"""Kept while there is no connection; then the oldest is dropped, counted."""


class Notice(NamedTuple):
    """One message, not retained."""

    topic: str
    payload: bytes


class Status:
    """Lives as long as its sink; each session publishes what it says."""

    def __init__(self, template: str, identity: Identity, counters: Counters) -> None:
        self.topic = "/".join(filter(None, (fill(template, identity), identity.worker)))
        self.changed = asyncio.Event()
        """There is something that was not published yet."""
        self._who = {"gateway": identity.gateway} | ({"worker": identity.worker} if identity.worker else {})
        self._counters = counters
        self._details: Mapping[str, Any] = {}
        self._notices: deque[Notice] = deque()

    def announce(self, kind: str, message: Mapping[str, Any]) -> None:
        """`status`: what follows `t` from now on; any other kind: a notice."""
        if kind == "status":
            self._details = message
        else:
            self._notices.append(Notice(f"{self.topic}/{kind}", orjson.dumps({**self._who, **message})))
            self._bound()
        self.changed.set()

    def payload(self, online: bool, now_ns: int) -> bytes:
        """The retained message's bytes."""
        details = self._details if online else {}
        return orjson.dumps({**self._who, "online": online, "t": now_ns // 1000, **details})

    def next_notice(self) -> Notice | None:
        """The oldest one, which is taken out."""
        return self._notices.popleft() if self._notices else None

    def put_back(self, notice: Notice) -> None:
        """One that could not be published is the next again."""
        self._notices.appendleft(notice)
        self.changed.set()
        self._bound()

    def _bound(self) -> None:
        if len(self._notices) > NOTICES_MAX:
            self._notices.popleft()
            self._counters.add("notices_dropped")
