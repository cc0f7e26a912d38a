"""What a configuration leads to, without touching a machine: `gateway plan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from connectors import load
from gateway.fast_sessions import with_fast_sessions
from gateway.settings import GatewayFile, kind_of
from gateway.workers_split import shares

PLANS: Mapping[str, str] = {
    "opcua": "connectors.opcua_plan:describe_plan",
    "modbus": "connectors.modbus_reads:describe_plan",
}
"""Kind of device -> function from its settings to lines."""
LEARNS = {"modbus"}
"""Kinds of which something is learnt and kept: their function takes the data folder and the device's name, too."""


def lines(file: GatewayFile) -> Iterator[str]:
    """Every device with the subscriptions or requests that it gets, every route with its destination; by workers."""
    for share in shares(file).values():
        if share.worker:
            yield f"worker {share.worker}:"
        for line in _lines(share.file):
            yield f"  {line}" if share.worker else line


def _lines(file: GatewayFile) -> Iterator[str]:
    for name, device in with_fast_sessions(file).devices.items():
        yield f"{name}:"
        learnt = (file.gateway.data_dir, name) if kind_of(device) in LEARNS else ()
        for line in load(PLANS[kind_of(device)])(device, *learnt):
            yield f"  {line}"
    for name, route in file.send.items():
        steps = "".join(f" -> {step.word}" for step in route.steps)
        yield f"route {name}: {', '.join(route.from_)}{steps} -> {route.to}"
