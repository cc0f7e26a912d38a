"""Mistakes that one could make in the disk lane, each as a change to the running program: name -> how to make it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pipelines import cursor, frame, lane_disk, segment
from pipelines.contracts import Part, Span
from pipelines.cursor import Cursor
from pipelines.errors import Poisoned
from pipelines.files import Files
from pipelines.frame import Frame, FrameKind, encode_packed
from pipelines.journal import Journal
from pipelines.lane_disk import DiskLane
from pipelines.lane_disk_held import Held
from pipelines.lane_disk_reading import Reading
from pipelines.lane_memory import WhenFull
from pipelines.pending import Pending
from pipelines.route import Pump
from pipelines.segment import Content, Segment, Writer
from pipelines.worker import Worker
from tests.sim.faulty_files import FaultyFiles

Patch = pytest.MonkeyPatch


def no_sync_before_rolling(patch: Patch) -> None:
    patch.setattr(Writer, "seal", Writer.close)


def torn_end_kept(patch: Patch) -> None:
    patch.setattr(segment, "_believed", lambda found, synced: len(found))


def torn_end_not_cut(patch: Patch) -> None:
    patch.setattr(Journal, "_secure", lambda self, path, content: None)


def footer_before_the_sync(patch: Patch) -> None:
    def seal(self: Any) -> None:
        segment.finish(self._files, self._handle, self.index, self.tables)
        self.close()

    patch.setattr(Writer, "seal", seal)


def acknowledges_beyond_the_span(patch: Patch) -> None:
    patch.setattr(lane_disk._DiskReader, "commit", lambda self, span: self._lane._commit(Span(0, span.end), {}))


def cursor_leads(patch: Patch) -> None:
    def leading(uuid: bytes, instance: int, end: int, synced: int, pending: list[Any], origins: Any) -> Cursor:
        return Cursor(uuid, instance, end, synced, pending[1:], origins)

    patch.setattr(lane_disk, "Cursor", leading)


def cursor_in_place(patch: Patch) -> None:
    def save(files: Files, folder: Path, content: Cursor) -> None:
        path = folder / cursor.NAME
        handle = files.open(path) if path.name in files.names(folder) else files.create(path)
        packed = {name: getattr(content, name) for name in Cursor.__slots__}
        files.write(handle, 0, encode_packed(FrameKind.CURSOR, packed))
        files.sync(handle)
        files.close(handle)
        files.sync_folder(folder)

    patch.setattr(lane_disk.cursors, "save", save)


def no_folder_sync(patch: Patch) -> None:
    patch.setattr(FaultyFiles, "sync_folder", lambda self, folder: None)


def checksum_over_the_body_only(patch: Patch) -> None:
    def body_only(data: Any, before: int = 0) -> int:
        return 0 if len(data) == frame._HEAD.size and not before else zlib.crc32(data, before)

    patch.setattr(frame, "crc32", body_only)


def no_checksum(patch: Patch) -> None:
    patch.setattr(frame, "crc32", lambda data, before=0: 0)


def sync_does_nothing(patch: Patch) -> None:
    patch.setattr(Journal, "sync", lambda self: None)


def sync_tried_again(patch: Patch) -> None:
    def twice(self: Journal, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError:
            if self.active and self.active.writer:
                self.files.sync(self.active.writer._handle)

    patch.setattr(Journal, "_never_twice", twice)


def seq_given_again(patch: Patch) -> None:
    patch.setattr(lane_disk, "SEQ_PER_INSTANCE", 0)


def drops_out_of_a_hand(patch: Patch) -> None:
    patch.setattr(Held, "is_free", lambda self, each: not each.writer and not each.pins)


def drops_uncounted(patch: Patch) -> None:
    patch.setattr(Held, "count_drop", lambda self, rows, batches: None)


def drops_the_newest_for_the_oldest(patch: Patch) -> None:
    real = DiskLane._store_with_a_new_segment

    async def wrong(self: DiskLane, batch: Any) -> None:
        patch.setattr(self._retention, "_when_full", WhenFull.DROP_OLDEST)
        await real(self, batch)

    patch.setattr(DiskLane, "_store_with_a_new_segment", wrong)


def believes_foreign_positions(patch: Patch) -> None:
    patch.setattr(lane_disk, "uuid4", lambda: type("Uuid", (), {"bytes": bytes(16)}))


def forgets_origins(patch: Patch) -> None:
    patch.setattr(Content, "take", _without_origins(Content.take))
    patch.setattr(lane_disk, "Cursor", lambda *fields: Cursor(*fields[:-1], {}))
    patch.setattr(segment.Tables, "note", lambda self, batch: None)


def _without_origins(take: Callable[[Content, Frame], bool]) -> Callable[[Content, Frame], bool]:
    def without(self: Content, found: Frame) -> bool:
        taken = take(self, found)
        self.tables.origins.clear()
        return taken

    return without


def more_than_its_share(patch: Patch) -> None:
    patch.setattr(Journal, "bytes", property(lambda self: 0))


def damage_stops_it(patch: Patch) -> None:
    async def gives_up(self: Reading, each: Segment, unreadable: int) -> None:
        self._held._forget(each, each.first, each.end, {})

    patch.setattr(Reading, "_give_up_damaged", gives_up)


def gaps_untold(patch: Patch) -> None:
    patch.setattr(Held, "_lose", lambda self, reason, segment, low, high: self._forget(segment, low, high, {}))


def backlog_taken_for_live(patch: Patch) -> None:
    real = Pending.rewind

    def without_a_new_beginning(self: Pending, part: Part) -> None:
        live_from = self._live_from
        real(self, part)
        self._live_from = live_from

    patch.setattr(Pending, "rewind", without_a_new_beginning)


def goes_on_after_a_failed_sync(patch: Patch) -> None:
    def forgetful(self: Journal, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            raise Poisoned("forgotten") from error

    patch.setattr(Journal, "_never_twice", forgetful)
    real = DiskLane._fail

    def late(self: DiskLane, error: Poisoned) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, real, self, error)  # whoever waits to write is woken before

    patch.setattr(DiskLane, "_fail", late)


def error_hides_the_cancellation(patch: Patch) -> None:
    async def change(self: Worker, work: Callable[[], Any]) -> Any:
        running = asyncio.ensure_future(self._offload(work))
        cancelled = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        running.result()
        if cancelled:
            raise cancelled
        return running.result()

    patch.setattr(Worker, "change", change)


def position_beyond_the_span(patch: Patch) -> None:
    patch.setattr(Pending, "position", lambda self, uuid, span: msgpack.packb([uuid, span.end if span else 0, []]))


def two_transactions_at_a_time(patch: Patch) -> None:
    real = Pump.__init__

    def without_waiting(self: Pump, *given: Any, **named: Any) -> None:
        real(self, *given, **named)
        self._in_flight_max = 2

    patch.setattr(Pump, "__init__", without_waiting)


def delivers_what_is_not_synced(patch: Patch) -> None:
    real = DiskLane._first_unread
    patch.setattr(DiskLane, "_first_unread", lambda self, part, synced: real(self, part, False))


MUTANTS: dict[str, Callable[[Patch], None]] = {
    mutant.__name__: mutant
    for mutant in (
        no_sync_before_rolling,
        torn_end_kept,
        torn_end_not_cut,
        footer_before_the_sync,
        acknowledges_beyond_the_span,
        cursor_leads,
        cursor_in_place,
        no_folder_sync,
        checksum_over_the_body_only,
        no_checksum,
        sync_does_nothing,
        sync_tried_again,
        seq_given_again,
        drops_out_of_a_hand,
        drops_uncounted,
        drops_the_newest_for_the_oldest,
        believes_foreign_positions,
        forgets_origins,
        more_than_its_share,
        damage_stops_it,
        gaps_untold,
        backlog_taken_for_live,
        goes_on_after_a_failed_sync,
        error_hides_the_cancellation,
        delivers_what_is_not_synced,
        position_beyond_the_span,
        two_transactions_at_a_time,
    )
}
