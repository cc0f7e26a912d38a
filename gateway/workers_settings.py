"""`workers:` of the file: groups of devices that run in processes of their own, and whose device is whose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, field_validator

from pipelines.quantities import Settings
from pipelines.selector import may_match

OTHERS: Final = "others"
"""The worker of the devices that no worker of the file names."""
SHARED: Final = "shared"
"""The process of what all workers share."""
RESERVED: Final = frozenset({OTHERS, SHARED, "local"})
"""Names that the file cannot give: `route@local` is the stream of a broker on site."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class Worker(Settings):
    """One process: some devices, with what their routes need. What the host refuses is said, and does not stop it."""

    devices: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = Field(
        min_length=1,
        description="Its devices; `*` and `?` are wildcards. A device that one worker names in full is not another's "
        "whose wildcard fits it too.",
        examples=["press4", ["press4", "meter*"]],
    )
    cpu: Annotated[tuple[int, ...], BeforeValidator(_listed, json_schema_input_type=int | list[int])] = Field(
        (), description="The processor cores that it may use, counted from 0; none named: all.", examples=[1, [2, 3]]
    )
    realtime: int | None = Field(
        None,
        ge=1,
        le=99,
        description="Priority in the real-time class SCHED_FIFO: it runs before all that is not real-time. Needs "
        "CAP_SYS_NICE or RLIMIT_RTPRIO.",
        examples=[10],
    )
    lock_memory: bool = Field(
        False,
        description="true: its memory is never paged out (mlockall). Needs CAP_IPC_LOCK, or RLIMIT_MEMLOCK unlimited.",
    )
    nice: int | None = Field(
        None,
        ge=-20,
        le=19,
        description="Priority among ordinary processes: 19 gives way to all others; below 0 needs CAP_SYS_NICE.",
        examples=[5],
    )

    @field_validator("devices")
    @classmethod
    def _whole(cls, devices: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in devices:
            if "/" in pattern:
                raise ValueError(f"{pattern!r}: a worker has whole devices, write the device's name only")
        return devices

    @field_validator("cpu")
    @classmethod
    def _cores(cls, cores: tuple[int, ...]) -> tuple[int, ...]:
        if any(core < 0 for core in cores):
            raise ValueError("processor cores are counted from 0")
        return cores


def claims(device: str, patterns: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, int]]:
    """(worker, index of its pattern) for each worker that has `device` by its rules; more than one is a mistake.

    Names in full go before wildcards.
    """
    found = [(worker, next(_fits(device, its), None)) for worker, its in patterns.items()]
    exact = [(worker, hit[1]) for worker, hit in found if hit and hit[0]]
    yield from exact or [(worker, hit[1]) for worker, hit in found if hit]


def owners(devices: Iterable[str], workers: Mapping[str, Worker]) -> dict[str, str]:
    """Device -> its worker; OTHERS for those that none has."""
    patterns = {name: worker.devices for name, worker in workers.items()}
    return {device: next((name for name, _ in claims(device, patterns)), OTHERS) for device in devices}


def _fits(device: str, patterns: Iterable[str]) -> Iterator[tuple[bool, int]]:
    """(named in full, index) of the patterns that fit, those named in full first."""
    known = list(patterns)
    yield from ((True, at) for at, pattern in enumerate(known) if pattern == device)
    yield from ((False, at) for at, pattern in enumerate(known) if pattern != device and may_match(pattern, device))
