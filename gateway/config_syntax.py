"""YAML's own errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ruamel.yaml.error import MarkedYAMLError

from gateway.config_errors import Place

_UNFINISHED = re.compile(r"^[ ]*\t[ \t]*")

_WORDS: Mapping[str, str] = {
    "mapping values are not allowed": "a `:` that does not fit here: check this line's indentation, "
    "and put text that contains `: ` in quotes",
    "could not find expected ':'": "this line is no `key: value` and no `- item`: is a colon missing?",
    "expected <block end>": "this does not fit to the lines above: check the indentation, "
    "and that nothing follows a closing quote",
    "sequence entries are not allowed": "a `-` that does not fit here: list items begin on a line of their own",
    "expected ',' or '}'": "a `,` or `}` is missing: the `{` of line %(opened)s is still open here",
    "expected ',' or ']'": "a `,` or `]` is missing: the `[` of line %(opened)s is still open here",
    "expected the node content": "a value is missing before this",
    "found unknown escape character": "this backslash means nothing in double quotes: use single quotes",
    "expected escape sequence": "this backslash needs more digits: use single quotes for a plain backslash",
    "found undefined alias": "an alias (`*name`) without an anchor (`&name`) before it: "
    "put text that begins with `*` in quotes",
    "but found another document": "one file is one document: remove the line `---`",
    "expected '<document start>'": "this does not fit to the lines above: check the indentation and closing brackets",
    "maximum depth": "nested too deeply",
}
_ALIAS = 'a `*` begins an alias: put text that begins with `*`, such as "*", in quotes'


def syntax_error(error: MarkedYAMLError, text: str) -> tuple[Place, str]:
    """Place and plain words for what stopped the YAML parser."""
    mark = error.problem_mark or error.context_mark
    opened = error.context_mark.line + 1 if error.context_mark else 0
    problem = error.problem or ""
    lines = text.splitlines() or [""]
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "cannot start any token" in problem and (tabs := _UNFINISHED.match(line)):
        return Place(mark.line + 1, tabs[0].index("\t") + 1), "a tab as indentation: use spaces"
    if "unexpected end of stream" in problem and error.context_mark:
        return Place(opened, error.context_mark.column + 1), "the quote that begins here is never closed"
    if "could not find expected ':'" in problem and error.context_mark:
        mark = error.context_mark  # where the key begins; the parser is a line further already
    place = Place(mark.line + 1, mark.column + 1)
    if "scanning an alias" in (error.context or ""):
        return place, _ALIAS
    if "cannot start any token" in problem:
        character = line[mark.column : mark.column + 1]
        shown = "a tab" if character == "\t" else f"`{character}`"
        return place, f"a value cannot begin with {shown}: put it in quotes"
    for beginning, words in _WORDS.items():
        if beginning in problem:
            return place, words % {"opened": opened}
    return place, f"not YAML: {problem}"
