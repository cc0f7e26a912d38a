"""The tags of a device by client handle: those of the file, and the learnt ones behind them as they become known.

A handle never changes its meaning while the gateway runs; whoever keeps something for each handle is told of new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from connectors.opcua_backfill import Backfill
from connectors.opcua_batches import Batches
from connectors.opcua_describe import Describer
from connectors.opcua_directory import Directory
from connectors.opcua_heartbeat import Heartbeat
from connectors.opcua_learnt import Labels
from connectors.opcua_link import Link
from connectors.opcua_settings import OpcUaDevice
from pipelines.tags import Tag, TagTable

PER_TURN: Final = 500
"""Tags that become known between two turns of the event loop: about a millisecond."""


class KnownTags:
    """Lives as long as the source."""

    def __init__(
        self,
        device: str,
        table: TagTable,
        make: Batches,
        backfill: Backfill,
        heartbeat: Heartbeat | None,
        describer: Describer,
    ) -> None:
        self.names: list[str] = []
        """By client handle; grows."""
        self._device = device
        self._table = table
        self._make = make
        self._backfill = backfill
        self._heartbeat = heartbeat
        self._describer = describer

    def learn_some(self, directory: Directory) -> bool:
        """Some of the tags that have become known, behind those that were; True: there are more.

        One that a buffer has named already stays as it is.
        """
        known, resolved = len(self.names), directory.resolved
        tags = [*_tags(self._device, resolved.device, known, known + PER_TURN, directory.labels)]
        learns = resolved.device.learns_tags
        added = [
            found if learns and (found := self._table.id_of(tag.path)) is not None else self._table.add(tag)
            for tag in tags
        ]
        names = [tag.name for tag in tags]
        self.names += names
        self._make.grow(added)
        self._backfill.grow(names, resolved.nodes)
        if self._heartbeat is not None:
            self._heartbeat.grow(resolved.device, names, resolved.nodes)
        return len(self.names) < len(resolved.device.tags)

    async def learn(self, directory: Directory) -> None:
        """All that have become known."""
        while self.learn_some(directory):  # noqa: ASYNC110  other tasks get a turn, nothing is waited for
            await asyncio.sleep(0)

    def doubt(self, directory: Directory) -> None:
        """Which tags the server's profiles are not sure of."""
        doubtful = directory.doubtful
        self._make.doubt([int(self._make.tag_ids[at]) for at, name in enumerate(self.names) if name in doubtful])

    async def describe(self, link: Link, waits: bool) -> None:
        """Asks the server of a new session about them; `waits`: see `Describer.start`."""
        assert link.session is not None and link.items is not None
        tags = list(zip(self._make.tag_ids.tolist(), link.items.nodes, strict=False))  # events have none
        await self._describer.start(link.session, link.state.server_start, tags, waits=waits)

    async def created(self, link: Link, new: Sequence[int]) -> None:
        """There are items that were not there before: what the server says of them, what it does not filter.

        Raises what requests raise.
        """
        assert link.items is not None
        if new:
            self.doubt(link.directory)
            nodes = link.items.nodes
            self._describer.also([(int(self._make.tag_ids[item]), nodes[item]) for item in new])
        self._make.set_bands(await link.unfiltered_bands())


def _tags(device: str, settings: OpcUaDevice, start: int, stop: int, labels: Mapping[str, Labels]) -> Iterator[Tag]:
    """From the handle `start` on."""
    for name, tag in islice(settings.tags.items(), start, stop):
        own = labels.get(name, ())
        yield Tag(device, name, unit=tag.unit, scale=tag.scale, offset=tag.offset, deadband=tag.deadband, labels=own)
