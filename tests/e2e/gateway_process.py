"""The gateway in a process of its own, as a service: its file is written, its pages are read, its log is kept."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from tests.services.ports import HOST, free_port
from tests.services.process import Service, ServiceFailed

Keys = Mapping[str, Any]
ID = "e2e-gw"
SITE = "e2e"
COMPLAINTS = ("warning", "error")
DEADLINE_S = 60.0
"""Of every wait: far beyond what any step takes, also on a busy machine."""


class Gateway(Service):
    """`python -m gateway run FILE`; the port is that of `listen:`. devices, send, to: as in the file.

    workers: none is one process; options: further keys of `gateway:`; env: further environment variables. The data
    folder and the log live as long as the object: after a restart they go on.
    """

    def __init__(
        self,
        *,
        devices: Keys,
        send: Keys,
        to: Keys,
        workers: Keys | None = None,
        options: Keys | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("gateway", free_port())
        own = {"id": ID, "site": SITE, "data_dir": str(self.folder / "data"), "listen": f"{HOST}:{self.port}"}
        self.file = self.folder / "gateway.yaml"
        parts = {"gateway": own | dict(options or {}), "devices": devices, "send": send, "to": to}
        with self.file.open("w") as file:
            YAML().dump(parts | ({"workers": workers} if workers else {}), file)
        self.run_as([sys.executable, "-m", "gateway", "run", self.file], env)

    @property
    def data_dir(self) -> Path:
        """The data folder, where `options` did not name another."""
        return self.folder / "data"

    def wait_ready(self) -> None:
        """Returns when `/health` answers."""
        self.process.wait_until(self._answers, self.ready_s, "answer at /health")

    def page(self, path: str) -> tuple[int, str]:
        """HTTP status and body of one of its pages. OSError where it does not answer."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        """What `/health` says."""
        report: dict[str, Any] = json.loads(self.page("/health")[1])
        return report

    def component(self, name: str) -> dict[str, Any]:
        """The part of `/health` about one device or destination."""
        [found] = [part for part in self.health()["components"] if part["name"] == name]
        return dict(found)

    def metrics(self) -> dict[tuple[str, str], float]:
        """(sample's name, its label `name` or "") -> value, of everything at `/metrics`."""
        families = text_string_to_metric_families(self.page("/metrics")[1])
        return {
            (sample.name, sample.labels.get("name", "")): sample.value
            for family in families
            for sample in family.samples
        }

    def metric(self, sample: str, name: str = "") -> float:
        """One value of `metrics`; 0 where it is not there (nothing was counted yet)."""
        return self.metrics().get((sample, name), 0.0)

    def wait_state(self, name: str, state: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Waits until a component is in a state; what `/health` says of it then."""
        self.process.wait_until(lambda: self.component(name)["state"] == state, timeout_s, f"{name} {state}")
        return self.component(name)

    def gaps(self) -> list[dict[str, Any]]:
        """What `gateway gaps` lists, also while it runs."""
        argv = [sys.executable, "-m", "gateway", "gaps", str(self.file), "--json"]
        done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def log_text(self) -> str:
        """All that it wrote to stdout and stderr."""
        return self.process.log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """Every line of the log; ValueError for one that is no JSON."""
        return [json.loads(line) for line in self.log_text().splitlines()]

    def log_about(self, word: str, *levels: str) -> list[str]:
        """`subject: message` of the lines with that word in either, of those levels (none given: of all)."""
        lines = [
            f"{line['subject']}: {line['message']}"
            for line in self.log_lines()
            if not levels or line["level"] in levels
        ]
        return [line for line in lines if word in line]

    def children(self) -> list[int]:
        """Ids of the processes that it has started and that run (Linux)."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal and does not wait."""
        os.kill(self.process.pid, number)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Returns when the condition holds, which is asked while the gateway runs."""
        self.process.wait_until(condition, DEADLINE_S, what)

    def wait_end(self) -> int:
        """Waits until the process has ended; its exit code (negative: the signal that killed it)."""
        deadline_s = time.monotonic() + DEADLINE_S
        while (code := self.process.returncode) is None:
            if time.monotonic() > deadline_s:
                raise ServiceFailed(
                    f"the gateway still runs after {DEADLINE_S:g} s; its log:\n{self.process.log_tail()}"
                )
            time.sleep(0.01)
        return code

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal()
        return self.wait_end()

    def _answers(self) -> bool:
        try:
            return self.page("/health")[0] == http.client.OK
        except OSError:
            return False
