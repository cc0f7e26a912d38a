"""Eclipse Mosquitto, Debian's package, with a configuration file of our own.

Plain listener always; a TLS listener beside it where certificates are given. Nothing is persisted: a broker that was
restarted has forgotten everything.
"""

import subprocess
from collections.abc import Sequence
from functools import partial

from tests.services.packages import program
from tests.services.ports import HOST, accepts, free_port
from tests.services.process import Service, ServiceMissing
from tests.services.tls import Certificates


def install() -> None:
    """Installs the broker when it is absent. ServiceMissing when that cannot be."""
    program("mosquitto", "mosquitto")


class Mosquitto(Service):
    """A broker on 127.0.0.1.

    port, tls_port (0 without tls): the listeners. users: name -> password; anonymous clients are refused where it is
    given. require_certificate: TLS clients must show one of the CA's. options: further lines of mosquitto.conf, such as
    "max_packet_size 1000".
    """

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        tls: Certificates | None = None,
        require_certificate: bool = False,
        max_inflight_messages: int = 0,
        max_queued_messages: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self._program = program("mosquitto", "mosquitto")
        super().__init__("mosquitto", free_port())
        self.tls_port = free_port() if tls else 0
        lines = [
            "per_listener_settings false",
            "persistence false",
            "user root",  # else a broker started by root cannot read this folder
            "log_dest stdout",
            "set_tcp_nodelay true",
            f"max_inflight_messages {max_inflight_messages}",  # 0: no limit
            f"max_queued_messages {max_queued_messages}",
            *self._access(users or {}),
            *options,
            f"listener {self.port} {HOST}",
        ]
        if tls:
            lines += [
                f"listener {self.tls_port} {HOST}",
                f"cafile {tls.ca}",
                f"certfile {tls.server}",
                f"keyfile {tls.server_key}",
                f"require_certificate {str(require_certificate).lower()}",
            ]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        self.run_as([self._program, "-c", config])

    @property
    def url(self) -> str:
        """mqtt://127.0.0.1:port"""
        return f"mqtt://{HOST}:{self.port}"

    @property
    def tls_url(self) -> str:
        """mqtts://localhost:port of the TLS listener."""
        return f"mqtts://localhost:{self.tls_port}"

    def wait_ready(self) -> None:
        """Returns when every listener accepts connections."""
        for port in filter(None, (self.port, self.tls_port)):
            self.process.wait_until(partial(accepts, port), self.ready_s, f"listener on port {port}")

    def _access(self, users: dict[str, str]) -> list[str]:
        if not users:
            return ["allow_anonymous true"]
        file = self.folder / "passwords"
        file.touch(mode=0o600)
        for name, password in users.items():
            argv = [program("mosquitto_passwd", "mosquitto"), "-b", str(file), name, password]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise ServiceMissing(f"mosquitto_passwd failed: {done.stderr.strip()}")
        return ["allow_anonymous false", f"password_file {file}"]
