"""A foreign MQTT subscriber that costs next to nothing: the wrapper for benchmarks, and (run as a program) itself.

    python -m benchmarks.subscriber PORT drain|check|tags

It shares no code with the gateway and knows of its JSON no more than `"tag":`, `"t":`, `"seq":` and `"historical":`.
MQTT 3.1.1, QoS 0, topic filter `bench/#`. A line in is answered by a line of JSON (`Seen`); the end of stdin ends it.
drain: reads and counts samples. check: times, sequence numbers, latency and pauses too; what comes again under the same
number is counted and nothing more. tags: which tags were seen, and when the newest of them came.
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from benchmarks.runtime import SITE
from tests.services.ports import HOST
from tests.services.process import ServerProcess

Mode = Literal["drain", "check", "tags"]
LATENCY_STEP_MS = 1
_T = b'"t":'
_TIME = re.compile(rb'"t":(\d+)')
_TAG = re.compile(rb'"tag":"([^"]*)"')
_SEQ = re.compile(rb'"seq":(\d+)')
_HISTORICAL = b'"historical":true'


@dataclass
class Seen:
    """What came until now. Latencies are of live samples: source second -> ms (rounded down) -> samples; times are
    source us -> samples. The longest pause between two messages is since the last answer, historical ones not counted.
    """

    samples: int = 0
    messages: int = 0
    repeated_messages: int = 0
    seq_first: int = -1
    seq_last: int = -1
    latencies: dict[int, dict[int, int]] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    pause_ns: int = 0
    historical_samples: int = 0
    historical_first_ns: int = 0
    historical_last_ns: int = 0
    tags: int = 0
    newest_tag_ns: int = 0

    @property
    def missing_messages(self) -> int:
        """Sequence numbers between the first and the last one that never came."""
        return self.seq_last - self.seq_first + 1 - (self.messages - self.repeated_messages)

    def latency_ms(self, quantile: float, begin_ns: int = 0, end_ns: int = 2**63) -> int:
        """So many of the live samples came within this time; those of whole source seconds from begin to end count."""
        found = Counter[int]()
        for second, latencies in self.latencies.items():
            if begin_ns <= second * 10**9 and (second + 1) * 10**9 <= end_ns:
                found.update(latencies)
        left = quantile * found.total()
        for latency_ms, samples in sorted(found.items()):
            left -= samples
            if left <= 0:
                return latency_ms + LATENCY_STEP_MS
        return 0


class Subscriber:
    """The program in a process of its own, subscribed when the `with` block begins."""

    def __init__(self, port: int, mode: Mode) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mec-subscriber-")
        argv = [sys.executable, "-m", "benchmarks.subscriber", str(port), mode]
        root = str(Path(__file__).resolve().parents[1])
        self.process = ServerProcess("subscriber", argv, Path(self._folder.name) / "log", {"PYTHONPATH": root})

    def __enter__(self) -> Self:
        self.process.start()
        self.process.wait_line("^ready$", 10.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop()
        self._folder.cleanup()

    def seen(self) -> Seen:
        """Everything since it was started."""
        found = json.loads(self.process.ask("", r"^(\{.*\})$", 30.0)[1])
        found["times"] = _numbered(found["times"])
        found["latencies"] = {int(second): _numbered(each) for second, each in found["latencies"].items()}
        return Seen(**found)


def _numbered(counts: dict[str, int]) -> dict[int, int]:
    """JSON has text keys only."""
    return {int(key): samples for key, samples in counts.items()}


class _Checks:
    """One message after the other, by `mode`."""

    def __init__(self, mode: Mode) -> None:
        self.seen = Seen()
        self._take = {"drain": self._drain, "check": self._check, "tags": self._look}[mode]
        self._seqs: set[int] = set()
        self._times: Counter[int] = Counter()
        self._latencies: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._heard_ns = time.time_ns()
        self._tags: set[bytes] = set()

    def message(self, payload: bytes) -> None:
        """A PUBLISH: topic and payload. What has no sample in it (the gateway's status) does not count."""
        samples = payload.count(_T)
        if samples:
            self.seen.messages += 1
            self.seen.samples += samples
            self._take(payload, samples)

    def report(self) -> str:
        """`Seen` as JSON."""
        self._heard(time.time_ns())
        if self._seqs:
            self.seen.seq_first, self.seen.seq_last = min(self._seqs), max(self._seqs)
            self.seen.repeated_messages = self.seen.messages - len(self._seqs)
        self.seen.times = dict(self._times)
        self.seen.latencies = {second: dict(each) for second, each in self._latencies.items()}
        self.seen.tags = len(self._tags)
        answer = json.dumps(asdict(self.seen))
        self.seen.pause_ns = 0
        return answer

    def _drain(self, payload: bytes, samples: int) -> None:
        """Counted already."""

    def _check(self, payload: bytes, samples: int) -> None:
        """A message mostly holds one source time; only where it does not, every sample is looked at."""
        now = time.time_ns()
        seq, first = _SEQ.search(payload), _TIME.search(payload)
        assert seq and first
        if int(seq[1]) in self._seqs:
            return
        self._seqs.add(int(seq[1]))
        same = payload.count(_T + first[1])
        times = {int(first[1]): samples} if same == samples else Counter(map(int, _TIME.findall(payload)))
        self._times.update(times)
        if _HISTORICAL in payload:
            self.seen.historical_samples += samples
            self.seen.historical_first_ns = self.seen.historical_first_ns or now
            self.seen.historical_last_ns = now
            return
        self._heard(now)
        for t_us, count in times.items():
            self._latencies[t_us // 10**6][max(now // 1000 - t_us, 0) // (1000 * LATENCY_STEP_MS)] += count

    def _heard(self, now: int) -> None:
        self.seen.pause_ns = max(self.seen.pause_ns, now - self._heard_ns)
        self._heard_ns = now

    def _look(self, payload: bytes, samples: int) -> None:
        before = len(self._tags)
        self._tags.update(_TAG.findall(payload))
        if len(self._tags) > before:
            self.seen.newest_tag_ns = time.time_ns()


def _listen(connection: socket.socket, checks: _Checks) -> None:
    """Until stdin or the broker ends."""
    buffer = bytearray()
    while True:
        readable = select.select([connection, sys.stdin], [], [], 5.0)[0]
        if not readable:
            connection.sendall(b"\xc0\x00")  # PINGREQ
        if connection in readable:
            received = connection.recv(1 << 20)
            if not received:
                raise ConnectionError("the broker closed the connection")
            buffer += received
            del buffer[: _packets(buffer, checks)]
        if sys.stdin in readable:
            if not sys.stdin.readline():
                return
            print(checks.report(), flush=True)


def _packets(buffer: bytearray, checks: _Checks) -> int:
    """Takes every whole packet (MQTT 3.1.1, 2.2); the number of bytes that they had."""
    at = 0
    while at + 2 <= len(buffer):
        size, shift, body = 0, 0, at + 1
        while body < len(buffer):
            byte = buffer[body]
            body += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            return at
        if body + size > len(buffer):
            return at
        if buffer[at] & 0xF0 == 0x30:
            checks.message(bytes(buffer[body : body + size]))
        at = body + size
    return at


def _subscribe(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port))
    client_id, topic = b"mec-bench", f"{SITE}/#".encode()
    hello = struct.pack(">H4sBBHH", 4, b"MQTT", 4, 2, 0, len(client_id)) + client_id
    wish = struct.pack(">HH", 1, len(topic)) + topic + b"\0"
    connection.sendall(struct.pack("BB", 0x10, len(hello)) + hello + struct.pack("BB", 0x82, len(wish)) + wish)
    answer = b""
    while len(answer) < 9:  # CONNACK, SUBACK
        answer += connection.recv(9 - len(answer))
    if answer != b"\x20\x02\x00\x00\x90\x03\x00\x01\x00":
        raise ConnectionError(f"the broker refused the subscription: {answer.hex()}")
    return connection


def main(port: int, mode: Mode) -> None:
    """Subscribes, says `ready`, and answers lines."""
    with _subscribe(port) as connection:
        print("ready", flush=True)
        _listen(connection, _Checks(mode))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])  # type: ignore[arg-type]
