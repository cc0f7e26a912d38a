"""Names of learnt tags: from the browse path alone, so that they stay when other nodes come and go. Pure.

`/Objects/Line 1/Press4/Temp` is `Line_1.Press4.Temp`: the names below Objects, joined by dots; what is not a letter, a
digit, `_`, `.` or `-` becomes `_`. Where that would name two nodes, each of them gets `~` and eight hexadecimal digits
of the SHA-256 of its node id with the namespace's URI; a name that is in use already stays.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Container, Sequence
from typing import Final

from connectors.opcua_pattern import Path

_UNFIT: Final = re.compile(r"[^\w.-]+")


def plain_name(path: Path) -> str:
    """The name where no other node has it."""
    return ".".join(_UNFIT.sub("_", step.name) or "_" for step in path[1:])


def names(found: Sequence[tuple[Path, str]], taken: Container[str] = ()) -> list[str]:
    """A name for each (path, node id with URI), none of them twice and none of `taken`."""
    plain = [plain_name(path) for path, _ in found]
    counts = Counter(plain)
    return [
        name if counts[name] == 1 and name not in taken else told_apart(name, node)
        for name, (_, node) in zip(plain, found, strict=True)
    ]


def told_apart(name: str, node: str) -> str:
    """The name where another node has it too; `node` is the node id with its namespace's URI."""
    return f"{name}~{hashlib.sha256(node.encode()).hexdigest()[:8]}"
