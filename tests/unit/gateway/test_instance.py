"""The instance count: one up at each start, never back, clear words when that cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gateway.instance import INSTANCES_MAX, locked, next_instance
from pipelines.errors import Permanent, Poisoned


def test_counts_each_start(tmp_path: Path) -> None:
    """1, 2, 3; the folder is made; no other file is left."""
    folder = tmp_path / "a" / "b"
    assert [next_instance(folder) for _ in range(3)] == [1, 2, 3]
    assert [file.name for file in folder.iterdir()] == ["instance"]


def test_a_crash_before_the_rename_changes_nothing(tmp_path: Path) -> None:
    """A half-written new file is overwritten."""
    next_instance(tmp_path)
    (tmp_path / "instance.new").write_text("99")
    assert next_instance(tmp_path) == 2


@pytest.mark.parametrize("content", [b"", b"two", b"-1", b"\xff\xfe"])
def test_unreadable_count_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    """Beginning again at 1 would repeat sequence numbers: consumers would drop new data as duplicates."""
    (tmp_path / "instance").write_bytes(content)
    with pytest.raises(Poisoned, match="instead of a number"):
        next_instance(tmp_path)


def test_ends_before_seq_overflows(tmp_path: Path) -> None:
    """2^17 instances of 2^36 batches each fill 2^53."""
    (tmp_path / "instance").write_text(str(INSTANCES_MAX - 1))
    with pytest.raises(Poisoned, match="new id"):
        next_instance(tmp_path)


def test_a_folder_that_cannot_be_made_is_bad_configuration(tmp_path: Path) -> None:
    """A file in the way, or no right to write: Permanent, naming the folder and the key."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(Permanent, match=r"gateway\.data_dir"):
            next_instance(folder)


def test_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for a folder of somebody else (refused by hand: root may write everywhere)."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(Permanent, match="write access"):
        next_instance(tmp_path)


def test_a_disk_that_fails_is_failed_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO and ENOSPC are no mistake in the file: code 3. A read-only file system is the wrong folder: code 2."""
    for code, kind in ((errno.EIO, Poisoned), (errno.ENOSPC, Poisoned), (errno.EROFS, Permanent)):

        def failed(descriptor: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", failed)
        with pytest.raises(kind, match="cannot be used"):
            next_instance(tmp_path)


def test_a_data_folder_belongs_to_one_gateway(tmp_path: Path) -> None:
    """The second is refused with what to do; afterwards the folder is free."""
    with (
        locked(tmp_path / "data"),
        pytest.raises(Permanent, match="in use by another gateway"),
        locked(tmp_path / "data"),
    ):
        pass
    with locked(tmp_path / "data"):
        pass
