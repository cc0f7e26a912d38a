"""A disk that is full, a journal with wrong bytes: all that could be kept is delivered, the rest is in the ledger, to
the row."""

import os
import random
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.e2e.consumers import Subscriber, samples, without_repeats
from tests.e2e.gateway_process import Gateway
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto

SEED = int(os.environ.get("E2E_SEED", str(uuid.uuid4().int % 10_000)))
GROUP = Group("v", "double", 4000, 100)
BUFFER = {"disk": "16MiB", "memory": "1MiB", "reserve": 0, "fsync_every": "50ms"}
SEGMENT_BYTES = 2**20
"""A sixteenth of `disk`."""
FLIPS = 20


def test_a_full_disk_costs_what_the_ledger_says(
    milo: Callable[..., Milo], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """The broker is away until the data folder's disk is full and the oldest had to go; then all the rest comes."""
    machine, broker = milo([GROUP]), mosquitto_factory()
    with (
        _small_disk(tmp_path / "disk", 6 * SEGMENT_BYTES) as disk,
        Subscriber(broker.port, tmp_path) as subscriber,
        _gateway(machine, broker, disk) as gateway,
    ):
        _start_outage(gateway, broker, machine)
        gateway.wait_for(lambda: gateway.metric("gateway_lane_dropped_rows_total", "all") > 0, "dropped rows")
        assert gateway.metric("gateway_lane_disk_full_total", "all") > 0
        _finish(gateway, broker, machine, subscriber, disk, "buffer full")


def test_wrong_bytes_in_a_journal_cost_what_the_ledger_says(
    milo: Callable[..., Milo], mosquitto_factory: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    """Killed with a backlog; bytes of its sealed segments are flipped: it starts, and delivers all that is whole."""
    print(f"E2E_SEED={SEED}")
    chance, machine, broker = random.Random(SEED), milo([GROUP]), mosquitto_factory()
    data_dir = tmp_path / "data"
    with Subscriber(broker.port, tmp_path) as subscriber, _gateway(machine, broker, data_dir) as gateway:
        _start_outage(gateway, broker, machine)
        gateway.wait_for(lambda: len(_segments(data_dir)) > 4, "segments")
        gateway.kill()
        for path in _segments(data_dir)[1:-1]:  # of the first, some is delivered
            _flip(path, chance)
        gateway.start()
        _finish(gateway, broker, machine, subscriber, data_dir, "damaged on disk")


def _gateway(machine: Milo, broker: Mosquitto, data_dir: Path) -> Gateway:
    press = {"opcua": machine.url, "security": "none", "every": "100ms", "sampling": "0ms", "queue": 300}
    tags = {f"v{index}": node_id for index, node_id in enumerate(GROUP.node_ids())}
    return Gateway(
        devices={"press": press | {"tags": tags}},
        send={"all": {"from": "*", "to": "broker", "buffer": BUFFER}},
        to={"broker": {"mqtt": broker.url}},
        options={"data_dir": str(data_dir)},
    )


def _start_outage(gateway: Gateway, broker: Mosquitto, machine: Milo) -> None:
    """Every variable is subscribed to and has its first value delivered; then they tick, and the broker hangs."""
    gateway.wait_for(lambda: gateway.metric("gateway_pump_rows_total", "all") >= GROUP.count, "first values")
    broker.process.pause()
    machine.go(0)


def _finish(
    gateway: Gateway, broker: Mosquitto, machine: Milo, subscriber: Subscriber, data_dir: Path, reason: str
) -> None:
    """The broker is back, the machine stops: what did not come is what the ledger has, for the reason."""
    broker.process.resume()
    last = machine.stop_ticking()["v"]
    subscriber.wait_tick(GROUP, last)
    gateway.wait_for(lambda: gateway.health()["lanes"][0]["pending_rows"] == 0, "empty lane")
    assert gateway.end() == 0
    once = without_repeats(subscriber.all_messages())
    there = sum(len({sample["v"] for sample in samples(once, "press", f"v{i}")}) for i in range(GROUP.count))
    entries = _ledger(data_dir)
    assert {entry["reason"] for entry in entries} == {reason}, entries
    assert sum(entry["rows"] for entry in entries) == GROUP.count * (last + 1) - there > 0


def _ledger(data_dir: Path) -> list[dict[str, Any]]:
    """What `gateway gaps --json` prints."""
    return [orjson.loads(line) for line in (data_dir / "gaps" / "gaps.jsonl").read_text().splitlines()]


def _segments(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "lanes" / "all").glob("*.segment"))


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(FLIPS):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own, with so many bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
