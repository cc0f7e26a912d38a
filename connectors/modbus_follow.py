"""The profile of one device, as it is now: chosen, checked again at every connection, remembered over restarts.

`follow` asks the device what it is, first by the probes of the profile that it had; where they no longer fit, or it had
none, by all that is known. What comes out is compared with what was known: another map is a line in the log and an
entry in the ledger, and the source reads by it from then on. `modbus_identity` keeps it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from connectors.modbus_identify import (
    Interview,
    device_identification,
    probed,
    server_id,
    sunspec,
    with_former,
)
from connectors.modbus_identity import Descriptions, Identity, IdentityFile
from connectors.modbus_link import ModbusLink
from connectors.modbus_profile import Chain, MappedTag, ModbusProfile, Polling, RegisterMap, resolve
from connectors.modbus_settings import ModbusDevice
from connectors.profile import AUTO, Change, Condition, ProfileError, load_profile, load_profiles
from pipelines.errors import Corrupt, NotConnected, Permanent
from pipelines.tags import Tag, TagTable

if TYPE_CHECKING:
    Log: TypeAlias = logging.LoggerAdapter[logging.Logger]


class Follower:
    """`map` is what the source reads by; None until it is known."""

    def __init__(self, device: str, settings: ModbusDevice, tags: TagTable, data_dir: Path, log: Log) -> None:
        self.map: RegisterMap | None = None
        self.identity: Identity | None = None
        self._device = device
        self._settings = settings
        self._tags = tags
        self._log = log
        self._data_dir = data_dir
        self._file = IdentityFile(data_dir, device, settings)
        self._profiles: Mapping[str, ModbusProfile] = {}
        self._described: Descriptions = {}
        self._remember()

    async def follow(self, link: ModbusLink) -> Change | None:
        """Asks the device; what is not as it was when it was asked before, also by a former process.

        Raises NotConnected, or Permanent where no profile fits.
        """
        if not self._profiles:
            self._profiles = await asyncio.to_thread(self._load)
        self.adjust(link)
        interview = Interview(link, self._settings.url)
        found = await self._same_as_before(interview) or await self._identified(interview)
        if found == self.identity and self.map is not None:
            return None
        mapped = self._mapped(found)
        if not self._settings.tags and not mapped.tags:
            raise Permanent(f"profile {found.profile} has no tag for this device: is it another one? {found.shown}")
        before, old = self.identity, self.map
        self.identity, self.map = found, mapped
        self._log.info("%s: %s", found.shown, self.info)
        self.adjust(link)
        self.tag_ids()
        await asyncio.to_thread(self._save, found)
        return _change(before, old, found, self.map) if before and old else None

    @property
    def info(self) -> str:
        """One line for /health and the log."""
        if self.identity is None:
            return ""
        doubt = f"; uncertain: {self.map.uncertain}" if self.map and self.map.uncertain else ""
        return f"profile {self.identity.profile}, because {self.identity.why}{doubt}"

    def adjust(self, link: ModbusLink) -> None:
        """The device is asked as its profile wants it, as soon as it is known which that is."""
        alone = next(iter(self._profiles.values())).poll if len(self._profiles) == 1 else Polling.model_validate({})
        link.adjust(*(self.map.poll if self.map else alone).patience(self._settings))

    def tag_ids(self) -> dict[str, int]:
        """Point name -> id in the table, for the tags that are delivered; they are added to it."""
        known = self.map.tags if self.map else {}
        return {
            name: self._tags.add(Tag(self._device, self._named(name, tag), tag.unit, labels=tag.names, bits=tag.bits))
            for name, tag in known.items()
            if name not in self._settings.tags
        }

    async def _same_as_before(self, interview: Interview) -> Identity | None:
        """What the device says to the questions of the profile that it had; None where it no longer fits."""
        if self.identity is None or self.identity.profile not in self._profiles:
            return None
        profile, former = self._profiles[self.identity.profile], self.identity.facts
        facts, chain = await ask(interview, profile)
        if interview.silences and former.keys() - facts.keys() - self._said.keys():
            raise NotConnected(f"modbus {self._settings.url}: it does not answer all that it answered before")
        facts = with_former(profile.identify, facts, former)
        if self._settings.profile != AUTO:
            return self._pinned(profile, facts, chain)
        matched = profile.matched(facts)
        return None if matched is None else self._chosen(profile, facts, chain, matched)

    async def _identified(self, interview: Interview) -> Identity:
        if self._settings.profile != AUTO:
            [profile] = self._profiles.values()
            return self._pinned(profile, *await ask(interview, profile))
        profile, facts, chain, matched = await choose(interview, list(self._profiles.values()))
        return self._chosen(profile, facts, chain, matched)

    def _pinned(self, profile: ModbusProfile, facts: dict[str, str], chain: Chain) -> Identity:
        facts = facts | self._said
        unlike = "" if not profile.match or profile.matched(facts) else ", although what it says does not fit"
        return Identity(profile.profile, facts, chain, f"the configuration says so{unlike}{self._versions(facts)}")

    def _chosen(self, profile: ModbusProfile, facts: dict[str, str], chain: Chain, matched: Condition) -> Identity:
        facts = facts | self._said
        why = " and ".join(f"{name} is {facts.get(name) or 'missing'}" for name in matched)
        return Identity(profile.profile, facts, chain, f"{why}{self._versions(facts)}")

    @property
    def _said(self) -> dict[str, str]:
        return {"firmware": self._settings.firmware} if self._settings.firmware else {}

    def _versions(self, facts: Mapping[str, str]) -> str:
        pinned = " (as configured)" if self._said else ""
        known = [f"{name} {facts[name]}{pinned}" for name in ("firmware", "map") if facts.get(name)]
        return f"; {', '.join(known)}" if known else ""

    def _mapped(self, identity: Identity) -> RegisterMap:
        return resolve(self._profiles[identity.profile], identity.facts, identity.chain)

    def _load(self) -> Mapping[str, ModbusProfile]:
        try:
            wanted = self._settings.profile or AUTO
            if wanted != AUTO:
                return {wanted: load_profile(ModbusProfile, wanted, self._data_dir)}
            return load_profiles(ModbusProfile, self._data_dir)
        except ProfileError as error:
            raise Permanent(str(error)) from error

    def _named(self, name: str, tag: MappedTag) -> str:
        """`name`, with a number behind it where that name meant something else before."""
        meaning = [tag.unit, [list(pair) for pair in tag.names], tag.bits]
        number = 1
        while self._described.setdefault(own := name if number == 1 else f"{name}_{number}", meaning) != meaning:
            number += 1
        return own

    def _remember(self) -> None:
        """What was known when the gateway stopped; nothing where that is lost, or its profile is no longer there."""
        try:
            if (kept := self._file.load()) is None:
                return
            identity, self._described = kept
            self._profiles = self._load()
            self.map = self._mapped(identity)
            self.identity = identity
        except (Corrupt, OSError) as error:
            self._log.warning("what the device was is lost: %s", error)
        except (KeyError, Permanent):
            self._profiles = {}

    def _save(self, identity: Identity) -> None:
        """What cannot be kept is learnt again, but for a device that is away at the next start."""
        try:
            self._file.save(identity, self._described)
        except OSError as error:
            self._log.warning("what the device is cannot be kept in %s: %s", self._file.path, error)


def planned_map(settings: ModbusDevice, data_dir: Path | None, device: str) -> tuple[RegisterMap | None, str]:
    """What a device with a profile has, and from when that is known: one line, empty without a profile.

    The map that it had when it was asked last; else that of the profile and firmware of the file; None where only the
    device knows, or the profile cannot be used.
    """
    if settings.profile is None:
        return None, ""
    if data_dir is not None:
        former = Follower(device, settings, TagTable(), data_dir, logging.LoggerAdapter(logging.getLogger(__name__)))
        if former.identity is not None:
            return former.map, f"{former.identity.shown}, as it was when it was asked last: {former.info}"
    if settings.profile == AUTO:
        return None, "profile auto: known when the device was asked"
    try:
        profile = load_profile(ModbusProfile, settings.profile, data_dir)
    except ProfileError as error:
        return None, str(error)
    return resolve(profile, {"firmware": settings.firmware} if settings.firmware else {}), ""


async def ask(interview: Interview, profile: ModbusProfile) -> tuple[dict[str, str], Chain]:
    """The facts and the SunSpec models that matter to one profile. Raises NotConnected."""
    facts, chain = (await sunspec(interview)) if profile.sunspec else ({}, Chain())
    own = await probed(interview, profile.identify, profile.word_order)
    generic = {name for condition in profile.match for name in condition} - {*facts, *own}
    if generic & {"vendor", "code", "product", "model", "firmware"}:
        facts = await device_identification(interview) | facts
    if "server_id" in generic:
        facts |= await server_id(interview)
    return facts | own, chain


async def choose(
    interview: Interview, profiles: Sequence[ModbusProfile]
) -> tuple[ModbusProfile, dict[str, str], Chain, Condition]:
    """The profile whose condition holds, the one with the most facts where several do.

    Raises NotConnected; Permanent where none fits, or two as well as each other.
    """
    facts = await device_identification(interview) | await server_id(interview)
    found = _fitting(profiles, facts, Chain())
    if not found:
        spoken, chain = await sunspec(interview)
        found = _fitting(profiles, facts | spoken, chain) if spoken else []
        facts |= spoken
    if not found:
        for profile in profiles:
            own = facts | await probed(interview, profile.identify, profile.word_order)
            found += _fitting([profile], own, Chain())
    if not found:
        told = ", ".join(f"{name} {text!r}" for name, text in facts.items()) or "it answers no question about itself"
        raise Permanent(f"no profile fits this device ({told}): write `profile:` with a name, or list its `tags:`")
    best = max(len(matched) for *_, matched in found)
    chosen = [one for one in found if len(one[3]) == best]
    if len(chosen) > 1:
        names = " and ".join(f"`{profile.profile}`" for profile, *_ in chosen)
        raise Permanent(f"{names} fit this device equally well: write `profile:` with one of them")
    profile, _, _, matched = chosen[0]
    own, chain = await ask(interview, profile)
    return profile, own if profile.matched(own) else facts | own, chain, matched


def _fitting(
    profiles: Sequence[ModbusProfile], facts: dict[str, str], chain: Chain
) -> list[tuple[ModbusProfile, dict[str, str], Chain, Condition]]:
    return [(one, facts, chain, matched) for one in profiles if (matched := one.matched(facts)) is not None]


def _change(before: Identity, old: RegisterMap, now: Identity, new: RegisterMap) -> Change | None:
    """None where the source goes on as it did."""
    names = changed_tags(old, new)
    if not names and before.profile == now.profile and old.poll == new.poll:
        return None
    return Change.of((before.shown, now.shown), (before.profile, now.profile), names, "how it is asked")


def changed_tags(old: RegisterMap, new: RegisterMap) -> list[str]:
    """Tags that are not the same in both."""
    return [name for name in dict.fromkeys([*old.tags, *new.tags]) if old.tags.get(name) != new.tags.get(name)]
