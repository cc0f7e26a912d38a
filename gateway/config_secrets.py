"""`${file:/run/secrets/press4}` and `${env:NAME}` in the text values of the file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

SECRET_BYTES_MAX = 64 * 1024

Lookup = Callable[[str, str], str]
"""(kind, name) -> the text behind `${kind:name}`. Raises ValueError with one clear line that never shows content."""

_REFERENCE = re.compile(r"\$\{([^{}]*)(\}?)")


def lookup_in(folder: Path) -> Lookup:
    """Looks up files (relative ones in `folder`, the configuration file's) and environment variables."""

    def lookup(kind: str, name: str) -> str:
        return _from_file(folder / name) if kind == "file" else _from_environment(name)

    return lookup


def resolve(text: str, lookup: Lookup) -> str:
    """`text` with every `${...}` replaced. Raises ValueError with one clear line."""
    return _REFERENCE.sub(lambda match: _resolved(match, lookup), text)


def _resolved(match: re.Match[str], lookup: Lookup) -> str:
    kind, colon, name = match[1].partition(":")
    if not match[2]:
        raise ValueError("`${` is never closed by `}`")
    if not colon or kind not in ("file", "env") or not name.strip():
        raise ValueError(f"{match[0]} is not known: write ${{file:/path/of/a/file}} or ${{env:NAME}}")
    return lookup(kind, name.strip())


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"the environment variable {name} is {'not set' if value is None else 'empty'}")
    return value


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {(error.strerror or 'error').lower()}") from error
    except ValueError as error:  # a NUL in the path
        raise ValueError("the file's path is not possible") from error
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"the file {path} is larger than {SECRET_BYTES_MAX // 1024} KiB")
    text = content.decode("utf-8", errors="replace")
    if "\ufffd" in text or "\0" in text:
        raise ValueError(f"the file {path} is not UTF-8 text")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"the file {path} is empty")
    return text
