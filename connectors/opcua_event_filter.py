"""What is asked of a server's events: a monitored item's EventFilter (Part 4, 7.22.3), as asyncua encodes it. Pure.

The where clause lets pass what the file asks for (one of its types, and at least its severity), and beside that the
events that speak of the subscription itself, whatever the file says: a refresh's beginning and end, and that one is due
(Part 9, 5.5.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from asyncua import ua

from connectors.opcua_plan import PlannedEvents

BASE_EVENT: Final = 2041
CONDITION: Final = 2782
REFRESH_START: Final = 2787
REFRESH_END: Final = 2788
REFRESH_REQUIRED: Final = 2789
QUEUE_OVERFLOW: Final = 3035
"""Event types, numeric identifiers of namespace 0."""

_OF_THE_SUBSCRIPTION: Final = (REFRESH_START, REFRESH_END, REFRESH_REQUIRED)

_DECLARED_BY: Final = {
    BASE_EVENT: "EventId EventType SourceNode SourceName Time ReceiveTime LocalTime Message Severity",
    CONDITION: "ConditionId ConditionClassId ConditionClassName ConditionName BranchId Retain EnabledState Quality "
    "LastSeverity Comment ClientUserId",
    2881: "AckedState ConfirmedState",  # AcknowledgeableConditionType
    2915: "ActiveState InputNode SuppressedState OutOfServiceState ShelvingState SuppressedOrShelved",  # AlarmCondition
    2955: "HighHighLimit HighLimit LowLimit LowLowLimit",  # LimitAlarmType
}
_TYPE_OF: Final = {name: type_id for type_id, names in _DECLARED_BY.items() for name in names.split()}
"""Field of the standard -> the type that declares it (Part 5, 6.4; Part 9, 5)."""


def event_filter(planned: PlannedEvents) -> ua.EventFilter:
    """One select clause for each of `planned.fields`, in order; the where clause as above, none where all may pass."""
    own = ua.NodeId.from_string(planned.types[0]) if len(planned.types) == 1 else _standard(BASE_EVENT)
    clauses = [_select(field, own) for field in planned.fields]
    return ua.EventFilter(SelectClauses=clauses, WhereClause=_where(planned))


def _select(field: str, own: ua.NodeId) -> ua.SimpleAttributeOperand:
    """`own`: the type that declares what the standard does not know."""
    path = field.split("/")
    known = _TYPE_OF.get(path[0])
    type_id = own if known is None else _standard(known)
    if field == "ConditionId":  # the condition's own node id: Part 9, 5.5.2.13
        return ua.SimpleAttributeOperand(type_id, [], ua.AttributeIds.NodeId)
    return ua.SimpleAttributeOperand(type_id, [_name(part) for part in path], ua.AttributeIds.Value)


def _name(part: str) -> ua.QualifiedName:
    namespace, colon, name = part.rpartition(":")
    return ua.QualifiedName(name, int(namespace) if colon else 0)


def _where(planned: PlannedEvents) -> ua.ContentFilter:
    """The elements of a tree, its root first; operands name others by their place (Part 4, 7.7.1)."""
    elements: list[ua.ContentFilterElement] = []
    wanted: list[Any] = []
    if planned.types:
        wanted.append(_joined(ua.FilterOperator.Or, [_of_type(ua.NodeId.from_string(one)) for one in planned.types]))
    if planned.severity > 1:
        severity = _select("Severity", _standard(BASE_EVENT))
        least = ua.LiteralOperand(ua.Variant(planned.severity, ua.VariantType.UInt16))
        wanted.append((ua.FilterOperator.GreaterThanOrEqual, [severity, least]))
    if wanted:
        always = [_of_type(_standard(one)) for one in _OF_THE_SUBSCRIPTION]
        root = _joined(ua.FilterOperator.Or, [_joined(ua.FilterOperator.And, wanted), *always])
        _add(elements, root)
    return ua.ContentFilter(elements)


def _of_type(type_id: ua.NodeId) -> tuple[ua.FilterOperator, list[Any]]:
    return ua.FilterOperator.OfType, [ua.LiteralOperand(ua.Variant(type_id, ua.VariantType.NodeId))]


def _joined(operator: ua.FilterOperator, parts: Sequence[Any]) -> Any:
    """And and Or take two operands: a chain."""
    return parts[0] if len(parts) == 1 else (operator, [parts[0], _joined(operator, parts[1:])])


def _add(elements: list[ua.ContentFilterElement], tree: Any) -> int:
    """Adds a tree of (operator, operands) to the elements; its place."""
    operator, operands = tree
    place = len(elements)
    element = ua.ContentFilterElement(FilterOperator=operator)
    elements.append(element)
    element.FilterOperands = [
        ua.ElementOperand(_add(elements, operand)) if isinstance(operand, tuple) else operand for operand in operands
    ]
    return place


def _standard(identifier: int) -> ua.NodeId:
    return ua.NodeId(ua.Int32(identifier))
