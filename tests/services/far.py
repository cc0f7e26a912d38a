"""A Mosquitto behind a link of its own, which can be cut without a word: no reset, no ICMP, nothing comes back.

The broker runs in a network namespace that one veth pair joins to this one (Linux, root). Addresses are of
198.18.0.0/15, which RFC 2544 keeps for tests.
"""

import os
import random
import socket
import subprocess
import uuid

from tests.services.mosquitto import Mosquitto
from tests.services.packages import program
from tests.services.process import ServiceMissing


class FarMosquitto(Mosquitto):
    """As Mosquitto, but at `address`; `cut` and `mend` are for its link."""

    def __init__(self, **settings: object) -> None:
        if os.geteuid() != 0:
            raise ServiceMissing("a broker behind a link needs root, for its network namespace")
        program("ip", "iproute2")
        name = uuid.uuid4().hex[:8]
        self._space, self._near, self._far = f"gw-{name}", f"gwn-{name}", f"gwf-{name}"
        net = f"198.{random.randint(18, 19)}.{random.randint(0, 255)}"
        self.address = f"{net}.2"
        super().__init__(**settings)  # type: ignore[arg-type]
        argv = ["ip", "netns", "exec", self._space, self._program, "-c", str(self._config())]
        self.run_as(argv)
        try:
            self._join(net)
        except ServiceMissing:
            self.close()
            raise

    @property
    def url(self) -> str:
        """mqtt://address:port"""
        return f"mqtt://{self.address}:{self.port}"

    def wait_ready(self) -> None:
        """Returns when it accepts connections; the link must not be cut."""
        self.process.wait_until(self._accepts, self.ready_s, f"listener on {self.address}:{self.port}")

    def cut(self) -> None:
        """What is sent to the broker, and what it sends, is lost from now on."""
        _ip("-n", self._space, "link", "set", self._far, "down")

    def mend(self) -> None:
        """Undoes `cut`."""
        _ip("-n", self._space, "link", "set", self._far, "up")

    def close(self) -> None:
        """Stops the server; removes its folder, and its namespace with the link."""
        super().close()
        subprocess.run(["ip", "netns", "del", self._space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._near], capture_output=True, check=False)

    def _join(self, net: str) -> None:
        _ip("netns", "add", self._space)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._space)
        _ip("addr", "add", f"{net}.1/30", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self._space, "addr", "add", f"{self.address}/30", "dev", self._far)
        _ip("-n", self._space, "link", "set", "lo", "up")
        self.mend()

    def _accepts(self) -> bool:
        try:
            socket.create_connection((self.address, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _config(self) -> str:
        file = self.folder / "mosquitto.conf"
        with file.open("a") as config:
            config.write(f"listener {self.port} {self.address}\n")
        return str(file)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServiceMissing(f"a broker behind a link: ip {' '.join(arguments)}: {done.stderr.strip()}")
