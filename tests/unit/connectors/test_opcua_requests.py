"""opcua_requests against asyncua's decoder and encoder."""

from __future__ import annotations

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import nodeid_from_binary, nodeid_to_binary, struct_from_binary, struct_to_binary

from connectors import opcua_requests
from connectors.opcua_binary import DecodeError
from connectors.opcua_requests import ATTRIBUTE_DATA_TYPE, Item, RequestHeader, ServiceError

HEADER = RequestHeader(
    nodeid_to_binary(ua.NodeId("token", 1)), handle=42, now_ns=1_795_428_000_000_000_000, timeout_ms=4000
)
NODES = ["ns=2;s=Press4.Temp", "i=2258", "ns=3;i=70000", "ns=1;g=72962b91-fa75-4ae6-8d28-b404dc7daf63", "ns=4;b=AAEC"]


def decoded(kind: type, body: bytes) -> object:
    buffer = Buffer(body)
    assert nodeid_from_binary(buffer) == kind().TypeId
    return struct_from_binary(kind, Buffer(body))


def test_publish_request() -> None:
    """Header and acknowledgements arrive as they were given."""
    request = decoded(ua.PublishRequest, opcua_requests.publish(HEADER, [(7, 1), (8, 2**32 - 1)]))
    acks = request.Parameters.SubscriptionAcknowledgements
    assert [(a.SubscriptionId, a.SequenceNumber) for a in acks] == [(7, 1), (8, 2**32 - 1)]
    assert request.RequestHeader.RequestHandle == 42 and request.RequestHeader.TimeoutHint == 4000
    assert request.RequestHeader.AuthenticationToken == ua.NodeId("token", 1)
    assert request.RequestHeader.Timestamp.isoformat() == "2026-11-23T10:00:00+00:00"


def test_create_monitored_items_request() -> None:
    """Every node id form, sampling interval, queue size and client handle."""
    items = [Item(opcua_requests.encode_node_id(node), i, 250.0 + i, 10 + i) for i, node in enumerate(NODES)]
    body = opcua_requests.create_monitored_items(HEADER, 7, items)
    parameters = decoded(ua.CreateMonitoredItemsRequest, body).Parameters
    assert parameters.SubscriptionId == 7 and parameters.TimestampsToReturn == ua.TimestampsToReturn.Source
    for i, created in enumerate(parameters.ItemsToCreate):
        assert created.ItemToMonitor.NodeId == ua.NodeId.from_string(NODES[i])
        assert created.ItemToMonitor.AttributeId == ua.AttributeIds.Value
        assert created.MonitoringMode == ua.MonitoringMode.Reporting
        requested = created.RequestedParameters
        assert (requested.ClientHandle, requested.SamplingInterval, requested.QueueSize) == (i, 250.0 + i, 10 + i)
        assert requested.DiscardOldest


def test_created_items_response() -> None:
    """Good and bad results in order; a wrong number of them is refused."""
    response = ua.CreateMonitoredItemsResponse()
    response.Results = [
        ua.MonitoredItemCreateResult(ua.StatusCode(0), 5, 100.0, 10),
        ua.MonitoredItemCreateResult(ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown)),
    ]
    body = bytes(struct_to_binary(response))
    good, bad = opcua_requests.created_items(body, 2)
    assert (good.status, good.item_id, good.sampling_ms, good.queue) == (0, 5, 100.0, 10)
    assert opcua_requests.status_name(bad.status) == "BadNodeIdUnknown"
    with pytest.raises(DecodeError, match="3 results expected"):
        opcua_requests.created_items(body, 3)


def test_read_request_and_response() -> None:
    """DataType of several nodes; a node without one gives None."""
    nodes = [opcua_requests.encode_node_id(node) for node in NODES]
    body = opcua_requests.read(HEADER, nodes, ATTRIBUTE_DATA_TYPE)
    asked = decoded(ua.ReadRequest, body).Parameters.NodesToRead
    assert [(r.NodeId, r.AttributeId) for r in asked] == [(ua.NodeId.from_string(n), 14) for n in NODES]
    response = ua.ReadResponse()
    response.Results = [
        ua.DataValue(ua.Variant(ua.NodeId(11), ua.VariantType.NodeId)),
        ua.DataValue(None, ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown)),
    ]
    assert opcua_requests.read_values(bytes(struct_to_binary(response)), 2) == ["i=11", None]


def test_a_service_fault_is_an_error_with_the_standards_name() -> None:
    """A request that is refused as a whole raises ServiceError."""
    fault = ua.ServiceFault()
    fault.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadTooManyOperations)
    with pytest.raises(ServiceError, match="BadTooManyOperations"):
        opcua_requests.read_values(bytes(struct_to_binary(fault)), 1)
