"""Devices with tags of `fast: true` routes.

OPC UA: those tags get a session, and so a connection, of their own. Modbus: requests of their own, where not all tags
are fast.

What a machine publishes on one connection comes one behind the other: a notification of thousands of values would
delay a fast one by all it takes to send and to take in. A tag is subscribed once; a fast one goes to every route that
wants it, a durable one too, from its own session. Everything is on one session where all tags are fast, where tags are
only known once the device is connected (`select`, `profile`), and where the server dials (`reverse`).
"""

from __future__ import annotations

from typing import Final

from connectors.modbus_settings import ModbusDevice
from connectors.opcua_settings import OpcUaDevice
from gateway.settings import GatewayFile
from pipelines.selector import matches
from pipelines.tags import Tag

FAST: Final = "@fast"
"""Behind the name of a device: its second session."""


def with_fast_sessions(file: GatewayFile) -> GatewayFile:
    """The file with one device more for each such session, behind all others: what is on disk counts them; and with
    Modbus devices that know which of their tags are fast."""
    fast = [pattern for route in file.send.values() if route.fast for pattern in route.from_]
    devices, sessions = dict(file.devices), {}
    for name, device in file.devices.items():
        first = {tag for tag in device.tags if any(matches(pattern, Tag(name, tag)) for pattern in fast)}
        if not first:
            continue
        all_of_it = len(first) == len(device.tags) and not device.learns_tags
        if isinstance(device, ModbusDevice) and not all_of_it:
            devices[name] = device.with_apart(first)
        elif isinstance(device, OpcUaDevice) and not (device.learns_tags or device.reverse):
            if all_of_it and not device.events:
                continue
            second = {tag: how for tag, how in device.tags.items() if tag not in first}
            prompt = {tag: how for tag, how in device.tags.items() if tag in first}
            devices[name] = device.model_copy(update={"tags": second})
            sessions[name + FAST] = device.model_copy(update={"tags": prompt, "events": {}})
    return file.model_copy(update={"devices": devices | sessions}) if fast else file
