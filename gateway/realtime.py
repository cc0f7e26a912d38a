"""What a worker asks of its host: processor cores, priority, memory that stays. What is refused is said, and goes on.

Linux man pages sched(7), sched_setaffinity(2), setpriority(2), mlockall(2). The priority is the event loop's alone
(SCHED_RESET_ON_FORK): threads that decode or wait for the disk, and processes, begin as ordinary ones. A real-time task
that never waits is held to 95 % of a core by the kernel (`sched_rt_runtime_us`). Memory is locked as it is first used
(MCL_ONFAULT): what is never touched takes none.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.log import Log
from gateway.workers_settings import Worker
from pipelines.counters import Counters

CAP_IPC_LOCK: Final = 14
CAP_SYS_NICE: Final = 23
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True)
class Asked:
    """One thing, and what the host said."""

    what: str
    """The key in the file."""
    value: Any
    refused: str
    """Why not, and what is missing; empty: granted."""


class Refused(Exception):
    """Its text says why, and what is missing."""


def ask(worker: Worker) -> list[Asked]:
    """Asks for what the file says, for this process; a line in the log for each that is refused."""
    wanted: list[tuple[str, Any, Callable[[Any], None]]] = [
        ("cpu", worker.cpu, _pin),
        ("nice", worker.nice, _be_nice),
        ("realtime", worker.realtime, _be_realtime),
        ("lock_memory", worker.lock_memory, _lock_memory),
    ]
    asked = [Asked(what, value, _answer(do, value)) for what, value, do in wanted if value not in (None, (), False)]
    for each in asked:
        if each.refused:
            value = _list(each.value) if isinstance(each.value, tuple) else each.value
            Log("gateway").warning(f"the host refuses {each.what}: {value}; it goes on without: {each.refused}")
    return asked


def answers(asked: Iterable[Asked]) -> dict[str, Any]:
    """For `/health`."""
    return {
        each.what: {"asked": each.value, "granted": not each.refused}
        | ({"reason": each.refused} if each.refused else {})
        for each in asked
    }


def granted(worker: str, asked: Iterable[Asked]) -> Counters:
    """For `/metrics`: `gateway_worker_realtime_granted` and so on, 1 or 0."""
    counters = Counters("worker", worker)
    for each in asked:
        counters.set(f"{each.what}_granted", int(not each.refused))
    return counters


def _answer(do: Callable[[Any], None], value: Any) -> str:
    try:
        do(value)
    except Refused as refused:
        return str(refused)
    except AttributeError:
        return "this operating system has no such call"
    return ""


def _pin(cores: tuple[int, ...]) -> None:
    allowed = os.sched_getaffinity(0)
    if not set(cores) <= allowed:
        missing = ", ".join(map(str, sorted({*cores} - allowed)))
        raise Refused(f"core {missing} is not there, or not for this process (it may use {_list(allowed)})")
    os.sched_setaffinity(0, cores)


def _be_nice(nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except PermissionError:
        raise Refused("below what it was started with needs CAP_SYS_NICE or RLIMIT_NICE") from None


def _be_realtime(priority: int) -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        if _capable(CAP_SYS_NICE):
            why = "though CAP_SYS_NICE is there: no real-time time for this control group, or a seccomp filter"
        else:
            most = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
            why = f"needs CAP_SYS_NICE, or RLIMIT_RTPRIO of {priority} and more (it is {most})"
        raise Refused(why) from None


def _lock_memory(_: bool) -> None:
    """Where a limit is left, to lock what comes later would make the process fail when it reaches it."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit != resource.RLIM_INFINITY and not _capable(CAP_IPC_LOCK):
        raise Refused(f"needs CAP_IPC_LOCK, or RLIMIT_MEMLOCK without a limit (it is {limit} bytes)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        raise Refused(os.strerror(ctypes.get_errno()))


def _capable(capability: int) -> bool:
    """This process has it in effect (/proc/self/status, capabilities(7))."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    bits = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(bits, 16) >> capability & 1)


def _list(cores: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
