"""What services are built from, downloaded or compiled once and kept under the repository's ignored `.services/`."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.services.process import ServiceMissing

ROOT = Path(__file__).resolve().parents[2] / ".services"


def cached(name: str, sources: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """The folder that build(folder) fills, made once per content of `sources`.

    A build that fails leaves nothing behind; two processes that want the same folder build it once.
    """
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = ROOT / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    ROOT.mkdir(parents=True, exist_ok=True)
    with _locked(ROOT / f"{name}.lock"):
        if not folder.is_dir():
            _build(name, folder, build)
    return folder


def run(
    argv: Sequence[str | Path],
    what: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    failure: type[Exception] = ServiceMissing,
) -> None:
    """Runs a command to its end; `failure` with the end of its output when it fails."""
    command = [str(part) for part in argv]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).decode(errors="replace").splitlines()[-20:])
        raise failure(f"{what}: `{' '.join(command[:4])} ...` failed with code {done.returncode}:\n{tail}")


def _build(name: str, folder: Path, build: Callable[[Path], None]) -> None:
    for outdated in ROOT.glob(f"{name}-*"):
        shutil.rmtree(outdated)
    building = Path(tempfile.mkdtemp(prefix=f"{name}.building-", dir=ROOT))
    try:
        build(building)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
