"""What a configuration leads to, without touching a machine: `gateway plan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from connectors import load
from gateway.settings import GatewayFile, kind_of

PLANS: Mapping[str, str] = {
    "opcua": "connectors.opcua_plan:describe_plan",
    "modbus": "connectors.modbus:describe_plan",
}
"""Kind of device -> function from its settings to lines."""


def lines(file: GatewayFile) -> Iterator[str]:
    """Every device with the subscriptions or requests that it gets, every route with its destination."""
    for name, device in file.devices.items():
        yield f"{name}:"
        for line in load(PLANS[kind_of(device)])(device):
            yield f"  {line}"
    for name, route in file.send.items():
        steps = "".join(f" -> {step.word}" for step in route.steps)
        yield f"route {name}: {', '.join(route.from_)}{steps} -> {route.to}"
