"""The keys below `events:` of an OPC UA device."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from connectors.opcua_address import NodeIdText
from pipelines.quantities import Settings

TYPES: Final = {
    "BaseEventType": 2041,
    "AuditEventType": 2052,
    "SystemEventType": 2130,
    "DeviceFailureEventType": 2131,
    "ConditionType": 2782,
    "DialogConditionType": 2830,
    "AcknowledgeableConditionType": 2881,
    "AlarmConditionType": 2915,
    "LimitAlarmType": 2955,
    "DiscreteAlarmType": 10523,
    "OffNormalAlarmType": 10637,
}
"""Event types of the standard that have a name here (Part 5 and Part 9; identifiers in namespace 0)."""

ALWAYS: Final = ("EventId", "EventType", "Time", "Severity")
"""Fields of every event, asked for or not: what it is, when, and how grave."""

FIELDS: Final = (
    *ALWAYS,
    *("SourceNode", "SourceName", "ReceiveTime", "Message"),
    *("ConditionId", "ConditionName", "BranchId", "Retain", "EnabledState/Id", "Comment", "Quality"),
    *("AckedState/Id", "ConfirmedState/Id", "ActiveState/Id"),
)
"""What is asked for where the file does not say it. A server leaves empty what an event does not have."""

_PATH = re.compile(r"(\d+:)?[^/:]+(/(\d+:)?[^/:]+)*")


def _event_type(text: str) -> str:
    return f"i={TYPES[text]}" if text in TYPES else text


def _browse_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is not a field: write Message, ActiveState/Id or 2:Station/2:Code")
    return text


def events_from_text(value: Any) -> Any:
    """`alarms: ns=2;s=Line1` is short for its notifier."""
    return {"node": value} if isinstance(value, str) else value


EventTypeText = Annotated[NodeIdText, BeforeValidator(_event_type, json_schema_input_type=str)]
FieldText = Annotated[str, AfterValidator(_browse_path)]


class OpcUaEvents(Settings):
    """One stream of events: `alarms: {types: [AlarmConditionType], severity: 500}`."""

    node: NodeIdText = Field(
        "i=2253", description="Notifier: the object whose events are meant; default: the Server object, which has all."
    )
    types: tuple[EventTypeText, ...] = Field(
        (),
        description="Only events of these types and their subtypes: node ids, or "
        + ", ".join(TYPES)
        + ". Default: all.",
        examples=[["AlarmConditionType", "ns=2;i=1001"]],
    )
    fields: tuple[FieldText, ...] = Field(
        FIELDS,
        description="Fields, as browse paths from the event's type, `/` between the names, `2:` before a name of "
        f"namespace 2. `ConditionId` is the condition's node id. {', '.join(ALWAYS)} are always there. "
        "Default: those of BaseEventType and of conditions, with their states as true or false.",
        examples=[["Message", "Severity", "2:Station"]],
    )
    severity: int = Field(1, ge=1, le=1000, description="Least severity, 1 (information) to 1000 (emergency).")
    queue: int = Field(1000, ge=1, le=100_000, description="Events that the server keeps while they cannot be sent.")
