"""One child process, and one real server in it: started, waited for, stopped by its own id, its output kept.

A child dies with its parent: `setpriv --pdeathsig KILL` (util-linux) sets that on Linux. The kernel sends the signal
when the *thread* that started the child ends, so every child is started from one thread that lives as long as this
process; a test may therefore call start() from `asyncio.to_thread`.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.services.ports import accepts

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")
_setpriv = shutil.which("setpriv")
_POLL_S = 0.01


class ServiceMissing(Exception):
    """Something a service needs is not on this machine and cannot be installed; the text is one line that says what."""


class ServiceFailed(Exception):
    """A server did not do what was waited for; the text ends with the tail of its log."""


class ServerProcess:
    """A child process with its output (stdout and stderr) in one log file and a pipe to its stdin.

    Every wait has a deadline in seconds; ServiceFailed, with the log's tail, when it passes or the process ends.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self.argv = list(argv)
        self._env = {**os.environ, **(env or {})}
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        """Starts the process; it is not ready yet. RuntimeError when it runs already."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already (process {self.pid})")
        self._release()
        prefix = [_setpriv, "--pdeathsig", "KILL", "--"] if _setpriv else []
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._child = _spawner.submit(
                subprocess.Popen,
                [*prefix, *self.argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self.log.parent,
                start_new_session=True,  # Ctrl-C goes to the test run only, which then stops its servers in order
            ).result()

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id. RuntimeError before the first start."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child.pid

    def send(self, line: str) -> None:
        """Writes one line to the process's stdin."""
        if self._child is None or self._child.stdin is None:
            raise RuntimeError(f"{self.name} was not started")
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()

    def mark(self) -> int:
        """The log's present end: pass it to wait_line so that only later lines count."""
        return self.log.stat().st_size

    def wait_line(self, pattern: str, timeout_s: float, since: int | None = None) -> re.Match[str]:
        """The first match of a (multi-line mode) pattern in the output, from `since` or from the present start."""
        regex = re.compile(pattern, re.MULTILINE)
        found: list[re.Match[str]] = []

        def matched() -> bool:
            match = regex.search(self._text(self._log_start if since is None else since))
            if match is not None:
                found.append(match)
            return match is not None

        self.wait_until(matched, timeout_s, f"a line matching {pattern!r}")
        return found[0]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Returns when condition() is true, which is asked every 10 ms while the process runs."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if not self.running:
                raise ServiceFailed(f"{self.name} ended (code {self.returncode}) before {what}{self._tail_text()}")
            if time.monotonic() > deadline_s:
                raise ServiceFailed(f"{self.name}: no {what} within {timeout_s:g} s{self._tail_text()}")
            time.sleep(_POLL_S)

    @property
    def returncode(self) -> int | None:
        """The exit code of the ended process (negative: the signal), else None."""
        return None if self._child is None else self._child.poll()

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after timeout_s; returns when the process has ended. Idempotent, legal before start."""
        if self._child is not None and self.running:
            self.resume()
            self._child.terminate()
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._release()

    def kill(self) -> None:
        """SIGKILL; returns when the process has ended. Idempotent, legal before start."""
        if self._child is not None and self.running:
            self._child.kill()
        self._release()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers (a half-open link)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: undoes pause(); harmless otherwise."""
        os.kill(self.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """CPU seconds, user and system, used by the running process so far (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Resident memory of the running process (Linux)."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the output since the present start."""
        return "\n".join(self._text(self._log_start).splitlines()[-lines:])

    def _text(self, offset: int) -> str:
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def _tail_text(self) -> str:
        return f"; the end of its log:\n{self.log_tail()}"

    def _release(self) -> None:
        if self._child is not None:
            self._child.wait()
            if self._child.stdin is not None:
                self._child.stdin.close()


class Service:
    """A real server on 127.0.0.1 that keeps its port over restarts; a subclass says what it runs and when it is ready.

    `with Mosquitto() as server:` starts it and, at the end, stops it and removes its folder. start, stop, kill and
    restart block: call them by `asyncio.to_thread` where a loop must go on. ServiceMissing when it is made and its
    program cannot be had, ServiceFailed when it does not become ready.
    """

    ready_s = 60.0

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix=f"mec-{name}-"))
        self.process = ServerProcess(name, [], self.folder / "log")

    def run_as(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Sets the command line; for subclasses' constructors."""
        self.process = ServerProcess(self.name, [str(part) for part in argv], self.folder / "log", env)

    def wait_ready(self) -> None:
        """Returns when the server answers; here: when its port accepts connections."""
        self.process.wait_until(lambda: accepts(self.port), self.ready_s, f"listener on port {self.port}")

    def start(self) -> Self:
        """Starts the server and waits until it is ready."""
        self.process.start()
        try:
            self.wait_ready()
        except BaseException:
            self.process.kill()
            raise
        return self

    def stop(self) -> None:
        """Ends the server the polite way. Idempotent."""
        self.process.stop()

    def kill(self) -> None:
        """Ends the server as a crash would (SIGKILL). Idempotent."""
        self.process.kill()

    def restart(self) -> None:
        """Stops the server if it runs and starts it on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops the server and removes its folder. Idempotent."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
