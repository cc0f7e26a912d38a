"""What a session rests on, watched while it lasts: certificates that end, and a trust that is taken back.

Days that are left are gauges; the last `ALARM_DAYS` of them are a line in the log, each day, and in `/health`.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from connectors.opcua_certificates import day
from connectors.opcua_pki import folder_of, stamp
from connectors.opcua_resume import Log
from connectors.opcua_security import OWN, SERVER, USER, Secured
from pipelines.counters import Counters
from pipelines.errors import Permanent

ALARM_DAYS: Final = 30
LOOK_EVERY_S: Final = 5.0
_SECONDS_PER_DAY: Final = 86_400
_WHOSE: Final = {
    OWN: ("the gateway's own certificate", "`gateway trust renew`"),
    SERVER: ("the server's certificate", "renew it at the server"),
    USER: ("the certificate of `auth`", "renew it"),
}


class CertificateWatch:
    """Of one device; between `begin` and `stop`. `lose` is called where the server is not trusted any more."""

    def __init__(self, data_dir: Path, counters: Counters, log: Log) -> None:
        self._pki = folder_of(data_dir)
        self._gauges = counters.gauges
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._secured: Secured | None = None
        self._said: set[str] = set()
        self._warned_on = ""

    def begin(self, secured: Secured, lose: Callable[[str], None]) -> None:
        """Says what has to be said now, and goes on looking."""
        self._secured = secured
        for level, lines in ((logging.WARNING, secured.warnings), (logging.INFO, secured.notes)):
            for line in lines:
                if line not in self._said:
                    self._log.log(level, "%s", line)
            self._said.update(lines)
        self._measure()
        if secured.ends:
            self._task = asyncio.create_task(self._look(secured, lose))

    def stop(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
        self._task = self._secured = None

    @property
    def alarms(self) -> Sequence[str]:
        """A line for each certificate that ends within `ALARM_DAYS`."""
        if self._secured is None:
            return ()
        near = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=ALARM_DAYS)
        return [
            f"{_WHOSE[who][0]} {'ends' if days_left(end) > 0 else 'ended'} on {day(end)}: {_WHOSE[who][1]}"
            for who, end in self._secured.ends.items()
            if end < near
        ]

    async def _look(self, secured: Secured, lose: Callable[[str], None]) -> None:
        before = secured.seen  # a hot standby may have been examined long ago
        while True:
            self._warn_daily()
            self._measure()
            await asyncio.sleep(LOOK_EVERY_S)
            if secured.recheck and before != (before := stamp(self._pki)):
                try:
                    await asyncio.to_thread(secured.recheck)
                except (Permanent, OSError) as error:
                    lose(str(error))
                    return

    def _warn_daily(self) -> None:
        today = day(datetime.datetime.now(datetime.UTC))
        if today != self._warned_on:
            self._warned_on = today
            for alarm in self.alarms:
                self._log.warning("%s", alarm)

    def _measure(self) -> None:
        for who, end in self._secured.ends.items() if self._secured else ():
            self._gauges[f"{who}_certificate_days"] = round(days_left(end), 2)


def days_left(end: datetime.datetime) -> float:
    """Negative afterwards."""
    return (end - datetime.datetime.now(datetime.UTC)).total_seconds() / _SECONDS_PER_DAY
