"""What the settings models say about a place in the file: which keys, which field, which quantity, whether secret."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, SecretStr, Tag
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo

from gateway.settings import GatewayFile
from pipelines.quantities import duration_ns, size_bytes

Location = tuple[int | str, ...]
"""Keys and indices from the top of the file, as pydantic gives them (with the words of tagged unions between them)."""


def keys_at(location: Location) -> Mapping[str, FieldInfo]:
    """The keys, as the file spells them, that a mapping at `location` takes; empty where any key is taken."""
    return _keys(_plain(_walk(location)[0]))


def field_at(location: Location) -> FieldInfo | None:
    """The field that `location` is the value of, or lies within (an item of a list, a part of a free mapping)."""
    return _walk(location)[1]


def has_short_form(location: Location) -> bool:
    """True where text stands for a mapping: `temperature: ns=2;s=Press4.Temp`."""
    kind, _ = _walk(location)
    return get_origin(kind) is Annotated and any(isinstance(mark, BeforeValidator) for mark in get_args(kind)[1:])


def is_secret(field: FieldInfo | None) -> bool:
    """True where the file's own text must never be shown."""
    return field is not None and any(part is SecretStr for part in _parts(field.annotation))


def quantity(field: FieldInfo | None) -> Any:
    """`duration_ns` or `size_bytes` where the field is such a quantity, else None."""
    if field is None:
        return None
    marks = [*field.metadata, *_parts(field.annotation)]
    functions = [getattr(mark, "func", None) for mark in marks]
    return next((function for function in functions if function in (duration_ns, size_bytes)), None)


def format_size(size_bytes: int) -> str:
    """The shortest exact text: 67_108_864 -> "64MiB"."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{unit}"
    return f"{size_bytes}B"


def _keys(kind: Any) -> dict[str, FieldInfo]:
    fields = kind.__pydantic_fields__ if _is_model(kind) else {}
    return {field.alias or name: field for name, field in fields.items()}


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation and everything inside it."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _walk(location: Location) -> tuple[Any, FieldInfo | None]:
    """The type at `location`, and the model field on the way there that is nearest to it."""
    kind: Any = GatewayFile
    field: FieldInfo | None = None
    for step in location:
        if (member := _tagged(kind, step)) is not None:
            kind = member
            continue
        kind = _plain(kind)
        if step in _keys(kind):
            field = _keys(kind)[str(step)]
            kind = field.annotation
        elif _is_a(kind, Mapping):
            kind, field = get_args(kind)[1], None
        elif _is_a(kind, Sequence):
            kind = get_args(kind)[0]
        elif not _is_model(kind):
            kind = None
    return kind, field


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_pydantic_dataclass(kind))


def _is_a(kind: Any, base: type) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, base)


def _members(kind: Any) -> tuple[Any, ...]:
    """The members of a union, also of an annotated one; none for other types."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()


def _tagged(kind: Any, step: int | str) -> Any:
    """The member of a union that has the tag `step`, or None."""
    annotated = [member for member in _members(kind) if get_origin(member) is Annotated]
    return next((member for member in annotated if Tag(str(step)) in get_args(member)[1:]), None)


def _plain(kind: Any) -> Any:
    """`kind` without Annotated; of a union the member that has keys or items, else the first."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    members = [_plain(member) for member in _members(kind)]
    return next(
        (member for member in members if _is_model(member) or isinstance(get_origin(member), type)),
        (members or [kind])[0],
    )
