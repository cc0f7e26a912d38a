"""Checks between the parts of the file: names that must exist elsewhere, and parts that nothing uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from connectors import network
from connectors.modbus_url import parse_url
from connectors.profile import AUTO, OWN_PROFILES, profile_files
from gateway import workers_checks
from gateway.config_errors import Place, hint, nearest
from gateway.config_yaml import Item
from pipelines.selector import matches, may_match
from pipelines.tags import Tag

Devices = dict[str, list[Tag] | None]
"""Device -> its tags; None where they are not known (its own mistakes, tags that it learns): any may be meant."""

LEARNING: Final = frozenset({"profile", "select"})
"""Keys of a device that gets more tags than its `tags:` once it is connected."""


def mistakes(root: Item, broken: Collection[str]) -> Iterator[tuple[Place, str]]:
    """Routes to nowhere, selectors of nothing, unknown profiles, devices that cannot share a port.

    `broken`: the devices that have mistakes of their own.
    """
    yield from _profiles(root)
    devices = _devices(root, broken)
    targets = _names(root, "to")
    yield from _disagreeing_ports(root)
    yield from workers_checks.mistakes(root)
    for route in _routes(root):
        target = route.child("to")
        if target and targets and _is_text(target) and target.value not in targets:
            yield target.place, f"there is no destination `{target.value}` below `to:`{hint(target.value, targets)}"
        yield from _unknown_paths(root, route)
        for selector in _selectors(route) if devices else ():
            if _is_text(selector) and not _chooses(selector.value, devices):
                yield selector.place, _nothing(selector.value, devices)


def _disagreeing_ports(root: Item) -> Iterator[tuple[Place, str]]:
    """Devices on one serial port with different formats: they share the port."""
    formats: dict[str, tuple[str, str]] = {}
    item = root.child("devices")
    for name, device in item.value.items() if item and isinstance(item.value, dict) else ():
        address = device.child("modbus")
        if address is None or not _is_text(address):
            continue
        with suppress(ValueError):  # the device's own mistake
            url = parse_url(address.value)
            if url.serial:
                other, format_ = formats.setdefault(url.host, (name, str(url.serial)))
                if format_ != str(url.serial):
                    yield address.place, f"`{other}` has {url.host} at {format_}: devices on one port share its format"


def warnings(root: Item) -> Iterator[tuple[Place, str]]:
    """What is configured and not used. Only for a file without mistakes."""
    routes = list(_routes(root))
    used = {target.value for route in routes if (target := route.child("to"))}
    for name, place in _names(root, "to").items():
        if name not in used:
            yield place, f"no route sends to `{name}`"
    selectors = [selector.value for route in routes for selector in _selectors(route)]
    places = _names(root, "devices")
    for name, tags in _devices(root, ()).items():
        if not any(_chooses(selector, {name: tags}) for selector in selectors):
            yield places[name], f"no route takes anything from `{name}`: it is collected for nobody"


def _profiles(root: Item) -> Iterator[tuple[Place, str]]:
    """Profiles that there are not, neither in the gateway nor among the user's own in the data folder."""
    gateway = root.child("gateway")
    folder = gateway.child("data_dir") if gateway else None
    own = Path(folder.value) / OWN_PROFILES if folder and _is_text(folder) else None
    devices = root.child("devices")
    for device in devices.value.values() if devices and isinstance(devices.value, dict) else ():
        profile = device.child("profile")
        protocol = next((kind for kind in ("modbus", "opcua") if device.child(kind)), None)
        if profile and protocol and _is_text(profile) and profile.value != AUTO:
            known = profile_files(protocol, own)
            if profile.value not in known:
                yield profile.place, f"there is no profile `{profile.value}`{hint(profile.value, known)}"


def _unknown_paths(root: Item, route: Item) -> Iterator[tuple[Place, str]]:
    """Paths of a route that its destination has not got."""
    named, to, targets = route.child("paths"), route.child("to"), root.child("to")
    target = targets.child(to.value) if targets and to and _is_text(to) else None
    if named is None or to is None or target is None:
        return
    paths = target.child("paths")
    known = [*paths.value] if paths and isinstance(paths.value, dict) else []
    for path in named.value if isinstance(named.value, list) else [named]:
        if _is_text(path) and path.value not in known:
            yield path.place, f"`{to.value}` has no path `{path.value}` below `paths:`{hint(path.value, known)}"


def interfaces(root: Item) -> Iterator[tuple[Place, str]]:
    """Interfaces that this host has not got now: on another host, or later, they may be there."""
    known = network.interfaces()
    parts = [part for section in ("devices", "to") for part in _children(root.child(section))]
    ways = [way for part in parts for way in (part.child("network"), *_children(part.child("paths"))) if way]
    for way in ways:
        bind = way.child("bind")
        if bind and _is_text(bind) and bind.value not in known:
            yield bind.place, network.no_interface(bind.value)


def _children(item: Item | None) -> list[Item]:
    return [*item.value.values()] if item and isinstance(item.value, dict) else []


def _is_text(item: Item) -> bool:
    return isinstance(item.value, str) and not item.broken and not item.origin


def _names(root: Item, section: str) -> dict[str, Place]:
    item = root.child(section)
    found = item.value if item and isinstance(item.value, dict) else {}
    return {name: child.key_place for name, child in found.items()}


def _routes(root: Item) -> list[Item]:
    item = root.child("send")
    return list(item.value.values()) if item and isinstance(item.value, dict) else []


def _selectors(route: Item) -> list[Item]:
    item = route.child("from")
    return [] if item is None else item.value if isinstance(item.value, list) else [item]


def _devices(root: Item, broken: Collection[str]) -> Devices:
    found: Devices = {}
    item = root.child("devices")
    for name, device in item.value.items() if item and isinstance(item.value, dict) else ():
        tags = device.child("tags")
        if tags is None or not isinstance(tags.value, dict) or name in broken or LEARNING & {*device.value}:
            found[name] = None
        else:
            events = device.child("events")
            streams = events.value if events and isinstance(events.value, dict) else ()
            found[name] = [Tag(name, tag) for tag in (*tags.value, *streams)]
    return found


def _chooses(selector: str, devices: Devices) -> bool:
    """True when the selector matches a tag, or could match one that is not known."""
    return any(
        any(matches(selector, tag) for tag in tags) if tags is not None else may_match(selector, name)
        for name, tags in devices.items()
    )


def _nothing(selector: str, devices: Devices) -> str:
    """Why the selector matches nothing, in words."""
    device, slash, tag = selector.partition("/")
    if "*" in selector or "?" in selector or "[" in selector:
        return f"`{selector}` matches no tag of any device"
    if device not in devices:
        near = nearest(device, devices)
        meant = f": did you mean `{near}{slash}{tag}`?" if near else ""
        return f"there is no device `{device}` below `devices:`{meant}"
    if not slash:
        return f"device `{device}` has no tags"
    near = nearest(tag, [known.name for known in devices[device] or ()])
    meant = f": did you mean `{device}/{near}`?" if near else ""
    return f"device `{device}` has no tag `{tag}`{meant}"
