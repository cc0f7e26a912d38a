"""An answer for `modbus_device.Device`: a meter with a register image, an identity, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from connectors.modbus_url import Manners
from connectors.modbus_wire import Wire
from pipelines.clock import SystemClock
from tests.unit.connectors.modbus_device import read_pdu, registers, tcp_frame

FUNCTIONS = {3: "holding", 4: "input"}

KBR = {0: b"KBR GmbH", 1: b"multicomp F144-3  ", 2: b" 2.00r016"}
"""The example of the vendor's manual (KBR multicomp F144, p. 64): blanks on either side."""


class Hurried(SystemClock):
    """Nobody waits for a poll period."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Connections leave none between requests; what they were told to leave, in ns, as it comes."""
    told: list[int] = []
    behave = Wire.behave

    def hurried(wire: Wire, manners: Manners) -> None:
        told.append(manners.pause_ns)
        behave(wire, replace(manners, pause_ns=0))

    monkeypatch.setattr(Wire, "behave", hurried)
    return told


class Meter:
    """Registers that are in no block are answered with exception 2, functions that it does not have with exception 1.

    image: `holding 1036` -> values from there on. alone: `input 11 1` -> values that only a read of exactly that gets.
    objects: those of Read Device Identification; empty: the meter does not know it.
    """

    def __init__(
        self,
        image: Mapping[str, Sequence[int]],
        alone: Mapping[str, Sequence[int]] | None = None,
        objects: Mapping[int, bytes] | None = None,
    ) -> None:
        self.reads: list[tuple[str, int, int]] = []
        self.silent = False
        self.become(image, alone, objects)

    def become(
        self,
        image: Mapping[str, Sequence[int]],
        alone: Mapping[str, Sequence[int]] | None = None,
        objects: Mapping[int, bytes] | None = None,
    ) -> None:
        """Another firmware, from now on."""
        self.objects = dict(objects or {})
        self._alone = {_block(text): list(values) for text, values in (alone or {}).items()}
        self._held = {
            (table, start + at): value
            for (table, start, _), values in ((_block(f"{text} 0"), values) for text, values in image.items())
            for at, value in enumerate(values)
        }

    def __call__(self, request: bytes) -> bytes:
        if self.silent:
            return b""
        return tcp_frame(int.from_bytes(request[:2], "big"), request[6], self.reply(request[7:]))

    def reply(self, pdu: bytes) -> bytes:
        """To one request PDU."""
        if pdu[0] == 43 and self.objects:
            return self._identification(pdu[2], pdu[3])
        if pdu[0] not in FUNCTIONS:
            return bytes([pdu[0] | 0x80, 1])
        block = (FUNCTIONS[pdu[0]], int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big"))
        self.reads.append(block)
        table, start, count = block
        wanted = [(table, at) for at in range(start, start + count)]
        found = self._alone.get(block) or [self._held[one] for one in wanted if one in self._held]
        if len(found) != count:
            return bytes([pdu[0] | 0x80, 2])
        return read_pdu(pdu[0], registers(*found))

    def _identification(self, code: int, number: int) -> bytes:
        wanted = {number} if code == 4 else {1: range(3), 2: range(7)}.get(code, range(0))
        listed = [
            bytes([one, len(self.objects[one])]) + self.objects[one] for one in sorted(self.objects) if one in wanted
        ]
        if not listed:
            return bytes([43 | 0x80, 2 if code == 4 else 3])
        return bytes([43, 14, code, 0x82, 0, 0, len(listed)]) + b"".join(listed)


def _block(text: str) -> tuple[str, int, int]:
    table, start, count = text.split()[:3]
    return table, int(start, 0), int(count, 0)
