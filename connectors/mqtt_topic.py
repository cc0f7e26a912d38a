"""Topics of data: a template with placeholders, filled once per tag. Pure.

Wildcards (`+`, `#`: MQTT 5 section 4.7.1), control characters and what is no character (section 1.5.4: a broker may end
the connection because of one, and many do) cannot stand in a topic that is published: in the names that fill a template
they become `_`. A `/` in a name makes levels. Empty levels, such as an empty site leaves, are dropped; a topic of
nothing else is `_`.
"""

from __future__ import annotations

import re
import struct
from string import Formatter

from connectors.payload import Identity
from pipelines.tags import Tag, TagTable

PLACEHOLDERS = ("gateway", "site", "device", "tag", "route")
_NO_CHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(f"[+#\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NO_CHARACTERS}]")
_BYTES_MAX = 65_535


def check_template(template: str, placeholders: tuple[str, ...] = PLACEHOLDERS) -> str:
    """The template itself. Raises ValueError, one clear line, where no topic can come of it."""
    known = ", ".join(f"{{{name}}}" for name in placeholders)
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is no topic: {error}; placeholders are {known}") from error
    for _, name, spec, conversion in fields:
        if name not in placeholders or spec or conversion:
            raise ValueError(f"unknown placeholder {{{name}}} in topic {template!r}; there are {known}")
    if _FORBIDDEN.search(template):
        raise ValueError(
            f"topic {template!r} has a wildcard (+ and # are for subscribers, data goes to plain topics) or a control "
            "character"
        )
    if not template.strip("/ "):
        raise ValueError("a topic needs at least one level, such as {device}")
    return template


def fill(template: str, identity: Identity, tag: Tag | None = None, route: str = "") -> str:
    """The topic that `template` gives for these names."""
    names = {
        "gateway": identity.gateway,
        "site": identity.site,
        "device": tag.device if tag else "",
        "tag": tag.name if tag else "",
        "route": route,
    }
    topic = template.format_map({name: _FORBIDDEN.sub("_", text) for name, text in names.items()})
    return "/".join(level for level in topic.split("/") if level) or "_"


class Topics(dict[int, bytes]):
    """Tag id -> its topic as it stands in a packet: two bytes of length, then UTF-8 (MQTT 5 section 1.5.4).

    One table per lane. Ids are never reused, so an entry never changes.
    """

    def __init__(self, template: str, identity: Identity, tags: TagTable, lane: str) -> None:
        super().__init__()
        self._template = template
        self._identity = identity
        self._tags = tags
        self._route = lane.partition("@")[0]

    def __missing__(self, tag_id: int) -> bytes:
        text = fill(self._template, self._identity, self._tags[tag_id], self._route).encode()[:_BYTES_MAX]
        text = text.decode(errors="ignore").encode()  # cut between two characters
        packed = self[tag_id] = struct.pack(">H", len(text)) + text
        return packed
