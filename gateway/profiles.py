"""What `gateway profile` prints."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from connectors.modbus import ModbusSource
from connectors.modbus_identify import Interview, device_identification
from connectors.modbus_link import ModbusLink
from connectors.modbus_profile import MappedTag, ModbusProfile, resolve
from connectors.modbus_settings import ModbusDevice
from connectors.modbus_url import ModbusUrl
from connectors.opcua_profile import ROOM, STANDARD, OpcUaProfile, browse_paths, limits_of
from connectors.opcua_profile import resolve as resolve_nodes
from connectors.profile import AUTO, OWN_PROFILES, load_profile, load_profiles
from gateway.schema import DIALECT, settings_schema
from pipelines.batch import GOOD, SEVERITY_MASK, SEVERITY_UNCERTAIN
from pipelines.clock import Clock, SystemClock
from pipelines.counters import Counters
from pipelines.errors import NotConnected, Permanent
from pipelines.quantities import duration_ns, format_duration
from pipelines.tags import TagTable

PLAUSIBLE: Final[Mapping[str, tuple[float, float]]] = {
    "Hz": (45.0, 65.0),
    "%": (-1000.0, 1000.0),
    "Cel": (-60.0, 200.0),
}
"""Unit -> what a working device may report; 0 is always allowed: it may stand still."""
AUTO_TIMEOUT: Final = "3s"
"""For a request to a device of which nothing is known."""
UNIT_ITSELF: Final = 255
"""Unit id of the device that has the address (Messaging on TCP/IP V1.0b, section 4.4.1.2)."""
SYSTEM_CLOCK: Final = SystemClock()


def listing(data_dir: Path | None) -> list[str]:
    """A line a profile. Raises ProfileError."""
    rows = [("PROFILE", "GRADE", "TAGS", "FOR")]
    for name, server in load_profiles(OpcUaProfile, data_dir).items():
        rows.append((name, server.grade, str(len(server.nodes)), f"{server.vendor}: {', '.join(server.models)}"))
    for name, profile in load_profiles(ModbusProfile, data_dir).items():
        points = sum(len(model.points) for model in profile.sunspec)
        tags = str(len(profile.tags)) if not points else f"{len(profile.tags)}+"
        rows.append((name, profile.grade, tags, f"{profile.vendor}: {', '.join(profile.models)}"))
    return _table([rows[0], *sorted(rows[1:])])


def shown(name: str, facts: Mapping[str, str], data_dir: Path | None) -> list[str]:
    """The map of one device. Raises ProfileError."""
    with _folder(name, data_dir) as (known, folder):
        if server := load_profiles(OpcUaProfile, folder).get(known):
            return _server_shown(server, facts)
        profile = load_profile(ModbusProfile, known, folder)
    found = resolve(profile, facts)
    told = ", ".join(f"{key} {text}" for key, text in facts.items()) or "a device that tells nothing of itself"
    lines = [f"{profile.profile}: {profile.vendor} {', '.join(profile.models)}, grade {profile.grade}", f"for {told}"]
    lines += [f"uncertain: {found.uncertain}"] if found.uncertain else []
    lines += ["", *_manners(profile, found.poll), ""]
    lines += _table([("TAG", "REGISTER", "TYPE", "SCALE", "UNIT", ""), *map(_tag_row, found.tags.values())])
    lines += [f"and the points of SunSpec models {_models(profile)}, as the device has them"] if profile.sunspec else []
    lines += ["", *(f"note: {note}" for note in profile.notes), *(f"source: {source}" for source in profile.sources)]
    return lines


def _server_shown(profile: OpcUaProfile, facts: Mapping[str, str]) -> list[str]:
    """What is known of a server, whatever its namespaces are."""
    every = [uri for uris in profile.namespaces.values() for uri in uris[:1]]
    paths_of = browse_paths(profile, facts, [*STANDARD["ua"], *every])
    return [
        f"{profile.profile}: {profile.vendor} {', '.join(profile.models)}, grade {profile.grade}",
        *([f"uncertain: {doubt}"] if (doubt := resolve_nodes(profile, facts).uncertain) else []),
        *_limits_shown([profile], facts),
        *(f"{tag}: {' or '.join(paths)}" for tag, paths in paths_of.items()),
        *(f"note: {note}" for note in profile.notes),
        *(f"source: {source}" for source in profile.sources),
    ]


def _limits_shown(profiles: Sequence[OpcUaProfile], facts: Mapping[str, str]) -> list[str]:
    limits = limits_of(profiles, facts).items()
    return [f"at most {number} {'in all' if name in ROOM else 'a call'}: {name}" for name, number in limits]


async def server_trial(
    name: str, url: str, firmware: str | None, insecure: bool, data_dir: Path | None
) -> tuple[list[str], bool]:
    """What a server says it is, the profiles that fit, every tag once; and whether something failed.

    Raises GatewayError, ValueError.
    """
    from connectors.opcua_browse import learnt_limits, present, publishing, session
    from connectors.opcua_follow import Chosen, place
    from connectors.opcua_security import Access
    from connectors.opcua_servers import with_nameplate, with_profiles
    from connectors.opcua_settings import OpcUaSecurity

    access = Access(None if insecure else OpcUaSecurity())
    with _folder(name, data_dir) as (profile, folder):
        async with session(url, access, data_dir or Path("/var/lib/gateway")) as client:
            opened = publishing(client)
            limits, server = await learnt_limits(opened, folder)
            server = await with_nameplate(server, opened.request, limits, firmware)
            lines = [f"{fact}: {text}" for fact, text in server.facts.items()]
            try:
                server = await asyncio.to_thread(with_profiles, server, profile, folder)
            except Permanent as error:
                return [*lines, "", str(error)], True
            chosen = Chosen.of(server)
            places = await place(opened.request, chosen.templates, (), (), server.namespaces, limits)
            values = await present(opened.request, [one.node for one in places.tags], limits)
    rows, failed = [("TAG", "VALUE", "UNIT", "")], bool(places.fault)
    for tag, value in zip(places.tags, values, strict=True):
        about = _judged(tag.meaning.unit, value.value, value.status, "")
        failed = failed or about not in ("", "uncertain", "no value")
        doubt = "uncertain" if tag.uncertain else ""
        rows.append((tag.base, value.text, tag.meaning.unit, about or doubt))
    lines += [*chosen.info.split("; "), *_limits_shown(server.profiles, server.facts), "", *_table(rows)]
    return lines + ([f"not all: {places.fault}"] if places.fault else []), failed


def _manners(profile: ModbusProfile, poll: Any) -> list[str]:
    """How the device is asked."""
    gap, size = poll.limits(ModbusDevice(modbus="tcp://host", profile=profile.profile))
    said = ["one value a request" if gap < 0 else f"at most {size} registers a request, gaps of up to {gap} bridged"]
    for what in ("every", "pause", "timeout"):
        ns = getattr(poll, what)
        said += [f"{what} {format_duration(ns)}"] if ns else []
    return [f"asked: {', '.join(said)}"]


def _models(profile: ModbusProfile) -> str:
    return ", ".join(str(number) for model in profile.sunspec for number in model.ids)


def _tag_row(tag: MappedTag) -> tuple[str, ...]:
    point, meaning = tag.point, tag.meaning
    scale = "" if meaning.scale == 1.0 else f"{meaning.scale:g}"
    scale += f" 10^({point.scale_from.span})" if point.scale_from else ""
    place = f"{point.table.word} {point.address}"
    order = "" if point.count < 2 or point.order.value == "big" else f" {point.order.value}"
    mark = "uncertain" if meaning.uncertain else ""
    return point.name, place, f"{point.type.value}{order}", scale.strip(), tag.unit, mark


async def trial(
    name: str, url: str, firmware: str | None, data_dir: Path | None, clock: Clock = SYSTEM_CLOCK
) -> tuple[list[str], bool]:
    """What the device is, and every tag once; and whether something failed. Raises GatewayError, ValueError."""
    with _folder(name, data_dir) as (profile, folder):
        try:
            patience = {"timeout": AUTO_TIMEOUT} if profile == AUTO else {}
            settings = ModbusDevice.model_validate({"modbus": url, "profile": profile, "firmware": firmware} | patience)
        except ValidationError as error:
            raise ValueError(error.errors(include_url=False)[0]["msg"]) from error
        tags = TagTable()
        source = ModbusSource("device", 0, settings, tags, clock, folder)
        try:
            await source.connect([])
            batch = await source.read()
        except (NotConnected, Permanent) as error:
            raise type(error)(f"{error}{await _at_unit_255(settings.url, clock)}") from error
        finally:
            await source.close()
    identity = source.identity
    rows, failed = [("TAG", "VALUE", "UNIT", "")], False
    for tag, value, status in zip(batch.tag, batch.values(), batch.status.tolist(), strict=True):
        about = _judged(tags[tag].unit, value, status, source.faults.get(tags[tag].name, ""))
        failed = failed or about not in ("", "uncertain", "no value")
        rows.append((tags[tag].name, "" if value is None else str(value), tags[tag].unit, about))
    facts = [f"{key}: {text}" for key, text in identity.items()]
    return [*facts, source.info, "", *_table(rows)], failed


async def _at_unit_255(url: ModbusUrl, clock: Clock) -> str:
    """What answers there, for people; gateways and some meters with Ethernet are unit 255 themselves."""
    if url.unit == UNIT_ITSELF or url.rtu:
        return ""
    there = dataclasses.replace(url, unit=UNIT_ITSELF)
    link = ModbusLink(there, duration_ns(AUTO_TIMEOUT), clock, Counters("source", "unit 255"))
    try:
        await link.connect()
        facts = await device_identification(Interview(link, there))
    except NotConnected:
        return ""
    finally:
        await link.close()
    said = " ".join(facts[name] for name in ("vendor", "model") if name in facts)
    return f"; unit {UNIT_ITSELF} of that address says it is {said}: try {there}" if said else ""


def _judged(unit: str, value: Any, status: int, fault: str) -> str:
    """What is wrong with a value, in words."""
    if status != GOOD and status & SEVERITY_MASK != SEVERITY_UNCERTAIN:
        return fault or "no value"
    low, high = PLAUSIBLE.get(unit, (float("-inf"), float("inf")))
    if isinstance(value, int | float) and value and not low <= value <= high:
        return f"not plausible: {low:g} to {high:g} is"
    return "uncertain" if status != GOOD else ""


@contextmanager
def _folder(name: str, data_dir: Path | None) -> Iterator[tuple[str, Path]]:
    """A profile's name and a data folder with it, and with the user's own; what is kept there is thrown away."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        own = folder / OWN_PROFILES
        if data_dir and (data_dir / OWN_PROFILES).is_dir():
            shutil.copytree(data_dir / OWN_PROFILES, own)
        if name != AUTO and name.endswith((".yaml", ".yml")):
            own.mkdir(exist_ok=True)
            shutil.copy(name, own / f"{Path(name).stem}.yaml")
            name = Path(name).stem
        yield name, folder


def json_schema() -> dict[str, Any]:
    """Of a profile's file, after what it extends was put below it: of a Modbus device, or of an OPC UA server."""
    models = [settings_schema(model) for model in (ModbusProfile, OpcUaProfile)]
    shared = {name: schema for model in models for name, schema in model.pop("$defs").items()}
    return {"$schema": DIALECT, "title": "Profile of a device", "oneOf": models, "$defs": shared}


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
