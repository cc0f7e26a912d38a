"""Rows of tags of which a profile is not sure (see `profile.doubts`), flagged. Pure."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.batch import GOOD, SEVERITY_UNCERTAIN, Flag

Statuses: TypeAlias = npt.NDArray[np.uint32]
Flags: TypeAlias = npt.NDArray[np.uint8]


def doubted(rows: npt.NDArray[np.bool_], status: Statuses, flags: Flags) -> tuple[Statuses, Flags]:
    """Status and flags with `rows` as uncertain: Good becomes Uncertain, what is worse stays."""
    flagged = flags | np.where(rows, np.uint8(Flag.PROFILE_UNCERTAIN), np.uint8(0))
    return np.where(rows & (status == GOOD), np.uint32(SEVERITY_UNCERTAIN), status), flagged
