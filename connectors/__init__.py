"""Protocols: sources read machines, sinks write to brokers. Never imports `gateway`, and no protocol another.

The tables below are the registry: the word of the configuration file -> where its class lives. Classes are loaded on
first use, so that a gateway without OPC UA machines does not carry an OPC UA stack in memory.

Constructors (no I/O in any of them, but for the file of what is known of a device):
    a source: (name: str, source_id: int, settings, tags: TagTable, clock: Clock, data_dir: Path)
    a sink:   (name: str, settings, identity: Identity, tags: TagTable, clock: Clock)
    a writer: (settings, data_dir: Path)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

SOURCES: Mapping[str, str] = {
    "opcua": "connectors.opcua:OpcUaSource",
    "modbus": "connectors.modbus:ModbusSource",
}
SINKS: Mapping[str, str] = {
    "mqtt": "connectors.mqtt:MqttSink",
    "kafka": "connectors.kafka:KafkaSink",
}
WRITERS: Mapping[str, str] = {
    "opcua": "connectors.opcua_write:OpcUaWriter",
    "modbus": "connectors.modbus_writer:ModbusWriter",
}
"""For commands (`pipelines.commands.Writer`); a protocol that is not here cannot be written to."""


def load(place: str) -> Any:
    """The class at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
