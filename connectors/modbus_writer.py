"""Commands to a Modbus device: a `pipelines.commands.Writer` over `modbus_write`, on a connection of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from connectors.modbus_frames import RequestFailed
from connectors.modbus_link import ModbusLink
from connectors.modbus_plan import Point, WordOrder
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_write import read, write
from pipelines.clock import SystemClock
from pipelines.commands import BAD_METHOD_INVALID, BAD_OUT_OF_RANGE, Outcome, Refused
from pipelines.counters import Counters


class ModbusWriter:
    """Not for several commands at once."""

    def __init__(self, settings: ModbusDevice, data_dir: Path) -> None:
        self._settings = settings
        self._link = ModbusLink(
            settings.url, settings.timeout, SystemClock(), Counters("writer", "modbus"), settings.manners
        )

    async def read(self, tag: str) -> Any:
        await self._connected()
        try:
            return await read(self._link, self._settings.url, self._point(tag))
        except RequestFailed as error:
            raise Refused(error.status, f"it cannot be read: {error.reason}") from error

    async def write(self, tag: str, value: Any) -> Outcome:
        await self._connected()
        try:
            written = await write(self._link, self._settings.url, self._point(tag), value)
        except ValueError as error:
            raise Refused(BAD_OUT_OF_RANGE, str(error)) from error
        except RequestFailed as error:
            if error.exception_code:
                raise Refused(error.status, error.reason) from error
            return Outcome(error.status, f"it is not known whether it was written: {error.reason}", value=value)
        return Outcome(0, value=value if written.same else written.value)

    async def call(self, method: str, arguments: Sequence[Any]) -> Outcome:
        raise Refused(BAD_METHOD_INVALID, "a Modbus device has no methods")

    async def close(self) -> None:
        await self._link.close()

    async def _connected(self) -> None:
        if self._link.lost:
            await self._link.connect()

    def _point(self, tag: str) -> Point:
        return self._settings.tags[tag].point(tag, WordOrder(self._settings.word_order))
