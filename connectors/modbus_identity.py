"""What is known of a device with a profile, and what of that is kept on disk.

`data_dir/modbus/<device>.json`, see `pipelines/json_file.py`: profile, facts and SunSpec models, so that a gateway that
starts while the device is away knows its tags; and every tag's description, because a name keeps its meaning: what a
later profile calls the same but measures in another unit gets a name with a number behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from connectors.modbus_identify import described
from connectors.modbus_profile import Chain
from connectors.modbus_settings import ModbusDevice
from pipelines.json_file import JsonFile

FOLDER: Final = "modbus"
FORMAT: Final = 1
Descriptions: TypeAlias = dict[str, list[Any]]
"""Tag name -> unit, labels, bits."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a device, and the profile that it has for that."""

    profile: str
    facts: Mapping[str, str]
    chain: Chain
    why: str
    """Why this profile."""

    @property
    def shown(self) -> str:
        """`KEBA P40 firmware 1.2.1`: for people."""
        return described(self.facts) or "a device that tells nothing of itself"


class IdentityFile:
    """The file of one device. It belongs to the device's address, profile and firmware in the settings: with others,
    nothing is known. Its methods wait for the disk."""

    def __init__(self, data_dir: Path, device: str, settings: ModbusDevice) -> None:
        self._file = JsonFile(data_dir / FOLDER / f"{device}.json", FORMAT)
        self.path = self._file.path
        self._asked = [settings.modbus, settings.profile, settings.firmware]

    def load(self) -> tuple[Identity, Descriptions] | None:
        """What was saved last. Raises Corrupt, OSError."""
        return self._file.load(self._understood)

    def save(self, identity: Identity, descriptions: Descriptions) -> None:
        """Raises OSError; then what was saved before is still there."""
        content = {
            "asked": self._asked,
            "profile": identity.profile,
            "facts": identity.facts,
            "chain": identity.chain.models,
            "why": identity.why,
            "described": descriptions,
        }
        self._file.save(self._file.pack(content))

    def _understood(self, content: Mapping[str, Any]) -> tuple[Identity, Descriptions] | None:
        if content["asked"] != self._asked:
            return None
        chain = Chain(tuple((number, at, length) for number, at, length in content["chain"]))
        return Identity(content["profile"], dict(content["facts"]), chain, content["why"]), dict(content["described"])
