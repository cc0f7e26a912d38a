"""node-opcua as a plant with events, an alarm, variables to write and methods: node_opcua/plant.js (see its head)."""

from __future__ import annotations

from pathlib import Path

from tests.services.node_opcua import install
from tests.services.packages import node
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_SCRIPT = Path(__file__).parent / "node_opcua" / "plant.js"


class NodePlant(Service):
    """The server, security None or SignAndEncrypt; anonymous, or the user "operator" with the password "secret"."""

    ready_s = 90.0

    def __init__(self) -> None:
        folder = install()
        super().__init__("node-opcua-plant", free_port())
        self.run_as([node(), _SCRIPT, str(self.port), self.folder / "pki"], env={"NODE_OPCUA_FOLDER": str(folder)})

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port"""
        return f"opc.tcp://{HOST}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)

    def raise_event(self, text: str, severity: int = 300) -> None:
        """One event of SystemEventType at ns=1;s=Press."""
        self.command({"event": text, "severity": severity})

    def set_alarm(self, active: bool) -> None:
        """The alarm ns=1;s=GuardOpen becomes active and unacknowledged, or inactive."""
        self.command({"alarm": active})
