"""The few file operations that storage uses, and the real ones. The seam for fault tests: nothing else touches a file.

What a caller may rely on, and the simulator (`tests/sim`) takes away otherwise:

- what was written is on disk once `sync` of that file has returned, and not before;
- a file that was created, renamed or removed is so on disk once `sync_folder` has returned, and not before;
- `rename` is atomic: after a crash there is the old file or the new one;
- a file has room for the bytes that were reserved for it, whatever else fills the disk.

Every operation raises OSError. Those that wait for the disk (`sync`, `sync_folder`, `reserve`, `read`) belong into a
thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """What storage does to files. A handle is an open file, for writing."""

    def create(self, path: Path) -> int:
        """A new, empty file. Raises FileExistsError."""

    def reserve(self, handle: int, size: int) -> None:
        """Room for `size` bytes from the start on; the file's size becomes this, what is not written reads as zeros."""

    def write(self, handle: int, position: int, data: bytes) -> None:
        """All of `data`; after an error any part of it may be there."""

    def truncate(self, handle: int, size: int) -> None:
        """What is behind `size` is gone, and its room given back."""

    def sync(self, handle: int) -> None:
        """Returned: what was written, and the size, are on disk. After an error nothing is known (never try again)."""

    def open(self, path: Path) -> int:
        """An existing file, for writing. Raises FileNotFoundError."""

    def close(self, handle: int) -> None:
        """Also gives back a lock."""

    def read(self, path: Path, position: int = 0, size: int | None = None) -> bytes:
        """Up to `size` bytes, fewer only at the file's end; None: to its end. Raises FileNotFoundError."""

    def size(self, path: Path) -> int:
        """Bytes, the reserved ones included."""

    def names(self, folder: Path) -> Sequence[str]:
        """Of the files in `folder`, sorted."""

    def rename(self, old: Path, new: Path) -> None:
        """Takes the place of `new` if there is one."""

    def remove(self, path: Path) -> None:
        """Raises FileNotFoundError."""

    def make_folder(self, folder: Path) -> None:
        """With its parents; it may be there already. Returned: they are on disk."""

    def sync_folder(self, folder: Path) -> None:
        """Returned: what was created, renamed and removed in `folder` is on disk."""

    def free_bytes(self, folder: Path) -> int:
        """What this process may still write to the disk of `folder`."""

    def lock(self, path: Path) -> int:
        """For this process alone, until `close`; creates the file. Raises BlockingIOError where another has it."""


class RealFiles:
    """The operating system's; see `Files`."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def reserve(self, handle: int, size: int) -> None:
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(handle, size)  # a file system without reservations: a full disk shows at the write

    def write(self, handle: int, position: int, data: bytes) -> None:
        written = os.pwrite(handle, data, position)
        while written < len(data):  # a signal, or a disk that is about to be full: then the next one raises
            written += os.pwrite(handle, memoryview(data)[written:], position + written)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        os.fdatasync(handle)  # includes the size (POSIX: all that is needed to read the data)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, handle: int) -> None:
        os.close(handle)

    def read(self, path: Path, position: int = 0, size: int | None = None) -> bytes:
        with path.open("rb", buffering=0) as file:
            if size is None:
                size = max(os.fstat(file.fileno()).st_size - position, 0)
            data = os.pread(file.fileno(), size, position)
            while len(data) < size and (more := os.pread(file.fileno(), size - len(data), position + len(data))):
                data += more
            return data

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def names(self, folder: Path) -> Sequence[str]:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)

    def sync_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def free_bytes(self, folder: Path) -> int:
        disk = os.statvfs(folder)
        return disk.f_bavail * disk.f_frsize

    def lock(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        return handle


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process that asks for the same folder is in here meanwhile; waits for them. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def replace_file(files: Files, path: Path, data: bytes) -> None:
    """`path` holds `data`, or after an error or a crash what it held before. Waits for the disk. Raises OSError."""
    new = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        files.remove(new)
    handle = files.create(new)
    try:
        files.write(handle, 0, data)
        files.sync(handle)
    finally:
        files.close(handle)
    files.rename(new, path)
    files.sync_folder(path.parent)
