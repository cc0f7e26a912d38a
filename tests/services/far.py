"""Brokers behind a bad link."""

import socket
from pathlib import Path

from tests.services.kafka import Kafka
from tests.services.link import Link
from tests.services.mosquitto import Mosquitto
from tests.services.paths import Paths
from tests.services.ports import free_port


class FarMosquitto(Mosquitto):
    """As Mosquitto, but at `address` (of paths: `address6` too); in the far network at 127.0.0.1 too."""

    def __init__(self, link: Link | Paths, **settings: object) -> None:
        self.link = link
        self.address = link.address
        super().__init__(**settings)  # type: ignore[arg-type]
        self.run_as(link.beyond([self._program, "-c", self._config()]))

    @property
    def url(self) -> str:
        """mqtt://address:port"""
        return f"mqtt://{self.address}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when it accepts connections; the link must not be cut."""
        self.process.wait_until(self._accepts, self.ready_s, f"listener on {self.address}:{self.port}")

    def _accepts(self) -> bool:
        try:
            socket.create_connection((self.address, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _config(self) -> Path:
        file = self.folder / "mosquitto.conf"
        with file.open("a") as config:
            config.write(f"listener {self.port} {self.address}\n")
            if isinstance(self.link, Paths):
                config.write(f"listener {self.port} {self.link.address6}\n")
        return file


class FarKafka(Kafka):
    """As Kafka, but its plain listener is at the link's address, and so is what it advertises. Of paths: one more at
    the IPv6 address, `bootstrap6`."""

    def __init__(self, link: Link | Paths, **settings: object) -> None:
        self.link = link
        self.bootstrap6 = f"[{link.address6}]:{free_port()}" if isinstance(link, Paths) else ""
        super().__init__(host=link.address, **settings)  # type: ignore[arg-type]
        self.run_as(link.beyond(self.argv))

    def _core_settings(self) -> dict[str, str]:
        settings = super()._core_settings()
        if self.bootstrap6:
            for key in ("listeners", "advertised.listeners"):
                settings[key] += f",SIX://{self.bootstrap6}"
            settings["listener.security.protocol.map"] += ",SIX:PLAINTEXT"
        return settings
