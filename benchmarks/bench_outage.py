"""What an outage costs in data: the broker away for 15 s, and the sender killed (-9) and started again in the middle.

5,000 values/s from Eclipse Milo, every one of which counts; a subscriber compares what came with what the machine made.
The reference is a plain asyncua + paho script which reconnects and queues at QoS 1. Ours goes without a fixed figure
for speed: what counts is how many values never came.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks import stock
from benchmarks.measure import Bar, Figure, report
from tests.e2e.consumers import Message, Subscriber, by_tag
from tests.e2e.gateway_process import SITE, Gateway
from tests.services.milo import Group, Milo
from tests.services.mosquitto import Mosquitto
from tests.services.ports import HOST

GROUP: Final = Group("v", "double", 500, 100)
TAGS: Final = {node_id: f"v{index}" for index, node_id in enumerate(GROUP.node_ids())}
PHASE_S: Final = 7.5
SETTLED_S: Final = 60.0

Restart = Callable[[], None]


def main() -> int:
    """Prints the table; the exit code."""
    ours, script = _lost(_gateway), _lost(_script)
    remark = f"of {int(4 * PHASE_S * 5000):,}; broker killed for {2 * PHASE_S:g} s, sender killed in the middle of it"
    figure = Figure("values that never came", "values", [ours], [script], Bar("at most", 0), remark=remark)
    return report("The same outage", [figure])


def _lost(sender: Callable[[str, int], object]) -> int:
    """How many values of the machine the subscriber lacks at the end."""
    with tempfile.TemporaryDirectory(prefix="mec-outage-") as name:
        folder = Path(name)
        keep = ["persistence true", f"persistence_location {name}/", "autosave_on_changes true", "autosave_interval 1"]
        with (
            Milo([GROUP]) as machine,
            Mosquitto(options=keep) as broker,
            Subscriber(broker.port, folder) as subscriber,
            sender(machine.url, broker.port) as restart,  # type: ignore[attr-defined]
        ):
            subscriber.wait_text('"v0"')
            machine.go(0)
            time.sleep(PHASE_S)
            broker.kill()
            time.sleep(PHASE_S)
            restart()
            time.sleep(PHASE_S)
            broker.start()
            time.sleep(PHASE_S)
            last = machine.stop_ticking()["v"]
            return _settled(lambda: _missing(subscriber.all_messages(), last))


def _settled(missing: Callable[[], int]) -> int:
    """The number when nothing more comes, or nothing is missing."""
    deadline_s, before, now = time.monotonic() + SETTLED_S, -1, missing()
    while now and now != before and time.monotonic() < deadline_s:
        time.sleep(5.0)
        before, now = now, missing()
    return now


def _missing(messages: list[Message], last: int) -> int:
    seen = sum(len({sample["v"] for sample in its}) for its in by_tag(messages, "press").values())
    return GROUP.count * (last + 1) - seen


@contextmanager
def _gateway(url: str, port: int) -> Iterator[Restart]:
    press = {"opcua": url, "security": "none", "every": "100ms", "sampling": "0ms", "queue": 300}
    gateway = Gateway(
        devices={"press": press | {"tags": {tag: node_id for node_id, tag in TAGS.items()}}},
        send={"scada": {"from": "*", "to": "broker"}},
        to={"broker": {"mqtt": f"mqtt://{HOST}:{port}"}},
    )

    def restart() -> None:
        gateway.kill()
        gateway.start()

    with gateway:
        yield restart


@contextmanager
def _script(url: str, port: int) -> Iterator[Restart]:
    context = multiprocessing.get_context("spawn")
    arguments = (url, TAGS, GROUP.period_ms, port, f"{SITE}/press")
    running = []

    def start() -> None:
        running.append(context.Process(target=stock.opcua_to_mqtt_for_ever, args=arguments, daemon=True))
        running[-1].start()

    def stop() -> None:
        running[-1].kill()
        running[-1].join()

    def restart() -> None:
        stop()
        start()

    start()
    try:
        yield restart
    finally:
        stop()


if __name__ == "__main__":
    sys.exit(main())
