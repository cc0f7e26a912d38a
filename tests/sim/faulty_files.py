"""`pipelines.files.Files` in memory, as unkind as a disk may be: what was not synced is kept, lost, torn or flipped."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from random import Random

SECTOR = 64
"""What a crash keeps or loses as a whole; small, so that it hits the middle of frames."""


class Crash(BaseException):
    """The power fails in the middle of what is being done."""


class Node:
    """One file: what is read now, what is on disk, and the steps from there to here that no sync has covered."""

    def __init__(self) -> None:
        self.now = bytearray()
        self.disk = bytearray()
        self.steps: list[tuple[int, bytes | None]] = []  # (position, data), or (size, None) for a truncation

    def do(self, step: tuple[int, bytes | None]) -> None:
        self.steps.append(step)
        apply(self.now, step)


def apply(data: bytearray, step: tuple[int, bytes | None]) -> None:
    position, new = step
    if new is None:
        del data[position:]
        data.extend(bytes(position - len(data)))
        return
    data.extend(bytes(max(position - len(data), 0)))
    data[position : position + len(new)] = new


class FaultyFiles:
    """`capacity` bytes in all; `chance` decides what a crash leaves; `crash_at` and `fail_sync_at` count operations."""

    def __init__(self, chance: Random, capacity: int) -> None:
        self.chance = chance
        self.capacity = capacity
        self.names_now: dict[str, Node] = {}
        self.names_disk: dict[str, Node] = {}
        self.renames: list[tuple[str | None, str | None, Node]] = []  # (old, new, node), not yet synced
        self.handles: dict[int, Node] = {}
        self.locks: dict[int, str] = {}
        self.operations = 0
        self.crash_at = -1
        self.fail_sync_at = -1
        self._next_handle = 3

    # --- faults -------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The power fails and comes back: only what is on disk, and some of what was on its way."""
        for old, new, node in self.renames[: self.chance.randint(0, len(self.renames))]:
            self._apply_name(self.names_disk, old, new, node)
        for node in self.names_disk.values():
            for step in node.steps:
                self._maybe(node, step)
            node.steps.clear()
            node.now = bytearray(node.disk)
        self.names_now = dict(self.names_disk)
        self.renames.clear()
        self.handles.clear()
        self.locks.clear()
        self.crash_at = self.fail_sync_at = -1

    def kill(self) -> None:
        """`kill -9`: the process ends, the page cache stays."""
        self.handles.clear()
        self.locks.clear()
        self.crash_at = self.fail_sync_at = -1

    def _maybe(self, node: Node, step: tuple[int, bytes | None]) -> None:
        position, data = step
        fate = self.chance.choice(["kept", "kept", "lost", "torn", "sectors", "flipped"])
        if data is None or not data:
            if fate != "lost":
                apply(node.disk, step)
        elif fate == "kept":
            apply(node.disk, step)
        elif fate == "torn":
            apply(node.disk, (position, data[: self.chance.randint(0, len(data))]))
        elif fate == "sectors":
            for at in range(0, len(data), SECTOR):
                if self.chance.random() < 0.6:
                    apply(node.disk, (position + at, data[at : at + SECTOR]))
        elif fate == "flipped":
            flipped = bytearray(data)
            flipped[self.chance.randrange(min(len(data), 40) if self.chance.random() < 0.5 else len(data))] ^= (
                1 << self.chance.randrange(8)
            )
            apply(node.disk, (position, bytes(flipped)))

    def _step(self) -> None:
        self.operations += 1
        if 0 <= self.crash_at <= self.operations:
            raise Crash  # and whatever else is still running does not get through either

    # --- Files --------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> int:
        self._step()
        if str(path) in self.names_now:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        node = Node()
        self._name(None, str(path), node)
        return self._handle(node)

    def reserve(self, handle: int, size: int) -> None:
        self._step()
        node = self.handles[handle]
        if self._used() + size - len(node.now) > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on device")
        node.do((size, None))

    def write(self, handle: int, position: int, data: bytes) -> None:
        self._step()
        node = self.handles[handle]
        more = max(position + len(data) - len(node.now), 0)
        if more and self._used() + more > self.capacity:
            node.do((position, data[: len(data) // 2]))
            raise OSError(errno.ENOSPC, "no space left on device")
        node.do((position, data))

    def truncate(self, handle: int, size: int) -> None:
        self._step()
        self.handles[handle].do((size, None))

    def sync(self, handle: int) -> None:
        self._step()
        node = self.handles[handle]
        if self.fail_sync_at >= 0 and self.operations >= self.fail_sync_at:
            self.fail_sync_at = -1  # once: the next one says that all is well, while the pages are gone
            node.steps.clear()
            raise OSError(errno.EIO, "input/output error")
        for step in node.steps:
            apply(node.disk, step)
        node.steps.clear()

    def open(self, path: Path) -> int:
        self._step()
        return self._handle(self._node(path))

    def close(self, handle: int) -> None:
        self.handles.pop(handle, None)
        self.locks.pop(handle, None)

    def read(self, path: Path, position: int = 0, size: int | None = None) -> bytes:
        data = self._node(path).now
        return bytes(data[position:] if size is None else data[position : position + size])

    def size(self, path: Path) -> int:
        return len(self._node(path).now)

    def names(self, folder: Path) -> Sequence[str]:
        at = len(f"{folder}/")
        return sorted(path[at:] for path in self.names_now if path.startswith(f"{folder}/"))

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        self._name(str(old), str(new), self._node(old))

    def remove(self, path: Path) -> None:
        self._step()
        self._name(str(path), None, self._node(path))

    def make_folder(self, folder: Path) -> None:
        return

    def sync_folder(self, folder: Path) -> None:
        self._step()
        for old, new, node in self.renames:
            self._apply_name(self.names_disk, old, new, node)
        self.renames.clear()

    def free_bytes(self, folder: Path) -> int:
        return max(self.capacity - self._used(), 0)

    def lock(self, path: Path) -> int:
        if str(path) in self.locks.values():
            raise BlockingIOError(errno.EAGAIN, "locked")
        handle = self._handle(Node())
        self.locks[handle] = str(path)
        return handle

    def _node(self, path: Path) -> Node:
        node = self.names_now.get(str(path))
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return node

    def _handle(self, node: Node) -> int:
        self._next_handle += 1
        self.handles[self._next_handle] = node
        return self._next_handle

    def _name(self, old: str | None, new: str | None, node: Node) -> None:
        self.renames.append((old, new, node))
        self._apply_name(self.names_now, old, new, node)

    @staticmethod
    def _apply_name(names: dict[str, Node], old: str | None, new: str | None, node: Node) -> None:
        if old is not None:
            names.pop(old, None)
        if new is not None:
            names[new] = node

    def _used(self) -> int:
        return sum(len(node.now) for node in self.names_now.values())
