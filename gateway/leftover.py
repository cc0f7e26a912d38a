"""Buffers of routes that are no longer in the file: drained to where the route went, then removed at the next start.

Each buffer's folder has a file `destination` with the name of its destination. A buffer whose destination is gone, or
whose route is `fast` now and uses its name for another stream, is kept as it is, and said at each start.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from gateway.buffer import FILES, lanes_folder, pending_rows
from gateway.log import Log
from gateway.settings import GatewayFile, Route
from gateway.workers_split import Share

DESTINATION: Final = "destination"


def remember(file: GatewayFile) -> None:
    """Where each buffer goes, for a later file that does not say it. The folders are there."""
    for name, route in file.send.items():
        if not route.fast:
            (lanes_folder(file.gateway.data_dir) / name / DESTINATION).write_text(f"{route.to}\n")


def leftovers(share: Share) -> dict[str, Route]:
    """What this process has to drain, as routes that nothing is offered to. Removes what is delivered."""
    send = share.file.send
    others = {name for name, route in send.items() if not route.fast}.union(share.elsewhere)
    found = {}
    for folder in sorted(lanes_folder(share.file.gateway.data_dir).glob("*/")):
        to = _destination(folder)
        if folder.name in others or not (folder.name in send or share.adopts(to)):
            continue
        waiting = pending_rows(folder)
        if waiting == 0:
            _remove(folder)
        elif to in share.file.to and folder.name not in send:
            found[folder.name] = Route.model_validate({"from": "*", "to": to})
            Log("gateway").info("the buffer of a route that is no longer there is drained", route=folder.name, to=to)
        else:
            Log("gateway").warning(
                "the buffer of a route that is no longer there is kept; look into it with `gateway buffer cat`, delete "
                "its folder when it is not needed",
                route=folder.name,
                folder=str(folder),
            )
    return found


def _remove(folder: Path) -> None:
    """Unless another gateway has it."""
    try:
        handle = FILES.lock(folder / "lock")
    except OSError:
        return
    shutil.rmtree(folder, ignore_errors=True)
    FILES.close(handle)


def _destination(folder: Path) -> str:
    """Empty where nobody knows."""
    try:
        return (folder / DESTINATION).read_text().strip()
    except (OSError, ValueError):
        return ""
