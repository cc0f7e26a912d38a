"""docs/security.md, "Two commands to a secured machine", as an operator does it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import made
from tests.e2e.consumers import Subscriber, values
from tests.e2e.gateway_process import COMPLAINTS, Gateway
from tests.services.asyncua_server import AsyncuaServer, Secured
from tests.services.mosquitto import Mosquitto
from tests.services.opcua_certificates import make

MINUTE_S = 60.0


def test_two_commands_from_nothing_to_values_of_a_secured_machine(
    mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """An empty data folder, an unknown certificate, SignAndEncrypt only: `run`, `trust approve`, live values; then
    revoked while it runs."""
    broker, certificate = mosquitto_factory(), make("press 4")
    secured = Secured(certificate, ["Aes256Sha256RsaPss_SignAndEncrypt"])
    with made(lambda: AsyncuaServer(secured=secured)) as machine, Subscriber(broker.port, tmp_path) as subscriber:
        gateway = Gateway(
            devices={"press4": {"opcua": machine.url, "every": "100ms", "tags": {"count": "ns=2;s=Int32"}}},
            send={"all": {"from": "*", "to": "broker"}},
            to={"broker": {"mqtt": broker.url}},
        )
        begun_s = time.monotonic()
        with gateway:
            told = gateway.wait_state("press4", "faulted")["reason"]
            assert certificate.thumbprint in told
            command = re.search("`gateway (trust approve press4)`", told)
            assert command
            said = _command(gateway, *command[1].split())
            assert said.startswith("trusted of press4: CN=press 4, valid until")
            gateway.wait_state("press4", "up")
            gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= 1, "value at the broker")
            assert time.monotonic() - begun_s < MINUTE_S  # what the issue promises; it takes a few seconds
            listed = _command(gateway, "trust", "ls")
            assert "trusted press4: CN=press 4, urn:mec:tests:server, valid until" in listed
            assert certificate.thumbprint in listed and "own: CN=mec-gateway@" in listed
            assert gateway.metric("gateway_source_server_certificate_days", "press4") > 300
            _command(gateway, "trust", "revoke", certificate.thumbprint[:8])
            assert "was rejected" in gateway.wait_state("press4", "faulted")["reason"]
            assert gateway.end() == 0
            assert len(gateway.log_about("press4", *COMPLAINTS)) == 3  # not trusted; lost; rejected
        assert values(subscriber.all_messages(), "press4", "count")[0] == -32


def _command(gateway: Gateway, *words: str) -> str:
    """What `gateway WORDS FILE` prints."""
    argv = [sys.executable, "-m", "gateway", *words, str(gateway.file)]
    return subprocess.run(argv, capture_output=True, check=True, text=True, timeout=60).stdout
