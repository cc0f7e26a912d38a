"""pydantic's errors in plain words: one message for each mistake, at its place, and never a secret in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from gateway.config_errors import Place, hint, nearest
from gateway.config_fields import Location, field_at, format_size, has_short_form, is_secret, keys_at, quantity
from gateway.config_yaml import Item
from gateway.settings import DEVICES, TARGETS
from pipelines.quantities import duration_ns, format_duration

_SHOWN_MAX = 60
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""Of a model, of a dataclass."""

_EXPECTED: Mapping[str, str] = {
    "string": "text",
    "path": "a path",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "dict": "a mapping of `key: value` lines",
    "model": "a mapping of `key: value` lines",
    "dataclass": "a mapping of `key: value` lines",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
}
_LIMITS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_NAME = "use letters, digits and . _ - only, a letter or digit first"
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class Finding:
    """One error of pydantic, beside the part of the file that it speaks of."""

    error: ErrorDetails
    location: Location
    path: Location
    """The keys of `location` that the file has: without the words of unions, and no deeper than the file."""
    item: Item

    @property
    def kind(self) -> str:
        return self.error["type"]

    @property
    def key(self) -> str:
        """The last key on the way, for the message."""
        return next((str(step) for step in reversed(self.path) if isinstance(step, str)), "the file")


def messages(errors: Sequence[ErrorDetails], root: Item) -> Iterator[tuple[Location, Place, str]]:
    """Path, place and text of every mistake."""
    findings = [_finding(error, root) for error in errors]
    unknown = {finding.path for finding in findings if finding.kind in _UNKNOWN_KEY}
    for finding in _one_each(findings):
        if finding.item.broken or (finding.kind == "missing" and _misspelt(finding, unknown)):
            continue
        place, text = _message(finding, root)
        yield finding.path, place, text


def _finding(error: ErrorDetails, root: Item) -> Finding:
    location = error["loc"]
    item, path = root, list[int | str]()
    for depth, step in enumerate(location):
        of_union = depth == 2 and location[0] in ("devices", "to")
        child = None if of_union or item.broken else item.child(step)
        if child is not None:
            item = child
            path.append(step)
    return Finding(error, location, tuple(path), item)


def _one_each(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Without what the branches of a union say beside each other: the deepest says it, and of equals the first."""
    said: set[Location] = set()
    above = {finding.path[:size] for finding in findings for size in range(len(finding.path))}
    for finding in findings:
        if finding.kind == "missing":
            yield finding
            continue
        of_branch = len(finding.location) > len(finding.path) + _tags(finding.location)
        only_follows = finding.path in above and (of_branch or finding.kind == "too_short")
        if finding.path not in said and not only_follows:
            said.add(finding.path)
            yield finding


def _tags(location: Location) -> int:
    return int(len(location) > 2 and location[0] in ("devices", "to"))


def _misspelt(missing: Finding, unknown: set[Location]) -> bool:
    """True where an unknown key beside it is the missing one with a slip of the pen."""
    keys = keys_at(missing.location[:-1])
    beside = [str(path[-1]) for path in unknown if path[:-1] == missing.path]
    return any(nearest(key, keys) == missing.location[-1] for key in beside)


def _message(finding: Finding, root: Item) -> tuple[Place, str]:
    if finding.location[-1:] == ("[key]",):
        return finding.item.key_place, f"{finding.key!r} is not a name: {_NAME}"
    if finding.kind == "missing":
        return _missing(finding)
    if finding.kind in _UNKNOWN_KEY:
        keys = keys_at(finding.location[:-1])
        known = ", ".join(keys)
        text = hint(finding.key, keys) or f": what this place takes is {known}"
        return finding.item.key_place, f"unknown key `{finding.key}`{text}"
    if finding.kind.startswith("union_tag"):
        return _no_kind(finding)
    text = _explain(finding)
    named = text.startswith((f"`{finding.key}`", f"{finding.key} ", f"{finding.key}:"))
    return finding.item.shown_place(), text if named else f"`{finding.key}`: {text}"


def _missing(finding: Finding) -> tuple[Place, str]:
    name = str(finding.location[-1])
    field = field_at(finding.location)
    about = ((field.description if field else None) or "it has no default").partition(". ")[0].rstrip(".")
    within = f" in `{finding.key}`" if finding.path else ""
    place = finding.item.key_place if finding.item.key_place.line else Place(1, 1)
    return place, f"`{name}:` is missing{within}: {about}"


def _no_kind(finding: Finding) -> tuple[Place, str]:
    """A device or destination without the one key that says what it is, or with two of them."""
    kinds, what = (DEVICES, "device") if finding.path[0] == "devices" else (TARGETS, "destination")
    item = finding.item
    words = " or ".join(f"`{kind}:`" for kind in kinds)
    if not isinstance(item.value, dict):
        return item.shown_place(), f"`{finding.key}` has to be a mapping with {words} and more, not {_shown(finding)}"
    named = [kind for kind in kinds if kind in item.value]
    if len(named) > 1:
        second = max(item.value[kind].key_place for kind in named)
        return second, f"a {what} has one address: `{finding.key}` has {' and '.join(f'`{kind}:`' for kind in named)}"
    return item.key_place, f"`{finding.key}` does not say what it is: a {what} has {words} with its address"


def _explain(finding: Finding) -> str:
    """What is wrong with a value."""
    field = field_at(finding.location)
    context: dict[str, Any] = finding.error.get("ctx", {})
    hidden = bool(finding.item.origin) or is_secret(field)
    kind = finding.kind
    if kind in ("value_error", "assertion_error"):
        return _own_words(finding, str(context["error"]), hidden)
    wanted = _EXPECTED.get(kind.partition("_")[0])
    if wanted == _EXPECTED["model"] and has_short_form(finding.location):
        wanted = "text or a mapping"
    if kind in ("literal_error", "enum"):
        return _choice(finding, str(context["expected"]), hidden)
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"has to be {words} {_number(context[name], quantity(field))}"
    if kind == "string_pattern_mismatch":
        return f"{_shown(finding, hidden)} is not possible here: {_NAME}"
    if wanted is not None:
        instead = "" if hidden and not finding.item.origin else f", not {_shown(finding, hidden)}"
        return f"has to be {wanted}{instead}{_quotes(finding, wanted)}"
    return _length(kind, context) or finding.error["msg"][:1].lower() + finding.error["msg"][1:]


def _length(kind: str, context: Mapping[str, Any]) -> str:
    """For errors that speak of a length; else nothing."""
    least, most = context.get("min_length", 0), context.get("max_length", 0)
    if kind.endswith("too_short"):
        return "is empty" if least == 1 else f"is too short: at least {least}"
    return f"is too long: at most {most}" if kind.endswith("too_long") else ""


def _quotes(finding: Finding, wanted: str) -> str:
    number = isinstance(finding.item.value, bool | int | float)
    return ": put it in quotes" if number and wanted in ("text", "a path") else ""


def _choice(finding: Finding, expected: str, hidden: bool) -> str:
    choices = _QUOTED.findall(expected)
    known = ", ".join(choices) or expected
    value = finding.item.value
    meant = hint(value, choices) if isinstance(value, str) and not hidden else ""
    return f"{_shown(finding, hidden)} is not one of {known}{meant}"


def _own_words(finding: Finding, text: str, hidden: bool) -> str:
    """A validator's own text, unless it could show something secret."""
    if hidden or any(_shows(text, secret) for secret in _secrets(finding.item)):
        field = field_at(finding.location)
        wanted = f" Expected: {field.description}" if field and field.description else ""
        return f"{_shown(finding, True)} is not accepted (not shown, as it may be secret).{wanted}"
    return _CREDENTIALS.sub("//...@", text)


def _secrets(item: Item) -> Iterator[str]:
    if item.origin and isinstance(item.value, str):
        yield item.value
    children = item.value.values() if isinstance(item.value, dict) else item.value
    if isinstance(item.value, dict | list):
        for child in children:
            yield from _secrets(child)


def _shows(text: str, secret: str) -> bool:
    return secret in text or repr(secret)[1:-1] in text


def _shown(finding: Finding, hidden: bool = False) -> str:
    """The value for a message: text and numbers as they are, the rest by their kind."""
    value = finding.item.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if hidden or finding.item.origin:
        return f"what {finding.item.origin} gives" if finding.item.origin else "this value"
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else _CREDENTIALS.sub("//...@", repr(value))
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def _number(number: Any, unit: Callable[[Any], int] | None) -> str:
    if unit is None or number == 0:
        return f"{number:g}" if isinstance(number, float) else str(number)
    return format_duration(number) if unit is duration_ns else format_size(number)
