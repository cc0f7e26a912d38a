"""Commands: values written to machines, and methods called. What the file allows, what is checked, what is recorded.

Nothing can be written unless the file says so, tag by tag. A command passes, in this order,

    the file's rule (allowed at all, range, list of values, a finite number)      here, without a connection
    the record and the rate limit (`Audit.admit`): no record, no command         on disk before anything is sent
    the machine's own type, access and range                                      the protocol's `Writer`
    reading back, until the machine shows what was written or time is up          here
    the record of the outcome (`Audit.finish`)

Every attempt is recorded, refused ones too. Statuses are OPC UA StatusCodes (Part 4, 7.39), whatever the protocol.
"""

from __future__ import annotations

import asyncio
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, NamedTuple, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.clock import Clock
from pipelines.errors import GatewayError
from pipelines.quantities import Duration, Settings, duration_ns

UNCERTAIN: Final = 0x4000_0000
BAD_RESOURCE_UNAVAILABLE: Final = 0x8004_0000
BAD_USER_ACCESS_DENIED: Final = 0x801F_0000
BAD_NODE_ID_UNKNOWN: Final = 0x8034_0000
BAD_NOT_READABLE: Final = 0x803A_0000
BAD_NOT_WRITABLE: Final = 0x803B_0000
BAD_OUT_OF_RANGE: Final = 0x803C_0000
BAD_TYPE_MISMATCH: Final = 0x8074_0000
BAD_METHOD_INVALID: Final = 0x8075_0000
BAD_NOT_CONNECTED: Final = 0x808A_0000
BAD_REQUEST_NOT_ALLOWED: Final = 0x80E4_0000

READ_BACK_EVERY_S: Final = 0.05
_RATE = re.compile(r"\s*(\d+)\s*/\s*(.+?)\s*")


class Rate(NamedTuple):
    """At most so many commands within any `per_ns`."""

    commands: int
    per_ns: int


def rate_of(text: str) -> Rate:
    """`6/1m`. Raises ValueError."""
    match = _RATE.fullmatch(text)
    rate = Rate(int(match[1]), duration_ns(match[2])) if match else Rate(0, 0)
    if not rate.commands or not rate.per_ns:
        raise ValueError(f"{text!r} is not a rate: write a number of commands and a time, such as 6/1m")
    return rate


def _checked_rate(text: str) -> str:
    rate_of(text)
    return text


class CallRule(Settings):
    """What every command that is allowed may have."""

    rate: Annotated[str, AfterValidator(_checked_rate)] | None = Field(
        None, description="At most so many commands within any such time; default: no limit.", examples=["6/1m"]
    )


class WriteRule(CallRule):
    """`write: {min: 0, max: 100}`: that it is there allows writing; all limits are in engineering units."""

    min: float | None = Field(None, description="Least value; in place of the machine's own, where that says one.")
    max: float | None = Field(None, description="Largest value; likewise.")
    only: tuple[bool | int | float | str, ...] = Field(
        (), description="Nothing but these values.", examples=[["Off", "Auto"]]
    )
    read_back: Duration = Field(
        duration_ns("1s"),
        description="How long the machine may take to show the value that was written; `0` does not look.",
    )
    tolerance: float = Field(0.0, ge=0.0, description="How far off the value that is read back may be.")

    @model_validator(mode="after")
    def _ordered(self) -> WriteRule:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing could be written")
        return self


def rule_from_setting(value: Any) -> Any:
    """`write: true` is a rule without limits, `write: false` none."""
    return {} if value is True else None if value is False else value


Writing = Annotated[
    WriteRule | None,
    BeforeValidator(rule_from_setting, json_schema_input_type=bool | WriteRule),
    Field(description="Allows writing this tag (`gateway write`): `true`, or a mapping with limits. Default: not."),
]
"""The field `write` of a tag's settings."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command."""

    status: int
    """An OPC UA StatusCode; not Good: `reason` says why."""
    reason: str = ""
    before: Any = None
    """What the tag had before; None where it could not be read."""
    value: Any = None
    """What was sent, then what was read back; of a call: what it returned."""

    @property
    def good(self) -> bool:
        """It was done, and where that was asked for, seen to be done."""
        return not self.status & 0xC000_0000


class Refused(GatewayError):
    """The machine, or what is known of it, does not take this command; nothing has changed."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Writer(Protocol):
    """One machine, for commands. Its constructor does no I/O. Connects when it is first used, and again after a loss.

    Values are raw, as the machine has them. Each method raises NotConnected, Permanent (nothing was sent) or Refused.
    """

    async def read(self, tag: str) -> Any:
        """The present value; None where there is none. Raises Refused where it cannot be read."""

    async def write(self, tag: str, value: Any) -> Outcome:
        """Checks type, access and the machine's own range, then writes. `Outcome.value` is what was sent, after the
        conversion to the machine's type. No answer is an Outcome of its own: it may have been written."""

    async def call(self, method: str, arguments: Sequence[Any]) -> Outcome:
        """Checks count and types of the arguments, then calls. Raises Refused where the machine has no methods."""

    async def close(self) -> None:
        """Idempotent, bounded in time."""


class Audit(Protocol):
    """Keeps what was asked and what became of it. Raises OSError: it cannot."""

    async def admit(self, entry: Mapping[str, Any], rate: Rate | None) -> bool:
        """Returned True: the attempt is on disk. False: the target's rate is used up, and that is on disk."""

    async def finish(self, entry: Mapping[str, Any]) -> None:
        """Returned: the outcome is on disk."""


class TagRule(Protocol):
    """What a tag's settings say of writing."""

    @property
    def scale(self) -> float: ...
    @property
    def offset(self) -> float: ...
    @property
    def write(self) -> WriteRule | None: ...


class Commands:
    """All commands to one device. `who` says on whose behalf, in the words of where it came from."""

    def __init__(
        self,
        device: str,
        tags: Mapping[str, TagRule],
        methods: Mapping[str, CallRule],
        writer: Writer,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._device = device
        self._tags = tags
        self._methods = methods
        self._writer = writer
        self._audit = audit
        self._clock = clock

    async def write(self, tag: str, value: Any, who: str) -> Outcome:
        """Writes a value in engineering units; never raises for what a machine or a user does."""
        entry = self._entry("write", tag, value, who)
        try:
            rule, raw = self._allowed(tag, value)
        except Refused as error:
            return await self._refused(entry, error)
        return await self._recorded(entry, rule.rate, lambda: self._write(self._tags[tag], rule, tag, raw))

    async def call(self, method: str, arguments: Sequence[Any], who: str) -> Outcome:
        """Calls a method; never raises for what a machine or a user does."""
        entry = self._entry("call", method, list(arguments), who)
        rule = self._methods.get(method)
        if rule is None:
            allowed = ", ".join(self._methods) or "none"
            return await self._refused(
                entry, Refused(BAD_METHOD_INVALID, f"the file allows no method `{method}` (allowed: {allowed})")
            )
        return await self._recorded(entry, rule.rate, lambda: self._writer.call(method, arguments))

    def _allowed(self, tag: str, value: Any) -> tuple[WriteRule, Any]:
        """The tag's rule, and the value as the machine has it. Raises Refused."""
        settings = self._tags.get(tag)
        if settings is None:
            raise Refused(BAD_NODE_ID_UNKNOWN, f"device {self._device} has no tag `{tag}`")
        if settings.write is None:
            raise Refused(BAD_NOT_WRITABLE, f"the file does not allow writing `{tag}`: give the tag `write:`")
        _check(settings.write, value)
        return settings.write, _raw(value, settings)

    async def _write(self, settings: TagRule, rule: WriteRule, tag: str, raw: Any) -> Outcome:
        before = None
        try:
            before = _shown(await self._writer.read(tag), settings)
        except Refused as error:
            if error.status not in (BAD_NOT_READABLE, BAD_USER_ACCESS_DENIED):
                raise
            if rule.read_back:
                raise Refused(error.status, f"{error}; `read_back: 0` writes without looking") from error
        outcome = replace(await self._writer.write(tag, raw), before=before)
        if outcome.good and rule.read_back:
            outcome = await self._read_back(outcome, settings, rule, tag)
        return replace(outcome, value=_shown(outcome.value, settings))

    async def _read_back(self, outcome: Outcome, settings: TagRule, rule: WriteRule, tag: str) -> Outcome:
        deadline_ns = self._clock.mono_ns() + rule.read_back
        sent = _shown(outcome.value, settings)
        while True:
            try:
                found = await self._writer.read(tag)
            except GatewayError as error:
                return replace(outcome, status=UNCERTAIN, reason=f"written, but it cannot be read back: {error}")
            if _same(_shown(found, settings), sent, rule.tolerance):
                return replace(outcome, value=found)
            if self._clock.mono_ns() >= deadline_ns:
                reason = f"written, but it reads {_shown(found, settings)!r} instead of {sent!r}"
                return replace(outcome, status=UNCERTAIN, reason=reason, value=found)
            await self._clock.sleep(READ_BACK_EVERY_S)

    async def _recorded(
        self, entry: dict[str, Any], rate: str | None, command: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """The outcome of `command`, which is run only when its attempt is on disk."""
        try:
            admitted = await self._audit.admit(entry, rate_of(rate) if rate else None)
        except OSError as error:
            return Outcome(BAD_RESOURCE_UNAVAILABLE, f"it cannot be recorded, so it is not done: {error}")
        if not admitted:
            return Outcome(BAD_REQUEST_NOT_ALLOWED, f"more often than the file allows ({rate})")
        try:
            outcome = await command()
        except Refused as error:
            outcome = Outcome(error.status, str(error))
        except GatewayError as error:
            outcome = Outcome(BAD_NOT_CONNECTED, str(error))
        except asyncio.CancelledError:
            await self._finished(entry, Outcome(UNCERTAIN, "given up in the middle: it may have been done"))
            raise
        return await self._finished(entry, outcome)

    async def _refused(self, entry: dict[str, Any], error: Refused) -> Outcome:
        return await self._finished(entry, Outcome(error.status, str(error)))

    async def _finished(self, entry: dict[str, Any], outcome: Outcome) -> Outcome:
        found = {"before": outcome.before, "result": outcome.value, "status": outcome.status, "reason": outcome.reason}
        try:
            await self._audit.finish({**entry, "t": self._clock.wall_ns(), **found})
        except OSError as error:
            return replace(outcome, reason="; ".join(filter(None, (outcome.reason, f"not recorded: {error}"))))
        return outcome

    def _entry(self, command: str, target: str, value: Any, who: str) -> dict[str, Any]:
        now_ns = self._clock.wall_ns()
        path = f"{self._device}/{target}"
        return {"t": now_ns, "id": uuid.uuid4().hex, "who": who, "command": command, "target": path, "value": value}


def _check(rule: WriteRule, value: Any) -> None:
    """Range and list of values, each number of an array alike. Raises Refused."""
    for one in value if isinstance(value, list) else [value]:
        if rule.only and not any(one == allowed and type(one) is type(allowed) for allowed in rule.only):
            allowed = ", ".join(map(str, rule.only))
            raise Refused(BAD_OUT_OF_RANGE, f"{one!r} is none of the values that the file allows: {allowed}")
        if _is_number(one) and not -sys.float_info.max <= one <= sys.float_info.max:
            raise Refused(BAD_OUT_OF_RANGE, f"{one} is not a number that can be written")
        limited = rule.min is not None or rule.max is not None
        if limited and not _is_number(one):
            raise Refused(BAD_TYPE_MISMATCH, f"{one!r} is not a number, and the tag has `min:` or `max:`")
        if rule.min is not None and one < rule.min:
            raise Refused(BAD_OUT_OF_RANGE, f"{one} is below the file's min, {rule.min:g}")
        if rule.max is not None and one > rule.max:
            raise Refused(BAD_OUT_OF_RANGE, f"{one} is above the file's max, {rule.max:g}")


def _raw(value: Any, tag: TagRule) -> Any:
    """Engineering units -> what the machine has: the inverse of `scale` and `offset`, without the last bits' noise."""
    if tag.scale == 1.0 and tag.offset == 0.0:
        return value
    if isinstance(value, list):
        return [_raw(one, tag) for one in value]
    if not _is_number(value):
        raise Refused(BAD_TYPE_MISMATCH, f"{value!r} is not a number, and the tag has `scale:` or `offset:`")
    if tag.scale == 0.0:
        raise Refused(BAD_NOT_WRITABLE, "the tag's scale is 0: nothing leads back to the machine's value")
    return float(f"{(value - tag.offset) / tag.scale:.12g}")


def _shown(value: Any, tag: TagRule) -> Any:
    """The machine's value in engineering units; what is no number as it is."""
    if tag.scale == 1.0 and tag.offset == 0.0:
        return value
    if isinstance(value, list):
        return [_shown(one, tag) for one in value]
    return float(f"{value * tag.scale + tag.offset:.12g}") if _is_number(value) else value


def _same(found: Any, sent: Any, tolerance: float) -> bool:
    if isinstance(found, list) and isinstance(sent, list):
        return len(found) == len(sent) and all(_same(*pair, tolerance) for pair in zip(found, sent, strict=True))
    if _is_number(found) and _is_number(sent):
        return bool(found == sent or abs(found - sent) <= tolerance)
    return bool(found == sent)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
