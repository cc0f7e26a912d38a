"""The configuration file -> typed settings, or every mistake in it at once as `file:line:column: message`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway import config_checks
from gateway.config_errors import WHOLE_FILE, ConfigError, ConfigErrors, Place
from gateway.config_messages import messages
from gateway.config_secrets import Lookup, lookup_in
from gateway.config_yaml import Item, Mistake, read_items
from gateway.settings import GatewayFile

__all__ = ["ConfigError", "ConfigErrors", "load"]


def load(
    path: Path, lookup: Lookup | None = None, *, interfaces: Literal["wanted", "later", "elsewhere"] = "later"
) -> tuple[GatewayFile, list[str]]:
    """The settings, and warnings as lines. `lookup` resolves `${file:...}` and `${env:...}`; default: the real ones.

    Raises ConfigErrors with every mistake of the file. A network interface that this host has not got is a mistake
    (`wanted`), a warning (`later`: a modem may come up), or nothing (`elsewhere`: the file is for another host).
    """
    try:
        root, found = read_items(_read(path), lookup or lookup_in(path.parent))
    except Mistake as mistake:
        raise ConfigErrors(_errors(path, [(mistake.place, mistake.message)])) from None
    settings, errors = _validate(root)
    broken = set[str]()
    for location, place, message in messages(errors, root):
        found.append((place, message))
        broken.update(str(name) for name in location[1:2] if location[0] == "devices")
    broken.update(_half_read(root))
    found += config_checks.mistakes(root, broken)
    absent = [] if interfaces == "elsewhere" else [*config_checks.interfaces(root)]
    if interfaces == "wanted":
        found, absent = found + absent, []
    if found or settings is None:
        raise ConfigErrors(_errors(path, found))
    return settings, [str(warning) for warning in sorted(_errors(path, [*config_checks.warnings(root), *absent]))]


def _read(path: Path) -> str:
    """The file's text without a byte order mark. Raises Mistake."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Mistake(WHOLE_FILE, "there is no such file") from None
    except IsADirectoryError:
        raise Mistake(WHOLE_FILE, "this is a folder: name the YAML file in it") from None
    except OSError as error:
        raise Mistake(WHOLE_FILE, f"cannot be read: {(error.strerror or 'error').lower()}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        place = Place(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise Mistake(place, "this is not UTF-8 text: save the file as UTF-8") from None


def _validate(root: Item) -> tuple[GatewayFile | None, list[ErrorDetails]]:
    """pydantic's own exception ends here: its text would show the values of the file, secrets too."""
    try:
        return GatewayFile.model_validate(root.plain()), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _half_read(root: Item) -> Iterable[str]:
    """Devices with a part that could not be read."""
    devices = root.child("devices")
    for name, device in devices.value.items() if devices and isinstance(devices.value, dict) else ():
        if _any_broken(device):
            yield name


def _any_broken(item: Item) -> bool:
    children = item.value.values() if isinstance(item.value, dict) else item.value
    return item.broken or (isinstance(item.value, dict | list) and any(map(_any_broken, children)))


def _errors(path: Path, found: Iterable[tuple[Place, str]]) -> list[ConfigError]:
    return [ConfigError(str(path), place.line, place.column, message) for place, message in found]
