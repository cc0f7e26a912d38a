"""The foreign OPC UA load generator: Eclipse Milo's server SDK, running milo/LoadServer.java.

Every value is known beforehand: expected_value(i, k) says what variable i of a group has at tick k, as asyncua decodes
it.
"""

import datetime
import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncua import ua

from tests.services.cache import cached
from tests.services.maven import class_path, compile_java, copy_jars
from tests.services.opcua_certificates import make
from tests.services.packages import java
from tests.services.ports import HOST, free_port
from tests.services.process import Service

_FILES = Path(__file__).parent / "milo"
_SOURCE = _FILES / "LoadServer.java"
_POM = _FILES / "pom.xml"

_SPREAD_32 = 2_654_435_761
_SPREAD_64 = 0x9E3779B97F4A7C15
_EPOCH_2020 = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)

Scalar = float | int | bool | str | bytes | datetime.datetime | uuid.UUID | ua.LocalizedText
Value = Scalar | list[float] | list[int] | list[str]


def _signed(value: int, bits: int) -> int:
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


# Kind -> value of variable i at tick k, h = 7919 i + k; in the order of LoadServer.java's Kind.
_VALUES: dict[str, Callable[[int, int, int], Value]] = {
    "double": lambda i, k, h: h / 8.0,
    "float": lambda i, k, h: (h & 0xFFFFF) / 8.0,
    "sbyte": lambda i, k, h: _signed(h, 8),
    "byte": lambda i, k, h: h & 0xFF,
    "int16": lambda i, k, h: _signed(h, 16),
    "uint16": lambda i, k, h: h & 0xFFFF,
    "int32": lambda i, k, h: _signed(h * _SPREAD_32, 32),
    "uint32": lambda i, k, h: h * _SPREAD_32 & 0xFFFFFFFF,
    "int64": lambda i, k, h: _signed(h * _SPREAD_64, 64),
    "uint64": lambda i, k, h: h * _SPREAD_64 & 0xFFFFFFFFFFFFFFFF,
    "boolean": lambda i, k, h: h & 1 == 1,
    "string": lambda i, k, h: f"v{i} tick {k} µ€",
    "datetime": lambda i, k, h: _EPOCH_2020 + datetime.timedelta(microseconds=h * 1001),
    "bytestring": lambda i, k, h: struct.pack(">Q", h),
    "guid": lambda i, k, h: uuid.UUID(int=(h * _SPREAD_64 % (1 << 64)) << 64 | (~h & 0xFFFFFFFFFFFFFFFF)),
    "localizedtext": lambda i, k, h: ua.LocalizedText(f"text {i} {k}", "en"),
    "double_array": lambda i, k, h: [h / 8.0, -h / 8.0, float(k)],
    "int32_array": lambda i, k, h: [i, k, -k, _signed(h * _SPREAD_32, 32)],
    "string_array": lambda i, k, h: [f"a{i}", f"b{k}", ""],
}

KINDS = tuple(_VALUES)
"""A "mixed" group's variable i has the type KINDS[i % len(KINDS)]."""


@dataclass(frozen=True)
class Group:
    """Variables ns=2;s=<prefix>0 ... <prefix><count-1> that change together every period_ms, all with one source time.

    kind: "mixed" or one of KINDS.
    """

    prefix: str
    kind: str
    count: int
    period_ms: int

    def node_ids(self) -> list[str]:
        """The variables' node ids, in order."""
        return [f"ns=2;s={self.prefix}{index}" for index in range(self.count)]


@dataclass(frozen=True)
class Started:
    """When a group began to tick: the first tick's number, and the UTC time one period before it."""

    first_tick: int
    base_ns: int

    def source_ns(self, tick: int, period_ms: int) -> int:
        """The source timestamp, UTC ns since 1970, of every value of a tick."""
        return self.base_ns + (tick - self.first_tick + 1) * period_ms * 1_000_000


def install() -> None:
    """Fetches Milo and compiles the server when it is not there yet. ServiceMissing when that cannot be."""
    _install()


def kind_of(index: int, kind: str = "mixed") -> str:
    """The type, one of KINDS, of a group's variable."""
    return KINDS[index % len(KINDS)] if kind == "mixed" else kind


def expected_value(i: int, k: int, kind: str = "mixed") -> Value:
    """The value of a group's variable i at tick k; tick 0 is before the trigger. KeyError for an unknown kind.

    DateTimes are aware, in UTC. Two ticks in a row always differ.
    """
    h = 7919 * i + k
    return _VALUES[kind_of(i, kind)](i, k, h)


class Milo(Service):
    """The server: anonymous; endpoints None, Sign and SignAndEncrypt (three policies), every client is accepted.

    Nothing ticks before go() or before `ns=2;s=run` is written true.

    ticks: how many ticks each group makes after a trigger that does not say it; 0: until stop_ticking().
    """

    ready_s = 60.0
    run_node_id = "ns=2;s=run"

    def __init__(self, groups: Sequence[Group], *, ticks: int = 0, heap_mb: int = 1024) -> None:
        folder = _install()
        super().__init__("milo", free_port())
        self.groups = tuple(groups)
        self._mark = 0
        self.certificate = make("milo", uri="urn:mec:load-server")
        (self.folder / "server.p12").write_bytes(self.certificate.pkcs12("server"))
        specs = [f"{group.prefix}:{group.kind}:{group.count}:{group.period_ms}" for group in groups]
        jvm = [java(), f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Dfile.encoding=UTF-8"]
        jvm.append(f"-Dcertificate={self.folder / 'server.p12'}")
        self.run_as([*jvm, "-cp", class_path(folder), "LoadServer", str(self.port), str(ticks), *specs])

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port/"""
        return f"opc.tcp://{HOST}:{self.port}/"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)
        self._mark = self.process.mark()

    def go(self, ticks: int | None = None) -> dict[str, Started]:
        """Starts every group's ticking; the answer by prefix. ticks: None for the constructor's."""
        self._mark = self.process.mark()
        self.process.send("go" if ticks is None else f"go {ticks}")
        return self.started()

    def started(self, timeout_s: float = ready_s) -> dict[str, Started]:
        """Waits until the present run has started, also one started by the `run` variable; its start by prefix."""
        answer = {}
        for group in self.groups:
            line = self.process.wait_line(rf"^started {group.prefix} (\d+) (\d+)$", timeout_s, self._mark)
            answer[group.prefix] = Started(first_tick=int(line[1]), base_ns=int(line[2]))
        return answer

    def wait_finished(self, timeout_s: float) -> dict[str, int]:
        """Waits until every group has made its ticks; the last tick's number by prefix."""
        self.process.wait_line("^finished$", timeout_s, self._mark)
        return {
            group.prefix: int(self.process.wait_line(rf"^done {group.prefix} (\d+)$", 0, self._mark)[1])
            for group in self.groups
        }

    def stop_ticking(self) -> dict[str, int]:
        """Ends the present run early and waits for it; the last tick's number by prefix."""
        self.process.send("stop")
        return self.wait_finished(self.ready_s)

    def kill_sessions(self, subscriptions: bool) -> None:
        """Ends every session from the server's side, with or without its subscriptions."""
        self.process.ask(f"kill {str(subscriptions).lower()}", "^killed$", self.ready_s)

    def sessions_and_subscriptions(self) -> tuple[int, int]:
        """How many it has."""
        counted = self.process.ask("count", r"^counted (\d+) (\d+)$", self.ready_s)
        return int(counted[1]), int(counted[2])


def _install() -> Path:
    def build(folder: Path) -> None:
        copy_jars(_POM, folder)
        compile_java(_SOURCE, folder)

    return cached("milo", [_POM, _SOURCE], build)
