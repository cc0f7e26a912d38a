"""Times as text: what DateTime values look like in text formats and inside structures."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 -- formatted below, always with Z


def rfc3339(utc_ns: int) -> str:
    """`2026-11-22T10:01:53.695123Z`: as many digits of the fraction as are needed, years 1 to 9999 (clamped)."""
    seconds, fraction_ns = divmod(utc_ns, 10**9)
    text = _to_the_second(seconds)
    if not text:
        return "9999-12-31T23:59:59Z" if utc_ns > 0 else "0001-01-01T00:00:00Z"
    return f"{text}.{fraction_ns:09d}".rstrip("0") + "Z" if fraction_ns else text + "Z"


@lru_cache(maxsize=1024)
def _to_the_second(seconds: int) -> str:
    """Empty outside of the years 1 to 9999. Machines' times are mostly of now, so most are found: 1 us less."""
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return ""
