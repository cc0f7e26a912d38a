"""What of the file each process runs: pure, `GatewayFile -> {worker: Share}`.

A worker has its devices, every route that may take something from one of them, and the destinations of those routes. A
route of one worker keeps its name as its stream's; of several, each has the stream `route@worker`: with it go lane,
cursor, `seq` and transactional id. A buffer whose stream is gone is drained by one worker: the home of its destination.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.settings import GatewayFile
from gateway.workers_settings import OTHERS, Worker, owners
from pipelines.selector import may_match

ALONE = ""
"""The worker's name where one process runs the whole file."""


@dataclass(frozen=True)
class Share:
    """One process's part. The defaults: it has all of the file."""

    file: GatewayFile
    """Its devices and destinations; the keys of `send` are its streams."""
    worker: str = ALONE
    settings: Worker | None = None
    elsewhere: Collection[str] = ()
    """Streams of the other workers."""
    homes: Mapping[str, str] = field(default_factory=dict)
    """Destination -> the worker that drains what is left over for it."""
    keeper: str = ALONE
    """The worker that sees to buffers whose destination is not in the file."""

    def adopts(self, destination: str) -> bool:
        """Left-over buffers for that destination are this process's."""
        return self.homes.get(destination, self.keeper) == self.worker


def shares(file: GatewayFile) -> dict[str, Share]:
    """Worker -> its part, in the order of the file, OTHERS last; one part ALONE where the file names no workers."""
    if not file.workers:
        return {ALONE: Share(file)}
    owner = owners(file.devices, file.workers)
    names = [name for name in (*file.workers, OTHERS) if name in owner.values()]
    streams = {name: _streams(file, owner, name) for name in names}
    calm = [name for name in names if not _realtime(file, name)] + [name for name in names if _realtime(file, name)]
    keeper = [name for name in names if not _realtime(file, name)][-1:] or names[-1:]
    used = {name: {file.send[route].to for route in its.values()} for name, its in streams.items()}
    homes = {to: next((name for name in calm if to in used[name]), keeper[0]) for to in file.to}
    found = {}
    for name in names:
        targets = used[name] | {to for to, home in homes.items() if home == name}
        part = {
            "devices": {device: settings for device, settings in file.devices.items() if owner[device] == name},
            "send": {stream: file.send[route] for stream, route in streams[name].items()},
            "to": {to: settings for to, settings in file.to.items() if to in targets},
        }
        others = {stream for other, its in streams.items() if other != name for stream in its}
        found[name] = Share(file.model_copy(update=part), name, file.workers.get(name), others, homes, keeper[0])
    return found


def _streams(file: GatewayFile, owner: Mapping[str, str], worker: str) -> dict[str, str]:
    """Stream -> route, of one worker."""
    found = {}
    for route, settings in file.send.items():
        users = _users(settings.from_, owner)
        if worker in users:
            found[route if len(users) == 1 else f"{route}@{worker}"] = route
    return found


def _users(patterns: Sequence[str], owner: Mapping[str, str]) -> set[str]:
    """The workers from whose devices a route may take something."""
    return {worker for device, worker in owner.items() if any(may_match(pattern, device) for pattern in patterns)}


def _realtime(file: GatewayFile, worker: str) -> bool:
    settings = file.workers.get(worker)
    return settings is not None and settings.realtime is not None
