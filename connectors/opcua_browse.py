"""Looks around in a server's address space for `gateway browse`: what a selection means there, with present values."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from asyncua import Client, ua
from asyncua.client.ua_session import UaSession

from connectors import opcua_names, opcua_requests, opcua_reverse
from connectors.opcua_address import is_plain, path_text, with_uri
from connectors.opcua_binary import Cursor, DecodeError
from connectors.opcua_definitions import unit_of
from connectors.opcua_directory import look
from connectors.opcua_limits import Limits, Service
from connectors.opcua_requests import (
    ATTRIBUTE_VALUE,
    READ_RESPONSE,
    Request,
    ServiceError,
    encode_node_id,
    expect,
    response_body,
    status_name,
)
from connectors.opcua_resolve import namespace_array, resolve
from connectors.opcua_resume import ResumingClient, reason
from connectors.opcua_security import Access, refusal, secure
from connectors.opcua_select import OpcUaSelect
from connectors.opcua_servers import Server, identify
from connectors.opcua_session import PublishSession
from connectors.opcua_settings import OpcUaDevice, OpcUaReverse
from connectors.opcua_types import Types
from connectors.opcua_walk import Progress
from pipelines.batch import ARRAY, GOOD, Kind
from pipelines.clock import SystemClock
from pipelines.errors import NotConnected

TIMEOUT_S: Final = 10.0
NODES_PER_STEP: Final = 500
VALUE_MAX: Final = 60
"""Characters of a value that are shown."""
_log: Final = logging.LoggerAdapter(logging.getLogger(__name__), {})
_PLAIN: Final = re.compile(r"[A-Za-z_][\w=;.:/|()$&~-]*")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Value:
    """What a variable has now."""

    kind: int
    """Built-in type, with ARRAY for an array; 0 where there is no value."""
    value: Any
    status: int

    @property
    def type(self) -> str:
        """`Double`, `Int32[]`; empty where there is no value."""
        kind = self.kind & ~ARRAY
        if not kind:
            return ""
        name = ua.VariantType(kind).name
        return f"{name}[]" if self.kind & ARRAY else str(name)

    @property
    def text(self) -> str:
        """On one line, cut where it is long."""
        if self.kind == Kind.NULL:
            return "no value" if self.status == GOOD else status_name(self.status)
        shown = str((_EPOCH + timedelta(microseconds=self.value // 1000)).isoformat()) if self._is_time else self._plain
        shown = "".join(letter if letter.isprintable() else " " for letter in shown)
        return shown if len(shown) <= VALUE_MAX else shown[: VALUE_MAX - 3] + "..."

    @property
    def _is_time(self) -> bool:
        return self.kind == Kind.DATETIME and abs(self.value) < 2**63

    @property
    def _plain(self) -> str:
        if isinstance(self.value, bool):
            return str(self.value).lower()
        return self.value.hex() if isinstance(self.value, bytes) else str(self.value)


@dataclass(frozen=True, slots=True)
class Seen:
    """A variable that was found."""

    name: str
    """Of the tag that `select:` makes of it."""
    path: tuple[str, ...]
    """Its names from Objects on, each as a browse path spells it, without the `/`."""
    node: str
    uri: str
    """The node id with its namespace's URI."""
    unit: str
    value: Value


@asynccontextmanager
async def session(
    url: str, access: Access, data_dir: Path, reverse: OpcUaReverse | None = None
) -> AsyncIterator[Client]:
    """A session to look around in, or for commands; `client.uaclient.session` is a PublishSession.

    With `reverse` the server's call is waited for, at `url`. Raises NotConnected, Permanent with one clear line.
    """
    async with _calls(url, access, reverse) as calls:
        client = ResumingClient(reverse.endpoint if reverse else url, TIMEOUT_S, None, _log, calls)
        opened = client.uaclient.session = PublishSession(client.uaclient, SystemClock(), TIMEOUT_S)
        try:
            await _connect(client, url, data_dir, access)
            opened.request_bytes_max = client.request_bytes_max
            yield client
        except (ServiceError, DecodeError, TimeoutError, OSError, ua.UaError) as error:
            raise NotConnected(f"{url}: {reason(error)}") from error
        finally:
            await client.leave()


async def _connect(client: ResumingClient, url: str, data_dir: Path, access: Access) -> None:
    """Raises NotConnected, Permanent."""
    try:
        await secure(client, data_dir, access)
        await client.connect()
    except ua.UaStatusCodeError as error:
        raise NotConnected(f"{url}: {refusal(error) or error}") from error
    except (OSError, TimeoutError, ua.UaError) as error:
        raise NotConnected(f"{url}: {str(error) or f'no answer within {TIMEOUT_S:g} s'}") from error


@asynccontextmanager
async def _calls(url: str, access: Access, reverse: OpcUaReverse | None) -> AsyncIterator[opcua_reverse.Calls | None]:
    """Those of a server that dials; None of one that is dialled."""
    if reverse is None:
        yield None
        return
    try:
        calls = await opcua_reverse.expect(url, reverse.server, reverse.endpoint, access.network)
    except OSError as error:
        raise NotConnected(
            f"{url}: cannot listen there ({(error.strerror or str(error)).lower()}): does a gateway that runs do so?"
        ) from error
    try:
        yield calls
    finally:
        calls.close()


async def resolved(client: Client, device: OpcUaDevice) -> tuple[dict[str, str], dict[str, str]]:
    """(address -> node id, address -> why there is none) of a device's tags. Raises NotConnected, TimeoutError."""
    addresses = {tag.node for tag in device.tags.values()}
    if all(map(is_plain, addresses)):
        return {address: address for address in addresses}, {}
    opened = publishing(client)
    try:
        limits, namespaces = await limits_of(opened), await namespace_array(opened.request)
        return await resolve(opened.request, addresses, namespaces, limits)
    except (ServiceError, DecodeError) as error:
        raise NotConnected(f"{device.opcua}: {reason(error)}") from error


def publishing(client: Client) -> PublishSession:
    """The session of a client that `session` has made."""
    return cast(PublishSession, client.uaclient.session)


async def browse(
    opened: PublishSession, select: OpcUaSelect, progress: Progress = lambda _, __: None
) -> tuple[list[Seen], dict[str, str]]:
    """The variables that `select` means, and what of it the server does not have. Raises what requests raise."""
    request, limits = opened.request, await limits_of(opened)
    namespaces = await namespace_array(request)
    walked, missing = await look(request, select, namespaces, limits, progress)
    nodes = [one.node for one in walked.variables]
    uris = [with_uri(node, namespaces) for node in nodes]
    names = opcua_names.names([(one.path, uri) for one, uri in zip(walked.variables, uris, strict=True)])
    units = await _units(opened, nodes)
    values = await present(request, nodes, limits)
    paths = [tuple(path_text([step])[1:] for step in one.path) for one in walked.variables]
    return [Seen(*fields) for fields in zip(names, paths, nodes, uris, units, values, strict=True)], missing


async def limits_of(opened: UaSession) -> Limits:
    """What the server takes in one call. Raises what the session raises."""
    return (await learnt_limits(opened, None))[0]


async def learnt_limits(opened: UaSession, data_dir: Path | None) -> tuple[Limits, Server]:
    """What the server takes in one call, and what it says it is; `data_dir` has the user's own profiles.

    Raises what the session raises.
    """
    limits = Limits(_log)
    await limits.learn(opened)
    return limits, await identify(opened, limits, data_dir, _log)


async def _units(opened: PublishSession, nodes: Sequence[str]) -> list[str]:
    """Engineering units, empty where there is none. Raises what requests raise."""
    types, units = Types(_log), list[str]()
    for at in range(0, len(nodes), NODES_PER_STEP):
        found = await types.properties(opened, nodes[at : at + NODES_PER_STEP])
        units += (unit_of(properties.get("EngineeringUnits")) for properties in found)
    return units


async def present(request: Request, nodes: Sequence[str], limits: Limits) -> list[Value]:
    """The values that some variables have now. Raises what requests raise."""

    async def read(part: Sequence[str]) -> list[Value]:
        encoded = [encode_node_id(node) for node in part]
        body = await request(partial(opcua_requests.read, nodes=encoded, attribute=ATTRIBUTE_VALUE))
        return expect([*_values(body)], len(part))

    return await limits.in_parts(Service.READ, nodes, read)


def _values(body: bytes) -> Iterator[Value]:
    """ReadResponse -> values; of a DataValue its times are passed over (Part 6, 5.2.2.17)."""
    cursor = response_body(body, READ_RESPONSE)
    for _ in range(cursor.count(1)):
        mask = cursor.byte()
        kind, value = cursor.variant() if mask & 1 else (int(Kind.NULL), None)
        status = cursor.uint32() if mask & 2 else GOOD
        _skip_times(cursor, mask)
        yield Value(kind, value, status)


def _skip_times(cursor: Cursor, mask: int) -> None:
    for bit, size in ((4, 8), (0x10, 2), (8, 8), (0x20, 2)):
        if mask & bit:
            cursor.skip(size)


def tags_block(found: Iterable[Seen], *, by_index: bool = False) -> Iterator[str]:
    """The lines of a `tags:` block, to be pasted under a device; `by_index`: node ids without URIs, shorter."""
    yield "tags:"
    for seen in found:
        node = _quoted(seen.node if by_index else seen.uri)
        address = f"{{node: {node}, unit: {_quoted(seen.unit)}}}" if seen.unit else node
        about = ", ".join(filter(None, (seen.value.type, seen.value.text)))
        yield f"  {_quoted(seen.name)}: {address}  # {about}"


def as_json(seen: Seen) -> Mapping[str, Any]:
    """For programs: the value as text, as people see it."""
    return {
        "name": seen.name,
        "path": "/" + "/".join(seen.path),
        "node": seen.node,
        "uri": seen.uri,
        "type": seen.value.type,
        "unit": seen.unit,
        "value": seen.value.text,
        "status": seen.value.status,
    }


def _quoted(text: str) -> str:
    """As YAML takes it for text, also within braces."""
    words = ("true", "false", "null", "yes", "no", "on", "off")
    if _PLAIN.fullmatch(text) and not text.endswith(":") and text.lower() not in words:
        return text
    return '"' + "".join(_ESCAPES.get(letter) or _printable(letter) for letter in text) + '"'


_ESCAPES: Final = {'"': '\\"', "\\": "\\\\"}


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
