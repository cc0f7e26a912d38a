"""Eclipse Milo as a plant with events, variables to write and a method: milo_plant/PlantServer.java (see its head)."""

from __future__ import annotations

from pathlib import Path

from tests.services.cache import cached
from tests.services.maven import class_path, compile_java, copy_jars
from tests.services.packages import java
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_SOURCE = Path(__file__).parent / "milo_plant" / "PlantServer.java"
_POM = Path(__file__).parent / "milo" / "pom.xml"


def install() -> None:
    """Fetches Milo and compiles the server when it is not there yet. ServiceMissing when that cannot be."""
    _install()


class MiloPlant(Service):
    """The server, anonymous, security None."""

    ready_s = 60.0

    def __init__(self) -> None:
        folder = _install()
        super().__init__("milo-plant", free_port())
        jvm = [java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Dfile.encoding=UTF-8"]
        self.run_as([*jvm, "-cp", class_path(folder), "PlantServer", str(self.port)])

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port/"""
        return f"opc.tcp://{HOST}:{self.port}/"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)

    def raise_event(self, text: str, severity: int = 300) -> None:
        """One event of SystemEventType at the Server object."""
        self.process.ask(f"event {severity} {text}", "^done$", self.ready_s)


def _install() -> Path:
    def build(folder: Path) -> None:
        copy_jars(_POM, folder)
        compile_java(_SOURCE, folder)

    return cached("milo_plant", [_POM, _SOURCE], build)
