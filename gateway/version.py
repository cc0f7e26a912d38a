"""The version of the installed distribution."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

DISTRIBUTION = "mec-gateway"


@cache
def version() -> str:
    """As pip knows it; "0+source" in a checkout that is not installed."""
    try:
        return installed(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+source"
