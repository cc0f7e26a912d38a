"""An asyncua server in a process of its own: the wrapper for tests, and (run as a program) the server.

    python -m tests.services.asyncua_server PORT DOUBLES [types] [SECURITY]

SECURITY is the JSON of `Secured`. Namespace 2 is `urn:mec:asyncua`, Objects/Plant holds ns=2;s=<Type> for every entry
of VARIABLES; `types` adds what asyncua_types has. Lines in, JSON:
`{"set": "Double", "value": 1.5, "source_ns": ..., "status": 0}` (`source_ns`, `status` optional) or
`{"set_many": {"Double": 1.5, ...}}`, `{"kill_sessions": true}` (true: with their subscriptions), `{"count": true}`.
Lines out: `ready`, then `done` after each command (`counted SESSIONS SUBSCRIPTIONS` after `count`), or `error ...`. The
end of stdin stops it.
"""

import asyncio
import json
import sys
import uuid
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from asyncua import Server, ua
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.internal_server import InternalServer
from asyncua.server.user_managers import UserManager
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.services.asyncua_space import new_server
from tests.services.asyncua_types import add_types
from tests.services.opcua_certificates import URI, Pair
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


ENDPOINTS = tuple(
    f"{policy}_{mode}"
    for policy in ("Aes256Sha256RsaPss", "Aes128Sha256RsaOaep", "Basic256Sha256")
    for mode in ("SignAndEncrypt", "Sign")
)
"""Every current policy in both modes."""


@dataclass(frozen=True)
class Secured:
    """What a server shows and whom it lets in."""

    certificate: Pair
    endpoints: Sequence[str] = ENDPOINTS
    """asyncua's names; `NoSecurity` is one more."""
    uri: str = URI
    users: Mapping[str, str] = field(default_factory=dict)
    """Name -> password; none: anonymous."""
    user_certificates: Sequence[Pair] = ()
    clients: Sequence[str] | None = None
    """Thumbprints (SHA-256) of the client certificates that it takes; None: all."""

    def json(self, folder: Path) -> str:
        """For the command line; the certificates are files in `folder`."""
        certificate, key = self.certificate.save(folder, "server")
        users = [pair.save(folder, f"user{number}")[0] for number, pair in enumerate(self.user_certificates)]
        return json.dumps(
            {
                "certificate": str(certificate),
                "key": str(key),
                "endpoints": list(self.endpoints),
                "uri": self.uri,
                "users": dict(self.users),
                "user_certificates": [str(path) for path in users],
                "clients": None if self.clients is None else list(self.clients),
            }
        )


class AsyncuaServer(Service):
    """The server; variables ns=2;s=<name> for each name of VARIABLES.

    doubles: that many more variables ns=2;s=v0 ... of type Double, first value 0.0. types: also what asyncua_types has.
    secured: None for security None and anonymous users.
    """

    def __init__(self, *, doubles: int = 0, types: bool = False, secured: Secured | None = None) -> None:
        super().__init__("asyncua", free_port())
        self._more = [str(doubles), *(["types"] if types else [])]
        self.secure(secured)

    def secure(self, secured: Secured | None) -> None:
        """Stops it; from its next start on."""
        self.stop()
        argv = [sys.executable, "-m", "tests.services.asyncua_server", str(self.port), *self._more]
        self.run_as([*argv, secured.json(self.folder)] if secured else argv)

    @property
    def url(self) -> str:
        """opc.tcp://127.0.0.1:port/"""
        return f"opc.tcp://{HOST}:{self.port}/"

    def wait_ready(self) -> None:
        """Returns when the server accepts sessions."""
        self.process.wait_line("^ready$", self.ready_s)

    def set_value(self, name: str, value: Json, *, source_ns: int | None = None, status: int = 0) -> None:
        """Sets ns=2;s=<name> and returns when it is set. source_ns: UTC ns since 1970, cut to us; default now."""
        self.command({"set": name, "value": value, "source_ns": source_ns, "status": status})

    def set_many(self, values: dict[str, Json]) -> None:
        """Sets several variables with one source time and returns when they are set."""
        self.command({"set_many": values})

    def kill_sessions(self, subscriptions: bool) -> None:
        """Ends every session from the server's side, with or without its subscriptions."""
        self.command({"kill_sessions": subscriptions})

    def sessions_and_subscriptions(self) -> tuple[int, int]:
        """How many it has."""
        counted = self.process.ask(json.dumps({"count": True}), r"^counted (\d+) (\d+)$", self.ready_s)
        return int(counted[1]), int(counted[2])


async def serve(port: int, doubles: int, with_types: bool, security: dict[str, Any] | None) -> None:
    """Serves until stdin ends."""
    server = new_server(_Users(security) if security else None)
    await server.init()
    server.set_endpoint(f"opc.tcp://{HOST}:{port}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    if security:
        await _secure(server, security)
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


async def _secure(server: Server, security: dict[str, Any]) -> None:
    await server.set_application_uri(security["uri"])
    server.set_security_policy([ua.SecurityPolicyType[name] for name in security["endpoints"]])
    await server.load_certificate(security["certificate"])
    await server.load_private_key(security["key"])
    tokens: list[type] = [ua.UserNameIdentityToken] * bool(security["users"])
    tokens += [ua.X509IdentityToken] * bool(security["user_certificates"])
    server.set_identity_tokens(tokens or [ua.AnonymousIdentityToken])

    async def known(certificate: x509.Certificate, _: ua.ApplicationDescription) -> None:
        if certificate.fingerprint(hashes.SHA256()).hex() not in security["clients"]:
            raise ServiceError(ua.StatusCodes.BadCertificateUntrusted)

    if security["clients"] is not None:
        server.set_certificate_validator(known)


class _Users(UserManager):
    """Those of `Secured`."""

    def __init__(self, security: dict[str, Any]) -> None:
        self._passwords = security["users"]
        self._certificates = [Path(path).read_bytes() for path in security["user_certificates"]]

    def get_user(
        self,
        iserver: InternalServer,
        username: str | None = None,
        password: str | bytes | None = None,
        certificate: bytes | None = None,
    ) -> User | None:
        word = password.decode() if isinstance(password, bytes) else password
        named = username is not None and self._passwords.get(username) == word
        shown = username is None and certificate in self._certificates
        anonymous = not self._passwords and not self._certificates
        return User(role=UserRole.User) if named or shown or anonymous else None


async def _obey(server: Server, index: int, types: dict[str, ua.VariantType], command: dict[str, Any]) -> str:
    sessions, subscriptions = server.iserver._external_sessions, server.iserver.subscription_service.subscriptions
    if "count" in command:
        return f"counted {len(sessions)} {len(subscriptions)}"
    if "kill_sessions" in command:
        for session in [*sessions.values()]:
            await session.close_session(command["kill_sessions"])
        return "done"
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
    more = sys.argv[3:]
    security = next((json.loads(word) for word in more if word != "types"), None)
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), "types" in more, security))
