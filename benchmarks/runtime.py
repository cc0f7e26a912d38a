"""The gateway as users run it: a YAML file and `python -m gateway run FILE`, measured from outside."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.measure import cpu_of
from tests.services.ports import HOST, free_port
from tests.services.process import ServerProcess

SITE, GATEWAY, DEVICE, ROUTE = "bench", "bench-gw", "machine", "all"
PER_DEVICE, PER_TAG = "{site}/{device}", "{site}/{device}/{tag}"
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


def opcua(url: str, node_ids: Iterable[str], every_ms: int, *, name: str = DEVICE) -> str:
    """A device in YAML; every change is reported. The tags are called as the nodes, without namespace."""
    head = f"  {name}:\n    opcua: {url}\n    security: none\n    every: {every_ms}ms\n    sampling: 0\n    tags:\n"
    return head + "".join(f"      {node.partition('s=')[2]}: {node}\n" for node in node_ids)


def modbus(url: str, every_ms: int, registers: int, *, name: str = DEVICE, pipeline: int = 1) -> str:
    """A device in YAML: int16 tags in holding registers, read in blocks of 100."""
    head = f"  {name}:\n    modbus: {url}/1\n    every: {every_ms}ms\n    max_block: 100\n    pipeline: {pipeline}\n"
    return (
        head
        + "    tags:\n"
        + "".join(f"      r{register}: holding {register} int16\n" for register in range(registers))
    )


def mqtt(url: str, *, topic: str = PER_DEVICE, qos: int = 1, local: str = "") -> str:
    """A destination in YAML; local: the address of a broker on site, where there is one."""
    on_site = f', local: "{local}"' if local else ""
    return f'  broker: {{mqtt: "{url}", topic: "{topic}", qos: {qos}{on_site}}}\n'


def kafka(bootstrap: str, *, topic: str, records: str = "batch") -> str:
    """A destination in YAML."""
    return f'  kafka: {{kafka: "{bootstrap}", topic: {topic}, records: {records}}}\n'


@dataclass(frozen=True)
class Reading:
    """Rows that sinks have acknowledged, and CPU seconds used, both since the process began."""

    rows: int
    cpu_s: float
    at_s: float


class GatewayProcess:
    """`with GatewayProcess([device], {"all": target}) as gateway:`; each target gets a route with every tag.

    devices: YAML as `opcua` and `modbus` make it; targets: route name -> YAML as `mqtt` and `kafka` make it. fast: the
    routes are `fast: true`.
    """

    def __init__(self, devices: Sequence[str], targets: Mapping[str, str], *, fast: bool = False) -> None:
        self._how = ", fast: true" if fast else ""
        self.folder = Path(tempfile.mkdtemp(prefix="mec-bench-"))
        self._listen = free_port()
        self._routes = tuple(targets)
        self._file = self.folder / "gateway.yaml"
        self._file.write_text(self._settings(devices, targets))
        argv = [sys.executable, "-m", "gateway", "run", str(self._file)]
        root = str(Path(__file__).resolve().parents[1])
        self.process = ServerProcess("gateway", argv, self.folder / "log", {"PYTHONPATH": root})
        self.spawned_ns = 0

    def __enter__(self) -> Self:
        self.spawned_ns = time.time_ns()
        self.process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def metrics(self) -> dict[str, float]:
        """One scrape: `name{labels}` as it stands there -> value."""
        with urllib.request.urlopen(f"http://{HOST}:{self._listen}/metrics", timeout=10.0) as answer:
            text: str = answer.read().decode()
        return {name + labels: float(value) for name, labels, value in _SAMPLE.findall(text)}

    def reading(self) -> Reading:
        """Where rows and CPU stand now; costs the gateway a scrape."""
        found = self.metrics()
        rows = sum(int(found.get(f'gateway_pump_rows_total{{name="{route}"}}', 0)) for route in self._routes)
        return Reading(rows, cpu_of(self.process.pid), time.monotonic())

    def wait_delivering(self, rows: int, timeout_s: float = 30.0) -> None:
        """Returns when the sinks have acknowledged so many rows. ServiceFailed when they do not."""
        self.process.wait_line("listening", timeout_s)
        self.process.wait_until(lambda: self._delivered(rows), timeout_s, f"delivery of {rows} rows")

    def us_per_row(self, seconds: float, *, settle_s: float = 2.0) -> float:
        """CPU us for each row delivered in the next `seconds`, after a time to settle."""
        time.sleep(settle_s)
        begin = self.reading()
        time.sleep(seconds)
        end = self.reading()
        if end.rows == begin.rows:
            raise RuntimeError(f"nothing was delivered; the gateway's log:\n{self.process.log_tail()}")
        return (end.cpu_s - begin.cpu_s) / (end.rows - begin.rows) * 1e6

    def _delivered(self, rows: int) -> bool:
        time.sleep(0.05)
        return self.reading().rows >= rows

    def _settings(self, devices: Sequence[str], targets: Mapping[str, str]) -> str:
        routes = "".join(
            f'  {route}: {{from: "*", to: {target.split(":")[0].strip()}{self._how}}}\n'
            for route, target in targets.items()
        )
        return (
            f"gateway: {{id: {GATEWAY}, site: {SITE}, data_dir: {self.folder}/data, listen: {HOST}:{self._listen}}}\n"
            f"devices:\n{''.join(devices)}send:\n{routes}to:\n{''.join(targets.values())}"
        )
