"""Faults in random order on four OPC UA servers: data goes on, nothing is lost unsaid, nothing is left behind.

    python -m benchmarks.soak_opcua_faults [--faults 80] [--seed N] [--each 2] [--real]

asyncua's server, node-opcua, Eclipse Milo and open62541, `--each` of every kind, all at once and each behind a proxy of
its own; the gateway's part is the source with its supervisor. `tests/integration/opcua_faults.py` says what a fault is
and what has to hold after each. At the end no task, file or socket is left here, and no session, subscription or
connection at a server.

Lifetimes are shortened to seconds; with `--real` they are not, and each server has its network cut for 1 s, for 1 min
and for longer than its subscription lives, in turn (five minutes).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.measure import Bar, Figure, on_loop, report
from tests.integration.opcua_faults import (
    FAULTS,
    REAL_CUTS,
    REAL_LIFETIME_S,
    Machine,
    endured,
    machines,
    open_files,
    short_lives,
)
from tests.services.ports import HOST

NOTHING = Bar("at most", 0)


def main() -> int:
    """Prints the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--faults", type=int, default=80)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--each", type=int, default=2)
    parser.add_argument("--real", action="store_true")
    given, _ = parser.parse_known_args()
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # as the gateway does
    with ExitStack() as stack:
        servers = []
        for _, make in [*machines().items()] * given.each:
            machine = make()
            stack.callback(machine.server.close)
            servers.append(machine)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mec-soak-")))
        if given.real:
            cuts = [[*REAL_CUTS] for _ in servers]
            return on_loop(_soak(servers, folder, cuts, "real durations", kinds=REAL_CUTS, lifetime_s=REAL_LIFETIME_S))
        stack.enter_context(short_lives())
        order = _shuffled(given.faults, given.seed, len(servers))
        return on_loop(_soak(servers, folder, order, f"seed {given.seed}"))


def _shuffled(faults: int, seed: int, servers: int) -> list[list[str]]:
    """For each server."""
    chance = random.Random(seed)
    order: list[list[str]] = [[] for _ in range(servers)]
    for number in range(faults):
        order[number % servers].append(chance.choice([*FAULTS]))
    return order


async def _soak(servers: list[Machine], folder: Path, order: list[list[str]], title: str, **how: Any) -> int:
    begun_s, faults = time.monotonic(), sum(map(len, order))
    counted: Counter[str] = Counter()
    executor = ThreadPoolExecutor(4 * len(servers))
    asyncio.get_running_loop().set_default_executor(executor)
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(4 * len(servers))))  # threads are there
    listening = await asyncio.start_server(lambda _reader, writer: writer.close(), HOST, 0)
    listening.close()  # and the descriptor that libuv keeps in reserve from the first listener on
    await listening.wait_closed()
    tasks, files = len(asyncio.all_tasks()), open_files()
    ends = await asyncio.gather(
        *(
            endured(machine, mine, folder / str(number), _counting(counted, machine.name), **how)
            for number, (machine, mine) in enumerate(zip(servers, order, strict=True))
        ),
        return_exceptions=True,
    )
    wrong = [end for end in ends if end is not None]
    for error in wrong:
        print(f"  {type(error).__name__}: {error}")
    gc.collect()
    await asyncio.sleep(1.0)
    for name, times in sorted(counted.items()):
        print(f"  {times:4d}  {name}")
    minutes = (time.monotonic() - begun_s) / 60
    return report(
        f"{counted.total()} of {faults} faults, {title}, {len(servers)} servers, {minutes:.1f} minutes",
        [
            Figure("servers where something was wrong", "servers", [len(wrong)], (), NOTHING),
            Figure("faults that were not made", "faults", [faults - counted.total()], (), NOTHING),
            Figure("tasks left", "tasks", [len(asyncio.all_tasks()) - tasks], (), NOTHING),
            Figure("files and sockets left", "files", [max(open_files() - files, 0)], (), NOTHING),
        ],
    )


def _counting(counted: Counter[str], name: str) -> Callable[[str], None]:
    def done(fault: str) -> None:
        counted[f"{name}: {fault}"] += 1

    return done


if __name__ == "__main__":
    sys.exit(main())
