"""The `select:` of an OPC UA device: its keys, and what they mean at the server that is connected."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from connectors import opcua_address, opcua_pattern
from connectors.opcua_address import UnknownNamespace
from connectors.opcua_pattern import Rule, Rules
from pipelines.quantities import Duration, Settings, duration_ns

LIMIT: Final = 10_000
REFRESH: Final = duration_ns("10m")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Pattern = Annotated[str, AfterValidator(opcua_pattern.checked)]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Below = Annotated[str, AfterValidator(partial(opcua_pattern.checked, below=True))]


class OpcUaType(Settings):
    """Every instance of a type: `{type: nsu=http://vendor.com/UA/;i=1002, paths: [Monitoring/*]}`."""

    type: Annotated[str, AfterValidator(opcua_address.checked)] = Field(
        description="Node id or browse path of an object type or variable type; its subtypes are meant as well.",
        examples=["nsu=http://vendor.com/UA/;i=1002"],
    )
    paths: Annotated[tuple[Below, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = Field(
        ("**",),
        min_length=1,
        description="What of each instance: browse paths below it, with wildcards; default: all its variables.",
        examples=[["Monitoring/*", "Identification/SerialNumber"]],
    )


class OpcUaSelect(Settings):
    """Which of a server's variables become tags: `select: /Objects/Machine/**`, or a mapping with these keys."""

    include: Patterns = Field(
        (),
        description="Browse paths with wildcards: `*` is any text within a name, `?` one character, `**` any number "
        "of names; without a `/` in front, at any depth. `regex:` in front makes it a regular expression that is to "
        "match the whole path without namespaces.",
        examples=[["/Objects/Line*/**", "regex:/Objects/.*/Temp(erature)?"]],
    )
    exclude: Patterns = Field(
        (), description="Like `include`: what these match is left out.", examples=[["**/Diagnostics/**"]]
    )
    types: tuple[OpcUaType, ...] = Field((), description="Instances of types, of a companion specification for one.")
    properties: bool = Field(
        False, description="true: properties too (serial numbers, units, ranges); else variables only."
    )
    limit: int = Field(
        LIMIT, ge=1, le=200_000, description="Most tags that are learnt; a fault says when there are more."
    )
    refresh: Duration = Field(
        REFRESH,
        ge=0,
        description="How often the server is looked through again, besides when it says that it has changed; `0`: only "
        "then.",
    )

    @model_validator(mode="after")
    def _of_something(self) -> OpcUaSelect:
        if not self.include and not self.types:
            raise ValueError("select takes `include:`, `types:` or both: /Objects/** is everything")
        return self

    @property
    def meaning(self) -> Any:
        """What decides which tags are learnt, and how they are named; for JSON."""
        return [self.include, self.exclude, self.properties, [(one.type, one.paths) for one in self.types]]


def select_from_text(value: Any) -> Any:
    """`select: /Objects/Machine/**` is its `include:`."""
    return {"include": value} if isinstance(value, str) else value


def compiled(
    select: OpcUaSelect, namespaces: Sequence[str], types: Mapping[str, Collection[str]]
) -> tuple[Rules, Rules, dict[str, str]]:
    """(what to include, what to exclude, rule -> why it cannot mean anything). `types`: type -> it and its subtypes."""
    rules: list[Rule] = []
    why: dict[str, str] = {}
    for pattern in select.include:
        _add(rules, pattern, namespaces, why)
    for one in select.types:
        if one.type in types:
            first = len(rules)
            for path in one.paths:
                _add(rules, path, namespaces, why, at_root=False)
            rules.append(opcua_pattern.instances(one.type, types[one.type], range(first, len(rules))))
    exclude: list[Rule] = []
    for pattern in select.exclude:
        _add(exclude, pattern, namespaces, why)
    return Rules(rules), Rules(exclude), why


def _add(
    rules: list[Rule], pattern: str, namespaces: Sequence[str], why: dict[str, str], *, at_root: bool = True
) -> None:
    try:
        rules.append(opcua_pattern.include(pattern, namespaces, at_root=at_root))
    except UnknownNamespace as error:
        why[pattern] = str(error)


def described(select: OpcUaSelect) -> list[str]:
    """The lines that `gateway plan` prints."""
    lines = [f"select up to {select.limit:,} tags once connected:"]
    lines += [f"  include {pattern}" for pattern in select.include]
    lines += [f"  instances of {one.type}: {', '.join(one.paths)}" for one in select.types]
    lines += [f"  exclude {pattern}" for pattern in select.exclude]
    return lines
