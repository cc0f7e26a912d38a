"""`network: {bind: wwan0, dscp: EF}`: the way that a connection's packets take, in the configuration file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from connectors.network import PRIORITY_FREE_MAX, Network, meant
from pipelines.quantities import Duration, Settings

DSCP_MAX: Final = 63
DSCP: Final[dict[str, int]] = (
    {"BE": 0, "DF": 0, "LE": 1, "VA": 44, "EF": 46}
    | {f"CS{number}": 8 * number for number in range(8)}
    | {f"AF{number}{drop}": 8 * number + 2 * drop for number in range(1, 5) for drop in range(1, 4)}
)
"""IANA's registry of Differentiated Services Field Codepoints (RFC 2474, 2597, 3246, 5865, 8622)."""
_INTERFACE: Final = re.compile(r"[^\s/:]{1,15}")
"""IFNAMSIZ less one; dev_valid_name() in Linux's net/core/dev.c."""


def _dscp(value: Any) -> int:
    if isinstance(value, str) and value.upper() in DSCP:
        return DSCP[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= DSCP_MAX:
        return value
    hint = meant(value, [*DSCP]) if isinstance(value, str) else ""
    raise ValueError(f"{value!r} is no DSCP: write a name (EF, AF31, CS1, ...) or a number, 0 to {DSCP_MAX}{hint}")


def _interface(value: Any) -> str:
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value) or value in (".", ".."):
        raise ValueError(f"{value!r} is no name of a network interface: write one such as wwan0 (`ip link` lists them)")
    return value


def _address(value: Any) -> str:
    try:
        return str(ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError(f"{value!r} is no IP address: write one of this host's, such as 10.45.0.2") from None


Dscp = Annotated[
    int,
    BeforeValidator(_dscp),
    WithJsonSchema({"anyOf": [{"enum": [*DSCP]}, {"type": "integer", "minimum": 0, "maximum": DSCP_MAX}]}),
]
"""`EF` or `46`; in code the number."""


class NetworkSettings(Settings):
    """The way of a connection's packets, the first one (SYN) included. What is left out is the system's choice."""

    bind: Annotated[str, BeforeValidator(_interface)] | None = Field(
        None,
        description="Interface that they leave by and come in by, such as the one of a PDU session. Routes must lead "
        "to the far side over it.",
        examples=["wwan0"],
    )
    source: Annotated[str, BeforeValidator(_address)] | None = Field(
        None,
        description="Address of this host that they are sent from, IPv4 or IPv6; source rules (`ip rule`) may choose a "
        "PDU session by it.",
        examples=["10.45.0.2"],
    )
    dscp: Dscp | None = Field(
        None,
        description="Their class (Differentiated Services), a name (`EF`, `AF31`, `CS1`, ...) or a number, 0 to 63; "
        "IPv4 and IPv6. A hint: it counts where the network has a rule for it.",
        examples=["EF", 46],
    )
    priority: int | None = Field(
        None,
        ge=0,
        le=15,
        description="In this host's own queues (SO_PRIORITY; an egress map makes VLAN priorities of it), 0 to 15; "
        f"above {PRIORITY_FREE_MAX} needs CAP_NET_ADMIN. Default: what the system makes of `dscp`.",
    )

    @property
    def network(self) -> Network:
        """The same for sockets."""
        return Network(self.bind or "", self.source or "", self.dscp, self.priority)

    def beside(self, other: NetworkSettings) -> NetworkSettings:
        """What this one leaves out is as in `other`."""
        return NetworkSettings.model_validate(other.model_dump(exclude_none=True) | _own(self))


class PathSettings(NetworkSettings):
    """One of several ways to a destination; what it leaves out is as in the destination's `network`."""

    server: str | None = Field(
        None,
        description="MQTT: only to this one of the destination's servers, as written there; default: to all of them.",
    )


Paths = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")], PathSettings],
    Field(
        description="Several ways to it, the preferred one first: name -> interface, source address, DSCP. The first"
        " that works is used; a route may name those that it takes (`paths:`)."
    ),
]
"""Of a destination."""
Suspect = Annotated[
    Duration | None,
    Field(
        ge=50_000_000,
        description="With `paths`: where the far system acknowledges nothing (TCP) for so long, the next path is tried."
        " Default: 200ms where a `fast` route uses it, else 1s.",
    ),
]
SUSPECT_NS: Final = 10**9
FAST_SUSPECT_NS: Final = 200_000_000


def by_paths(
    paths: Mapping[str, PathSettings], suspect: int | None, names: Sequence[str], fast: bool
) -> dict[str, Any]:
    """What changes in a destination's settings for the routes that take those of its paths, in this order."""
    return {"paths": {name: paths[name] for name in names}, "suspect": suspect or (FAST_SUSPECT_NS if fast else None)}


def along(network: NetworkSettings, name: str, path: PathSettings) -> dict[str, Any]:
    """What changes in a destination's settings for that one of its paths; `network` is the destination's."""
    return {"paths": {name: path}, "network": path.beside(network)}


def _own(settings: NetworkSettings) -> dict[str, Any]:
    return {key: value for key in NetworkSettings.model_fields if (value := getattr(settings, key)) is not None}


AS_IT_IS: Final = NetworkSettings()
