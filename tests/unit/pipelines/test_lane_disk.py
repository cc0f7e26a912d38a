"""The disk lane on real files: what the contract suite and the simulator do not ask."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pipelines.clock import SystemClock
from pipelines.contracts import Part
from pipelines.errors import Permanent, Poisoned
from pipelines.files import RealFiles
from pipelines.frame import FrameKind, encode_packed
from pipelines.gaps import Gap, Reason
from pipelines.lane_disk import DiskLane, Limits
from pipelines.lane_memory import SEQ_PER_INSTANCE
from pipelines.tags import Tag, TagTable
from tests.unit.pipelines.fakes import WALL_NS, make_batch, settle, until

Make = Callable[..., DiskLane]
LIMITS = Limits(10**7, segment_bytes=20_000, fsync_every_ns=1_000_000)


def tags(*names: str) -> TagTable:
    table = TagTable()
    for name in names:
        table.add(Tag("press4", name))
    return table


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made = list[DiskLane]()

    def make(**options: object) -> DiskLane:
        defaults: dict[str, object] = {"tags": tags(*map(str, range(20))), "sources": ["press4"], "instance": len(made)}
        limits, clock = options.pop("limits", LIMITS), options.pop("clock", SystemClock())
        made.append(DiskLane("history", tmp_path / "history", clock, limits, **{**defaults, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for lane in made:
        await lane.close()


async def read_all(lane: DiskLane) -> list[int]:
    reader, numbers = lane.reader(Part.ALL), list[int]()
    while lane.pending_rows:
        span, batches = await asyncio.wait_for(reader.read(10_000), 10)
        numbers += [batch.number for batch in batches]
        reader.commit(span)
    return numbers


async def test_a_start_goes_on_where_the_last_one_ended(make: Make) -> None:
    """What was delivered is not sent again; the rest is, with the numbers that it had; new ones are higher."""
    lane = make()
    for number in range(100):
        await lane.append(make_batch(number, 3))
    reader = lane.reader(Part.ALL)
    span, batches = await reader.read(30)
    reader.commit(span)
    await lane.close()
    again = make()
    assert again.pending_rows == 300 - sum(map(len, batches))
    _, [first] = await again.reader(Part.ALL).read(1)
    assert (first.number, first.seq) == (10, 10)
    await again.append(make_batch(100, 3))
    assert await read_all(again) == list(range(10, 101))
    assert again._state.end == SEQ_PER_INSTANCE + 1


async def test_names_are_what_counts_after_a_change_of_configuration(make: Make) -> None:
    """Tags have other numbers after a restart, or are no longer configured: each row keeps its own name."""
    lane = make(tags=tags("a", "b", "c"))
    await lane.append(make_batch(0, tag=[0, 1, 2]))
    await lane.close()
    table = tags("c", "new", "a")
    again = make(tags=table)
    _, [batch] = await again.reader(Part.ALL).read(10)
    assert [table[number].name for number in batch.tag.tolist()] == ["a", "b", "c"]


async def test_what_a_machine_says_of_its_tags_is_kept(make: Make) -> None:
    """Learned after the segment had named the tag: the next process knows it, until the file says something else."""
    ours = tags("a", "b", "c")
    lane = make(tags=ours)
    await lane.append(make_batch(0, 3))
    ours.learn(0, "bar", ((1, "ON"),))
    await lane.append(make_batch(1, 3))
    ours.learn(0, "mbar")
    ours.learn(0, "bar")
    await lane.append(make_batch(2, 3))
    await lane.close()
    theirs = TagTable()
    theirs.add(Tag("press4", "b"))
    assert await read_all(make(tags=theirs)) == [0, 1, 2]
    learned = theirs.id_of("press4/a")
    assert learned is not None and theirs[learned] == Tag("press4", "a", unit="bar", labels=((1, "ON"),))
    assert theirs.add(Tag("press4", "a")) == learned


async def test_newest_origins_survive(make: Make) -> None:
    """By the source's name, also when the batches themselves are delivered and gone."""
    lane = make(sources=["press4", "meter7"])
    for number in range(200):
        batch = replace(make_batch(number, 20), source_id=number % 2, origin=str(number).encode())
        await lane.append(batch)
    await read_all(lane)
    await lane.close()
    again = make(sources=["meter7", "press4"])
    assert (again.origin("press4"), again.origin("meter7"), again.origin("x")) == (b"198", b"199", None)


async def test_delivered_segments_are_removed(make: Make, tmp_path: Path) -> None:
    """All but the newest, soon."""
    lane = make()
    for number in range(200):
        await lane.append(make_batch(number, 20))
    assert len(list((tmp_path / "history").glob("*.segment"))) > 5
    await read_all(lane)
    async with asyncio.timeout(60):
        while len(list((tmp_path / "history").glob("*.segment"))) > 1:  # noqa: ASYNC110  # a thread removes them
            await asyncio.sleep(0.01)
    assert len(lane._journal.segments) == 1


async def test_a_segment_has_not_too_many_batches(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are: the next start reads the last segment batch by batch."""
    monkeypatch.setattr("pipelines.journal.BATCHES_MAX", 10)
    lane = make(limits=replace(LIMITS, segment_bytes=10**6))
    for number in range(35):
        await lane.append(make_batch(number, 1))
    assert len(list((tmp_path / "history").glob("*.segment"))) == 4
    await lane.close()
    assert await read_all(make()) == list(range(35))


async def test_flipped_bytes_cost_their_own_batches_only(make: Make, tmp_path: Path) -> None:
    """Counted to the row; the segment is set aside, what is whole in it and behind it is delivered."""
    lane = make(limits=replace(LIMITS, memory_bytes=0))
    for number in range(200):
        await lane.append(make_batch(number, 5))
    await lane.close()
    chance, files = Random(3), sorted((tmp_path / "history").glob("*.segment"))
    for path in files[:3]:
        data = bytearray(path.read_bytes())
        data[chance.randrange(1000, len(data) - 3000)] ^= 4
        path.write_bytes(data)
    again = make()
    numbers = await read_all(again)
    lost = set(range(200)) - set(numbers)
    assert numbers == sorted(numbers) and 1 <= len(lost) <= 3
    assert again.counters.totals["corrupt_rows"] == 5 * len(lost)
    assert len(list((tmp_path / "history").glob("*.broken"))) == len(lost)


@pytest.mark.parametrize("damage", ["empty", "text", "directory entry gone", "every file noise"])
async def test_a_broken_journal_never_keeps_the_gateway_from_starting(make: Make, tmp_path: Path, damage: str) -> None:
    """Whatever is in the folder, a start takes what is whole and goes on."""
    lane = make()
    for number in range(100):
        await lane.append(make_batch(number, 20))
    await lane.close()
    files = sorted((tmp_path / "history").glob("*[!k]"))
    for path in files if damage == "every file noise" else files[1::2]:
        if damage == "directory entry gone":
            path.unlink()
        else:
            path.write_bytes({"empty": b"", "text": b"hello\n"}.get(damage, os.urandom(5000)))
    again = make()
    await again.append(make_batch(100))
    assert (await read_all(again))[-1] == 100


async def test_a_folder_belongs_to_one_process(make: Make) -> None:
    """The second one is refused; after a close the folder is free."""
    lane = make()
    with pytest.raises(Permanent, match="in use by another gateway"):
        make()
    await lane.close()
    make()


class FailingFiles(RealFiles):
    """Real ones, until the disk fails."""

    broken = False

    def sync(self, handle: int) -> None:
        if self.broken:
            raise OSError(5, "Input/output error")
        super().sync(handle)


async def test_a_failed_sync_poisons_the_lane(make: Make) -> None:
    """Whoever waits for it, and every call from then on; also a reader that waits for something new."""
    files = FailingFiles()
    lane = make(files=files)
    await lane.append(make_batch(0))
    reader = lane.reader(Part.ALL)
    await reader.read(1)
    reading = asyncio.create_task(reader.read(1))
    await lane.sync()
    files.broken = True
    await lane.append(make_batch(1))
    await reading
    reading = asyncio.create_task(reader.read(1))
    with pytest.raises(Poisoned, match="the disk did not take what was written"):
        await lane.sync()
    files.broken = False
    with pytest.raises(Poisoned):
        await lane.append(make_batch(2))
    with pytest.raises(Poisoned):
        await lane.sync()
    with pytest.raises(Poisoned):
        await asyncio.wait_for(reading, 10)


async def test_a_close_while_a_full_disk_refuses_the_cursor_returns(make: Make) -> None:
    """The keeper is cancelled in the step that fails, passes over the failure, and must not pass over its end."""
    writing, refuse = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Full(RealFiles):
        def rename(self, old: Path, new: Path) -> None:
            if new.name == "cursor":
                loop.call_soon_threadsafe(writing.set)
                refuse.wait(60)
                raise OSError(errno.ENOSPC, "No space left on device")
            super().rename(old, new)

    lane = make(files=Full())
    await lane.append(make_batch(0))
    await asyncio.wait_for(writing.wait(), 60)
    closing = asyncio.create_task(lane.close())
    await settle()
    refuse.set()
    await asyncio.wait_for(closing, 60)
    assert lane.counters.totals["cursor_errors"] >= 1


async def test_a_cancelled_append_leaves_nothing_half_done(make: Make) -> None:
    """Cancelled while it waits for a new segment: the next append finds a journal in order."""
    lane = make(limits=replace(LIMITS, segment_bytes=1))
    for number in range(50):
        task = asyncio.create_task(lane.append(make_batch(number)))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await lane.append(make_batch(50))
    numbers = await read_all(lane)
    assert numbers == sorted(set(numbers)) and numbers[-1] == 50


async def test_a_group_sync_serves_all_who_wait(make: Make) -> None:
    """Many callers, few syncs."""
    calls = list[int]()

    class Counting(RealFiles):
        def sync(self, handle: int) -> None:
            calls.append(handle)
            super().sync(handle)

    lane = make(files=Counting(), limits=replace(LIMITS, fsync_every_ns=50_000_000))
    await lane.append(make_batch(0))
    await lane.sync()
    before = len(calls)
    for number in range(1, 20):
        await lane.append(make_batch(number))
    await asyncio.gather(*(lane.sync() for _ in range(20)))
    assert len(calls) - before <= 3  # one for the segment, perhaps one for the cursor


async def test_the_live_path_does_not_read_the_disk(make: Make) -> None:
    """What was just appended comes from memory; what no longer fits there comes from disk, in order."""
    lane = make(limits=replace(LIMITS, memory_bytes=20_000))
    reads = list[object]()
    real = lane._journal.read
    lane._journal.read = lambda parts: (reads.append(parts), real(parts))[1]  # type: ignore[method-assign]
    reader = lane.reader(Part.ALL)
    for number in range(20):
        await lane.append(make_batch(number, 10))
        span, _ = await reader.read(10)
        reader.commit(span)
    assert not reads
    for number in range(20, 120):
        await lane.append(make_batch(number, 10))
    assert lane._held._recent_bytes <= 20_000
    assert await read_all(lane) == list(range(20, 120)) and reads
    await until(lambda: lane.pending_rows == 0)


class Noted(list[Gap]):
    def note(self, gap: Gap) -> None:
        self.append(gap)

    def rows(self) -> dict[tuple[Reason, str], int]:
        found = defaultdict[tuple[Reason, str], int](int)
        for gap in self:
            found[gap.reason, gap.device] += gap.rows or 0
        return dict(found)


async def test_the_ledger_knows_a_dropped_segment_of_an_earlier_start(make: Make) -> None:
    """Whole segments with batches of several devices, partly delivered, under the numbers of another configuration."""
    lane = make(sources=["press4", "meter7", "gone"])
    for number in range(90):
        await lane.append(replace(make_batch(number, 20), source_id=number % 3))
    reader = lane.reader(Part.ALL)
    span, batches = await reader.read(500)
    reader.commit(span)
    await lane.close()
    noted, small = Noted(), replace(LIMITS, bytes_max=30_000)
    again = make(sources=["meter7", "press4"], ledger=noted, limits=small)
    again.reader(Part.ALL)
    await again.append(make_batch(90, 20))
    totals = again.counters.totals
    assert totals["dropped_rows"] + again.pending_rows == 90 * 20 - sum(map(len, batches)) + 20
    assert sum(noted.rows().values()) == totals["dropped_rows"] > 0
    assert set(noted.rows()) == {(Reason.LANE_FULL, name) for name in ("press4", "meter7", "gone")}


async def test_the_ledger_knows_what_is_damaged(make: Make, tmp_path: Path) -> None:
    """The rows of the damaged batch, its device and its time, and none of the others."""
    lane = make(sources=["press4", "meter7"])
    for number in range(20):
        await lane.append(replace(make_batch(number, 20), source_id=number % 2, received_ns=1000 + number))
    content = lane._journal.segments[0].content
    assert content is not None
    position = content.index.positions[5]
    await lane.close()
    segment = min((tmp_path / "history").glob("*.segment"))
    data = bytearray(segment.read_bytes())
    data[position + 200] ^= 1
    segment.write_bytes(data)
    noted = Noted()
    again = make(sources=["press4", "meter7"], ledger=noted)
    assert await read_all(again) == [number for number in range(20) if number != 5]
    assert noted == [Gap(Reason.CORRUPT, "meter7", "history", (), 1005, 1005, 20)]


async def test_the_ledger_knows_what_is_too_old(make: Make) -> None:
    """`max_age`: dropped with its own reason."""
    noted = Noted()
    lane = make(ledger=noted, limits=replace(LIMITS, max_age_ns=10**8))
    await lane.append(make_batch(0, 3))
    async with asyncio.timeout(60):
        while not noted:  # noqa: ASYNC110  # the ledger has no event
            await asyncio.sleep(0.01)
    assert noted.rows() == {(Reason.EXPIRED, "press4"): 3}
    assert lane.counters.totals["expired_rows"] == 3


# --- faults that a second reader found ------------------------------------------------------------------------------


async def filled(make: Make, batches: int, **options: object) -> None:
    lane = make(**options)
    for number in range(batches):
        await lane.append(make_batch(number, 20, origin=str(number).encode()))
    await lane.close()


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "history").glob("*.segment"))


async def test_a_folder_with_the_next_segments_name_is_passed_over(make: Make, tmp_path: Path) -> None:
    """What is not ours and in the way neither stops the start nor the writing."""
    await filled(make, 50)
    at = int(segments(tmp_path)[-1].stem) + 1
    for number in (at, at + 1):
        (tmp_path / "history" / f"{number:012d}.segment").mkdir()
    again = make()
    await again.append(make_batch(50))
    assert await read_all(again) == list(range(51))


@pytest.mark.parametrize("wrong", ["folder", "types", "other frame"])
async def test_a_cursor_of_the_wrong_type_is_none(make: Make, tmp_path: Path, wrong: str) -> None:
    """Everything is pending then, and the start goes on."""
    await filled(make, 10)
    cursor = tmp_path / "history" / "cursor"
    cursor.unlink()
    fields = {"uuid": b"x", "instance": 1, "end": 2, "synced": 3, "pending": "abc", "origins": {}}
    if wrong == "folder":
        cursor.mkdir()
    else:
        cursor.write_bytes(encode_packed(FrameKind.CURSOR, fields if wrong == "types" else [1, 2]))
    again = make()
    assert await read_all(again) == list(range(10))
    assert again.counters.totals["corrupt_cursors"] == 1


async def test_a_copied_segment_is_not_read_twice(make: Make, tmp_path: Path) -> None:
    """It is set aside; its rows are counted as pending once."""
    await filled(make, 50)
    first = segments(tmp_path)[0]
    first.with_name("000000009999.segment").write_bytes(first.read_bytes())
    again = make()
    assert again.pending_rows == 50 * 20
    assert await read_all(again) == list(range(50))
    assert again.pending_rows == 0 and again.counters.totals["broken_segments"] == 1


class BadDisk(RealFiles):
    """One file may not be read at all (`error`), or not where its `bad` byte is (EIO)."""

    def __init__(self, path: Path, error: int, bad: int | None = None) -> None:
        self.path, self.error, self.bad = path, error, bad

    def read(self, path: Path, position: int = 0, size: int | None = None) -> bytes:
        end = 2**62 if size is None else position + size
        if path == self.path and (self.bad is None or position <= self.bad < end):
            raise OSError(self.error, os.strerror(self.error), str(path))
        return super().read(path, position, size)


@pytest.mark.parametrize("when", ["at the start", "later"])
async def test_a_segment_without_permission_costs_itself_only(make: Make, tmp_path: Path, when: str) -> None:
    """It is set aside and counted; what is around it is delivered, and nothing ends."""
    await filled(make, 200)
    path = segments(tmp_path)[2]
    files = BadDisk(path, errno.EACCES) if when == "at the start" else BadDisk(Path(), errno.EACCES)
    again = make(files=files)
    files.path = path
    numbers = await read_all(again)
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] == 199 and len(numbers) < 200
    assert again.counters.totals["broken_segments"] == 1


async def test_too_many_open_files_at_the_start_condemn_no_segment(make: Make, tmp_path: Path) -> None:
    """The trouble is the process's own: the start fails, and the files stay as they are."""
    await filled(make, 50)
    with pytest.raises(Poisoned):
        make(files=BadDisk(segments(tmp_path)[1], errno.EMFILE))
    assert not list((tmp_path / "history").glob("*.broken"))


async def test_a_bad_sector_costs_its_own_batches(make: Make, tmp_path: Path) -> None:
    """The disk cannot read one place: the batches elsewhere in that segment are delivered."""
    await filled(make, 200)
    path = segments(tmp_path)[1]
    again = make(files=BadDisk(path, errno.EIO, bad=9000), limits=replace(LIMITS, memory_bytes=0))
    numbers = await read_all(again)
    lost = set(range(200)) - set(numbers)
    assert 1 <= len(lost) <= 9  # of 4,096 bytes
    assert again.counters.totals["corrupt_rows"] == 20 * len(lost)


async def test_a_keeper_that_ends_wakes_who_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in it must not leave `sync` waiting for ever."""
    lane = make()
    monkeypatch.setattr(lane._journal, "sync", lambda: 1 // 0)
    await lane.append(make_batch(0))
    with pytest.raises(Poisoned, match="ZeroDivisionError"):
        await asyncio.wait_for(lane.sync(), 10)


async def test_a_closed_lane_takes_nothing(make: Make, tmp_path: Path) -> None:
    """Another gateway may have the folder by then."""
    lane = make()
    await lane.append(make_batch(0))
    await lane.close()
    before = segments(tmp_path)
    with pytest.raises(RuntimeError, match="closed"):
        await lane.append(make_batch(1))
    with pytest.raises(RuntimeError, match="closed"):
        await lane.sync()
    assert segments(tmp_path) == before


class SetClock(SystemClock):
    """A wall clock that somebody sets, and a monotonic one that the test moves."""

    wall, mono = 0, 0

    def wall_ns(self) -> int:  # type: ignore[override]
        return self.wall

    def mono_ns(self) -> int:  # type: ignore[override]
        return self.mono


async def test_what_is_too_old_goes_by_the_clock_that_never_steps(make: Make) -> None:
    """A wall clock that is set (a dead battery, then NTP) makes nothing old; time does, also while nothing happens."""
    clock, hour = SetClock(), 3600 * 10**9
    lane = make(clock=clock, limits=replace(LIMITS, max_age_ns=hour))
    await lane.append(make_batch(0))
    await lane.sync()
    clock.wall = 56 * 365 * 24 * hour
    await lane.append(make_batch(1))
    await lane.sync()
    assert lane.pending_rows == 2
    clock.mono = 2 * hour
    await until_true(lambda: lane.pending_rows == 0)
    assert lane.counters.totals["expired_rows"] == 2


class Preempting(RealFiles):
    """What a thread is to do is done in the middle of the event loop's next write, where there is one soon."""

    def __init__(self) -> None:
        self._waiting = deque[Callable[[], None]]()

    async def offload(self, work: Callable[[], object]) -> object:
        done = list[object]()
        self._waiting.append(lambda: done.append(work()))
        await settle(5)
        self._begin()
        return done[0]

    def write(self, handle: int, position: int, data: bytes) -> None:
        self._begin()
        super().write(handle, position, data)

    def _begin(self) -> None:
        while self._waiting:
            self._waiting.popleft()()


async def test_nothing_is_appended_to_a_segment_that_a_thread_is_sealing(make: Make) -> None:
    """With `max_age` a segment is sealed by its age, at any time: a batch that comes meanwhile goes into the next."""
    clock, files, hour = SetClock(), Preempting(), 3600 * 10**9
    limits = replace(LIMITS, max_age_ns=10 * hour, fsync_every_ns=0)
    lane = make(clock=clock, limits=limits, files=files, offload=files.offload)
    for number in range(20):
        clock.mono += hour * 2 if number % 5 == 4 else 0
        await lane.append(make_batch(number))
        await settle(3)
    await lane.close()
    again = make()
    assert await read_all(again) == list(range(20))
    assert again.counters.totals["corrupt_rows"] == 0


async def test_reading_many_foreign_segments_at_once_keeps_every_name(make: Make) -> None:
    """More segments in one read than indexes in memory: the rows of none are taken for nameless."""
    await filled(make, 60, limits=replace(LIMITS, segment_bytes=1))
    again = make(tags=tags(*map(str, reversed(range(20)))))
    assert await read_all(again) == list(range(60))
    assert again.counters.totals["corrupt_rows"] == 0


async def test_the_age_of_the_oldest_is_told_while_its_segment_cannot_be_read(make: Make, tmp_path: Path) -> None:
    """Pages ask for it at any time: also when a file that somebody removed has just been missed."""
    await filled(make, 60, limits=replace(LIMITS, segment_bytes=1))
    looked = list[int | None]()

    async def offload(work: Callable[[], object]) -> object:
        try:
            return work()
        finally:
            looked.append(again.oldest_ns)

    again = make(offload=offload)
    segments(tmp_path)[0].unlink()
    assert await read_all(again) == list(range(1, 60))
    assert WALL_NS in looked


async def test_a_commit_asks_no_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of what is in hand are known, whichever indexes are in memory."""
    await filled(make, 500)
    again = make()
    reader = again.reader(Part.ALL)
    await reader.read(60)
    span, _ = await reader.read(60)
    for segment in again._journal.segments:
        segment.content = None
    monkeypatch.setattr(again._journal, "content", lambda segment: pytest.fail("read the disk on the loop"))
    reader.commit(span)
    assert again.pending_rows == 497 * 20


async def test_a_reader_of_what_is_synced_waits_for_the_disk(make: Make) -> None:
    """Beside one that does not; both get everything."""
    lane = make()
    disk = threading.Event()
    real = lane._journal.sync
    lane._journal.sync = lambda: (disk.wait(10), real())[1]  # type: ignore[method-assign]
    await lane.append(make_batch(0))
    safe = lane.reader(Part.ALL, synced=True)
    assert not safe.unread and lane.reader(Part.ALL).unread
    reading = asyncio.ensure_future(safe.read(10))
    await settle()
    assert not reading.done()
    disk.set()
    span, [batch] = await asyncio.wait_for(reading, 10)
    assert (batch.number, span.end) == (0, lane._synced)


async def until_true(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition never came to hold")
