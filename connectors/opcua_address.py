"""How a file names a node: by node id, with a namespace's index or URI, or by browse path. Pure.

Node ids are written as in Part 6, 5.1.12: `ns=2;s=Press4.Temp`, `nsu=http://vendor.com/UA/;s=Press4.Temp`. A browse
path begins at the root: `/Objects/2:Machine/2:Temperature`, after Part 4, A.2, with `/` between the names only. In
front of a name stands its namespace, `2:` or `nsu=http://vendor.com/UA/;`, or nothing: then it is the one that has such
a name. `&` takes the meaning from the character behind it: `a&/b` is the name a/b.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias
from urllib.parse import unquote

from pydantic import AfterValidator

_IDENTIFIER: Final = r"(i=\d+|s=.+|b=[A-Za-z0-9+/]+=*|g=[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"
_NODE_ID: Final = re.compile(rf"(ns=(?P<index>\d+);|nsu=(?P<uri>[^;]+);)?(?P<identifier>{_IDENTIFIER})", re.DOTALL)
_INDEXED: Final = re.compile(rf"(ns=\d+;)?{_IDENTIFIER}", re.DOTALL)
_STEP: Final = re.compile(r"/(?:(?P<index>\d+):|nsu=(?P<uri>[^;]+);)?(?P<name>(?:&.|[^/&])+)", re.DOTALL)
_PATH: Final = re.compile(rf"(?:{re.sub(r'[?]P<[a-z]+>', '', _STEP.pattern)})+", re.DOTALL)
_ESCAPED: Final = re.compile(r"&(.)", re.DOTALL)

NO_NODE: Final = "i=0"
"""The null node id: what nothing has."""
STANDARD_URI: Final = "http://opcfoundation.org/UA/"

Namespace = int | str | None
"""Index, URI, or None: not said."""


@dataclass(frozen=True, slots=True)
class QualifiedName:
    """One name of a browse path."""

    namespace: Namespace
    name: str
    """As written: with `&` where `unescaped` has not been at it."""


class UnknownNamespace(LookupError):
    """The server's NamespaceArray does not have that URI."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"the server has no namespace {uri}")


def checked(text: str) -> str:
    """`text` itself. Raises ValueError where it is neither a node id nor a browse path."""
    if text.startswith("/"):
        if not _PATH.fullmatch(text):
            raise ValueError(f"{text!r} is not a browse path: write /Objects/Machine/Temperature")
    elif not _NODE_ID.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a node id: write ns=2;s=Name, ns=2;i=1234 or nsu=http://...;s=Name, or a browse path "
            "such as /Objects/Machine/Temperature"
        )
    return text


def _checked_node_id(text: str) -> str:
    """`text` itself. Raises ValueError where it is no node id with a namespace's index."""
    if not _INDEXED.fullmatch(text):
        raise ValueError(f"{text!r} is not a node id: write ns=2;s=Name or ns=2;i=1234")
    return text


NodeText: TypeAlias = Annotated[str, AfterValidator(checked)]
"""A node id, or a browse path."""
NodeIdText: TypeAlias = Annotated[str, AfterValidator(_checked_node_id)]
"""A node id with a namespace's index."""


def is_path(text: str) -> bool:
    """A browse path, not a node id."""
    return text.startswith("/")


def is_plain(text: str) -> bool:
    """A node id that every server understands as it is."""
    return not text.startswith(("/", "nsu="))


def steps_of(path: str) -> list[QualifiedName]:
    """The names of a path as written, escapes kept."""
    return [
        QualifiedName(int(found["index"]) if found["index"] else found["uri"], found["name"])
        for found in _STEP.finditer(path)
    ]


def unescaped(name: str) -> str:
    """The name itself."""
    return _ESCAPED.sub(r"\1", name)


def path_text(path: Sequence[QualifiedName]) -> str:
    """A path that `steps_of` reads; namespace 0 is left out where nothing can be mistaken for it."""
    parts = []
    for step in path:
        name = re.sub(r"[/&]", r"&\g<0>", step.name)
        needed = step.namespace or re.match(r"\d+:|nsu=", name)
        parts.append(f"/{step.namespace}:{name}" if needed else f"/{name}")
    return "".join(parts)


def index_of(namespace: int | str, namespaces: Sequence[str]) -> int:
    """The index at a server with that NamespaceArray. Raises UnknownNamespace."""
    if isinstance(namespace, int):
        return namespace
    for uri in (namespace, unquote(namespace)):  # `;` and `%` of a URI are written %3B and %25
        if uri in namespaces:
            return namespaces.index(uri)
    raise UnknownNamespace(namespace)


def with_index(node: str, namespaces: Sequence[str]) -> str:
    """`nsu=http://...;s=a` -> `ns=2;s=a`; others as they are. Raises UnknownNamespace."""
    found = _NODE_ID.fullmatch(node)
    if found is None or found["uri"] is None:
        return node
    index = index_of(found["uri"], namespaces)
    return f"ns={index};{found['identifier']}" if index else str(found["identifier"])


def with_uri(node: str, namespaces: Sequence[str]) -> str:
    """`ns=2;s=a` -> `nsu=http://...;s=a`, which stays right when the server numbers its namespaces anew.

    Namespace 0 is the standard's; an index beyond the server's array stays an index.
    """
    found = _NODE_ID.fullmatch(node)
    if found is None or found["index"] is None or not 0 < int(found["index"]) < len(namespaces):
        return node
    uri = namespaces[int(found["index"])].replace("%", "%25").replace(";", "%3B")
    return f"nsu={uri};{found['identifier']}" if uri else node
