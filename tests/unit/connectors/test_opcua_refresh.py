"""What a look through a server has brought is subscribed to, whatever comes between."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from connectors import opcua_directory, opcua_refresh
from connectors.opcua_address import QualifiedName
from connectors.opcua_directory import UNCHANGED, Changes, Directory
from connectors.opcua_known import KnownTags
from connectors.opcua_link import Link
from connectors.opcua_plan import Resolved
from connectors.opcua_refresh import Refresh
from connectors.opcua_settings import OpcUaDevice
from connectors.opcua_walk import Variable, Walked
from pipelines.clock import SystemClock
from pipelines.counters import Counters

LOG = logging.LoggerAdapter(logging.getLogger(__name__), {})
SETTINGS: Mapping[str, Any] = {"opcua": "opc.tcp://127.0.0.1:4840", "security": "none", "select": "/Objects/Line/**"}


async def done(*_: object) -> None:
    """What is not looked at."""


async def test_what_could_not_be_created_is_created_after_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers the look and not the request for new items: the next look finds nothing new any more."""
    monkeypatch.setattr(opcua_refresh, "FAILED_S", 0.01)
    monkeypatch.setattr(opcua_refresh, "SETTLE_S", 0.001)
    looks = [Changes(range(2, 5), {1}, set()), Changes(range(5, 5), set(), set())]
    asked: list[tuple[str, list[int]]] = []
    ended = asyncio.Event()

    async def refresh(_: object) -> Changes:
        return looks.pop(0) if looks else UNCHANGED

    async def remove(gone: Sequence[int], _status: int, _why: str) -> None:
        asked.append(("gone", sorted(gone)))
        if len(asked) == 1:
            raise TimeoutError

    async def create_missing(again: Sequence[int]) -> None:
        asked.append(("back", sorted(again)))

    async def with_items(change: Callable[[Any], Awaitable[None]]) -> None:
        await change(SimpleNamespace(remove=remove, create_missing=create_missing))

    async def created(_link: object, new: Sequence[int]) -> None:
        asked.append(("new", list(new)))
        ended.set()

    link = SimpleNamespace(
        items=SimpleNamespace(subscriptions=[SimpleNamespace(id=1, model_changes=7)]),
        session=SimpleNamespace(request=None, nudge=lambda: None),
        directory=SimpleNamespace(refresh=refresh),
        with_items=with_items,
    )
    known = SimpleNamespace(learn=done, created=created)
    refreshing = Refresh("press", OpcUaDevice.model_validate(SETTINGS), SystemClock(), LOG, cast(KnownTags, known))
    refreshing.start(cast(Link, link))
    async with asyncio.timeout(30):
        await ended.wait()
    await refreshing.stop()
    assert asked == [("gone", [1]), ("gone", [1]), ("back", []), ("new", [2, 3, 4])]


def test_two_looks_as_one() -> None:
    """What was back and is gone again is gone; new ones add up."""
    earlier = Changes(range(2, 4), {0}, {1, 7})
    both = Changes(range(4, 5), {1}, {0}).after(earlier)
    assert (both.new, both.gone, both.back) == (range(2, 5), {0, 1}, {0, 7})
    assert Changes(range(4, 5), {1}, {0}).after(UNCHANGED).new == range(4, 5)


async def test_tags_that_are_learnt_while_others_are_resolved_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever reads resolves a tag whose node has come at last; the look at the same time finds two more."""
    settings = OpcUaDevice.model_validate({**SETTINGS, "tags": {"late": "/Objects/Line/late"}})
    directory = Directory("press", settings, tmp_path, LOG)
    directory.resolved = Resolved.of(directory.resolved.device, {"late": "not there"})
    resolving, goes_on = threading.Event(), threading.Event()
    of = Resolved.of

    def slowly(device: OpcUaDevice, *args: Any) -> Resolved:
        if not resolving.is_set():
            resolving.set()
            assert goes_on.wait(30)
        return of(device, *args)

    async def nodes_of(_: object, tags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        return {name: tag.at("ns=1;s=late") for name, tag in tags.items()}, {}

    monkeypatch.setattr(opcua_directory, "Resolved", SimpleNamespace(of=slowly))
    monkeypatch.setattr(directory, "_nodes_of", nodes_of)
    found = [Variable((QualifiedName(0, "Objects"), QualifiedName(1, name)), f"ns=1;s={name}") for name in ("a", "b")]

    async def looked(*_: object) -> tuple[Walked, dict[str, str]]:
        return Walked(found), {}

    monkeypatch.setattr(opcua_directory, "look", looked)
    directory._namespaces = ["http://opcfoundation.org/UA/", "urn:line"]
    resolved = asyncio.create_task(directory.resolve_missing(cast(Any, None)))
    async with asyncio.timeout(30):
        await asyncio.to_thread(resolving.wait)
        learning = asyncio.create_task(directory.refresh(cast(Any, None)))
        await asyncio.wait([learning], timeout=0.2)  # it waits for the other one
        goes_on.set()
        await asyncio.gather(resolved, learning)
    tags = directory.resolved.device.tags
    assert {name: tag.node for name, tag in tags.items()} == {
        "late": "ns=1;s=late",
        "a": "ns=1;s=a",
        "b": "ns=1;s=b",
    }


async def test_changes_of_items_follow_each_other(tmp_path: Path) -> None:
    """Bad items that are retried and learnt ones that are made know nothing of each other."""
    settings = OpcUaDevice.model_validate(SETTINGS)
    link = Link(
        "press", settings, Directory("press", settings, tmp_path, LOG), SystemClock(), tmp_path, Counters("s", "x"), LOG
    )
    link.items = cast(Any, SimpleNamespace(take=lambda _: None, subscriptions=[]))
    order: list[str] = []

    async def change(name: str) -> None:
        order.append(f"{name} begins")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        order.append(f"{name} ends")

    await asyncio.gather(link.with_items(lambda _: change("one")), link.with_items(lambda _: change("other")))
    assert order == ["one begins", "one ends", "other begins", "other ends"]
