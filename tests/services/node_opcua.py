"""The second foreign OPC UA server: node-opcua, running node_opcua/server.js (its head lists the variables)."""

import json
import shutil
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.services.cache import cached, run
from tests.services.packages import node, npm
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_FILES = Path(__file__).parent / "node_opcua"
_PACKAGE = _FILES / "package.json"

EXPECTED: dict[str, Any] = {
    "Point": {"X": 1.5, "Y": -2.5},
    "Motor": {
        "Name": "spindle",
        "State": 1,
        "State.name": "RUNNING",
        "Position": {"X": 1.5, "Y": -2.5},
        "Path": [{"X": 0.0, "Y": 0.25}],
        "Counts": [1, 2, 3],
        "Started": "2026-11-23T10:00:00.123Z",
        "Cycle": 250.5,
    },
    "Recipe": {"Number": 7, "Amount": 2.5},
    "Limit": {"Name": "top"},
    "State": 2,
    "Matrix": [[1, 2, 3], [4, 5, 6]],
    "Temperature": 21.5,
    "Mode": 1,
    "Valve": True,
}
"""What a JSON consumer is to get of ns=1;s=<name> beyond the plain types (addTyped in server.js)."""
NAMES = {"State": "FAULT", "Mode": "auto", "Valve": "open"}
"""What stands beside the value."""

Json = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


def install() -> Path:
    """Installs node-opcua into the cache when it is absent; the folder. ServiceMissing when that cannot be."""
    return _install()


class NodeOpcua(Service):
    """The server: endpoints None, Sign and SignAndEncrypt (three policies), anonymous, and user/password where given.

    Every certificate, of a client or a user, is accepted. Variables: ns=1;s=Double and so on, named by their type. It
    makes a new certificate of its own at each construction, kept over restarts. options: node-opcua's own, beside those
    of server.js; clock_offset_ms: by which its clock is wrong.
    """

    ready_s = 90.0

    def __init__(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        options: dict[str, Any] | None = None,
        clock_offset_ms: int = 0,
    ) -> None:
        folder = _install()
        super().__init__("node-opcua", free_port())
        credentials = [user, password or ""] if user is not None else []
        argv: list[str | Path] = [node(), _FILES / "server.js", str(self.port), self.folder / "pki", *credentials]
        more = json.dumps({"server": options or {}, "clock_offset_ms": clock_offset_ms})
        self.run_as(argv, env={"NODE_OPCUA_FOLDER": str(folder), "NODE_OPCUA_OPTIONS": more})

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port"""
        return f"opc.tcp://{HOST}:{self.port}"

    @property
    def thumbprint(self) -> str:
        """SHA-256 of its certificate, hex; once it was started."""
        pem = (self.folder / "pki" / "own" / "certs" / "certificate.pem").read_bytes()
        return x509.load_pem_x509_certificates(pem)[0].fingerprint(hashes.SHA256()).hex()

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)

    def set_value(self, name: str, value: Json, *, source_ms: int | None = None, status: int = 0) -> None:
        """Sets ns=1;s=<name>, and returns when it is set.

        64-bit integers as decimal text, ByteString as base64, DateTime as RFC 3339. source_ms: UTC ms since 1970, now
        by default. status: a StatusCode. ValueError when the server does not know the name.
        """
        command: dict[str, Json] = {"set": name, "value": value, "status": status}
        if source_ms is not None:
            command["source_ms"] = source_ms
        self.command(command)

    def kill_sessions(self, subscriptions: bool) -> None:
        """Ends every session from the server's side, with or without its subscriptions."""
        self.command({"kill_sessions": subscriptions})

    def sessions_and_subscriptions(self) -> tuple[int, int]:
        """How many it has."""
        counted = self.process.ask(json.dumps({"count": True}), r"^counted (\d+) (\d+)$", self.ready_s)
        return int(counted[1]), int(counted[2])

    def bind(self, node: str, type_: str, value: Json) -> None:
        """From now on that node of the standard, such as i=2267, holds this value; returns when it does."""
        self.command({"bind": node, "type": type_, "value": value})

    def add(self, name: str) -> None:
        """Objects/Hall gets ns=1;s=Hall.<name>, a Double of 2.5, and the server says so."""
        self.command({"add": name})

    def remove(self, name: str) -> None:
        """What `add` has added is gone, and the server says so."""
        self.command({"remove": name})


def _install() -> Path:
    def build(folder: Path) -> None:
        shutil.copy(_PACKAGE, folder)
        options = ["--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        run([npm(), "install", *options], "npm package node-opcua", cwd=folder)

    return cached("node-opcua", [_PACKAGE], build)
