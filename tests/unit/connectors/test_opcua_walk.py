"""The walk through an address space, at a server that is made up: pages, limits, refusals, and no end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import nodeid_from_binary, struct_from_binary, struct_to_binary

from connectors import opcua_walk
from connectors.opcua_binary import DecodeError
from connectors.opcua_limits import Limits
from connectors.opcua_pattern import Rules, include
from connectors.opcua_requests import RequestHeader
from connectors.opcua_walk import Selector, walk
from tests.unit.connectors.test_opcua_requests import HEADER

BAD_DENIED = ua.StatusCodes.BadUserAccessDenied
Children = Callable[[str], Iterable[tuple[str, bool]]]
"""Node -> (name, is it a variable) of what hangs below; the child's node id is the node's with `/name` behind it."""


class FakeServer:
    """Answers Browse and BrowseNext, `page` references at a time, with room for `points` continuation points."""

    def __init__(self, children: Children, page: int = 3, points: int = 2) -> None:
        self._children = children
        self._page = page
        self._points = points
        self._left: dict[bytes, list[ua.ReferenceDescription]] = {}
        self.most = 0
        self.denied: set[str] = set()
        self.endless = False

    async def request(self, encode: Callable[[RequestHeader], bytes]) -> bytes:
        body = encode(HEADER)
        if nodeid_from_binary(Buffer(body)) == ua.BrowseRequest().TypeId:
            nodes = struct_from_binary(ua.BrowseRequest, Buffer(body)).Parameters.NodesToBrowse
            self.most = max(self.most, len(nodes))
            return self._answer(ua.BrowseResponse(), [self._browsed(one.NodeId) for one in nodes])
        points = struct_from_binary(ua.BrowseNextRequest, Buffer(body)).Parameters.ContinuationPoints
        if self.endless:
            return self._answer(ua.BrowseNextResponse(), [ua.BrowseResult(ContinuationPoint=b"x") for _ in points])
        return self._answer(ua.BrowseNextResponse(), [self._paged(self._left.pop(point)) for point in points])

    def _browsed(self, node: ua.NodeId) -> ua.BrowseResult:
        name = "/Objects" if node == ua.NodeId(ua.Int32(85)) else str(node.Identifier)
        if name in self.denied:
            return ua.BrowseResult(StatusCode=ua.StatusCode(BAD_DENIED))
        return self._paged([self._reference(f"{name}/{child}", child, is_v) for child, is_v in self._children(name)])

    def _paged(self, references: list[ua.ReferenceDescription]) -> ua.BrowseResult:
        if len(references) <= self._page:
            return ua.BrowseResult(References=references)
        if len(self._left) >= self._points:
            return ua.BrowseResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadNoContinuationPoints))
        point = references[self._page].NodeId.to_string().encode()
        self._left[point] = references[self._page :]
        return ua.BrowseResult(ContinuationPoint=point, References=references[: self._page])

    @staticmethod
    def _reference(node: str, name: str, is_variable: bool) -> ua.ReferenceDescription:
        return ua.ReferenceDescription(
            ReferenceTypeId=ua.NodeId(ua.Int32(47)),
            IsForward=True,
            NodeId=ua.ExpandedNodeId(ua.String(node), ua.Int16(2)),
            BrowseName=ua.QualifiedName(name, 2),
            NodeClass=ua.NodeClass.Variable if is_variable else ua.NodeClass.Object,
        )

    @staticmethod
    def _answer(response: Any, results: list[ua.BrowseResult]) -> bytes:
        getattr(response, "Parameters", response).Results = results
        return bytes(struct_to_binary(response))


def selector(*patterns: str, limit: int = 1000) -> Selector:
    return Selector(Rules([include(one, []) for one in patterns or ("/Objects/**",)]), Rules([]), limit)


def limits(**known: int) -> Limits:
    found = Limits(logging.LoggerAdapter(logging.getLogger(__name__), {}))
    found.know(known)
    return found


def tree(node: str) -> list[tuple[str, bool]]:
    """Ten folders in reverse, of ten variables each."""
    depth = node.count("/")
    return [(f"n{9 - i}", depth == 2) for i in range(10)] if depth < 3 else []


async def test_pages_and_limits() -> None:
    """Nothing is lost with small pages, few continuation points and few nodes per call; in the order of names."""
    server = FakeServer(tree)
    walked = await walk(server.request, selector(), limits(browse=4))
    assert [one.node for one in walked.variables] == [
        f"ns=2;s=/Objects/n{i}/n{j}" for i in range(10) for j in range(10)
    ]
    assert walked.whole and server.most == 4 and not server._left


async def test_what_is_refused_is_said() -> None:
    """The others are found; the result is not whole, so that nothing is taken for gone."""
    server = FakeServer(tree)
    server.denied = {"/Objects/n3"}
    walked = await walk(server.request, selector(), limits())
    assert len(walked.variables) == 90 and not walked.whole
    [(path, status)] = walked.refused
    assert path[-1].name == "n3" and status == "BadUserAccessDenied"


async def test_a_branch_that_cannot_match_is_not_asked_for() -> None:
    """`/Objects/n3/*` costs two calls of one node."""
    server = FakeServer(tree, page=100)
    walked = await walk(server.request, selector("/Objects/n3/*"), limits())
    assert len(walked.variables) == 10 and server.most == 1


@pytest.mark.parametrize(
    ("children", "cut"),
    [
        (lambda node: [("deeper", False)], "branches deeper than"),
        (lambda node: [(f"n{i}", False) for i in range(20)], "more than 500 nodes"),
        (lambda node: [(f"n{i}", True) for i in range(20)], r"more than 50 variables \(limit\)"),
    ],
)
async def test_an_address_space_without_an_end(children: Children, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep or wide: it has an end here, which is said."""
    monkeypatch.setattr(opcua_walk, "NODES_MAX", 500)
    walked = await walk(FakeServer(children, page=100).request, selector(limit=50), limits())
    assert len(walked.variables) <= 50
    with pytest.raises(AssertionError, match=cut):
        raise AssertionError(walked.cut)


async def test_pages_without_an_end() -> None:
    """Continuation points for ever, and nothing in the pages."""
    server = FakeServer(tree)
    server.endless = True
    with pytest.raises(DecodeError, match="without an end"):
        await walk(server.request, selector(), limits())
