"""`workers:`: this process starts one for each worker and one for what they share, starts them again, stops them.

It has no event loop, no thread and no connection: so it can fork at any time, a worker that is started again has
everything loaded already, and nothing that a worker does can hold it up. A child ends with it, however it ends
(`gateway.child`). Signals are for it alone: what it tells its children goes through pipes (`workers_orders`), because
service managers and terminals signal every process of a group, and a second signal means "at once".

    running -> restarting -> running ...     stopped

A worker that ends is started again: at once, or, when it did not run for `STABLE_S`, after a time that doubles. Storage
that failed (code 3) ends the gateway, and so does a first start that fails (code 2), as without workers.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import orjson

from gateway.app import Exit
from gateway.child import end_with_parent
from gateway.log import Log
from gateway.workers_orders import STOP, send
from pipelines.errors import Permanent, Poisoned

FIRST_S, MOST_S = 0.5, 30.0
"""Before a start that follows soon after another, and at most."""
STABLE_S: Final = 10.0
SLACK_S: Final = 10.0
"""Beyond `stop_timeout`, for journals on a slow disk; then SIGKILL."""

Run = Callable[[int], int]
"""In the child: read end of its pipe -> exit code."""


@dataclass
class Member:
    """One child process, again and again."""

    name: str
    prepare: Callable[[], Run]
    """Before each start, in the parent. Raises Permanent, Poisoned."""
    pid: int = 0
    """0 while there is none."""
    pipe: int = -1
    state: str = "starting"
    since_ns: int = 0
    reason: str = ""
    starts: int = 0
    failures: int = 0
    """In a row."""
    began_s: float = 0.0
    due_s: float = 0.0
    """When to start it, monotonic."""

    def enter(self, state: str, reason: str = "") -> None:
        self.state, self.reason, self.since_ns = state, reason, time.time_ns()

    def shown(self) -> dict[str, Any]:
        """For the pages."""
        known = {"name": self.name, "state": self.state, "since_ns": self.since_ns, "pid": self.pid}
        return known | {"restarts": max(self.starts - 1, 0), "reason": self.reason}


class Crew:
    """Runs the workers, and `shared`, which is told of each change and stopped last."""

    def __init__(self, workers: Sequence[Member], shared: Sequence[Member], stop_timeout_s: float) -> None:
        self._workers = workers
        self._shared = shared
        self._stop_timeout_s = stop_timeout_s
        self._signals = 0
        self._stops = 0
        self._deadline_s = 0.0
        self._told = b""
        self._code = Exit.STOPPED
        self._log = Log("gateway")

    def run(self) -> int:
        """Until all have ended; the exit code. Raises Permanent or Poisoned where one cannot be started at all."""
        with _signals(self._note_signal) as wake:
            while True:
                self._start_due()
                self._tell()
                select.select([wake], [], [], self._patience_s())
                with suppress(BlockingIOError):
                    os.read(wake, 4096)
                self._reap()
                while self._stops < self._signals:
                    self._stop()
                if self._stops and self._all_ended():
                    self._log.info("stopped; all workers have ended")
                    return self._code

    @property
    def _members(self) -> Sequence[Member]:
        return [*self._shared, *self._workers]

    def _note_signal(self) -> None:
        self._signals += 1

    def _start_due(self) -> None:
        now_s = time.monotonic()
        for member in self._members if not self._stops else ():
            if not member.pid and member.due_s <= now_s:
                self._start(member)

    def _start(self, member: Member) -> None:
        try:
            run = member.prepare()
        except (Permanent, Poisoned) as error:
            if not member.starts:
                raise
            if isinstance(error, Permanent) or _for_want_of_room(error):
                self._again(member, f"cannot be started: {error}")
            else:
                self._end(Exit.STORAGE_FAILED, f"storage failed, the gateway ends: {error}")
            return
        parent, member.began_s = os.getpid(), time.monotonic()
        try:
            member.pid, reading = _forked(member)
        except OSError as error:  # no memory, no processes left: this worker waits, the others go on
            self._again(member, f"cannot be started: {error.strerror or error}")
            return
        if not member.pid:
            self._live(run, reading, parent)
        member.starts += 1
        os.close(reading)
        member.enter("running")
        self._log.info("worker started", name=member.name, pid=member.pid)
        if member in self._shared:
            self._told = b""

    def _live(self, run: Run, reading: int, parent: int) -> NoReturn:
        """The child's life. Nothing of the parent's stack is left by it."""
        code = 1
        try:
            end_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that it starts would have too
            for member in self._members:
                if member.pipe >= 0:
                    os.close(member.pipe)
            code = run(reading)
        except Exception as error:  # noqa: BLE001  # a bug in one worker: the others go on
            self._log.bug("bug in this worker, it is started again", error)
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> None:
        for member in self._members:
            if member.pid and (found := os.waitpid(member.pid, os.WNOHANG))[0]:
                os.close(member.pipe)
                member.pid, member.pipe = 0, -1
                self._ended(member, os.waitstatus_to_exitcode(found[1]))

    def _ended(self, member: Member, code: int) -> None:
        """`code`: negative where a signal killed it."""
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == Exit.STORAGE_FAILED:
            self._end(Exit.STORAGE_FAILED, f"worker {member.name}: its storage failed, the gateway ends")
        elif code == Exit.BAD_CONFIGURATION and member.starts == 1:
            self._end(Exit.BAD_CONFIGURATION, f"worker {member.name} cannot start, the gateway ends")
        if not self._stops:
            self._again(member, how)
            return
        member.enter("stopped")
        if code:
            self._log.error(f"worker {member.name} {how}")

    def _again(self, member: Member, how: str) -> None:
        now_s = time.monotonic()
        member.failures = 1 if now_s - member.began_s >= STABLE_S else member.failures + 1
        wait_s = min(FIRST_S * 2.0 ** (member.failures - 2), MOST_S) if member.failures > 1 else 0.0
        member.due_s = now_s + wait_s
        member.enter("restarting", how)
        self._log.error(f"worker {member.name} {how}, it is started again", after_s=wait_s)

    def _end(self, code: Exit, message: str) -> None:
        """The whole gateway, because of one worker."""
        self._log.error(message)
        self._code = max(self._code, code)
        if not self._stops:
            self._signals += 1
            self._stop()

    def _stop(self) -> None:
        """Once: in order; twice: at once."""
        self._stops += 1
        self._deadline_s = time.monotonic() + SLACK_S + (self._stop_timeout_s if self._stops == 1 else 0.0)
        if self._stops == 1:
            self._log.info("stopping", within_s=self._stop_timeout_s)
        else:
            self._log.warning("stopping at once")
        for member in self._workers:
            if member.pid:
                send(member.pipe, STOP)
            else:
                member.enter("stopped")

    def _all_ended(self) -> bool:
        """The workers first, then what they shared; by force those that take too long."""
        running = [member for member in self._workers if member.pid]
        left = running or [member for member in self._shared if member.pid]
        if left and time.monotonic() >= self._deadline_s:
            for member in left:
                self._log.error(f"worker {member.name} does not end and is killed")
                os.kill(member.pid, signal.SIGKILL)
            self._deadline_s += SLACK_S
        elif not running:
            for member in left:
                send(member.pipe, STOP)
        return not left

    def _tell(self) -> None:
        """What the pages show of the workers, where it has changed."""
        phase = "running" if not self._stops else "failed" if self._code is Exit.STORAGE_FAILED else "stopping"
        told = orjson.dumps({"phase": phase, "workers": [member.shown() for member in self._workers]})
        if told != self._told:
            self._told = told
            for member in self._shared:
                if member.pid:
                    send(member.pipe, told)

    def _patience_s(self) -> float | None:
        """Until something is due; None: nothing is, but a signal may come."""
        if self._stops:
            return max(self._deadline_s - time.monotonic(), 0.05)
        due = [member.due_s for member in self._members if not member.pid]
        return max(min(due) - time.monotonic(), 0.0) if due else None


def _for_want_of_room(error: Poisoned) -> bool:
    """A full disk may have room again; until then the other workers drop what they cannot keep, and go on."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def _forked(member: Member) -> tuple[int, int]:
    """In both processes: the child's pid (0 in the child), the end of the pipe that the child reads. Raises OSError."""
    reading, member.pipe = os.pipe()
    os.set_blocking(member.pipe, False)
    try:
        return os.fork(), reading
    except OSError:
        os.close(reading)
        os.close(member.pipe)
        member.pipe = -1
        raise


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[int]:
    """A pipe that can be read after every signal; `stop` is called for each that asks to stop."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: stop()),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: stop()),
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
    }
    try:
        yield reading
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
