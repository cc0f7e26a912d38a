"""Rows of a device that no notification brings: from history, of silent items, of those that have turned bad."""

from __future__ import annotations

from connectors.opcua_backfill import Backfill
from connectors.opcua_batches import Batches
from connectors.opcua_events import EventReader
from connectors.opcua_heartbeat import Heartbeat
from connectors.opcua_items import MonitoredItems
from pipelines.batch import Batch


class Beside:
    """Lives as long as the source."""

    def __init__(self, make: Batches, backfill: Backfill, heartbeat: Heartbeat | None, events: EventReader) -> None:
        self._make = make
        self._backfill = backfill
        self._heartbeat = heartbeat
        self._events = events

    def take(self) -> Batch | None:
        """One batch of what was missed, or what the server failed to report; asked between two notifications."""
        if (found := self._backfill.take()) is not None:
            return self._make.of_history(*found)
        late = self._heartbeat.take() if self._heartbeat is not None else []
        return self._make.of_late(late) if late else None

    def bad(self, items: MonitoredItems) -> list[Batch]:
        """One row for each tag that has just turned out bad; at most one batch."""
        bad = list(items.take_changed())
        if self._heartbeat is not None:
            self._heartbeat.bad(bad)
        rows = [(int(self._make.tag_ids[item]), status) for item, status in bad]
        rows += ((int(self._events.tag_ids[item]), status) for item, status in items.events.take_changed())
        return self._make.of_bad(rows)
