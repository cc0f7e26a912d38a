"""Checks of `workers:` against the rest of the file: names that must exist, devices that cannot be apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from connectors.modbus_url import parse_url
from gateway.config_errors import Place, hint
from gateway.config_yaml import Item
from gateway.workers_settings import OTHERS, RESERVED, claims
from pipelines.selector import may_match

Patterns = Mapping[str, list[Item]]
"""Worker -> its `devices:`, as far as they are text."""


def mistakes(root: Item) -> Iterator[tuple[Place, str]]:
    """Reserved names, unknown devices, devices of two workers, workers without devices, connections torn apart."""
    workers, devices = _mapping(root, "workers"), _mapping(root, "devices")
    if not workers or not devices:
        return
    patterns = {name: _texts(worker.child("devices")) for name, worker in workers.items()}
    for name, worker in workers.items():
        if name in RESERVED:
            yield worker.key_place, f"`{name}` cannot be the name of a worker: the gateway uses it itself"
    yield from _unknown(patterns, devices)
    owner: dict[str, str] = {}
    claimed = set[str]()
    for device in devices:
        found = list(claims(device, {name: [item.value for item in its] for name, its in patterns.items()}))
        owner[device] = found[0][0] if found else OTHERS
        claimed.update(name for name, _ in found)
        for name, at in found[1:]:
            yield patterns[name][at].place, f"`{device}` is in worker `{found[0][0]}` already: a device has one worker"
    for name, its in patterns.items():
        if name not in claimed and any(_meant(item, devices) for item in its):
            yield workers[name].key_place, f"worker `{name}` has no device: others have all that it names"
    yield from _torn_apart(devices, owner)


def _unknown(patterns: Patterns, devices: Mapping[str, Item]) -> Iterator[tuple[Place, str]]:
    for item in (item for its in patterns.values() for item in its if "/" not in item.value):
        if not _meant(item, devices):
            wild = "*" in item.value or "?" in item.value
            known = "matches no device" if wild else f"is no device below `devices:`{hint(item.value, devices)}"
            yield item.place, f"`{item.value}` {known}"


def _meant(item: Item, devices: Mapping[str, Item]) -> bool:
    return any(may_match(item.value, device) for device in devices)


def _torn_apart(devices: Mapping[str, Item], owner: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    """Devices of two workers with one serial port, one shared connection, one address for servers that dial."""
    first: dict[str, str] = {}
    for name, device in devices.items():
        shared = _shared(device)
        other = first.setdefault(shared, name) if shared else name
        if owner[other] != owner[name]:
            yield (
                device.key_place,
                f"`{name}` (worker `{owner[name]}`) and `{other}` (worker `{owner[other]}`) share {shared}: "
                "put them into the same worker",
            )


def _shared(device: Item) -> str:
    """The connection or port of which there can be one only; empty where it has one of its own."""
    modbus, opcua = device.child("modbus"), device.child("opcua")
    if opcua and device.child("reverse") and _is_text(opcua):
        return str(opcua.value)
    if modbus and _is_text(modbus):
        with suppress(ValueError):  # the device's own mistake
            url, connection = parse_url(modbus.value), device.child("connection")
            if url.serial or (connection and connection.value == "shared"):
                return url.endpoint
    return ""


def _mapping(root: Item, section: str) -> dict[str, Item]:
    item = root.child(section)
    return item.value if item and isinstance(item.value, dict) else {}


def _texts(devices: Item | None) -> list[Item]:
    items = [] if devices is None else devices.value if isinstance(devices.value, list) else [devices]
    return [item for item in items if _is_text(item)]


def _is_text(item: Item) -> bool:
    return isinstance(item.value, str) and not item.broken and not item.origin
