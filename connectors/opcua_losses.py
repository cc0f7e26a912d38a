"""What a device's values lack although the gateway was there to collect them: counted, in the log, in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from connectors.opcua_resume import Log
from connectors.profile import Change
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.gaps import Gap, Ledger, Reason


class Losses:
    """Of one device. `arrived_ns`: when something of it arrived last, UTC; 0: not yet."""

    def __init__(
        self,
        device: str,
        clock: Clock,
        ledger: Ledger,
        counters: Counters,
        log: Log,
        arrived_ns: Callable[[], int],
    ) -> None:
        self._device = device
        self._clock = clock
        self._ledger = ledger
        self._counters = counters
        self._log = log
        self._arrived_ns = arrived_ns

    def disconnected(self, tags: tuple[str, ...], since_ns: int) -> None:
        """Of these tags, or of all (empty), until now; the server's history cannot fill it."""
        self._note(Reason.DISCONNECTED, tags, since_ns)

    def missed(self, subscription_id: int, count: int, since_ns: int) -> None:
        """Notifications that the server no longer keeps."""
        self._counters.add("missed_notifications", count)
        self._log.warning(
            "subscription %d: %d notifications are lost, the server no longer has them", subscription_id, count
        )
        self._note(Reason.MISSED, (), since_ns)

    def overflown(self, count: int, tags: tuple[str, ...], from_ns: int, to_ns: int) -> None:
        """Values for which the server's queue was too short; from and to 0: not known."""
        self._counters.add("queue_overflows", count)
        self._note(Reason.QUEUE_OVERFLOW, tags, from_ns, to_ns)

    def changed(self, changes: Iterable[Change]) -> None:
        """The server's profiles say something else than before: values from then on are another device's."""
        for change in changes:
            self._log.warning("the device is another than before, its tags follow: %s", change.text)
            now_ns = self._clock.wall_ns()
            self._ledger.note(change.gap(self._device, self._arrived_ns() or now_ns, now_ns))

    def _note(self, reason: Reason, tags: tuple[str, ...], from_ns: int, to_ns: int = 0) -> None:
        now = self._clock.wall_ns()
        since_ns = from_ns or self._arrived_ns() or now
        self._ledger.note(Gap(reason, self._device, "", tags, since_ns, to_ns or now, None))
