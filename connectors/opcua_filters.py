"""What the server reports of a monitored item: DataChangeFilter (Part 4, 7.22.2), and what becomes of it if it refuses.

A refused filter is never silent: the item is created without one, the gateway applies the deadband itself, health and
the log say so. A trigger cannot be made up for: then every change of value and status is reported.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from asyncua import ua
from asyncua.client.ua_session import UaSession

from connectors.opcua_limits import Limits, Service
from connectors.opcua_requests import NO_FILTER, FourByteId, status_name
from connectors.opcua_settings import Filter
from pipelines.batch import Kind

DATA_CHANGE_FILTER: Final = 724
"""Numeric identifier of the binary encoding (Part 6, annex A), namespace 0."""
TRIGGERS: Final = {"status": 0, "status-value": 1, "status-value-timestamp": 2}
DEADBANDS: Final = {"": 0, "absolute": 1, "percent": 2}
_NO_NUMBERS: Final = frozenset(range(Kind.DIAGNOSTIC_INFO + 1)) - frozenset(range(Kind.SBYTE, Kind.DOUBLE + 1))
_Body: Final = struct.Struct("<IId")

REFUSED: Final = frozenset(
    {
        ua.StatusCodes.BadMonitoredItemFilterUnsupported,
        ua.StatusCodes.BadMonitoredItemFilterInvalid,
        ua.StatusCodes.BadFilterNotAllowed,
        ua.StatusCodes.BadDeadbandFilterInvalid,
        ua.StatusCodes.BadNotSupported,
    }
)
"""What a server says of a filter that it does not apply."""


NOTHING: Final = Filter()
"""What a server does without a filter: every change of value or status."""


@dataclass(slots=True)
class Unfiltered:
    """Items that were created without the filter that was asked for, by client handle."""

    filters: dict[int, Filter] = field(default_factory=dict)
    status: int = 0
    """The last refusal."""
    relative: int = 0
    """Of those, with a deadband in percent and no EURange."""

    def add(self, index: int, wanted: Filter, status: int) -> None:
        self.filters[index], self.status = wanted, status

    @property
    def info(self) -> str:
        """One line for health; empty where every filter is applied by the server."""
        if not self.filters:
            return ""
        refused = f"the server refuses the filter of {len(self.filters)} tags ({status_name(self.status)})"
        parts = []
        if any(one.deadband for one in self.filters.values()):
            parts.append("the gateway applies the deadband")
        if self.relative:
            parts.append(f"percent of the last value sent for {self.relative} without EURange")
        if any(one.trigger != NOTHING.trigger for one in self.filters.values()):
            parts.append("every change of value and status is reported")
        return f"{refused}: {', '.join(parts)}"

    async def bands(self, session: UaSession, limits: Limits, nodes: Sequence[str]) -> dict[int, tuple[float, float]]:
        """(absolute, percent of the last value that went on) that the gateway applies itself, by client handle.

        Percent are those of EURange, where the item has one that can be read, and of the last value else.
        """
        percent = [index for index, one in self.filters.items() if one.deadband == "percent"]
        ranges: Sequence[float | None] = [None] * len(percent)
        if percent:
            with suppress(ua.UaStatusCodeError):  # a poor server; `info` says of how many it is so
                ranges = await _spans(session, limits, [nodes[index] for index in percent])
        spans = dict(zip(percent, ranges, strict=True))
        self.relative = len(percent) - len(list(filter(None, ranges)))
        found = {}
        for index, one in self.filters.items():
            span = spans.get(index)
            if one.deadband == "percent":
                found[index] = (one.value / 100 * span, 0.0) if span else (0.0, one.value)
            elif one.deadband == "absolute":
                found[index] = (one.value, 0.0)
        return found


def encoded(wanted: Filter, builtin_type: int | None) -> bytes:
    """As an ExtensionObject; without a deadband where the type is known to have none (text, Boolean)."""
    if builtin_type in _NO_NUMBERS:
        wanted = Filter(wanted.trigger)
    if wanted == NOTHING:
        return NO_FILTER
    body = _Body.pack(TRIGGERS[wanted.trigger], DEADBANDS[wanted.deadband], wanted.value)
    return FourByteId.pack(1, 0, DATA_CHANGE_FILTER) + struct.pack("<Bi", 1, len(body)) + body


async def _spans(session: UaSession, limits: Limits, nodes: Sequence[str]) -> list[float | None]:
    """High minus low of each node's EURange (Part 8, 5.6.2); None where it has none."""
    path = ua.RelativePath(
        Elements=[
            ua.RelativePathElement(
                ReferenceTypeId=ua.NodeId(ua.Int32(ua.ObjectIds.HasProperty)),
                IsInverse=False,  # type: ignore[arg-type]  # asyncua's own class of that name; its default is True
                TargetName=ua.QualifiedName("EURange"),
            )
        ]
    )
    paths = [ua.BrowsePath(StartingNode=ua.NodeId.from_string(node), RelativePath=path) for node in nodes]

    async def read(properties: Sequence[ua.NodeId]) -> list[Any]:
        return await session.read_attributes(list(properties), ua.AttributeIds.Value)

    results = await limits.in_parts(
        Service.TRANSLATE_BROWSE_PATHS, paths, lambda part: session.translate_browsepaths_to_nodeids(list(part))
    )
    targets = {
        at: result.Targets[0].TargetId
        for at, result in enumerate(results)
        if result.StatusCode.is_good() and result.Targets
    }
    values = await limits.in_parts(Service.READ, list(targets.values()), read)
    spans: list[float | None] = [None] * len(nodes)
    for at, value in zip(targets, values, strict=True):
        range_ = value.Value.Value if value.Value is not None else None
        if isinstance(range_, ua.Range) and range_.High > range_.Low:
            spans[at] = range_.High - range_.Low
    return spans
