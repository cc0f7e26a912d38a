"""An asyncua server in a process of its own: the wrapper for tests, and (run as a program) the server.

    python -m tests.services.asyncua_server PORT DOUBLES [types]

Namespace 2 is `urn:mec:asyncua`, Objects/Plant holds ns=2;s=<Type> for every entry of VARIABLES; `types` adds what
asyncua_types has. Lines in, JSON:
`{"set": "Double", "value": 1.5, "source_ns": ..., "status": 0}` (`source_ns`, `status` optional) or
`{"set_many": {"Double": 1.5, ...}}`. Lines out: `ready`, then `done` after each command, or `error ...`. The end of
stdin stops it.
"""

import asyncio
import json
import sys
import uuid
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncua import Server, ua

from tests.services.asyncua_types import add_types
from tests.services.ports import HOST, free_port
from tests.services.process import Service

Json = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

# Name -> OPC UA type and first value in JSON's terms: Guid and DateTime as text, ByteString as base64.
VARIABLES: dict[str, tuple[ua.VariantType, Json]] = {
    "Boolean": (ua.VariantType.Boolean, True),
    "SByte": (ua.VariantType.SByte, -8),
    "Byte": (ua.VariantType.Byte, 8),
    "Int16": (ua.VariantType.Int16, -16),
    "UInt16": (ua.VariantType.UInt16, 16),
    "Int32": (ua.VariantType.Int32, -32),
    "UInt32": (ua.VariantType.UInt32, 32),
    "Int64": (ua.VariantType.Int64, -6_400_000_000_000_000_000),
    "UInt64": (ua.VariantType.UInt64, 12_800_000_000_000_000_000),
    "Float": (ua.VariantType.Float, 0.5),
    "Double": (ua.VariantType.Double, 0.25),
    "String": (ua.VariantType.String, "text"),
    "DateTime": (ua.VariantType.DateTime, "2020-01-01T00:00:00+00:00"),
    "Guid": (ua.VariantType.Guid, "72962b91-fa75-4ae6-8d28-b404dc7daf63"),
    "ByteString": (ua.VariantType.ByteString, "AAEC"),
    "LocalizedText": (ua.VariantType.LocalizedText, "local"),
    "DoubleArray": (ua.VariantType.Double, [0.25, 0.5]),
    "Int32Array": (ua.VariantType.Int32, [-1, 0, 1]),
    "StringArray": (ua.VariantType.String, ["a", "", "b"]),
}


class AsyncuaServer(Service):
    """The server, anonymous, security None; variables ns=2;s=<name> for each name of VARIABLES.

    doubles: that many more variables ns=2;s=v0 ... of type Double, first value 0.0. types: also what asyncua_types has.
    """

    def __init__(self, *, doubles: int = 0, types: bool = False) -> None:
        super().__init__("asyncua", free_port())
        more = ["types"] if types else []
        self.run_as([sys.executable, "-m", "tests.services.asyncua_server", str(self.port), str(doubles), *more])

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port/"""
        return f"opc.tcp://{HOST}:{self.port}/"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)

    def set_value(self, name: str, value: Json, *, source_ns: int | None = None, status: int = 0) -> None:
        """Sets ns=2;s=<name> and returns when it is set. source_ns: UTC ns since 1970, cut to us; default now."""
        self._command({"set": name, "value": value, "source_ns": source_ns, "status": status})

    def set_many(self, values: dict[str, Json]) -> None:
        """Sets several variables with one source time and returns when they are set."""
        self._command({"set_many": values})

    def _command(self, command: dict[str, Any]) -> None:
        mark = self.process.mark()
        self.process.send(json.dumps(command))
        answer = self.process.wait_line("^(done|error .*)$", self.ready_s, mark)[0]
        if answer != "done":
            raise ValueError(answer)


async def serve(port: int, doubles: int, with_types: bool) -> None:
    """Serves until stdin ends."""
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://{HOST}:{port}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    index = await server.register_namespace("urn:mec:asyncua")
    plant = await server.nodes.objects.add_object(_node_id("Plant", index), f"{index}:Plant")
    more = {f"v{i}": (ua.VariantType.Double, 0.0) for i in range(doubles)}
    types: dict[str, ua.VariantType] = {}
    for name, (kind, value) in {**VARIABLES, **more}.items():
        types[name] = kind
        await plant.add_variable(_node_id(name, index), f"{index}:{name}", _variant(kind, value))
    if with_types:
        await add_types(server, index)
    async with server:
        print("ready", flush=True)
        commands = await _stdin()
        while line := await commands.readline():
            print(await _obey(server, index, types, json.loads(line)), flush=True)


async def _obey(server: Server, index: int, types: dict[str, ua.VariantType], command: dict[str, Any]) -> str:
    values = command["set_many"] if "set_many" in command else {command["set"]: command["value"]}
    unknown = [name for name in values if name not in types]
    if unknown:
        return f"error unknown variables {unknown}"
    time = _time(command.get("source_ns"))
    status = ua.StatusCode(command.get("status", 0))
    for name, value in values.items():
        data = ua.DataValue(_variant(types[name], value), status, SourceTimestamp=time, ServerTimestamp=time)
        await server.write_attribute_value(_node_id(name, index), data)
    return "done"


def _node_id(name: str, index: int) -> ua.NodeId:
    return ua.NodeId(ua.String(name), ua.Int16(index))


def _time(source_ns: int | None) -> ua.DateTime:
    if source_ns is None:
        return ua.DateTime.now(UTC)
    return ua.DateTime.fromtimestamp(0, UTC) + timedelta(microseconds=source_ns // 1000)


def _variant(kind: ua.VariantType, value: Json) -> ua.Variant:
    convert = _FROM_JSON.get(kind)
    return ua.Variant(convert(value) if convert else value, kind)


_FROM_JSON: dict[ua.VariantType, Any] = {
    ua.VariantType.DateTime: datetime.fromisoformat,
    ua.VariantType.Guid: uuid.UUID,
    ua.VariantType.ByteString: b64decode,
    ua.VariantType.LocalizedText: lambda text: ua.LocalizedText(text, "en"),
}


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), "types" in sys.argv[3:]))
