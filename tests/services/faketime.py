"""libfaketime, Debian's package: a process whose wall clock a test sets, while its monotonic clock stays true."""

import os
from pathlib import Path

from tests.services.packages import apt_install
from tests.services.process import ServiceMissing

_PLACES = ("/usr/lib", "/usr/local/lib")


def install() -> None:
    """Installs the library when it is absent. ServiceMissing when that cannot be."""
    _library()


class FakeTime:
    """`env` for the process; `set` moves its clock at once, and as often as one likes."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.set(0.0)
        self.env = {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: float) -> None:
        """The process's wall clock is ahead of the true one by so much from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+.6f}")
        os.replace(new, self._file)


def _library() -> str:
    if not (found := _found()):
        apt_install("libfaketime", needed="libfaketime")
        found = _found()
    if not found:
        raise ServiceMissing("libfaketime is not here though its package is installed")
    return found[0]


def _found() -> list[str]:
    return [str(path) for place in _PLACES for path in sorted(Path(place).glob("**/faketime/libfaketime.so.1"))]
