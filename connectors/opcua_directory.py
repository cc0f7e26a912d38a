"""What the tags of a device mean at its server: addresses resolved at every connect, and the tags that `select:` finds.

The tags' order is that of their client handles: first the file's, then the learnt ones in the order in which they were
found, which a file keeps. A tag is never taken out: one whose node is gone is a fault, and keeps its handle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from connectors import opcua_names
from connectors.opcua_address import NO_NODE, is_plain, path_text, with_uri
from connectors.opcua_learnt import Learnt, LearntFile
from connectors.opcua_limits import Limits
from connectors.opcua_pattern import Rule
from connectors.opcua_plan import Resolved
from connectors.opcua_requests import Request
from connectors.opcua_resolve import namespace_array, resolve
from connectors.opcua_select import OpcUaSelect, compiled
from connectors.opcua_settings import OpcUaDevice, OpcUaTag
from connectors.opcua_walk import Progress, Selector, Variable, Walked, subtypes, walk
from pipelines.errors import Corrupt

REFUSED_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look through the server has brought, as client handles."""

    new: range
    gone: Collection[int]
    """Since the last look."""
    back: Collection[int]
    """Were gone."""
    beyond: int = 0
    """Found and not learnt, for there is no room."""


class Directory:
    """`resolve` for each session, `refresh` to look for what `select:` means."""

    def __init__(
        self, name: str, settings: OpcUaDevice, data_dir: Path, log: logging.LoggerAdapter[logging.Logger]
    ) -> None:
        self._settings = settings
        self._select = settings.select
        self._log = log
        rules = self._select.meaning if self._select else None
        self._file = LearntFile(data_dir, name, [settings.opcua, rules])
        self._plain = self._select is None and all(is_plain(tag.node) for tag in settings.tags.values())
        self._loaded = self._select is None
        self._learnt: list[Learnt] = []
        self._gone: set[int] = set()
        self._namespaces: list[str] = []
        self._limits = Limits(log)
        unknown = {name: tag.model_copy(update={"node": NO_NODE}) for name, tag in settings.tags.items()}
        self.resolved = Resolved.of(settings if self._plain else settings.model_copy(update={"tags": unknown}), {})
        """Every tag that is known."""
        self.faults: dict[str, str] = {}
        """What `select:` says and the server does not have, or has too much of."""

    @property
    def info(self) -> str:
        """For people."""
        return f"{len(self._learnt) - len(self._gone):,} tags selected" if self._select else ""

    async def resolve(self, request: Request, limits: Limits) -> None:
        """Sets `resolved` for the server that is connected, which takes so much. Raises what requests raise."""
        self._limits = limits
        if self._plain:
            await self._take(self._settings.tags, {}, {})
            return
        if not self._loaded:
            await asyncio.to_thread(self._load)
        self._namespaces = await namespace_array(request)
        self._gone = set()
        await self._take({}, *await self._nodes_of(request, dict(self._all())))

    async def resolve_missing(self, request: Request) -> None:
        """The addresses that meant no node, once more. Raises what requests raise."""
        if self.resolved.why:
            tags = dict(self._all())
            found, why = await self._nodes_of(request, {name: tags[name] for name in self.resolved.why})
            await self._take(self.resolved.device.tags, found, why)

    async def refresh(self, request: Request) -> Changes:
        """Looks through the server; `resolved` has the new tags afterwards. Raises what requests raise."""
        assert self._select is not None
        walked, faults = await look(request, self._select, self._namespaces, self._limits)
        changes = await self._changes(walked)
        if changes.beyond and not walked.cut:
            faults["select"] = f"{changes.beyond:,} variables are beyond `limit`, beside tags that are gone; raise it"
        self._say(faults)
        return changes

    def _all(self) -> Iterator[tuple[str, OpcUaTag]]:
        yield from self._settings.tags.items()
        for one in self._learnt:
            yield one.name, OpcUaTag.model_construct(node=one.node)

    async def _nodes_of(
        self, request: Request, tags: Mapping[str, OpcUaTag]
    ) -> tuple[dict[str, OpcUaTag], dict[str, str]]:
        """These tags by node ids, NO_NODE where there is none; and why."""
        addresses = {tag.node for tag in tags.values() if not is_plain(tag.node)}
        nodes, why = await resolve(request, addresses, self._namespaces, self._limits)
        found = {
            name: tag.model_copy(update={"node": nodes.get(tag.node, NO_NODE)}) if tag.node in addresses else tag
            for name, tag in tags.items()
        }
        return found, {name: f"{tag.node}: {why[tag.node]}" for name, tag in tags.items() if tag.node in why}

    async def _take(self, known: Mapping[str, OpcUaTag], more: Mapping[str, OpcUaTag], why: Mapping[str, str]) -> None:
        """`resolved` anew. In a thread: ten thousand tags take 0.1 s."""
        device = self._settings.model_copy(update={"tags": {**known, **more}})
        limits = self._limits
        self.resolved = await asyncio.to_thread(
            Resolved.of, device, why, limits.items_per_subscription, limits.subscriptions_per_session
        )

    async def _changes(self, walked: Walked) -> Changes:
        """New tags are learnt; those that are not found any more are gone, where nothing else can explain it."""
        assert self._select is not None
        first = len(self._settings.tags)
        tags = list(self.resolved.device.tags.values())
        own = {tag.node for tag in tags[:first]}
        handles = {tag.node: first + index for index, tag in enumerate(tags[first:])}
        found = [one for one in walked.variables if one.node not in own]
        present = {handles[one.node] for one in found if one.node in handles}
        new = [one for one in found if one.node not in handles]
        room = self._select.limit - len(self._learnt)
        await self._learn(new[:room])
        back = self._gone & present
        gone = {handle for handle in handles.values() if handle not in present} if walked.whole else self._gone - back
        fresh = gone - self._gone
        self._gone = gone
        return Changes(range(len(tags), len(self.resolved.device.tags)), fresh, back, max(len(new) - room, 0))

    async def _learn(self, new: list[Variable]) -> None:
        if not new:
            return
        known = self.resolved.device.tags
        learnt = await asyncio.to_thread(_learnt, new, self._namespaces, {**known, **self._settings.events})
        self._learnt += learnt
        added = {
            one.name: OpcUaTag.model_construct(node=variable.node) for one, variable in zip(learnt, new, strict=True)
        }
        await self._take(known, added, self.resolved.why)
        try:
            await asyncio.to_thread(self._file.save, self._learnt)
        except OSError as error:
            self._log.warning("%s cannot be kept: %s; a restart looks for the tags again", self._file.path, error)

    def _say(self, faults: dict[str, str]) -> None:
        for name, text in faults.items():
            if self.faults.get(name) != text:
                self._log.warning("%s: %s", name, text)
        self.faults = faults

    def _load(self) -> None:
        assert self._select is not None
        try:
            found = self._file.load()
        except (Corrupt, OSError) as error:
            self._log.warning("the tags are looked for again: %s", error)
            found = []
        # A full list may hold many that are gone for good: then it begins anew.
        taken = self._settings.tags
        self._learnt = [one for one in found if one.name not in taken] if len(found) < self._select.limit else []
        self._loaded = True


def _learnt(new: Sequence[Variable], namespaces: Sequence[str], taken: Container[str]) -> list[Learnt]:
    paths = [(one.path, with_uri(one.node, namespaces)) for one in new]
    names = opcua_names.names(paths, taken)
    return [Learnt(name, node) for name, (_, node) in zip(names, paths, strict=True)]


async def look(
    request: Request,
    select: OpcUaSelect,
    namespaces: Sequence[str],
    limits: Limits,
    progress: Progress = lambda _, __: None,
) -> tuple[Walked, dict[str, str]]:
    """What `select` means at a server, and what of it the server does not have. Raises what requests raise."""
    asked = {one.type for one in select.types}
    nodes, unknown_types = await resolve(request, asked, namespaces, limits)
    types = {text: await subtypes(request, node, limits) for text, node in nodes.items()}
    include, exclude, unknown = compiled(select, namespaces, types)
    selector = Selector(include, exclude, select.limit, select.properties)
    walked = await walk(request, selector, limits, progress)
    why = {f"select {text}": reason for text, reason in (unknown_types | unknown).items()}
    return walked, why | dict(_missing(walked, include.rules))


def _missing(walked: Walked, rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    if walked.cut:
        yield "select", f"{walked.cut}: what is beyond is left out; raise `limit` or select less"
    if walked.refused:
        shown = ", ".join(f"{path_text(path)}: {status}" for path, status in walked.refused[:REFUSED_SHOWN])
        yield "select: not looked into", f"{len(walked.refused)} nodes could not be browsed: {shown}"
    for number, rule in enumerate(rules if walked.whole else ()):
        if number not in walked.matched:
            yield f"select {rule.text}", _nothing(rule)


def _nothing(rule: Rule) -> str:
    if rule.types is not None:
        return "there is no instance of this type"
    if rule.starts:
        return "no variable matches; `/**` behind a path means all that is below it"
    return "no instance has such a variable"
