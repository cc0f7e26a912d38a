"""Engineering units as a server gives them: the property EngineeringUnits of a variable (Part 8, 5.6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from connectors import opcua_requests
from connectors.opcua_binary import Cursor, DecodeError
from connectors.opcua_requests import ATTRIBUTE_VALUE, encode_node_id
from connectors.opcua_view import translate, translated
from connectors.opcua_view_limits import Request, ViewLimits

EU_INFORMATION: Final = "i=889"
"""Its binary encoding (Part 6, annex A)."""


async def engineering_units(request: Request, nodes: Sequence[str], limits: ViewLimits) -> list[str]:
    """The unit of each variable as text, empty where it has none. Raises what requests raise."""
    places: list[tuple[int, bytes]] = []
    for at in range(0, len(nodes), limits.translate):
        part = nodes[at : at + limits.translate]
        paths = [(encode_node_id(node), 0, "EngineeringUnits") for node in part]
        found = translated(await request(partial(translate, paths=paths)), len(part))
        places += [(at + i, encode_node_id(targets[0])) for i, (_, targets) in enumerate(found) if targets]
    units = [""] * len(nodes)
    for at in range(0, len(places), limits.read):
        some = places[at : at + limits.read]
        asked = [node for _, node in some]
        body = await request(partial(opcua_requests.read, nodes=asked, attribute=ATTRIBUTE_VALUE))
        for (index, _), value in zip(some, opcua_requests.read_values(body, len(asked)), strict=True):
            units[index] = _unit(value)
    return units


def _unit(value: Any) -> str:
    """EUInformation: namespace URI, unit id, display name, description."""
    if not isinstance(value, dict) or value.get("type") != EU_INFORMATION or not isinstance(value.get("body"), bytes):
        return ""
    cursor = Cursor(value["body"])
    try:
        cursor.text()
        cursor.int32()
        return cursor.localized_text() or ""
    except DecodeError:
        return ""
