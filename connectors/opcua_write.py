"""Commands to an OPC UA server: Write (Part 4, 5.10.4), Call (5.11.2) and the Reads that they need.

A session of its own, apart from the one that collects. What a node takes (DataType, ValueRank, access, range, names of
an enumeration) and what a method takes (InputArguments) is read when it is first written or called, and kept for as
long as the session lasts.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from asyncua import Client, Node, ua
from asyncua.common.ua_utils import data_type_to_variant_type, get_base_data_type

from connectors.opcua_browse import resolved, session
from connectors.opcua_redundancy import fittest
from connectors.opcua_requests import status_name
from connectors.opcua_security import Access
from connectors.opcua_settings import OpcUaDevice, OpcUaTag
from connectors.opcua_write_values import VT, ValueType, converted, shown
from pipelines.commands import BAD_NOT_WRITABLE, BAD_TYPE_MISMATCH, Outcome, Refused
from pipelines.errors import NotConnected

BAD_TIMEOUT: Final = 0x800A_0000
BAD_CONNECTION_CLOSED: Final = 0x80AE_0000
BAD_ARGUMENTS_MISSING: Final = 0x8076_0000
BAD_TOO_MANY_ARGUMENTS: Final = 0x80E5_0000
CURRENT_WRITE: Final = 0x02
"""Bit of AccessLevel and UserAccessLevel (Part 3, 8.57)."""
ENUMERATION: Final = ua.NodeId(ua.Int32(ua.ObjectIds.Enumeration))

_OF_THE_SESSION: Final = frozenset(
    {
        ua.StatusCodes.BadSessionIdInvalid,
        ua.StatusCodes.BadSessionClosed,
        ua.StatusCodes.BadSecureChannelClosed,
        ua.StatusCodes.BadSecureChannelIdInvalid,
        ua.StatusCodes.BadConnectionClosed,
        ua.StatusCodes.BadCommunicationError,
    }
)


class OpcUaWriter:
    """A `pipelines.commands.Writer`."""

    def __init__(self, settings: OpcUaDevice, data_dir: Path) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._stack = AsyncExitStack()
        self._client: Client | None = None
        self._nodes: tuple[Mapping[str, str], Mapping[str, str]] = {}, {}
        self._types: dict[str, ValueType] = {}
        self._arguments: dict[str, Sequence[tuple[str, ValueType]]] = {}

    async def read(self, tag: str) -> Any:
        async with self._asking() as client:
            [value] = await client.uaclient.session.read_attributes([self._node(tag)], ua.AttributeIds.Value)
        status = value.StatusCode.value if value.StatusCode is not None else 0
        if status & 0x8000_0000:
            raise Refused(status, f"it cannot be read: {status_name(status)}")
        return shown(value.Value.Value) if value.Value is not None else None

    async def write(self, tag: str, value: Any) -> Outcome:
        settings = self._settings.tags[tag]
        async with self._asking() as client:
            if tag not in self._types:
                self._types[tag] = await _type_of(client.get_node(self._node(tag)), settings)
        variant = converted(value, self._types[tag])
        wanted = ua.WriteValue(self._node(tag), ua.AttributeIds.Value, Value=ua.DataValue(variant))
        # Neither status nor times: most servers refuse to have them written (BadWriteNotSupported).
        status, _ = await self._sent(lambda client: client.uaclient.session.write(ua.WriteParameters([wanted])))
        reason = _reason(status)
        return Outcome(status, reason, value=shown(variant.Value))

    async def call(self, method: str, arguments: Sequence[Any]) -> Outcome:
        settings = self._settings.methods[method]
        async with self._asking() as client:
            if method not in self._arguments:
                self._arguments[method] = await _arguments_of(client.get_node(_id(settings.method)))
        given = _given(arguments, self._arguments[method])
        request = ua.CallMethodRequest(_id(settings.object), _id(settings.method), given)
        status, result = await self._sent(lambda client: client.uaclient.session.call([request]))
        outputs = [shown(one.Value) for one in getattr(result, "OutputArguments", None) or ()]
        return Outcome(status, _reason(status), value=outputs)

    def _node(self, tag: str) -> ua.NodeId:
        """What its address means at the server. Raises Refused."""
        address = self._settings.tags[tag].node
        nodes, why = self._nodes
        if address in why:
            raise Refused(int(ua.StatusCodes.BadNodeIdUnknown), f"{address}: {why[address]}")
        return _id(nodes[address])

    async def close(self) -> None:
        self._client = None
        self._types.clear()
        self._arguments.clear()
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Client]:
        """A session to ask with: connected where it is not. What fails in it is mapped: nothing was changed."""
        if self._client is None:
            url, settings = await fittest(self._settings, self._data_dir), self._settings
            opened = session(url, Access.of(settings), self._data_dir, settings.reverse)
            self._client = await self._stack.enter_async_context(opened)
            self._nodes = {}, {}
        try:
            if not self._nodes[0]:
                self._nodes = await resolved(self._client, self._settings)
            yield self._client
        except ua.UaStatusCodeError as error:
            if error.code not in _OF_THE_SESSION:
                raise Refused(int(error.code), status_name(error.code)) from error
            await self.close()
            raise NotConnected(f"{self._settings.opcua}: {status_name(error.code)}") from error
        except (OSError, TimeoutError, ua.UaError) as error:
            await self.close()
            raise NotConnected(f"{self._settings.opcua}: {str(error) or 'no answer'}") from error

    async def _sent(self, request: Any) -> tuple[int, Any]:
        """(status, result) of a service call that changes something; no answer is a status too."""
        assert self._client is not None
        try:
            [result] = await request(self._client)
        except ua.UaStatusCodeError as error:
            if error.code in _OF_THE_SESSION:
                await self.close()
            return int(error.code), None
        except TimeoutError:
            await self.close()
            return BAD_TIMEOUT, None
        except (OSError, ua.UaError):
            await self.close()
            return BAD_CONNECTION_CLOSED, None
        code = result if isinstance(result, ua.StatusCode) else result.StatusCode
        return int(code.value), result


def _reason(status: int) -> str:
    if not status & 0xC000_0000:
        return ""
    name = status_name(status)
    unknown = status in (BAD_TIMEOUT, BAD_CONNECTION_CLOSED)
    return f"{name}: there was no answer, it may have been done" if unknown else f"the server answers {name}"


def _given(arguments: Sequence[Any], wanted: Sequence[tuple[str, ValueType]]) -> list[ua.Variant]:
    takes = ", ".join(f"{name}: {kind.kind.name}{'[]' if kind.is_array else ''}" for name, kind in wanted) or "nothing"
    if len(arguments) != len(wanted):
        status = BAD_ARGUMENTS_MISSING if len(arguments) < len(wanted) else BAD_TOO_MANY_ARGUMENTS
        raise Refused(status, f"{len(arguments)} arguments given, the method takes {takes}")
    given = []
    for value, (name, kind) in zip(arguments, wanted, strict=True):
        try:
            given.append(converted(value, kind))
        except Refused as error:
            raise Refused(error.status, f"argument {name}: {error}") from error
    return given


async def _type_of(node: Node, settings: OpcUaTag) -> ValueType:
    """What a variable takes. Raises Refused where it is not writable, ua.UaError."""
    values = await node.read_attributes(
        [
            ua.AttributeIds.DataType,
            ua.AttributeIds.ValueRank,
            ua.AttributeIds.UserAccessLevel,
            ua.AttributeIds.Value,
        ]
    )
    data_type, rank, access, present = (one.Value.Value if one.Value is not None else None for one in values)
    if data_type is None:
        status = values[0].StatusCode.value if values[0].StatusCode is not None else BAD_NOT_WRITABLE
        raise Refused(status, f"it is no variable that can be written: {status_name(status)}")
    if isinstance(access, int) and not access & CURRENT_WRITE:
        raise Refused(BAD_NOT_WRITABLE, "the server does not let this user write it (UserAccessLevel)")
    kind, names = await _kind_of(Node(node.session, data_type))
    if kind == VT.Variant:  # Number, BaseDataType, ...: the type that it has now
        if values[3].Value is None or values[3].Value.VariantType == VT.Null:
            raise Refused(BAD_TYPE_MISMATCH, "the server does not say what type it takes, and there is no value yet")
        kind = values[3].Value.VariantType
    is_array = rank >= 0 if isinstance(rank, int) and rank != -2 and rank != -3 else isinstance(present, list)
    low, high = await _range_of(node)
    if settings.write and settings.write.min is not None:  # checked already
        low = -math.inf
    if settings.write and settings.write.max is not None:
        high = math.inf
    return ValueType(kind, is_array, names, low, high)


async def _kind_of(data_type: Node) -> tuple[ua.VariantType, Mapping[str, int]]:
    """The built-in type that encodes it (Variant: any of several), and an enumeration's names."""
    kind = await data_type_to_variant_type(data_type)
    base = await get_base_data_type(data_type)
    if base.nodeid != ENUMERATION or data_type.nodeid == ENUMERATION:
        return kind, {}
    return kind, await _names_of(data_type)


async def _names_of(data_type: Node) -> Mapping[str, int]:
    """From the DataTypeDefinition (Part 3, 8.48), else from EnumStrings or EnumValues (5.8.2)."""
    [definition] = await data_type.read_attributes([ua.AttributeIds.DataTypeDefinition])
    found = definition.Value.Value if definition.Value is not None else None
    if isinstance(found, ua.EnumDefinition):
        return {one.Name: int(one.Value) for one in found.Fields}
    for node in await data_type.get_properties():
        name = (await node.read_browse_name()).Name
        values = await node.read_value() if name in ("EnumStrings", "EnumValues") else None
        if name == "EnumStrings" and values:
            return {text.Text: number for number, text in enumerate(values)}
        if values:
            return {one.DisplayName.Text: int(one.Value) for one in values}
    return {}


async def _range_of(node: Node) -> tuple[float, float]:
    """InstrumentRange, else EURange; no limits where the node has neither."""
    found = {str((await one.read_browse_name()).Name): one for one in await node.get_properties()}
    for name in ("InstrumentRange", "EURange"):
        limits = await found[name].read_value() if name in found else None
        if isinstance(limits, ua.Range) and limits.Low < limits.High:
            return limits.Low, limits.High
    return -math.inf, math.inf


async def _arguments_of(method: Node) -> Sequence[tuple[str, ValueType]]:
    """(name, type) of the InputArguments (Part 3, 5.7); none where there is no such property."""
    for node in await method.get_properties():
        if (await node.read_browse_name()).Name == "InputArguments":
            arguments = await node.read_value() or ()
            return [(one.Name, await _argument_type(method, one)) for one in arguments]
    return []


async def _argument_type(method: Node, argument: ua.Argument) -> ValueType:
    kind, names = await _kind_of(Node(method.session, argument.DataType))
    if kind == VT.Variant:
        raise Refused(BAD_TYPE_MISMATCH, f"argument {argument.Name}: the method does not say what type it takes")
    return ValueType(kind, argument.ValueRank >= 0, names)


def _id(text: str) -> ua.NodeId:
    return ua.NodeId.from_string(text)
