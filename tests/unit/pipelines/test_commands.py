"""Commands: what the file allows, what is recorded when, and what is said of what came out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.commands import (
    BAD_METHOD_INVALID,
    BAD_NODE_ID_UNKNOWN,
    BAD_NOT_CONNECTED,
    BAD_NOT_READABLE,
    BAD_NOT_WRITABLE,
    BAD_OUT_OF_RANGE,
    BAD_REQUEST_NOT_ALLOWED,
    BAD_RESOURCE_UNAVAILABLE,
    BAD_TYPE_MISMATCH,
    UNCERTAIN,
    CallRule,
    Commands,
    Outcome,
    Rate,
    Refused,
    WriteRule,
    rate_of,
)
from pipelines.errors import NotConnected
from tests.unit.pipelines.fakes import FakeClock

WHO = "operator at a test"


@dataclass
class Tag:
    """As settings describe one."""

    write: WriteRule | None = None
    scale: float = 1.0
    offset: float = 0.0


@dataclass
class Machine:
    """A Writer over a dict; `shows` is what it reads as, value by value, instead."""

    values: dict[str, Any] = field(default_factory=dict)
    shows: list[Any] = field(default_factory=list)
    fails: Exception | None = None
    unreadable: Exception | None = None
    calls: list[tuple[str, list[Any]]] = field(default_factory=list)
    writes: int = 0

    async def read(self, tag: str) -> Any:
        if self.unreadable:
            raise self.unreadable
        return self.shows.pop(0) if self.shows else self.values.get(tag)

    async def write(self, tag: str, value: Any) -> Outcome:
        if self.fails:
            raise self.fails
        self.writes += 1
        self.values[tag] = value
        return Outcome(0, value=value)

    async def call(self, method: str, arguments: Sequence[Any]) -> Outcome:
        if self.fails:
            raise self.fails
        self.calls.append((method, list(arguments)))
        return Outcome(0, value=[sum(arguments)])

    async def close(self) -> None:
        pass


class Record:
    """An Audit in memory: (step, entry)."""

    def __init__(self, machine: Machine) -> None:
        self.lines: list[tuple[str, Mapping[str, Any]]] = []
        self.rates: list[Rate | None] = []
        self.full = False
        self.admits = True
        self._machine = machine

    async def admit(self, entry: Mapping[str, Any], rate: Rate | None) -> bool:
        if self.full:
            raise OSError(28, "No space left on device")
        assert not self._machine.writes, "recorded before it is written"
        self.rates.append(rate)
        self.lines.append(("attempt" if self.admits else "refused", entry))
        return self.admits

    async def finish(self, entry: Mapping[str, Any]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.lines.append(("finished", entry))

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.lines]


@pytest.fixture
def machine() -> Machine:
    return Machine({"speed": 5, "text": "a"})


@pytest.fixture
def record(machine: Machine) -> Record:
    return Record(machine)


def commands(machine: Machine, record: Record, clock: FakeClock | None = None, **tags: Tag) -> Commands:
    tags = tags or {"speed": Tag(WriteRule())}
    return Commands("press", tags, {"reset": CallRule(rate="1/10s")}, machine, record, clock or FakeClock())


async def test_a_write_is_recorded_before_and_after(machine: Machine, record: Record) -> None:
    """Who, when, what, the value before, what was read back, what came out; one id for both lines."""
    clock = FakeClock()
    outcome = await commands(machine, record, clock).write("speed", 7, WHO)
    assert outcome == Outcome(0, "", 5, 7) and outcome.good
    assert record.steps == ["attempt", "finished"]
    (_, attempt), (_, done) = record.lines
    assert attempt == {
        "t": clock.wall_ns(), "id": done["id"], "who": WHO, "command": "write", "target": "press/speed", "value": 7
    }  # fmt: skip
    assert done == {**attempt, "t": clock.wall_ns(), "before": 5, "result": 7, "status": 0, "reason": ""}


@pytest.mark.parametrize(
    ("tag", "value", "status"),
    [
        ("nothing", 1, BAD_NODE_ID_UNKNOWN),
        ("closed", 1, BAD_NOT_WRITABLE),
        ("limited", 9.9, BAD_OUT_OF_RANGE),
        ("limited", 21, BAD_OUT_OF_RANGE),
        ("limited", [15, 21], BAD_OUT_OF_RANGE),
        ("limited", float("nan"), BAD_OUT_OF_RANGE),
        ("limited", "15", BAD_TYPE_MISMATCH),
        ("limited", True, BAD_TYPE_MISMATCH),
        ("chosen", "Manual", BAD_OUT_OF_RANGE),
        ("chosen", 1, BAD_OUT_OF_RANGE),
        ("scaled", "x", BAD_TYPE_MISMATCH),
        ("stuck", 1.0, BAD_NOT_WRITABLE),
        ("free", float("inf"), BAD_OUT_OF_RANGE),
        ("free", 10**400, BAD_OUT_OF_RANGE),
        ("scaled", -(10**400), BAD_OUT_OF_RANGE),
    ],
)
async def test_what_the_file_does_not_allow_never_reaches_the_machine(
    machine: Machine, record: Record, tag: str, value: Any, status: int
) -> None:
    """Refused with a reason, and recorded."""
    tags = {
        "closed": Tag(),
        "free": Tag(WriteRule()),
        "limited": Tag(WriteRule(min=10, max=20)),
        "chosen": Tag(WriteRule(only=("Off", "Auto", True))),
        "scaled": Tag(WriteRule(), scale=0.1),
        "stuck": Tag(WriteRule(), scale=0.0),
    }
    outcome = await commands(machine, record, **tags).write(tag, value, WHO)
    assert (outcome.status, machine.writes, record.steps) == (status, 0, ["finished"])
    assert outcome.reason and record.lines[0][1]["reason"] == outcome.reason


async def test_engineering_units_are_taken_back_to_the_machines(machine: Machine, record: Record) -> None:
    """The inverse of scale and offset, exact to the machine's step, in arrays too; before and after in units again."""
    tags = {"speed": Tag(WriteRule(max=50), scale=0.1, offset=-5.0)}
    to = commands(machine, record, **tags)
    outcome = await to.write("speed", 21.3, WHO)
    assert machine.values["speed"] == 263.0 and (outcome.before, outcome.value) == (-4.5, 21.3)
    machine.writes = 0
    assert (await to.write("speed", [1.1, 1.2], WHO)).value == [1.1, 1.2]
    assert machine.values["speed"] == [61.0, 62.0]


async def test_what_is_read_back_may_take_its_time(machine: Machine, record: Record) -> None:
    """Looked at until it is there; within the tolerance counts; what never comes is uncertain, with the value seen."""
    machine.shows = [5, 5, 5, 6.95]
    outcome = await commands(machine, record, speed=Tag(WriteRule(tolerance=0.1))).write("speed", 7, WHO)
    assert outcome.good and outcome.value == 6.95
    machine.writes, machine.shows = 0, [5] * 1000
    outcome = await commands(machine, record).write("speed", 7, WHO)
    assert (outcome.status, outcome.value) == (UNCERTAIN, 5) and "instead of 7" in outcome.reason
    assert record.lines[-1][1]["status"] == UNCERTAIN


async def test_without_reading_back(machine: Machine, record: Record) -> None:
    """A tag that can only be written: `read_back: 0`; without that it is refused, and the reason says so."""
    machine.unreadable = Refused(BAD_NOT_READABLE, "it cannot be read")
    refused = await commands(machine, record).write("speed", 7, WHO)
    assert refused.status == BAD_NOT_READABLE and "read_back: 0" in refused.reason and not machine.writes
    rule = WriteRule.model_validate({"read_back": 0})
    assert (await commands(machine, record, speed=Tag(rule)).write("speed", 7, WHO)).good


async def test_no_record_no_command(machine: Machine, record: Record) -> None:
    """A full disk: nothing is written."""
    record.full = True
    outcome = await commands(machine, record).write("speed", 7, WHO)
    assert outcome.status == BAD_RESOURCE_UNAVAILABLE and "No space" in outcome.reason and not machine.writes
    assert "not recorded" in (await commands(machine, record).write("nothing", 7, WHO)).reason


async def test_the_rate_is_the_records_to_keep(machine: Machine, record: Record) -> None:
    """It is given the limit, and what it does not admit is not done."""
    tags = {"speed": Tag(WriteRule(rate="6/1m"))}
    record.admits = False
    outcome = await commands(machine, record, **tags).write("speed", 7, WHO)
    assert (outcome.status, machine.writes) == (BAD_REQUEST_NOT_ALLOWED, 0) and "6/1m" in outcome.reason
    assert record.rates == [Rate(6, 60 * 10**9)] and record.steps == ["refused"]


@pytest.mark.parametrize(
    ("error", "status"), [(NotConnected("gone"), BAD_NOT_CONNECTED), (Refused(BAD_TYPE_MISMATCH, "no"), 0x80740000)]
)
async def test_what_the_machine_says_is_the_outcome(
    machine: Machine, record: Record, error: Exception, status: int
) -> None:
    """Nothing is raised; both lines are there."""
    machine.fails = error
    for outcome in (await commands(machine, record).write("speed", 7, WHO),
                    await commands(machine, record).call("reset", [1], WHO)):  # fmt: skip
        assert (outcome.status, outcome.reason) == (status, str(error))
    assert record.steps == ["attempt", "finished"] * 2


async def test_methods_are_named_by_the_file(machine: Machine, record: Record) -> None:
    """One that it does not name is refused; one that it names is called, with its own rate."""
    assert (await commands(machine, record).call("wipe", [], WHO)).status == BAD_METHOD_INVALID
    assert (await commands(machine, record).call("reset", [1, 2], WHO)).value == [3]
    assert machine.calls == [("reset", [1, 2])] and record.rates == [Rate(1, 10 * 10**9)]


async def test_a_command_that_is_given_up_is_recorded(machine: Machine, record: Record) -> None:
    """Cancelled in the middle: it may have been done, and the record says so."""

    begun = asyncio.Event()

    async def hangs(tag: str, value: Any) -> Outcome:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    machine.write = hangs  # type: ignore[method-assign]
    task = asyncio.create_task(commands(machine, record).write("speed", 7, WHO))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert record.lines[-1][1]["status"] == UNCERTAIN


def test_rules_are_checked() -> None:
    """What could never be met, and what is no rate."""
    assert rate_of(" 2 / 500ms ") == Rate(2, 500_000_000)
    for wrong in ({"min": 2, "max": 1}, {"rate": "6"}, {"rate": "0/1s"}, {"rate": "1/0"}, {"tolerance": -1}):
        with pytest.raises(ValidationError):
            WriteRule.model_validate(wrong)
