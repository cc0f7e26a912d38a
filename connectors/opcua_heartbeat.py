"""Silent items: one that has said nothing for its `heartbeat` is read, and what the server failed to report delivered.

Silence is no fault: a value that does not change is not reported. So the value is read (Read, from the machine itself),
and compared with what was delivered last. Where it differs the server may still be about to report it: only if it has
not done so after a sampling and two publishing intervals the value is delivered, and counted `missed_by_server`.
Changes that the server was told not to report (`server_deadband`, `trigger`) are no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import isnan
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from connectors import opcua_requests
from connectors.opcua_decode import Columns
from connectors.opcua_history import value_row
from connectors.opcua_limits import Limits, Service
from connectors.opcua_requests import ATTRIBUTE_VALUE, READ_RESPONSE, TIMESTAMPS_SOURCE, expect, response_body
from connectors.opcua_resume import Log
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import Filter, OpcUaDevice
from pipelines.clock import Clock
from pipelines.counters import Counters

LOOKS: Final = 4
"""How often within the shortest heartbeat it is looked at who is silent."""
LOOK_NS_MIN: Final = 10_000_000
GRACE_NS: Final = 500_000_000


class Late(NamedTuple):
    """A value that was read because nobody reported it."""

    item: int
    ts_ns: int | None
    value: Any
    kind: int
    status: int


class Heartbeat:
    """Of a device where some tag has a `heartbeat`; `begin` for each session. Arrays are by client handle."""

    def __init__(self, learnt_after_ns: int, clock: Clock, counters: Counters, log: Log) -> None:
        """`learnt_after_ns`: how long tags may be silent that become known later; 0: for ever."""
        self._learnt_after_ns = learnt_after_ns
        self._names: list[str] = []
        self._nodes: Sequence[bytes] = ()
        self._filters: list[Filter] = []
        self._clock, self._counters, self._log = clock, counters, log
        self._after_ns = np.zeros(0, dtype=np.int64)
        self._grace_s: list[float] = []
        self._heard_ns = np.zeros(0, dtype=np.int64)  # monotonic
        self._known = np.zeros(0, dtype=np.bool_)  # by this process
        self._value: npt.NDArray[np.float64] = np.zeros(0)
        self._status = np.zeros(0, dtype=np.uint32)
        self._extra: dict[int, Any] = {}
        self._late: list[Late] = []

    def grow(self, device: OpcUaDevice, names: Sequence[str], nodes: Sequence[bytes]) -> None:
        """`names` stand behind those that are known; `nodes` are all, as they are now."""
        tags = [device.tags[name] for name in names]
        self._names += names
        self._nodes = nodes
        self._filters += map(device.filter_of, tags)
        self._grace_s += ((device.sampling_ns(tag) + 2 * device.publishing_ns(tag) + GRACE_NS) / 1e9 for tag in tags)
        after_ns = np.array([device.heartbeat_ns(tag) for tag in tags], dtype=np.int64)
        self._after_ns = np.concatenate([self._after_ns, after_ns])
        self._heard_ns = np.pad(self._heard_ns, (0, len(tags)), constant_values=self._clock.mono_ns())
        self._known = np.pad(self._known, (0, len(tags)))
        self._value = np.pad(self._value, (0, len(tags)))
        self._status = np.pad(self._status, (0, len(tags)))

    @property
    def every_s(self) -> float:
        """How often `look` is due."""
        shortest = min(filter(None, (*self._after_ns.tolist(), self._learnt_after_ns)))
        return max(int(shortest) / LOOKS, LOOK_NS_MIN) / 1e9

    def bad(self, items: Iterable[tuple[int, int]]) -> None:
        """(item, status) of what is delivered as bad: it cannot be had."""
        for item, status in items:
            self._known[item], self._status[item] = True, status

    def begin(self) -> None:
        """A session begins: nobody is silent yet, and what was read and not taken is read again."""
        self._known[[late.item for late in self._late]] = False
        self._late.clear()
        self._heard_ns[:] = self._clock.mono_ns()

    def live(self, columns: Columns) -> None:
        """Values that were just reported."""
        handle = columns.handle
        self._heard_ns[handle] = self._clock.mono_ns()
        self._known[handle] = True
        self._value[handle] = columns.value
        self._status[handle] = columns.status
        if columns.extra:
            self._extra.update(zip(handle[list(columns.extra)].tolist(), columns.extra.values(), strict=True))

    def take(self) -> list[Late]:
        """What is to be delivered; each once."""
        late, self._late = self._late, []
        return late

    async def look(self, session: PublishSession, limits: Limits) -> None:
        """Reads who is silent. Raises what requests raise."""
        silent = np.flatnonzero((self._after_ns > 0) & (self._clock.mono_ns() - self._heard_ns > self._after_ns))
        if not len(silent) or self._late:
            return
        items: list[int] = silent.tolist()
        heard_ns = self._heard_ns[silent].copy()
        found = await self._read(session, limits, items)
        differing = [at for at, late in enumerate(found) if self._differs(late)]
        if differing:
            await self._clock.sleep(max(self._grace_s[items[at]] for at in differing))
        still = self._heard_ns[silent] == heard_ns  # has not been reported meanwhile
        self._deliver([found[at] for at in differing if still[at]])
        self._heard_ns[silent[still]] = self._clock.mono_ns()
        if self._late:
            session.nudge()

    async def _read(self, session: PublishSession, limits: Limits, items: Sequence[int]) -> list[Late]:
        async def read(part: Sequence[int]) -> list[Late]:
            nodes = [self._nodes[item] for item in part]
            body = await session.request(
                partial(opcua_requests.read, nodes=nodes, attribute=ATTRIBUTE_VALUE, timestamps=TIMESTAMPS_SOURCE)
            )
            cursor = response_body(body, READ_RESPONSE)
            rows = expect([value_row(cursor) for _ in range(cursor.count(1))], len(part))
            return [Late(item, *row) for item, row in zip(part, rows, strict=True)]

        return await limits.in_parts(Service.READ, items, read)

    def _differs(self, late: Late) -> bool:
        item, wanted = late.item, self._filters[late.item]
        if not self._known[item] or late.status != int(self._status[item]):
            return True
        if wanted.trigger == "status":
            return False
        before = self._extra.get(item, float(self._value[item]))
        return late.value is not None and not _alike(before, late.value, wanted)

    def _deliver(self, late: Sequence[Late]) -> None:
        missed = [one for one in late if self._known[one.item]]
        for one in late:
            number = isinstance(one.value, int | float)
            self._known[one.item], self._status[one.item] = True, one.status
            self._value[one.item] = float(one.value) if number else np.nan
            if one.item in self._extra or not number:
                self._extra[one.item] = one.value
        self._late = list(late)
        self._counters.add("missed_by_server", len(missed))
        if missed:
            named = ", ".join(self._names[one.item] for one in missed[:5])
            self._log.warning(
                "the server did not report a change of %d tags (%s ...): read instead", len(missed), named
            )


def _alike(before: Any, now: Any, wanted: Filter) -> bool:
    """Whether the server had no reason to report the step. What percent means is the server's knowledge."""
    both = isinstance(before, int | float) and isinstance(now, int | float)
    if before == now or (both and isnan(before) and isnan(now)):
        return True
    if not both or not wanted.deadband:
        return False
    return wanted.deadband == "percent" or abs(now - before) <= wanted.value
