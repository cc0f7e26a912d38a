"""The stages by the word that names them in the file's `steps:`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.contracts import Stage
from pipelines.stage_deadband import DeadbandStage
from pipelines.stage_rename import RenameStage
from pipelines.stage_scale import ScaleStage
from pipelines.stage_select import SelectStage
from pipelines.tags import TagTable

STAGES: Mapping[str, Callable[[TagTable, Any], Stage]] = {
    "select": SelectStage.from_setting,
    "scale": ScaleStage.from_setting,
    "deadband": DeadbandStage.from_setting,
    "rename": RenameStage.from_setting,
}
"""Word -> constructor from (tags, the setting below the word). Constructors raise ValueError with one clear line."""
