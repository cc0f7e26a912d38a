"""What a device has at its server, as far as that fits the plan of now; on disk where it is to outlive the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from connectors.opcua_plan import PlannedSubscription
from connectors.opcua_resume import Log
from connectors.opcua_state import DeviceState, StateFile, Subscription, aligned, fingerprint, of_handles
from pipelines.errors import Corrupt


class Memory:
    """Of one device at one server, from connection to connection."""

    def __init__(self, data_dir: Path, device: str, url: str, plan: Sequence[PlannedSubscription], log: Log) -> None:
        self.state = DeviceState("", subscriptions=[None] * len(plan))
        self.stale: list[Subscription] = []
        """Subscriptions of another plan, which the server may still have."""
        self.durable = False
        """It is to outlive the process."""
        self._url = url
        self._plan = plan
        self._log = log
        self._file = StateFile(data_dir, device)
        self._saving = asyncio.Lock()
        self._loaded = False
        self._unchecked = False  # whether the file's state is of this plan

    async def load(self) -> bool:
        """Once: what the last process left; said where it cannot be used. Whether there is something."""
        if self._loaded:
            return False
        self._loaded = True
        try:
            found = await asyncio.to_thread(self._file.load)
        except (Corrupt, OSError) as error:
            self._log.warning("new subscriptions, what the old ones still held is lost: %s", error)
            return False
        if found is None:
            return False
        self.state, self._unchecked = found, True
        return True

    def follow(self, other: Memory) -> None:
        """Instead of `other`, of another server: what that one has on disk is of no use."""
        self._loaded = other._loaded

    def replan(self, plan: Sequence[PlannedSubscription]) -> None:
        """Subscriptions that are of another plan are stale.

        What the device has learnt since the state was kept may follow behind it.
        """
        before, self._plan = self._plan, plan
        subscriptions = self.state.subscriptions
        now = of_handles(self._plan, subscriptions)
        if self._unchecked:
            same = self.state.fingerprint == fingerprint(self._url, now)
        else:
            same = now == of_handles(before, subscriptions)
        self._unchecked = False
        self.state.subscriptions = aligned(self._plan, subscriptions if same else ())
        if not same:
            self.stale += [one for one in subscriptions if one is not None]
        if self.stale:
            self._log.info("the device's configuration has changed, or what it means at its server: new subscriptions")

    def extend(self, plan: Sequence[PlannedSubscription]) -> None:
        """The same plan, with more behind it."""
        self._plan = plan

    def has(self, subscriptions: Sequence[Subscription]) -> None:
        """These are at the server, for some parts of the plan or all."""
        self.state.subscriptions = aligned(self._plan, subscriptions)

    def forget(self) -> None:
        """The subscriptions are gone, or of no use."""
        self.state.subscriptions = [None] * len(self._plan)

    async def save(self) -> None:
        """Keeps the state on disk; the file goes where nothing is to outlive this process. A full disk is one line."""
        try:
            async with self._saving:
                if self.durable:
                    now = of_handles(self._plan, self.state.subscriptions)
                    self.state.fingerprint = await asyncio.to_thread(fingerprint, self._url, now)
                    packed = self._file.pack(self.state)
                    await asyncio.to_thread(self._file.save, packed)
                else:
                    await asyncio.to_thread(self._file.remove)
        except OSError as error:
            self._log.warning("%s cannot be kept: %s; a restart will lose what is under way", self._file.path, error)
