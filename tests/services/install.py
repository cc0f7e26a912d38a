"""Installs what every service needs, ahead of the tests: `python -m tests.services.install`.

One line per service; what cannot be installed is said in one line, and the exit code is 1 then if CI is set (its tests
would skip, and CI has no skips).
"""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.services import (
    asyncua_space,
    faketime,
    gopcua,
    kafka,
    libmodbus,
    milo,
    milo_plant,
    mosquitto,
    node_modbus,
    node_opcua,
    stamper,
)
from tests.services.process import ServiceMissing

SERVICES: dict[str, Callable[[], object]] = {
    "Mosquitto": mosquitto.install,
    "libmodbus server, mbpoll": libmodbus.install,
    "modbus-serial server": node_modbus.install,
    "Apache Kafka": kafka.install,
    "Eclipse Milo server": milo.install,
    "Eclipse Milo plant": milo_plant.install,
    "node-opcua server": node_opcua.install,
    "asyncua's address space": asyncua_space.install,
    "gopcua server": gopcua.install,
    "stamper": stamper.install,
    "libfaketime": faketime.install,
}


def main() -> int:
    """Installs everything, side by side; 0 when all is there or when missing ones are allowed to be skipped."""
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        all_there = all(list(pool.map(_installed, SERVICES)))
    return 0 if all_there or not os.environ.get("CI") else 1


def _installed(name: str) -> bool:
    begun_s = time.monotonic()
    try:
        SERVICES[name]()
    except ServiceMissing as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False
    print(f"{name}: ready ({time.monotonic() - begun_s:.1f} s)", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
