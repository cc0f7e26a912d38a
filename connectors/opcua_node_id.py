"""A node id as the file writes it."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator

NODE_ID: Final = re.compile(
    r"(ns=\d+;)?(i=\d+|s=.+|b=[A-Za-z0-9+/]+=*|g=[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})"
)


def checked_node_id(text: str) -> str:
    """`text` itself. Raises ValueError where it is no node id."""
    if not NODE_ID.fullmatch(text):
        raise ValueError(f"{text!r} is not a node id: write ns=2;s=Name or ns=2;i=1234")
    return text


NodeIdText: TypeAlias = Annotated[str, AfterValidator(checked_node_id)]
