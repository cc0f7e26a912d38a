"""Which browse paths a selection means: wildcards, regular expressions, instances of types. Pure.

A wildcard pattern is followed name by name while the address space is walked, so that only those branches are walked
in which something can match. What a node's path has matched so far is a set of places: (number of the rule, how many of
its steps lie behind). A regular expression, or the search for instances, is a rule that goes everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.opcua_address import STANDARD_URI, QualifiedName, index_of, steps_of, unescaped

REGEX: Final = "regex:"
ANY_DEPTH: Final = "**"
_WILD: Final = re.compile(r"(?<!&)[*?]")

Place = tuple[int, int]
Path = tuple[QualifiedName, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One name of a pattern; `any_depth` stands for any number of names."""

    any_depth: bool = False
    namespace: int | None = None
    name: re.Pattern[str] = re.compile(".*", re.DOTALL)
    literal: bool = False


_EVERYWHERE: Final = (Step(any_depth=True),)


@dataclass(frozen=True, slots=True)
class Rule:
    """`steps` lead to it; then `regex` is to match the path, or the node to be of one of `types`.

    At an instance of a type begin the rules `below`; of other rules the node itself is meant.
    """

    text: str
    steps: Sequence[Step]
    regex: re.Pattern[str] | None = None
    types: Collection[str] | None = None
    below: Sequence[int] = ()
    starts: bool = True
    """Begins at the root, not at an instance."""


class Rules:
    """Some patterns as one machine."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.start = self._closed((number, 0) for number, rule in enumerate(rules) if rule.starts)

    def follow(self, places: Iterable[Place], name: QualifiedName, by_name_only: bool = False) -> frozenset[Place]:
        """Where a child stands that has this name; empty: neither it nor anything below it can match.

        `by_name_only`: wildcards do not take it.
        """
        after = []
        for number, place in places:
            steps = self.rules[number].steps
            if place == len(steps):
                continue
            step = steps[place]
            if step.any_depth:
                if not by_name_only:
                    after.append((number, place))
            elif (
                (step.literal or not by_name_only)
                and step.namespace in (None, name.namespace)
                and step.name.fullmatch(name.name)
            ):
                after.append((number, place + 1))
        return self._closed(after)

    def entered(self, places: frozenset[Place], type_definition: str) -> tuple[frozenset[Place], Sequence[int]]:
        """The places once the node's type is looked at too, and the rules of which it is an instance."""
        rules = [
            number
            for number, place in places
            if place == len(self.rules[number].steps) and type_definition in (self.rules[number].types or ())
        ]
        if not rules:
            return places, ()
        return places | self._closed((below, 0) for rule in rules for below in self.rules[rule].below), rules

    def matched(self, places: Iterable[Place], path: Path) -> list[int]:
        """The rules that mean the node that stands there itself."""
        plain = None
        found = []
        for number, place in places:
            rule = self.rules[number]
            if place < len(rule.steps) or rule.types is not None:
                continue
            if rule.regex is not None:
                plain = plain or plain_path(path)
                if not rule.regex.fullmatch(plain):
                    continue
            found.append(number)
        return found

    def goes_on(self, places: Iterable[Place]) -> bool:
        """Something below may match."""
        return any(place < len(self.rules[number].steps) for number, place in places)

    def takes_all_below(self, places: Iterable[Place]) -> bool:
        """Every node below matches as well."""
        return any(
            (rule := self.rules[number]).regex is None and place == len(rule.steps) - 1 and rule.steps[place].any_depth
            for number, place in places
        )

    def _closed(self, places: Iterable[Place]) -> frozenset[Place]:
        """With the places behind any `**`, which may stand for nothing."""
        return frozenset(self._with_next(places))

    def _with_next(self, places: Iterable[Place]) -> Iterator[Place]:
        for number, place in places:
            yield number, place
            for behind, step in enumerate(self.rules[number].steps[place:], place + 1):
                if not step.any_depth:
                    break
                yield number, behind


def plain_path(path: Path) -> str:
    """What a regular expression is matched against: the names, without namespaces, behind a `/` each."""
    return "".join(f"/{step.name}" for step in path)


def checked(pattern: str, below: bool = False) -> str:
    """`pattern` itself. Raises ValueError where it cannot mean anything; `below`: it begins at an instance."""
    if pattern.startswith(REGEX):
        if below:
            raise ValueError(f"{pattern!r}: a path below an instance is written with wildcards: Monitoring/*")
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern
    steps = steps_of(_rooted(pattern))
    if not steps or _rebuilt(steps) != _rooted(pattern):
        raise ValueError(f"{pattern!r} is not a browse path with wildcards: write /Objects/Machine/**")
    first = steps[0]
    if pattern.startswith("/") and not below and not _WILD.search(first.name) and unescaped(first.name) != "Objects":
        raise ValueError(f"{pattern!r}: paths begin with /Objects: write /Objects{pattern}")
    return pattern


def include(pattern: str, namespaces: Sequence[str], *, at_root: bool = True) -> Rule:
    """The rule for a pattern of the file, which `checked` has passed. Raises UnknownNamespace."""
    if pattern.startswith(REGEX):
        return Rule(pattern, _EVERYWHERE, regex=re.compile(pattern.removeprefix(REGEX)))
    rooted = _rooted(pattern) if at_root else "/" + pattern.removeprefix("/")
    return Rule(pattern, [_step(step, namespaces) for step in steps_of(rooted)], starts=at_root)


def instances(text: str, types: Collection[str], below: Sequence[int]) -> Rule:
    """The rule that finds every instance of some types; at each the rules `below` begin."""
    return Rule(text, _EVERYWHERE, types=types, below=below)


def _rooted(pattern: str) -> str:
    """A pattern that does not begin with `/` may match at any depth."""
    return pattern if pattern.startswith("/") else f"/{ANY_DEPTH}/{pattern}"


def _rebuilt(steps: Sequence[QualifiedName]) -> str:
    prefixes = {int: "{}:", str: "nsu={};", type(None): ""}
    return "".join("/" + prefixes[type(step.namespace)].format(step.namespace) + step.name for step in steps)


def _step(step: QualifiedName, namespaces: Sequence[str]) -> Step:
    if step.name == ANY_DEPTH and step.namespace is None:
        return Step(any_depth=True)
    namespace = None if step.namespace is None else _namespace(step.namespace, namespaces)
    return Step(False, namespace, _compiled(step.name), literal=not _WILD.search(step.name))


def _namespace(namespace: int | str, namespaces: Sequence[str]) -> int:
    return 0 if namespace == STANDARD_URI else index_of(namespace, namespaces)


def _compiled(name: str) -> re.Pattern[str]:
    """`*` any text, `?` any character, `&` before a character: itself."""
    words = {"*": ".*", "?": "."}
    parts = re.findall(r"&.|.", name, re.DOTALL)
    text = "".join(words.get(part) or re.escape(part.removeprefix("&") or part) for part in parts)
    return re.compile(text, re.DOTALL)
