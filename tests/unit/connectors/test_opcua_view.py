"""opcua_view against asyncua's decoder and encoder."""

from __future__ import annotations

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import nodeid_to_binary, struct_to_binary

from connectors import opcua_view
from connectors.opcua_address import QualifiedName
from connectors.opcua_binary import DecodeError
from connectors.opcua_requests import encode_node_id
from connectors.opcua_view import HIERARCHICAL, Page, Reference
from tests.unit.connectors.test_opcua_requests import HEADER, decoded

NODES = [encode_node_id(node) for node in ("i=85", "ns=2;s=Plant", "ns=3;i=70000")]


def test_requests() -> None:
    """As asyncua reads them."""
    browse = decoded(ua.BrowseRequest, opcua_view.browse(HEADER, NODES, 7, HIERARCHICAL, 3)).Parameters
    assert [one.NodeId.to_string() for one in browse.NodesToBrowse] == ["i=85", "ns=2;s=Plant", "ns=3;i=70000"]
    assert browse.RequestedMaxReferencesPerNode == 7 and browse.View.ViewId.is_null()
    first = browse.NodesToBrowse[0]
    assert (first.NodeClassMask, first.ResultMask, first.IncludeSubtypes) == (3, opcua_view.RESULT_MASK, True)
    assert first.ReferenceTypeId.to_string() == "i=33" and first.BrowseDirection == ua.BrowseDirection.Forward
    following = decoded(ua.BrowseNextRequest, opcua_view.browse_next(HEADER, [b"a", b"bc"])).Parameters
    assert following.ContinuationPoints == [b"a", b"bc"] and not following.ReleaseContinuationPoints
    [path] = decoded(
        ua.TranslateBrowsePathsToNodeIdsRequest, opcua_view.translate(HEADER, [(NODES[1], 2, "Täg")])
    ).Parameters.BrowsePaths
    [element] = path.RelativePath.Elements
    assert path.StartingNode.to_string() == "ns=2;s=Plant" and element.TargetName == ua.QualifiedName("Täg", 2)
    assert element.ReferenceTypeId.to_string() == "i=33" and element.IncludeSubtypes and not element.IsInverse


def _response(kind: type, results: object) -> bytes:
    response = kind()
    response.Results = results
    return bytes(nodeid_to_binary(response.TypeId)) + bytes(
        struct_to_binary(response)[len(nodeid_to_binary(response.TypeId)) :]
    )


def test_browse_response() -> None:
    """Pages, with their status and continuation point, before their references."""
    reference = ua.ReferenceDescription(
        ReferenceTypeId=ua.NodeId.from_string("i=47"),
        IsForward=True,
        NodeId=ua.NodeId.from_string("ns=2;s=T"),
        BrowseName=ua.QualifiedName("T", 2),
        DisplayName=ua.LocalizedText("shown", "en"),
        NodeClass=ua.NodeClass.Variable,
        TypeDefinition=ua.NodeId.from_string("i=63"),
    )
    results = [
        ua.BrowseResult(ContinuationPoint=b"more", References=[reference]),
        ua.BrowseResult(StatusCode=ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown), References=[]),
    ]
    body = _response(ua.BrowseResponse, results)
    found = list(opcua_view.browsed(body, opcua_view.BROWSE_RESPONSE, 2))
    assert found == [
        Page(0, 0, b"more"),
        Reference("ns=2;s=T", "i=47", QualifiedName(2, "T"), 2, "i=63"),
        Page(1, 0x8034_0000, b""),
    ]
    with pytest.raises(DecodeError):
        list(opcua_view.browsed(body, opcua_view.BROWSE_RESPONSE, 3))
    for size in range(len(body) - 5):
        with pytest.raises(DecodeError):
            list(opcua_view.browsed(body[:size], opcua_view.BROWSE_RESPONSE, 2))


def test_translate_response() -> None:
    """Only nodes to which the whole path leads."""
    targets = [
        ua.BrowsePathTarget(ua.NodeId.from_string(node), ua.Index(rest))
        for node, rest in (("ns=2;i=1", 2**32 - 1), ("i=2", 0))
    ]
    bad = ua.StatusCode(ua.StatusCodes.BadNoMatch)
    results = [ua.BrowsePathResult(Targets=targets), ua.BrowsePathResult(StatusCode=bad, Targets=[])]
    body = _response(ua.TranslateBrowsePathsToNodeIdsResponse, results)
    assert opcua_view.translated(body, 2) == [(0, ["ns=2;i=1"]), (0x806F_0000, [])]
