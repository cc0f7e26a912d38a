"""Foreign consumers: mosquitto_sub (libmosquitto) and kcat (librdkafka) share no code with the gateway."""

import json
import subprocess
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.gateway_process import DEADLINE_S, SITE
from tests.services.link import Link
from tests.services.milo import Group, expected_value
from tests.services.packages import program
from tests.services.paths import Paths
from tests.services.ports import HOST
from tests.services.process import ServerProcess

Message = dict[str, Any]


class Subscriber:
    """mosquitto_sub on everything below SITE, at QoS 1 in a session that the broker keeps; `with` it to run it.

    It runs here, or beyond a link, where its broker is.

    Entered: the subscription is made. Its process writes each message to a file at once and is read from there.
    """

    def __init__(self, port: int, folder: Path, *, protocol: str = "5", beyond: Link | Paths | None = None) -> None:
        self._id = uuid.uuid4().hex
        self._port = port
        self._place = beyond.beyond if beyond else list
        argv = [program("mosquitto_sub", "mosquitto-clients"), "-h", HOST, "-p", str(port), "-q", "1"]
        argv += ["-V", "5", "-x", "3600"] if protocol == "5" else ["-V", "mqttv311"]
        argv += ["-c", "-i", self._id, "-F", "%t %p", "-t", f"{SITE}/#", "-t", f"mark/{self._id}"]
        self._process = ServerProcess("mosquitto_sub", self._place(argv), folder / f"mosquitto_sub-{self._id}")

    def __enter__(self) -> Self:
        self._mark("subscribed", retain=True)
        self._process.start()
        self._process.wait_line(f"^mark/{self._id} subscribed$", DEADLINE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stop()

    def wait_text(self, text: str, timeout_s: float = DEADLINE_S) -> None:
        """Waits for a message that holds this text."""
        self._process.wait_until(lambda: text in self._process.log.read_text(), timeout_s, f"message with {text}")

    def wait_tick(self, group: Group, tick: int) -> None:
        """Waits for the last variable of a group of doubles with its value of `tick`: the others come with it."""
        self.wait_text(f'"v":{expected_value(group.count - 1, tick, "double")!r},')

    def all_messages(self) -> list[Message]:
        """Whatever the broker had for it by now; every message in the order of arrival."""
        end = uuid.uuid4().hex
        self._mark(end)
        self._process.wait_line(f"^mark/{self._id} {end}$", DEADLINE_S)
        return self.messages()

    def messages(self) -> list[Message]:
        """What has arrived so far, in order."""
        with self._process.log.open() as log:
            return [json.loads(line.partition(" ")[2]) for line in log if line.startswith(f"{SITE}/")]

    def _mark(self, text: str, *, retain: bool = False) -> None:
        argv = [program("mosquitto_pub", "mosquitto-clients"), "-h", HOST, "-p", str(self._port), "-q", "1"]
        argv += ["-t", f"mark/{self._id}", "-m", text, *(["-r"] if retain else [])]
        subprocess.run(self._place(argv), check=True, capture_output=True, timeout=DEADLINE_S)


def retained(port: int, topic: str) -> Message:
    """The message that a broker keeps for a topic; waits for one."""
    argv = [program("mosquitto_sub", "mosquitto-clients"), "-h", HOST, "-p", str(port), "-t", topic, "-C", "1"]
    argv += ["-T", "mark/#"]  # amqtt sends a new client what others have subscribed to as well
    done = subprocess.run(argv, capture_output=True, check=True, timeout=DEADLINE_S)
    message: Message = json.loads(done.stdout)
    return message


def read_topic(bootstrap: str, topic: str) -> list[Message]:
    """Every committed record of a Kafka topic by now, each partition's in its order."""
    argv = [program("kcat", "kcat"), "-C", "-b", bootstrap, "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%s\n"]
    argv += ["-X", "isolation.level=read_committed"]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=DEADLINE_S)
    return [json.loads(line) for line in done.stdout.splitlines()]


def samples(messages: Iterable[Message], device: str, tag: str) -> Iterator[dict[str, Any]]:
    """The samples of one tag, in order."""
    for message in messages:
        if message["device"] == device:
            yield from (sample for sample in message["samples"] if sample["tag"] == tag)


def by_tag(messages: Iterable[Message], device: str) -> dict[str, list[dict[str, Any]]]:
    """Tag -> its samples, in order: all of a device in one pass."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        if message["device"] == device:
            for sample in message["samples"]:
                found[sample["tag"]].append(sample)
    return found


def check_ticks(messages: Iterable[Message], device: str, group: Group, last: int) -> None:
    """AssertionError where a tick of a variable, from its first to `last`, is missing or twice.

    The group is of doubles, its variable 0 is the tag "v0"; the messages are without repeats.
    """
    its = by_tag(messages, device)
    for index in range(group.count):
        tag = f"v{index}"
        ticks = sorted(round(sample["v"] * 8) - 7919 * index for sample in its[tag])
        missing = sorted(set(range(ticks[0], last + 1)) - set(ticks))
        assert not missing, f"{tag}: ticks {missing} never came"
        assert len(ticks) == len(set(ticks)), f"{tag}: a tick came twice under two keys"


def values(messages: Iterable[Message], device: str, tag: str) -> list[Any]:
    """The values of one tag, in order."""
    return [sample["v"] for sample in samples(messages, device, tag)]


def missing_seqs(messages: Iterable[Message]) -> dict[str, list[int]]:
    """Stream -> the seqs between its first and its last that never came; streams without a gap are left out."""
    seen: dict[str, set[int]] = {}
    for message in messages:
        seen.setdefault(message["stream"], set()).add(message["seq"])
    gaps = {stream: sorted(set(range(min(seqs), max(seqs))) - seqs) for stream, seqs in seen.items()}
    return {stream: gap for stream, gap in gaps.items() if gap}


def without_repeats(messages: Iterable[Message]) -> list[Message]:
    """At least once -> once: each (stream, seq) at its first arrival. AssertionError where a repeat differs.

    What was live first may come again as historical.
    """
    first: dict[tuple[str, int], Message] = {}
    for message in messages:
        key = message["stream"], message["seq"]
        known = first.setdefault(key, message)
        assert known | {"historical": None} == message | {"historical": None}, f"{key} came twice, and not the same"
    return list(first.values())
