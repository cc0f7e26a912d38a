"""What the tags of a device mean at its server: addresses resolved at every connect, and the tags that `select:` and
`profile:` find.

The tags' order is that of their client handles: first the file's, then the learnt ones in the order in which they were
found, which a file keeps. A tag is never taken out: one whose node is gone is a fault, and keeps its handle.

Where a server's profiles say something else than at the connection before, their tags are looked for before any of them
is subscribed to: what another firmware has at the old places is never taken for what was there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from connectors import opcua_names
from connectors.opcua_address import NO_NODE, is_plain, path_text, with_uri
from connectors.opcua_follow import TAGS_MAX, Chosen, Placed, Places, place
from connectors.opcua_learnt import Former, Labels, Learnt, LearntFile
from connectors.opcua_limits import Limits
from connectors.opcua_pattern import Rule
from connectors.opcua_plan import Resolved
from connectors.opcua_requests import Request
from connectors.opcua_resolve import namespace_array, resolve
from connectors.opcua_select import OpcUaSelect, compiled
from connectors.opcua_servers import Server
from connectors.opcua_settings import OpcUaDevice, OpcUaTag
from connectors.opcua_walk import Progress, Selector, Variable, Walked, subtypes, walk
from connectors.profile import Change
from pipelines.errors import Corrupt

REFUSED_SHOWN: Final = 3
UNPLACED: Final = "the server's profile does not have it (any more)"
NOTHING_WALKED: Final = Walked()


@dataclass(frozen=True, slots=True)
class Changes:
    """What a look through the server has brought, as client handles."""

    new: range
    gone: Collection[int]
    """Since the last look, or at another node."""
    back: Collection[int]
    """Were gone, or are at another node."""
    beyond: int = 0
    """Found and not learnt, for there is no room."""

    def after(self, earlier: Changes) -> Changes:
        """Both looks as one: nothing, or not all, has come of what the earlier one brought."""
        new = range(earlier.new.start, self.new.stop) if earlier.new else self.new
        gone = {*earlier.gone, *self.gone}
        return Changes(new, gone, ({*earlier.back} - {*self.gone}) | {*self.back}, self.beyond)


UNCHANGED: Final = Changes(range(0), (), ())


class Directory:
    """`resolve` for each session, `refresh` to look for what `select:` means."""

    def __init__(
        self, name: str, settings: OpcUaDevice, data_dir: Path, log: logging.LoggerAdapter[logging.Logger]
    ) -> None:
        self._settings = settings
        self._select = settings.select
        self._log = log
        rules = self._select.meaning if self._select else None
        belongs = [settings.opcua, rules, settings.profile] if settings.profile else [settings.opcua, rules]
        self._file = LearntFile(data_dir, name, belongs)
        self._plain = not settings.learns_tags and all(is_plain(tag.node) for tag in settings.tags.values())
        self._loaded = not settings.learns_tags
        self._learnt: list[Learnt] = []
        self._chosen: Chosen | None = None
        self._former: Former | None = None
        self._profile_changes: list[Change] = []
        self._gone: set[int] = set()
        self._namespaces: list[str] = []
        self._limits = Limits(log)
        self._changing = asyncio.Lock()  # `resolved`, by two tasks
        self.resolved = Resolved.of(settings if self._plain else _unresolved(settings), {})
        """Every tag that is known."""
        self.faults: dict[str, str] = {}
        """What `select:` says and the server does not have, or has too much of."""

    @property
    def info(self) -> str:
        """For people."""
        profiles = f"{self._chosen.info}" if self._chosen else ""
        learnt = sum(1 for one in self._learnt if one.node) - len(self._gone)
        count = f"{learnt:,} tags selected" if self._select else f"{learnt:,} tags of it" if profiles else ""
        return "; ".join(filter(None, (profiles, count)))

    @property
    def labels(self) -> Mapping[str, Labels]:
        """Tag -> what the profile says its numbers mean."""
        return {one.name: one.meaning.labels for one in self._learnt if one.base}

    @property
    def doubtful(self) -> Collection[str]:
        """Tags of which the profile is not sure."""
        return {one.name for one in self._learnt if one.uncertain}

    def take_changes(self) -> list[Change]:
        """Once: where its profiles said something else than at the connection before, also of a former process."""
        changes, self._profile_changes = self._profile_changes, []
        return changes

    def twin(self) -> Directory:
        """For another server with the same nodes: from here on each resolves for itself. Nothing may be learnt."""
        return copy(self)

    async def resolve(self, request: Request, limits: Limits, server: Server) -> None:
        """Sets `resolved` for the server that is connected, which takes so much. Raises what requests raise."""
        self._limits = limits
        if self._plain:
            await self._take(self._settings.tags, {}, {})
            return
        if not self._loaded:
            await asyncio.to_thread(self._load)
        self._namespaces = await namespace_array(request)
        self._gone = set()
        if server.chosen:
            await self._follow(request, Chosen.of(server))
        await self._take({}, *await self._nodes_of(request, dict(self._all())))

    async def resolve_missing(self, request: Request) -> None:
        """The addresses that meant no node, once more. Raises what requests raise."""
        if self.resolved.why:
            tags = dict(self._all())
            found, why = await self._nodes_of(request, {name: tags[name] for name in self.resolved.why})
            async with self._changing:
                await self._take(self.resolved.device.tags, found, why)

    async def refresh(self, request: Request) -> Changes:
        """Looks through the server; `resolved` has the new tags afterwards. Raises what requests raise."""
        own = [tag.node for tag in list(self.resolved.device.tags.values())[: len(self._settings.tags)]]
        places = await self._places(request, self._chosen, own) if self._chosen else Places()
        walked, faults = NOTHING_WALKED, dict[str, str]()
        if self._select:
            walked, faults = await look(request, self._select, self._namespaces, self._limits)
        async with self._changing:
            changes = await self._changes(walked, places)
        if changes.beyond and not walked.cut:
            faults["select"] = f"{changes.beyond:,} variables are beyond `limit`, beside tags that are gone; raise it"
        if places.fault:
            faults["profile"] = places.fault
        self._say(faults)
        return changes

    async def _follow(self, request: Request, chosen: Chosen) -> None:
        """What the profiles say now; where that is not what they said before, their tags are looked for."""
        former = self._former
        now = Former(tuple(chosen.profiles), chosen.shown, chosen.digest)
        self._log.info("%s: %s", chosen.shown, chosen.info)
        if former is None or former.digest != now.digest:
            own, _ = await self._nodes_of(request, self._settings.tags)
            places = await self._places(request, chosen, [tag.node for tag in own.values()])
            changed = self._replace(places.tags, keep=False)
            if former is not None:
                profiles = " and ".join(former.profiles), " and ".join(now.profiles)
                change = Change.of((former.shown, now.shown), profiles, changed, "nothing that is a tag")
                self._profile_changes.append(change)
        self._chosen, self._former = chosen, now
        if former != now:
            await self._save()

    async def _places(self, request: Request, chosen: Chosen, own: Collection[str]) -> Places:
        names = {*self._settings.tags, *self._settings.events}
        return await place(request, chosen.templates, names, own, self._namespaces, self._limits)

    def _replace(self, placed: Sequence[Placed], keep: bool) -> list[str]:
        """Where the profiles' tags are now; the names of those that are not what they were.

        `keep`: what was not found stays where it was.
        """
        taken = {*self._settings.tags, *self._settings.events, *(one.name for one in self._learnt)}
        found = {one.key: one for one in placed}
        changed = []
        for at, one in enumerate(self._learnt):
            if not one.base:
                continue
            now = found.pop(one.key, None)
            moved = one if keep else replace(one, node="")
            self._learnt[at] = moved if now is None else now.learnt(one.name, self._namespaces)
            if self._learnt[at] != one:
                changed.append(one.name)
        for new in found.values():
            name = _free(new.base, taken)
            taken.add(name)
            self._learnt.append(new.learnt(name, self._namespaces))
            changed.append(name)
        return changed

    def _all(self) -> Iterator[tuple[str, OpcUaTag]]:
        yield from self._settings.tags.items()
        for one in self._learnt:
            yield one.name, OpcUaTag(node=NO_NODE, unit=one.meaning.unit).at(one.node or NO_NODE)

    async def _nodes_of(
        self, request: Request, tags: Mapping[str, OpcUaTag]
    ) -> tuple[dict[str, OpcUaTag], dict[str, str]]:
        """These tags by node ids, NO_NODE where there is none; and why."""
        addresses = {tag.node for tag in tags.values() if not is_plain(tag.node)}
        nodes, why = await resolve(request, addresses, self._namespaces, self._limits)
        found = {
            name: tag.at(nodes.get(tag.node, NO_NODE)) if tag.node in addresses else tag for name, tag in tags.items()
        }
        unplaced = {one.name: UNPLACED for one in self._learnt if not one.node and one.name in tags}
        return found, unplaced | {name: f"{tag.node}: {why[tag.node]}" for name, tag in tags.items() if tag.node in why}

    async def _take(self, known: Mapping[str, OpcUaTag], more: Mapping[str, OpcUaTag], why: Mapping[str, str]) -> None:
        """`resolved` anew. In a thread: ten thousand tags take 0.1 s."""
        device = self._settings.model_copy(update={"tags": {**known, **more}})
        limits = self._limits
        self.resolved = await asyncio.to_thread(
            Resolved.of, device, why, limits.items_per_subscription, limits.subscriptions_per_session
        )

    async def _changes(self, walked: Walked, places: Places) -> Changes:
        """New tags are learnt; those that are not found any more are gone, where nothing else can explain it."""
        first = len(self._settings.tags)
        tags = list(self.resolved.device.tags.values())
        own = {tag.node for tag in tags[:first]}
        moved = await self._move(places.tags)
        nodes = [tag.node for tag in list(self.resolved.device.tags.values())[first:]]
        handles = {node: first + index for index, node in enumerate(nodes) if node != NO_NODE}
        found = [one for one in walked.variables if one.node not in own]
        present = {
            handles[node]
            for node in (*(one.node for one in found), *(one.node for one in places.tags))
            if node in handles
        }
        new = [one for one in found if one.node not in handles]
        room = self._select.limit - sum(1 for one in self._learnt if not one.base) if self._select else 0
        await self._learn(new[:room])
        back = self._gone & present
        whole = walked.whole and places.whole
        gone = {handle for handle in handles.values() if handle not in present} if whole else self._gone - back
        fresh = gone - self._gone
        self._gone = gone
        beyond = max(len(new) - room, 0)
        return Changes(range(len(tags), len(self.resolved.device.tags)), fresh | moved, back | moved, beyond)

    async def _move(self, placed: Sequence[Placed]) -> set[int]:
        """The profiles' tags that are new are learnt; the handles of those that are at another node than before."""
        before = len(self._learnt)
        changed = self._replace(placed, keep=True)
        if not changed:
            return set()
        at = {one.name: index for index, one in enumerate(self._learnt[:before], len(self._settings.tags))}
        places = {one.key: one.node for one in placed}
        tags = {
            one.name: OpcUaTag(node=NO_NODE, unit=one.meaning.unit).at(places[one.key])
            for one in self._learnt
            if one.name in changed
        }
        await self._take(self.resolved.device.tags, tags, self.resolved.why)
        await self._save()
        return {at[name] for name in changed if name in at}

    async def _learn(self, new: list[Variable]) -> None:
        if not new:
            return
        known = self.resolved.device.tags
        learnt = await asyncio.to_thread(_learnt, new, self._namespaces, {**known, **self._settings.events})
        self._learnt += learnt
        added = {one.name: OpcUaTag(node=NO_NODE).at(variable.node) for one, variable in zip(learnt, new, strict=True)}
        await self._take(known, added, self.resolved.why)
        await self._save()

    async def _save(self) -> None:
        try:
            await asyncio.to_thread(self._file.save, [*self._learnt], self._former)
        except OSError as error:
            self._log.warning("%s cannot be kept: %s; a restart looks for the tags again", self._file.path, error)

    def _say(self, faults: dict[str, str]) -> None:
        for name, text in faults.items():
            if self.faults.get(name) != text:
                self._log.warning("%s: %s", name, text)
        self.faults = faults

    def _load(self) -> None:
        try:
            found, former = self._file.load()
        except (Corrupt, OSError) as error:
            self._log.warning("the tags are looked for again: %s", error)
            found, former = [], None
        # A full list may hold many that are gone for good: then it begins anew.
        limit = self._select.limit if self._select else TAGS_MAX
        if len(found) < limit:
            self._learnt = [one for one in found if one.name not in self._settings.tags]
            self._former = former
        self._loaded = True


def _unresolved(settings: OpcUaDevice) -> OpcUaDevice:
    """Before anything is known of the server."""
    tags = {name: tag.at(NO_NODE) for name, tag in settings.tags.items()}
    return settings.model_copy(update={"tags": tags})


def _free(base: str, taken: Container[str]) -> str:
    """`base`, with a number behind it where something else has that name."""
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


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
