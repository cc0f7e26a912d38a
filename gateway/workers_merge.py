"""The pages of several workers as one: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypedDict

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from gateway.health import GAPS_SHOWN_MAX, utc
from gateway.metrics import exposition
from gateway.workers_settings import SHARED

_HEAD: Final = re.compile(rb"^# HELP (\S+)", re.MULTILINE)
_SAMPLE: Final = re.compile(rb"^([^#\s{][^\s{]*)(\{)?", re.MULTILINE)

Report = Mapping[str, Any]
"""What `/health` says."""


class Crew(TypedDict):
    """What the supervising process knows."""

    phase: str
    workers: list[dict[str, Any]]
    """As `workers_run.Member.shown`."""


def merged_health(own: dict[str, Any], crew: Crew, reports: Mapping[str, Report]) -> dict[str, Any]:
    """`own`: the report of the process that serves the page; `reports`: of the workers that answered."""
    workers = [_worker(known, reports.get(known["name"])) for known in crew["workers"]]
    clocks = [report["clock"] for report in reports.values() if report.get("clock")]
    return own | {
        "status": own["status"] if crew["phase"] != "running" else _status([own["status"]], reports, workers),
        "workers": workers,
        "components": _labelled("components", {SHARED: own, **reports}),
        "lanes": _labelled("lanes", reports),
        "clock": max(clocks, key=lambda clock: bool(clock.get("alarm")), default={}),
        "gaps": _newest(gap for report in reports.values() for gap in report["gaps"]),
    }


def _status(own: list[str], reports: Mapping[str, Report], workers: list[dict[str, Any]]) -> str:
    found = {report["status"] for report in reports.values()}
    if all(worker["state"] == "running" for worker in workers) and found | {*own} == {"ok"}:
        return "ok"
    return "degraded" if found - {"down"} else "down"


def _worker(known: dict[str, Any], report: Report | None) -> dict[str, Any]:
    """Running, but without an answer: silent."""
    silent = known["state"] == "running" and report is None
    reason = "it does not answer" if silent else known["reason"]
    shown = {
        "name": known["name"],
        "state": "silent" if silent else known["state"],
        "since": utc(known["since_ns"]),
        "pid": known["pid"],
        "restarts": known["restarts"],
    }
    shown |= {"status": report["status"]} if report else {}
    shown |= {"reason": reason} if reason else {}
    return shown | ({"host": report["host"]} if report and "host" in report else {})


def _labelled(part: str, reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    return [each | {"worker": name} for name, report in reports.items() for each in report[part]]


def _newest(gaps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All workers read the same ledger when they start."""
    known = {tuple(gap.items()): gap for gap in gaps}
    return sorted(known.values(), key=lambda gap: str(gap["to"]))[-GAPS_SHOWN_MAX:]


def merged_metrics(texts: Mapping[str, bytes]) -> bytes:
    """Worker -> its text: one text, in which each sample has a label `worker`, and each family is once."""
    families: dict[bytes, list[bytes]] = {}
    for worker, text in texts.items():
        starts = [*_HEAD.finditer(text)]
        ends = [*(head.start() for head in starts[1:]), len(text)]
        for head, end in zip(starts, ends, strict=True):
            family = families.setdefault(head[1], [])
            block = text[head.start() : end]
            samples = block if not family else block[_samples_at(block) :]
            family.append(_with_label(samples, worker))
    return b"".join(part for parts in families.values() for part in parts)


def worker_metrics(crew: Crew, answered: Iterable[str]) -> bytes:
    """What only the supervising process knows, and who answered."""
    up = GaugeMetricFamily("gateway_worker_up", "1 where it answers", labels=["worker"])
    restarts = CounterMetricFamily("gateway_worker_restarts", "Starts after the first", labels=["worker"])
    names = {*answered}
    for known in crew["workers"]:
        up.add_metric([known["name"]], float(known["name"] in names))
        restarts.add_metric([known["name"]], known["restarts"])
    return exposition(up) + exposition(restarts)


def _samples_at(block: bytes) -> int:
    """Behind `# HELP` and `# TYPE`."""
    found = _SAMPLE.search(block)
    return found.start() if found else len(block)


def _with_label(samples: bytes, worker: str) -> bytes:
    label = b'worker="%s"' % worker.encode()
    return _SAMPLE.sub(lambda found: b"%s{%s%s" % (found[1], label, b"," if found[2] else b"}"), samples)
