"""Brokers behind a bad link."""

import socket
from pathlib import Path

from tests.services.kafka import Kafka
from tests.services.link import Link
from tests.services.mosquitto import Mosquitto


class FarMosquitto(Mosquitto):
    """As Mosquitto, but at `address`; in the far network at 127.0.0.1 too."""

    def __init__(self, link: Link, **settings: object) -> None:
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
        return file


class FarKafka(Kafka):
    """As Kafka, but its plain listener is at the link's address, and so is what it advertises."""

    def __init__(self, link: Link, **settings: object) -> None:
        self.link = link
        super().__init__(host=link.address, **settings)  # type: ignore[arg-type]
        self.run_as(link.beyond(self.argv))
