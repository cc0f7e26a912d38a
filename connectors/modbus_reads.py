"""What is read of a device, and how: by its settings, its profile and what it has shown of itself.

What the configuration file says itself comes first, then the profile, then the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.modbus_convert import Meaning
from connectors.modbus_follow import planned_map
from connectors.modbus_holes import HoleFile, describe_known, fingerprint, is_absent
from connectors.modbus_plan import NOTHING_KNOWN, Block, Known, Point, Range, describe, plan
from connectors.modbus_profile import Polling, RegisterMap
from connectors.modbus_register import parse_range
from connectors.modbus_settings import ModbusDevice
from pipelines.errors import Corrupt
from pipelines.quantities import format_duration


@dataclass(frozen=True, slots=True)
class Reads:
    """What is read together: poll period in ns -> its points, the shortest period first."""

    periods: Mapping[int, Sequence[Point]]
    apart: Mapping[int, Sequence[Point]]
    """Of fast routes: in requests of their own, which nothing else makes longer."""
    meanings: Mapping[str, Meaning]
    """Of the profile's tags."""
    gap: int
    size: int
    forbidden: Sequence[Range]

    @property
    def points(self) -> list[Point]:
        return [point for own in (*self.periods.values(), *self.apart.values()) for point in own]

    def of(self, points: Sequence[Point], known: Known) -> tuple[tuple[Block, ...], list[Point]]:
        """The reads of some of the points, and those that the device has not got."""
        absent = [point for point in points if is_absent(point, known)]
        here = [point for point in points if point not in absent] if absent else points
        return plan(here, self.gap, self.size, self.forbidden, known), absent


def reads(settings: ModbusDevice, profile: RegisterMap | None = None) -> Reads:
    """A tag of the file takes the place of the profile's."""
    poll = profile.poll if profile else Polling.model_validate({})
    known = {name: tag for name, tag in (profile.tags if profile else {}).items() if name not in settings.tags}
    periods = {every: list(points) for every, points in settings.points().items()}
    every = settings.every if poll.every is None or "every" in settings.model_fields_set else poll.every
    if known:
        periods.setdefault(every, []).extend(tag.point for tag in known.values())
    gap, size = poll.limits(settings)
    longest = max((tag.point.count for tag in known.values() if not tag.point.table.of_bits), default=0)
    return Reads(
        _chosen(periods, lambda point: point.name not in settings.apart),
        _chosen(periods, lambda point: point.name in settings.apart),
        {name: tag.meaning for name, tag in known.items()},
        gap,
        max(size, longest),  # no value is divided
        [*settings.holes, *map(parse_range, poll.forbidden)],
    )


def _chosen(periods: Mapping[int, Sequence[Point]], wanted: Callable[[Point], bool]) -> dict[int, list[Point]]:
    chosen = {every: [point for point in points if wanted(point)] for every, points in sorted(periods.items())}
    return {every: points for every, points in chosen.items() if points}


def describe_plan(settings: ModbusDevice, data_dir: Path | None = None, device: str = "") -> list[str]:
    """The requests of each poll period: `every 1s: holding 0-99 (100 registers, 40 tags, 2 gaps bridged)`.

    With a data folder: by what the device called `device` has shown, and the holes that are known of it.
    """
    found, about = planned_map(settings, data_dir, device)
    wanted = reads(settings, found)
    known, lines = NOTHING_KNOWN, []
    if data_dir is not None:
        file = HoleFile(data_dir, device)
        try:
            known = file.load(fingerprint(str(settings.url), wanted.points))
            lines = describe_known(known, wanted.points, file.path)
        except (Corrupt, OSError) as error:
            lines = [f"what was learnt of the device cannot be read: {error}"]
    if about:
        lines.append(about)
    return [
        f"every {format_duration(every_ns)}{how}: {line}"
        for how, periods in (("", wanted.periods), (", by itself", wanted.apart))
        for every_ns, points in periods.items()
        for line in describe(wanted.of(points, known)[0])
    ] + lines
