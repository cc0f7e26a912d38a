"""What `gateway demo` shows: a subscriber's view of the messages, as a live table or as a line per second."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from rich.console import RenderableType

LATENCIES_KEPT: Final = 2_000
"""Per device, for the quantiles."""
RATE_OVER_NS: Final = 1_500_000_000
LEGS: Final[Mapping[str, str]] = {
    "source_to_received": "-> gateway",
    "received_to_lane": "-> buffer",
    "lane_to_ack": "-> broker",
}
"""Legs of `/health`, as the table calls them."""
STYLES: Final[Mapping[str, str]] = {"good": "green", "uncertain": "yellow", "bad": "red"}


@dataclass(slots=True)
class Shown:
    """The last sample of one tag."""

    value: Any
    quality: str
    t_us: int


@dataclass
class View:
    """What a subscriber has received: `take` is fed with (received_ns, payload), `rates` is that per second."""

    last: dict[tuple[str, str], Shown] = field(default_factory=dict)
    latencies_us: dict[str, deque[int]] = field(default_factory=dict)
    values: int = 0
    messages: int = 0
    _before: deque[tuple[int, int, int]] = field(default_factory=deque)

    def take(self, received: Iterable[tuple[int, bytes]]) -> None:
        """Reads messages of `format: json`; other messages (status, birth) are no samples and are passed over."""
        for received_ns, payload in received:
            message = orjson.loads(payload) if payload.startswith(b"{") else {}
            samples = message.get("samples")
            if samples:
                self.messages += 1
                self.values += len(samples)
                self._samples(message["device"], samples, received_ns // 1000)

    def rates(self, now_ns: int) -> tuple[float, float]:
        """(values, messages) a second since the oldest call within `RATE_OVER_NS`; 0 at the first."""
        while len(self._before) > 1 and now_ns - self._before[0][0] > RATE_OVER_NS:
            self._before.popleft()
        self._before.append((now_ns, self.values, self.messages))
        before_ns, values, messages = self._before[0]
        seconds = max(now_ns - before_ns, 1) / 1e9
        return (self.values - values) / seconds, (self.messages - messages) / seconds

    def quantile_ms(self, device: str, q: float) -> float:
        """Source time -> received by the subscriber; of the last `LATENCIES_KEPT` samples of a device."""
        kept = sorted(self.latencies_us.get(device, ()))
        return kept[min(int(q * len(kept)), len(kept) - 1)] / 1000 if kept else 0.0

    def _samples(self, device: str, samples: list[dict[str, Any]], received_us: int) -> None:
        latencies = self.latencies_us.setdefault(device, deque(maxlen=LATENCIES_KEPT))
        for sample in samples:
            key = (device, sample["tag"])
            if key in self.last:  # a tag's first value may have been measured long before the gateway asked for it
                latencies.append(received_us - sample["t"])
            self.last[key] = Shown(sample["v"], sample["q"], sample["t"])


@dataclass(frozen=True, slots=True)
class Moment:
    """One second of the demo, ready to be shown."""

    values_per_s: float
    messages_per_s: float
    health: Mapping[str, Any]
    now_us: int


def line(view: View, moment: Moment) -> str:
    """For where there is no terminal: one line a second."""
    devices = "  ".join(_latency(view, device) for device in sorted(view.latencies_us))
    legs = "".join(f"  {each}" for each in _legs(moment))
    away = "".join(f"  {part['name']} {part['state']}" for part in moment.health["components"] if part["state"] != "up")
    return (
        f"{moment.health['status']}: {len(view.last)} tags  {moment.values_per_s:.0f} values/s  "
        f"{moment.messages_per_s:.0f} messages/s  {devices}  {_routes(moment)}{legs}{away}"
    )


def table(view: View, moment: Moment, units: Mapping[tuple[str, str], str], footer: str) -> RenderableType:
    """For a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = Table(expand=True, header_style="bold", border_style="dim")
    for name, justify in (("device", "left"), ("tag", "left"), ("value", "right"), ("unit", "left")):
        rows.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # rich's own literal type
    rows.add_column("quality", no_wrap=True)
    rows.add_column("age", justify="right", no_wrap=True)
    for (device, tag), shown in view.last.items():
        quality = Text(shown.quality, STYLES.get(shown.quality, ""))
        age_s = max(0.0, (moment.now_us - shown.t_us) / 1e6)
        rows.add_row(device, tag, _value(shown.value), units.get((device, tag), ""), quality, f"{age_s:.1f} s")
    head = Text.assemble(
        ("gateway demo  ", "bold"),
        (str(moment.health["status"]), "bold green" if moment.health["status"] == "ok" else "bold yellow"),
        f"  {moment.values_per_s:.0f} values/s  {moment.messages_per_s:.0f} messages/s\n",
        "end to end: " + "  ".join(_latency(view, device) for device in view.latencies_us),
        f"\n{_components(moment)}  {_routes(moment)}",
        *(f"\n{legs}" for legs in _legs(moment)),
    )
    return Group(head, Text(footer, "dim"), rows)  # a low terminal cuts off the end


def _latency(view: View, device: str) -> str:
    return f"{device} p50 {view.quantile_ms(device, 0.5):.1f} ms p99 {view.quantile_ms(device, 0.99):.1f} ms"


def _components(moment: Moment) -> str:
    shown = (f"{part['name']} {part['state']}" for part in moment.health["components"])
    return "  ".join(shown)


def _routes(moment: Moment) -> str:
    lanes = (
        f"route {lane['name']}: {lane['pending_rows']} rows waiting, {lane['dropped_rows']} dropped"
        for lane in moment.health["lanes"]
    )
    return "  ".join(lanes)


def _legs(moment: Moment) -> list[str]:
    """Where the time of each route goes, of the last minute; nothing before the first look at it."""
    return [
        f"{lane['name']} p50/p99 ms "
        + " ".join(
            f"{name} {found[leg]['p50']:.1f}/{found[leg]['p99']:.1f}" for leg, name in LEGS.items() if leg in found
        )
        for lane in moment.health["lanes"]
        if (found := lane.get("latency_ms"))
    ]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).lower() if isinstance(value, bool) else str(value)
