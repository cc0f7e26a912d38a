"""How every benchmark measures and what it prints.

What is measured runs alone in a process of its own (`in_child`), ours and the reference by turns (`by_turns`), because
the machine is never quiet. The figure is the best of the rounds, the median stands beside it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Literal, ParamSpec, TypeVar

from connectors.network import new_loop

P = ParamSpec("P")
T = TypeVar("T")
ROUNDS = 3
CHILD_S = 120.0


@dataclass(frozen=True)
class Bar:
    """What a figure, or its ratio to the reference, must keep."""

    wanted: Literal["at most", "at least"]
    limit: float
    of: Literal["figure", "ratio"] = "figure"

    def holds(self, number: float) -> bool:
        """Whether `number` keeps it."""
        return number <= self.limit if self.wanted == "at most" else number >= self.limit

    def __str__(self) -> str:
        return f"{self.of} {self.wanted} {_number(self.limit)}"


@dataclass(frozen=True)
class Figure:
    """One row: rounds of ours and of the reference, in `unit`; no rounds of a reference where there is none."""

    name: str
    unit: str
    ours: Sequence[float]
    reference: Sequence[float] = ()
    bar: Bar | None = None
    more_is_better: bool = False
    remark: str = field(default="", kw_only=True)

    @property
    def best(self) -> float:
        """Ours, the best round."""
        return self._best(self.ours)

    @property
    def ratio(self) -> float | None:
        """Best of ours / best of the reference."""
        return self.best / self._best(self.reference) if self.reference else None

    @property
    def passed(self) -> bool:
        """The bar is kept, or there is none. A bar on the ratio needs a reference."""
        if self.bar is None:
            return True
        number = self.best if self.bar.of == "figure" else self.ratio
        return number is not None and self.bar.holds(number)

    def cells(self) -> list[str]:
        """The row's texts, in the order of the table's columns."""
        reference = self._text(self.reference) if self.reference else "-"
        ratio = "-" if self.ratio is None else _ratio(self.ratio)
        verdict = "-" if self.bar is None else "PASS" if self.passed else "FAIL"
        return [self.name, self.unit, self._text(self.ours), reference, ratio, str(self.bar or "-"), verdict]

    def _best(self, rounds: Sequence[float]) -> float:
        return max(rounds) if self.more_is_better else min(rounds)

    def _text(self, rounds: Sequence[float]) -> str:
        best = _number(self._best(rounds))
        return best if len(rounds) == 1 else f"{best} ({_number(median(rounds))})"


COLUMNS = ("figure", "unit", "ours", "reference", "ratio", "bar", "")


def report(title: str, figures: Sequence[Figure]) -> int:
    """Prints the table; the exit code, 1 where a bar is missed."""
    print(f"{title}\n{_machine()}")
    rows = [list(COLUMNS), *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("  best of the rounds, their median in brackets; ratio = ours / reference")
    for figure in figures:
        if figure.remark:
            print(f"  {figure.name}: {figure.remark}")
    return 0 if all(figure.passed for figure in figures) else 1


def by_turns(rounds: int, *measures: Callable[[], T]) -> list[list[T]]:
    """Each measure's results: one of each in every round."""
    results: list[list[T]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, found in zip(measures, results, strict=True):
            found.append(measure())
    return results


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function`, defined in a module, returns in a fresh process. RuntimeError when that fails."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, function, args, kwargs), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(CHILD_S):
            raise RuntimeError(f"{function.__name__}: no result within {CHILD_S:g} s")
        result: T = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"{function.__name__} failed (code {child.exitcode}), see above") from None
    finally:
        child.kill()
        child.join()
    return result


def on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Runs it on uvloop, as the gateway does."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Looked at every millisecond. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def cpu_of(pid: int) -> float:
    """CPU seconds, user and system, of all threads of a running process, to the nanosecond.

    The clock id of a process is the kernel's, see clock_getcpuclockid(3): ~pid << 3 | CPUCLOCK_SCHED.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _answer(pipe: Connection, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # its publish loop logs tracebacks at every disconnect
    pipe.send(function(*args, **kwargs))


def _machine() -> str:
    cores, load = os.cpu_count(), os.getloadavg()[0]
    loop = f"uvloop {version('uvloop')}"
    speed = f"fixed work {_fixed_work_ms():.1f} ms"
    return (
        f"  {cores} cores, {platform.machine()}, Python {platform.python_version()}, {loop}, load {load:.1f}, {speed}"
    )


def _fixed_work_ms() -> float:
    """CPU time of the same dictionary work every time: says how fast this machine was, to compare two runs."""
    begun_s = time.process_time()
    for _ in range(10):
        table = {str(number): number for number in range(20_000)}
        assert sum(map(table.__getitem__, table)) > 0
    return (time.process_time() - begun_s) / 10 * 1e3


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{_number(value)} = 1/{1 / value:.1f}" if 0 < value < 0.1 else _number(value)
