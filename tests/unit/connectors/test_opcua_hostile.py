"""A hostile server: whatever its bytes are, no crash, no hang, no value from beyond its field, memory flat."""

from __future__ import annotations

import os
import platform
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from connectors.opcua_binary import DEPTH_MAX, Cursor, DecodeError, UnreadObject
from connectors.opcua_link import mapped
from connectors.opcua_records import RECORDS
from connectors.opcua_response import parse_response
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_structures import UNKNOWN_MAX
from connectors.opcua_variable import READ
from pipelines.batch import ARRAY, Kind
from pipelines.errors import NotConnected
from tests.unit.connectors.hostile import Oracle, mutated
from tests.unit.connectors.opcua_messages import (
    every_bytes,
    message,
    recorded,
    rows,
    seeds,
    structures,
    values,
)

MUTATIONS = int(os.environ.get("HOSTILE_MUTATIONS", "20000"))
"""`make soak` makes 100,000 and more (benchmarks/soak_hostile.py)."""
THOROUGH_EVERY = 5
CPU_S = 5.0
"""Of one message of a few kilobytes: a hang, not slowness."""
GROWTH_BYTES = 2**20
FUZZED = 10_000
HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
"""Of atheris: as pyproject.toml says."""
DECODER = ("decode", "response", "binary", "variable", "records", "structures", "definitions", "dictionary")
TESTS = ("hostile", "decode", "structures", "events")
SLOW = "not columns_hold and not any_mixture"
ROOT = Path(__file__).parents[3]


def test_mutations() -> None:
    """Columns and single rows agree, and every value has its kind's type and is made of its own bytes."""
    seed = random.randrange(2**32)
    chance, originals, oracle = random.Random(seed), seeds(), Oracle(structures())
    for number in range(MUTATIONS):
        body = mutated(chance.choice(originals), chance, originals)
        began_s = time.process_time()
        try:
            oracle.judge(body, number % THOROUGH_EVERY == 0)
            assert time.process_time() - began_s < CPU_S
        except BaseException as error:
            error.add_note(f"seed {seed}, mutation {number}: {body.hex()}")
            raise
    assert oracle.refused > MUTATIONS / 10 and oracle.rows > MUTATIONS / 10
    assert len(RECORDS) <= 2**16 and len(oracle.structures.unread) <= UNKNOWN_MAX


def test_memory_is_flat() -> None:
    """What thousands of mutations leave behind are caches of a bounded size."""
    chance, originals, oracle = random.Random(1), seeds(), Oracle(structures())
    held = []
    for _ in range(2):
        tracemalloc.start()
        for _ in range(300):
            oracle.judge(mutated(chance.choice(originals), chance, originals), thoroughly=False)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[-1] < GROWTH_BYTES


def test_what_is_sent_is_read() -> None:
    """The mutations begin with messages that are in order."""
    oracle = Oracle(structures())
    for body in seeds():
        oracle.judge(body, thoroughly=True)
        assert repr(rows(body, 8)) == repr(rows(body)), "the size of parts makes a difference"
    assert oracle.refused == 0 and oracle.rows > len(values())


def test_what_real_servers_send_is_read() -> None:
    """Every type, keep-alives, events, the end of a subscription: as often as it was recorded."""
    found: dict[str, set[str]] = {}
    oracle = Oracle(structures())
    for line in recorded():
        oracle.judge(line["body"], thoroughly=True)
        response = parse_response(line["body"])
        what = line["what"]
        assert bool(response.changes) == (what not in ("keep-alive", "event", "expired")), line
        assert bool(response.events) == bool(line["fields"]) == (what == "event"), line
        assert (response.status_change is not None or response.result != 0) == (what == "expired"), line
        found.setdefault(line["server"], set()).add(what)
    assert set(found) == {"node-opcua", "milo", "gopcua", "open62541"}
    assert all("keep-alive" in each for each in found.values()) and oracle.events == 2


def test_what_asyncua_makes_of_nonsense_is_the_servers_fault() -> None:
    """It raises anything, also from within `enum`; the contract knows one error for it."""
    device = OpcUaDevice.model_validate({"opcua": "opc.tcp://h:1", "security": "none", "tags": {"a": "i=1"}})
    answer = ua.CreateSessionResponse()
    answer.Parameters.ServerEndpoints = [ua.EndpointDescription()] * 3
    plain, chance, raised = struct_to_binary(answer), random.Random(7), set()
    for _ in range(2000):
        damaged = bytearray(plain)
        damaged[chance.randrange(len(plain))] ^= 1 << chance.randrange(8)
        try:
            struct_from_binary(ua.CreateSessionResponse, Buffer(bytes(damaged)))
        except Exception as error:  # noqa: BLE001  whatever it is
            raised.add(type(error))
            assert isinstance(mapped(error, device), NotConnected), repr(error)
    assert ValueError in raised and len(raised) > 1


def test_a_message_cut_anywhere_is_refused() -> None:
    """Each length but the whole one."""
    for body in (message(values()), message(values()[10:11] * 30)):
        oracle = Oracle(structures())
        for size in range(len(body)):
            oracle.judge(body[:size], thoroughly=False)
        assert oracle.read == 0


def test_a_structure_cut_anywhere_stays_as_it_was_sent() -> None:
    """As do one with a byte too many and one whose definition is not known."""
    known, body = structures(), every_bytes()
    for made in (*(body[:size] for size in range(len(body))), body + b"\0"):
        assert known.value(UnreadObject(type="ns=2;i=5002", body=made)) == {"type": "ns=2;i=5002", "body": made}
    assert known.unread == {"ns=2;i=5002": len(body) + 1}


@pytest.mark.parametrize(
    ("number", "body"),
    [
        (5003, struct.pack("<Ii", 4, 7)),  # a bit for a field that is not there
        (5004, struct.pack("<I", 3)),  # a member that is not there
        (5005, struct.pack("<i", 1) * (DEPTH_MAX + 1) + struct.pack("<i", 0)),
        (5005, struct.pack("<i", 2**31 - 1)),
        (5007, struct.pack("<i", 10**6) + bytes(10**3)),
        (5006, b"\0"),
        (5008, b""),  # thirty structures in no byte at all: definitions may grow like that without end
    ],
)
def test_structures_that_cannot_be(number: int, body: bytes) -> None:
    """Nothing raises, nothing is lost."""
    known = structures()
    found = UnreadObject(type=f"ns=2;i={number}", body=body)
    assert known.value(found) == {"type": f"ns=2;i={number}", "body": body}


def test_nothing_can_be_nested_without_end() -> None:
    """Variants in Variants are refused beyond the depth that is accepted, matrices of too many dimensions are flat."""
    nested = b"\x06\1\0\0\0"
    for _ in range(DEPTH_MAX + 1):
        nested = struct.pack("<Bi", Kind.VARIANT | ARRAY, 1) + nested
    with pytest.raises(DecodeError, match="nested deeper"):
        Cursor(nested).variant()
    matrix = struct.pack("<Bi", Kind.BYTE | ARRAY | 0x40, 1) + b"\7" + struct.pack("<i1000i", 1000, *[1] * 1000)
    assert Cursor(matrix).variant() == (Kind.BYTE | ARRAY, [7])


def test_only_so_many_unknown_types_are_kept_in_mind() -> None:
    """A server may send any type id."""
    known = structures()
    for number in range(UNKNOWN_MAX + 9):
        assert known.value(UnreadObject(type=f"ns=3;i={number}", body=b"")) == {"type": f"ns=3;i={number}", "body": b""}
    assert len(known.unread) == UNKNOWN_MAX


def test_a_text_that_begins_behind_its_field() -> None:
    with pytest.raises(DecodeError, match="begins beyond"):
        READ[Kind.LOCALIZED_TEXT](b"\2", 1, 1)
    with pytest.raises(DecodeError, match="cannot fit"):
        READ[Kind.STRING | ARRAY](struct.pack("<i", 1), 0, 4)


if HAS_WHEEL and "HOSTILE_MUTATIONS" not in os.environ:

    def test_fuzzed() -> None:
        """atheris, guided by coverage, finds nothing in a bounded number of runs."""
        assert _complaint("-m", "tests.unit.connectors.fuzz_opcua", str(FUZZED)) == ""


if "HOSTILE_MUTATIONS" not in os.environ:

    def test_the_decoder_has_no_branch_that_no_test_takes(tmp_path: Path) -> None:
        """The decoder's own tests, measured by coverage in a process of its own."""
        include = ",".join(f"connectors/opcua_{module}.py" for module in DECODER)
        tests = [f"tests/unit/connectors/test_opcua_{name}.py" for name in TESTS]
        data = f"--data-file={tmp_path / 'coverage'}"
        options = ["--branch", data, f"--include={include}"]
        pytest_run = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SLOW, *tests]
        assert _complaint("-m", "coverage", "run", *options, *pytest_run) == ""
        assert _complaint("-m", "coverage", "report", data, "--show-missing", "--fail-under=100") == ""


def _complaint(*arguments: str) -> str:
    """The end of what Python says to these arguments; "" where it ends well."""
    environment = {**os.environ, "HOSTILE_MUTATIONS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    return (done.stdout + done.stderr)[-4000:] or f"code {done.returncode}" if done.returncode else ""
