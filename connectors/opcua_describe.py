"""What a server says of the tags: the structures that they are made of, engineering units, names of numbers.

Data types come first: a new connection waits for them, and no structure is read before. Units and names that variables
have as properties (AnalogItemType, MultiStateDiscreteType, TwoStateDiscreteType: Part 8, 5.3) are asked for with
patience, and beside the live values where there are very many, or where a server has something that waits to be sent
again. All of it is kept until the server is restarted; nothing of it is
needed: where a server does not answer, values are delivered as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Any, Final

import numpy as np

from connectors import opcua_requests
from connectors.opcua_binary import DecodeError
from connectors.opcua_definitions import unit_of
from connectors.opcua_requests import ServiceError, Session
from connectors.opcua_resume import Log
from connectors.opcua_structures import DataType
from connectors.opcua_types import Types, attributes, labels_of
from pipelines.batch import ARRAY, Batch, Extra, Kind
from pipelines.clock import Clock
from pipelines.counters import Counters
from pipelines.errors import NotConnected
from pipelines.tags import TagTable

TYPES_S: Final = 20.0
"""For the data types of all tags."""
PATIENCE_S: Final = 5.0
"""How long a connection waits for units and names."""
NODES_PER_STEP: Final = 500
STEP_NS: Final = 1_000_000
"""Structures are read for so long before others have a turn."""
TYPES_SHOWN_MAX: Final = 3

_OBJECTS: Final = np.zeros(256, dtype=np.bool_)
for _kind in (Kind.EXTENSION_OBJECT, Kind.DATA_VALUE, Kind.VARIANT):
    _OBJECTS[[_kind, _kind | ARRAY]] = True


class Describer:
    """`start` for each session, `stop` at its end."""

    def __init__(self, name: str, tags: TagTable, clock: Clock, counters: Counters, log: Log) -> None:
        self._name = name
        self._tags = tags
        self._clock = clock
        self._counters = counters
        self._log = log
        self._types = Types(log)
        self._server_start = ""
        self._described: set[int] = set()  # tag ids
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._later: asyncio.Task[None] | None = None
        self._typed = asyncio.Event()

    @property
    def info(self) -> str:
        """Which objects are delivered as they were sent; empty where all are read."""
        unread = self._types.structures.unread
        if not unread:
            return ""
        shown = ", ".join(sorted(unread)[:TYPES_SHOWN_MAX]) + (", ..." if len(unread) > TYPES_SHOWN_MAX else "")
        return f"{sum(unread.values())} structures were delivered as they came: of type {shown}"

    async def start(
        self, session: Session, server_start: str, tags: Sequence[tuple[int, bytes]], *, waits: bool
    ) -> None:
        """Asks for what is not known of these (tag id, encoded node id) pairs.

        waits: returns when data types are known, and soon after that. Where something waits at the server it must
        not: what is published meanwhile may push out what has to be sent again.
        """
        self._session = session
        if not server_start or server_start != self._server_start:
            self._types, self._described = Types(self._log), set()
            self._server_start = server_start
        new = [(tag, node) for tag, node in tags if tag not in self._described]
        self._typed.clear()
        self._task = asyncio.create_task(self._learn(session, new), name=f"descriptions {self._name}")
        if waits:
            await self._typed.wait()
            await asyncio.wait([self._task], timeout=PATIENCE_S)

    def also(self, tags: Sequence[tuple[int, bytes]]) -> None:
        """Likewise, of tags that have become known since; beside the live values, after what is under way."""
        assert self._session is not None and self._task is not None
        after = self._later or self._task
        self._later = asyncio.create_task(self._learn_after(after, self._session, tags), name=f"more {self._name}")

    async def stop(self) -> None:
        """Idempotent."""
        tasks = [task for task in (self._task, self._later) if task is not None]
        self._task = self._later = self._session = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._typed.set()

    def has_objects(self, batch: Batch) -> bool:
        """`read` has something to do."""
        return bool(batch.extra) and bool(_OBJECTS[batch.kind].any())

    async def read(self, batch: Batch) -> None:
        """Structures in place of the objects in a batch that nobody has yet; what is not known of them is asked for."""
        assert batch.extra is not None
        await self._typed.wait()
        raw = {row: batch.extra[row] for row in np.flatnonzero(_OBJECTS[batch.kind]).tolist() if row in batch.extra}
        structures = self._types.structures
        before = dict(structures.unread)
        found = await self._values(raw)
        new = structures.unread.keys() - before.keys()
        if new and await self._ask(new):
            structures.unread = dict(before)
            found = await self._values(raw)
        self._counters.add("unread_structures", sum(structures.unread.values()) - sum(before.values()))
        batch.extra.update(found)

    async def _values(self, raw: Extra) -> Extra:
        found: dict[int, Any] = {}
        began_ns = self._clock.mono_ns()
        for row, value in raw.items():
            found[row] = self._types.structures.value(value)
            if self._clock.mono_ns() - began_ns > STEP_NS:
                await asyncio.sleep(0)
                began_ns = self._clock.mono_ns()
        return found

    async def _ask(self, encodings: set[str]) -> bool:
        """For types of objects that nothing had announced; whether there is more to know than before."""
        if self._session is None:
            return False
        try:
            async with asyncio.timeout(TYPES_S):
                return await self._types.learn_encodings(self._session, encodings)
        except (TimeoutError, ServiceError, DecodeError, NotConnected) as error:
            self._log.warning(
                "what structures of type %s are made of cannot be read: %s",
                ", ".join(sorted(encodings)[:TYPES_SHOWN_MAX]),
                error,
            )
            return False

    async def _learn_after(
        self, before: asyncio.Task[None], session: Session, tags: Sequence[tuple[int, bytes]]
    ) -> None:
        await before  # cancelled with this one
        await self._learn(session, tags)

    async def _learn(self, session: Session, tags: Sequence[tuple[int, bytes]]) -> None:
        try:
            async with asyncio.timeout(TYPES_S):
                types = await self._data_types(session, [node for _, node in tags])
        except (TimeoutError, ServiceError, DecodeError, NotConnected) as error:
            self._log.warning("data types cannot be read, structures are delivered as they come: %s", error)
            return
        finally:
            self._typed.set()
        plain = []
        for (tag, node), data_type in zip(tags, types, strict=True):
            if data_type is not None and data_type.labels:
                self._tags.learn(tag, labels=data_type.labels, bits=data_type.bits)
            elif data_type is None or Kind.BOOLEAN <= data_type.kind <= Kind.DOUBLE or data_type.kind == Kind.VARIANT:
                plain.append((tag, node))
        typed = {tag for (tag, _), data_type in zip(tags, types, strict=True) if data_type is not None}
        self._described |= typed - {tag for tag, _ in plain}
        await self._properties(session, plain, typed)

    async def _data_types(self, session: Session, nodes: Sequence[bytes]) -> list[DataType | None]:
        """Of each node; None where the server does not say."""
        named = await attributes(session, nodes, opcua_requests.ATTRIBUTE_DATA_TYPE)
        await self._types.learn(session, {each for each in named if isinstance(each, str)})
        return [self._types.of(each) if isinstance(each, str) else None for each in named]

    async def _properties(self, session: Session, tags: Sequence[tuple[int, bytes]], typed: Container[int]) -> None:
        """Part by part: what was not read when the session ends is asked for in the next one."""
        try:
            for at in range(0, len(tags), NODES_PER_STEP):
                part = tags[at : at + NODES_PER_STEP]
                found = await self._types.properties(session, [node for _, node in part])
                for (tag, _), properties in zip(part, found, strict=True):
                    self._tags.learn(tag, unit_of(properties.get("EngineeringUnits")), labels_of(properties))
                self._described.update(tag for tag, _ in part if tag in typed)
        except (TimeoutError, ServiceError, DecodeError, NotConnected) as error:
            self._log.warning("units and names of numbers cannot be read: %s", error)
