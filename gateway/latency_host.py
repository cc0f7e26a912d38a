"""What of a host decides about latency: read from /proc and /sys, tried where only trying tells. Written for Linux."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
CPUS: Final = Path("/sys/devices/system/cpu")


def host() -> dict[str, str]:
    """Fact -> what it is on this host."""
    kernel = platform.uname()
    return {
        "machine": f"{_cpu_model()}, {os.cpu_count()} CPUs{', virtual' if _virtual() else ''}",
        "kernel": f"{kernel.system} {kernel.release}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "preempt_rt": "yes" if _preempt_rt(kernel.version) else "no",
        "governor": _each("cpufreq/scaling_governor"),
        "idle_states": _each("cpuidle/current_governor", CPUS),
        "isolated_cpus": _read(CPUS / "isolated") or "none",
        "nohz_full": _read(CPUS / "nohz_full").replace("(null)", "") or "none",
        "allowed_cpus": _allowed() or UNKNOWN,
        "clock_source": _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")) or UNKNOWN,
        "timer_slack": f"{slack} ns" if (slack := _read(Path("/proc/self/timerslack_ns"))) else UNKNOWN,
        "irq_affinity": _irqs(),
        "busy_poll": f"{_read(Path('/proc/sys/net/core/busy_poll')) or UNKNOWN} us",
        "rt_throttling": f"{_read(Path('/proc/sys/kernel/sched_rt_runtime_us')) or UNKNOWN} us of 1 s",
        "scheduling": _scheduling(),
        "sched_fifo": _fifo(),
        "mlock": _mlock(),
        "load": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs",
    }


def advice(facts: Mapping[str, str]) -> list[str]:
    """What stands in the way of low latency here; the chapter on tuning in docs/latency.md says how to change it."""
    said = []
    if facts["governor"] not in ("performance", UNKNOWN):
        said.append(f"the CPU's governor is {facts['governor']}: `performance` keeps its frequency up")
    if facts["preempt_rt"] == "no":
        said.append("the kernel is no PREEMPT_RT: interrupts and kernel work may delay even a real-time process")
    if facts["isolated_cpus"] == "none":
        said.append("no CPU is isolated: anything may run where the fast path runs")
    if facts["clock_source"] not in ("tsc", "arch_sys_counter", UNKNOWN):
        said.append(f"the clock source is {facts['clock_source']}: reading the time may be a system call and slow")
    if facts["sched_fifo"] != "allowed":
        said.append("SCHED_FIFO is not allowed: under load the tail is the scheduler's (CAP_SYS_NICE)")
    if facts["mlock"] != "allowed":
        said.append("locking memory is not allowed: under memory pressure pages come back from disk (CAP_IPC_LOCK)")
    if float(facts["load"].split()[0]) > 0.5 * (os.cpu_count() or 1):
        said.append(f"the host is busy, load {facts['load']}: these figures are of a busy host")
    return said


def _read(path: Path) -> str:
    """Empty where there is no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _each(name: str, folder: Path | None = None) -> str:
    """What all CPUs have, or which there are."""
    files = [folder / name] if folder else sorted(CPUS.glob(f"cpu[0-9]*/{name}"))
    return "/".join(sorted({_read(file) for file in files} - {""})) or UNKNOWN


def _allowed() -> str:
    status = _read(Path("/proc/self/status")).splitlines()
    return next((line.split()[1] for line in status if line.startswith("Cpus_allowed_list")), "")


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _virtual() -> bool:
    return any(line.startswith("flags") and " hypervisor" in line for line in _read(Path("/proc/cpuinfo")).splitlines())


def _preempt_rt(version: str) -> bool:
    return _read(Path("/sys/kernel/realtime")) == "1" or "PREEMPT_RT" in version


def _irqs() -> str:
    """Where interrupts may go; a daemon that moves them is worth knowing."""
    mask = _read(Path("/proc/irq/default_smp_affinity"))
    moved = any(_read(path / "comm") == "irqbalance" for path in Path("/proc").glob("[0-9]*"))
    return f"default mask {mask or UNKNOWN}, irqbalance {'runs' if moved else 'does not run'}"


def _scheduling() -> str:
    """Of this process, which what it starts takes over."""
    if sys.platform != "linux":
        return UNKNOWN
    policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    if policy in (names := {os.SCHED_FIFO: "FIFO", os.SCHED_RR: "RR"}):
        return f"SCHED_{names[policy]} {os.sched_getparam(0).sched_priority}"
    return f"nice {os.nice(0)}"


def _fifo() -> str:
    return _tried("import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))")


def _mlock() -> str:
    answer = _tried("import ctypes, os; ctypes.CDLL(None).mlockall(3) and os._exit(1)")
    if answer == "allowed" or answer == UNKNOWN:
        return answer
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return f"{answer}; RLIMIT_MEMLOCK is {limit // 1024} KiB"


def _tried(code: str) -> str:
    """In a process of its own, so that this one stays as it is."""
    if sys.platform != "linux":
        return UNKNOWN
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, check=False)
    return "refused" if done.returncode else "allowed"
