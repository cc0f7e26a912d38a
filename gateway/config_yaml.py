"""The text of the configuration file -> a tree of items that know where they stand.

YAML 1.2 with its core types, anchors, aliases and merge keys (`<<`). ruamel.yaml composes the nodes; scalars are given
their type here. Keys are always text, as written. Two additions: a key given twice is an error, and `${...}` may stand
unquoted in a flow mapping, where plain YAML would end the text at the `{`: its brackets are put out of YAML's sight
before and back after, character by character, so that columns stay true.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from gateway.config_errors import WHOLE_FILE, Place
from gateway.config_secrets import Lookup, resolve
from gateway.config_syntax import syntax_error

DEPTH_MAX = 40

_BRACKETS, _HIDDEN = "{}[],", "\uf8f0\uf8f1\uf8f2\uf8f3\uf8f4"
_HIDE, _SHOW = str.maketrans(_BRACKETS, _HIDDEN), str.maketrans(_HIDDEN, _BRACKETS)
_REFERENCE = re.compile(r"\$\{[^{}\n\"']*\}")

_CORE = "tag:yaml.org,2002:"
_CONSTANTS = dict.fromkeys(["", "~", "null", "Null", "NULL"]) | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_WHOLE = re.compile(r"[-+]?[0-9]{1,300}")
_OCTAL_HEX = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_HALF = re.compile("[\ud800-\udfff]")
_HALVES = (
    "half a character (\\ud800 to \\udfff) stands for nothing by itself: write the whole one, as it is or as \\U..."
)
_INFINITY = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")


class Mistake(Exception):
    """The text is not a mapping in YAML at all: nothing else can be said about it."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


@dataclass(slots=True)
class Item:
    """One value of the file: text, a number, true or false, None, a mapping or a list of items."""

    value: Any
    place: Place
    key_place: Place
    """Where its key stands; an item of a list: its own place; the whole file: line 0."""
    origin: str = ""
    """The text as written, where it holds a `${...}`: the value is a secret then, never to be shown."""
    broken: bool = False
    """Already reported: what else is wrong with it only follows from that."""

    def plain(self) -> Any:
        """The value as dicts and lists."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value

    def child(self, key: str | int) -> Item | None:
        """The item below a key or an index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            found: Item = self.value[key]
            return found
        return None

    def shown_place(self) -> Place:
        """The value's place where it stands beside its key, else the key's."""
        return self.place if self.place.line == self.key_place.line or not self.key_place.line else self.key_place


def read_items(text: str, lookup: Lookup) -> tuple[Item, list[tuple[Place, str]]]:
    """The whole file as an item whose value is a mapping, and what is wrong so far. Raises Mistake."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEPTH_MAX
    yaml.composer.warn_double_anchors = False
    hidden = _REFERENCE.sub(lambda match: "$" + match[0][1:].translate(_HIDE), text)
    try:
        node = yaml.compose(hidden)
    except MarkedYAMLError as error:
        raise Mistake(*syntax_error(error, text)) from None
    except ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise Mistake(place, f"a character that YAML does not allow here: {text[error.position]!a}") from None
    if node is None or (isinstance(node, ScalarNode) and not node.value):
        raise Mistake(WHOLE_FILE, "the file is empty: it needs devices:, send: and to:")
    if not isinstance(node, MappingNode):
        raise Mistake(_place(node), "the file has to be a mapping that begins with a key such as devices:")
    builder = _Builder(lookup)
    return builder.item(node, WHOLE_FILE), builder.mistakes


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _typed(text: str) -> Any:
    """A plain scalar in the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _OCTAL_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INFINITY.fullmatch(text):
        return -math.inf if infinite[1] == "-" else math.inf
    return math.nan if text in (".nan", ".NaN", ".NAN") else text


class _Builder:
    """Nodes -> items, collecting mistakes."""

    def __init__(self, lookup: Lookup) -> None:
        self.mistakes: list[tuple[Place, str]] = []
        self._lookup = lookup
        self._open: set[int] = set()

    def item(self, node: Node, key_place: Place | None = None, key: str = "") -> Item:
        place = _place(node)
        item = Item(None, place, place if key_place is None else key_place)
        if id(node) in self._open:
            self._refuse(item, "this alias refers to a mapping or list that contains it")
        elif isinstance(node, ScalarNode):
            self._scalar(node, item, key)
        else:
            self._open.add(id(node))
            item.value = self._mapping(node) if isinstance(node, MappingNode) else list(map(self.item, node.value))
            self._open.discard(id(node))
        return item

    def _refuse(self, item: Item, message: str) -> None:
        item.broken = True
        self.mistakes.append((item.place, message))

    def _scalar(self, node: ScalarNode, item: Item, key: str) -> None:
        text = node.value.translate(_SHOW)
        tag = str(node.tag)
        item.value = text
        if not tag.startswith(_CORE) or tag == f"{_CORE}binary":
            self._refuse(item, f"the YAML tag {tag} is not known here: leave it out")
        elif not text and tag == f"{_CORE}null":
            # Not the same as a written null: whoever leaves `tls:` empty did not mean to have none.
            item.broken = True
            words = f"`{key}` has no value: write one, or leave the key out" if key else "this item is empty"
            self.mistakes.append((item.key_place, words))
        elif tag != f"{_CORE}str":
            item.value = _typed(text)
        elif "${" in text:
            item.origin = text
            try:
                item.value = resolve(text, self._lookup)
            except ValueError as error:
                self._refuse(item, str(error))
        if isinstance(item.value, str) and _HALF.search(item.value):
            self._refuse(item, _HALVES)

    def _mapping(self, node: MappingNode) -> dict[str, Item]:
        found: dict[str, Item] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if str(key_node.tag) == f"{_CORE}merge":
                merged.append(value_node)
            elif key := self._key(key_node, found):
                found[key] = self.item(value_node, _place(key_node), key)
        for base in merged:
            for key, item in self._merged(base).items():
                found.setdefault(key, item)
        return found

    def _key(self, node: Node, found: dict[str, Item]) -> str | None:
        """The key's text; None where it cannot be used, which is reported."""
        key = node.value.translate(_SHOW) if isinstance(node, ScalarNode) else ""
        if not key:
            message = "a key has to be text" if not isinstance(node, ScalarNode) else "a key is missing before the `:`"
            self.mistakes.append((_place(node), message))
        elif _HALF.search(key):
            self.mistakes.append((_place(node), _HALVES))
        elif key in found:
            message = f"`{key}` is given twice: first in line {found[key].key_place.line}"
            self.mistakes.append((_place(node), message))
            return None
        return key or None

    def _merged(self, node: Node) -> dict[str, Item]:
        """What `<<: *base` or `<<: [*one, *two]` brings in."""
        merged: dict[str, Item] = {}
        for base in node.value if isinstance(node, SequenceNode) else [node]:
            item = self.item(base)
            if not isinstance(item.value, dict):
                self._refuse(item, "`<<` takes a mapping, by an alias such as *base")
                continue
            for key, child in item.value.items():
                merged.setdefault(key, child)
        return merged
