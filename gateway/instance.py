"""The data folder: whose it is, and its instance count: +1 at each start, the upper part of every `seq`.

It must never go back: consumers take a `seq` that they know for a duplicate. So it is written before anything is
sent, atomically (new file, fsync, rename, fsync of the folder), and a file that cannot be understood stops the start.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipelines.errors import Permanent, Poisoned
from pipelines.files import RealFiles

INSTANCES_MAX: Final = 2**17
"""`seq` stays below 2^53 for this many starts."""


ENDING_S: Final = 1.0
"""The workers of a gateway that was killed end a moment after it."""
LOOK_EVERY_S: Final = 0.02


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """The data folder is this process's alone; the kernel gives it back however the process ends.

    Raises Permanent where another gateway has it, and what `next_instance` raises.
    """
    files = RealFiles()
    with _explained(data_dir):
        files.make_folder(data_dir)
        handle = _lock(files, data_dir)
    try:
        yield
    finally:
        files.close(handle)


def next_instance(data_dir: Path) -> int:
    """Counts this start. Creates `data_dir` where it does not exist.

    Raises Permanent where the folder cannot be made or written (the file names the wrong one: exit code 2), and
    Poisoned where the storage itself fails or the count is unreadable (exit code 3).
    """
    file = data_dir / "instance"
    with _explained(data_dir):
        RealFiles().make_folder(data_dir)  # on disk: a folder that a power cut takes would begin to count anew
        count = _read(file) + 1
        if count >= INSTANCES_MAX:
            raise Poisoned(
                f"{file}: {count} starts are more than sequence numbers can hold; give the gateway a new id "
                f"(gateway.id) and remove this file"
            )
        _write(file, count)
    return count


def _lock(files: RealFiles, data_dir: Path) -> int:
    until_s = time.monotonic() + ENDING_S
    while True:
        try:
            return files.lock(data_dir / "lock")
        except BlockingIOError as error:
            if time.monotonic() > until_s:
                raise Permanent(
                    f"data_dir {data_dir} is in use by another gateway: stop it, or set gateway.data_dir to another "
                    "folder"
                ) from error
            time.sleep(LOOK_EVERY_S)


@contextmanager
def _explained(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise Permanent(
            f"data_dir {data_dir} cannot be written ({error.strerror}): give the gateway's user write access, "
            f"or set gateway.data_dir to a folder that it owns"
        ) from error
    except OSError as error:
        kind = Permanent if error.errno == errno.EROFS else Poisoned
        raise kind(
            f"data_dir {data_dir} cannot be used: {error.strerror or error}; check the disk, or set gateway.data_dir "
            f"to a folder on another one"
        ) from error


def _read(file: Path) -> int:
    try:
        text = file.read_text("ascii").strip()
    except FileNotFoundError:
        return 0
    except UnicodeDecodeError:
        text = "unreadable bytes"
    if not text.isdigit():
        raise Poisoned(
            f"{file} holds {text[:40]!r} instead of a number: restore it from a backup, or write a number into it "
            f"that is larger than the count of all starts so far"
        )
    return int(text)


def _write(file: Path, count: int) -> None:
    new = file.with_suffix(".new")
    with new.open("w", encoding="ascii") as handle:
        handle.write(f"{count}\n")
        handle.flush()
        os.fsync(handle.fileno())
    new.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
