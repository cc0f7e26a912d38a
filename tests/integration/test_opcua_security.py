"""Security against real servers: every policy and mode, every kind of user, certificates that are wrong, somebody in
between, and what an operator does while it runs."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary
from cryptography.hazmat.primitives.serialization import Encoding

from connectors.opcua import OpcUaSource
from connectors.opcua_browse import Seen, browse, publishing, session
from connectors.opcua_endpoints import NONE_URI, policy_name
from connectors.opcua_pki import CRL, ISSUERS, PENDING, REJECTED, TRUSTED, folder_of, make_folders, move
from connectors.opcua_security import Access
from connectors.opcua_select import OpcUaSelect
from connectors.opcua_settings import OpcUaAuth, OpcUaDevice, OpcUaSecurity
from gateway.session import SourceSession
from gateway.supervisor import State, Supervisor
from pipelines.clock import SystemClock
from pipelines.errors import GatewayError, NotConnected, Permanent
from pipelines.tags import TagTable
from tests.conftest import made
from tests.contract.source_suite import within
from tests.services.asyncua_server import ENDPOINTS, AsyncuaServer, Secured
from tests.services.milo import Group, Milo
from tests.services.node_opcua import NodeOpcua
from tests.services.opcua_certificates import Pair, make, revocation_list, rsa_key
from tests.services.ports import HOST

Make = Callable[..., OpcUaSource]
GOOD = make("asyncua", days=(-1, 20))
OPERATOR = make("operator", uri="urn:user", days=(-1, 10), purpose=None, key=rsa_key(3))
STRANGER = make("stranger", uri="urn:user", purpose=None, key=rsa_key(4))
POLICIES = ("Aes256_Sha256_RsaPss", "Aes128_Sha256_RsaOaep", "Basic256Sha256")


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes sources of one data folder, and closes them."""
    sources: list[OpcUaSource] = []

    def make_source(url: str, node: str = "ns=2;s=Double", **options: Any) -> OpcUaSource:
        settings = {"opcua": url, "every": "50ms", "timeout": "20s", "tags": {"x": node}, **options}
        device = OpcUaDevice.model_validate(settings)
        sources.append(OpcUaSource("press", 0, device, TagTable(), SystemClock(), tmp_path))
        return sources[-1]

    yield make_source
    for each in sources:
        await each.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[AsyncuaServer]:
    """One with every policy and mode, and None; anonymous users."""
    with made(lambda: AsyncuaServer(secured=Secured(GOOD, (*ENDPOINTS, "NoSecurity")))) as server:
        yield server


@pytest.fixture(scope="module")
def with_users() -> Iterator[AsyncuaServer]:
    """The same for users with a password or a certificate."""
    secured = Secured(GOOD, (*ENDPOINTS, "NoSecurity"), users={"operator": "secret"}, user_certificates=[OPERATOR])
    with made(lambda: AsyncuaServer(secured=secured)) as server:
        yield server


@pytest.fixture(scope="module")
def milo_server() -> Iterator[Milo]:
    with made(lambda: Milo([Group("v", "double", 2, 50)])) as server:
        yield server


async def first_value(press: OpcUaSource) -> Any:
    await within(press.connect([]))
    return (await within(press.read())).values()[0]


async def refused(press: OpcUaSource, line: str, kind: type[GatewayError] = Permanent) -> str:
    """Connecting fails with one line that matches; its text."""
    with pytest.raises(kind, match=line) as error:
        await within(press.connect([]))
    assert str(error.value).count("\n") == 0
    return str(error.value)


# --- policies and modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["encrypt", "sign"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_every_policy_in_both_modes(
    plain: AsyncuaServer, node_opcua: NodeOpcua, milo_server: Milo, source: Make, policy: str, mode: str
) -> None:
    """Values from three independent stacks."""
    security = {"policy": policy, "mode": mode}
    user = {"user": "operator", "password": "secret"}
    assert await first_value(source(plain.url, security=security, trust=GOOD.thumbprint)) == 0.25
    node = source(node_opcua.url, "ns=1;s=Double", security=security, trust=node_opcua.thumbprint, auth=user)
    assert await first_value(node) == 0.25
    milo = source(milo_server.url, "ns=2;s=v0", security=security, trust=milo_server.certificate.thumbprint)
    assert await first_value(milo) == 0.0


# --- who is in between ----------------------------------------------------------------------------------------------

Edit = Callable[[list[ua.EndpointDescription]], Iterable[ua.EndpointDescription]]


@asynccontextmanager
async def in_between(port: int, edit: Edit) -> AsyncIterator[str]:
    """A proxy that edits the endpoints in every response that is not protected; its URL."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(_copy(reader, far_writer, None), _copy(far_reader, writer, edit))

    server = await asyncio.start_server(relay, HOST)
    async with server:
        yield f"opc.tcp://{HOST}:{server.sockets[0].getsockname()[1]}/"


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, edit: Edit | None) -> None:
    """Message by message (Part 6, 7.1.2)."""
    protected = False
    try:
        while True:
            head = await reader.readexactly(8)
            message = head + await reader.readexactly(struct.unpack("<I", head[4:])[0] - 8)
            if head[:3] == b"OPN":
                protected = b"SecurityPolicy#None" not in message
            writer.write(_edited(message, edit) if edit and head[:3] == b"MSG" and not protected else message)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


_WITH_ENDPOINTS: dict[bytes, Any] = {
    b"\x01\x00\xaf\x01": ua.GetEndpointsResponse,
    b"\x01\x00\xd0\x01": ua.CreateSessionResponse,
}
"""The type's node id -> the type."""


def _edited(message: bytes, edit: Edit) -> bytes:
    """A message in an unprotected chunk: 24 bytes of headers, then its type."""
    kind = _WITH_ENDPOINTS.get(message[24:28])
    if kind is None:
        return message
    response = struct_from_binary(kind, ua.utils.Buffer(message[24:]))
    if kind is ua.GetEndpointsResponse:
        response.Endpoints = [*edit(response.Endpoints)]
    else:
        response.Parameters.ServerEndpoints = [*edit(response.Parameters.ServerEndpoints)]
    body = struct_to_binary(response)
    return message[:4] + struct.pack("<I", 24 + len(body)) + message[8:24] + body


def only(*names: str) -> Edit:
    return lambda endpoints: [
        each for each in endpoints if f"{policy_name(each.SecurityPolicyUri)} {each.SecurityMode.name}" in names
    ]


def renamed(*policies: str) -> Edit:
    """Only these, SignAndEncrypt."""

    def edit(endpoints: list[ua.EndpointDescription]) -> Iterable[ua.EndpointDescription]:
        for endpoint, policy in zip(endpoints, policies, strict=False):
            endpoint.SecurityPolicyUri = f"http://opcfoundation.org/UA/SecurityPolicy#{policy}"
            endpoint.SecurityMode = ua.MessageSecurityMode.SignAndEncrypt
            yield endpoint

    return edit


def shows(certificate: Pair) -> Edit:
    def edit(endpoints: list[ua.EndpointDescription]) -> Iterable[ua.EndpointDescription]:
        for endpoint in endpoints:
            endpoint.ServerCertificate = certificate.der
            yield endpoint

    return edit


def clear_passwords(endpoints: list[ua.EndpointDescription]) -> Iterable[ua.EndpointDescription]:
    for endpoint in endpoints:
        for token in endpoint.UserIdentityTokens:
            token.SecurityPolicyUri = NONE_URI
        yield endpoint


@pytest.mark.parametrize(
    ("edit", "security", "line"),
    [
        (only("Basic256Sha256 Sign"), "best", "offers no SignAndEncrypt endpoint.*write `security: sign`"),
        (only("Basic256Sha256 SignAndEncrypt"), "Aes256_Sha256_RsaPss", "the policy Aes256_Sha256_RsaPss"),
        (renamed("Basic256", "Basic128Rsa15"), "best", "Basic256 and Basic128Rsa15 can be broken"),
        (renamed("Basic256"), "sign", "Basic256 can be broken"),
        (only("None None_"), "best", "it offers: None.*write `security: none`"),
    ],
    ids=["sign only", "other policy", "weak", "weak sign", "none"],
)
async def test_less_than_what_the_file_says_is_refused(
    plain: AsyncuaServer, source: Make, edit: Edit, security: str, line: str
) -> None:
    """Permanent, with what could be enabled at the server or written in the file."""
    async with in_between(plain.port, edit) as url:
        await refused(source(url, security=security, trust=GOOD.thumbprint), line)


@pytest.mark.parametrize(
    ("edit", "security", "line"),
    [
        (only("Basic256Sha256 SignAndEncrypt", "None None_"), "best", "has changed the list of its endpoints"),
        (only("None None_"), "best", "offers no SignAndEncrypt endpoint"),
        (only("Basic256Sha256 Sign"), "sign", "has changed the list of its endpoints"),
        (clear_passwords, "best", "has changed the list of its endpoints"),
    ],
    ids=["weaker policy", "none", "sign", "password in clear"],
)
async def test_who_edits_the_list_of_endpoints_gains_nothing(
    with_users: AsyncuaServer, source: Make, edit: Edit, security: str, line: str
) -> None:
    """The list of the secured channel is compared; no login is sent before."""
    auth = {"user": "operator", "password": "secret"}
    async with in_between(with_users.port, edit) as url:
        await refused(source(url, security=security, trust=GOOD.thumbprint, auth=auth), line)


async def test_a_session_does_not_go_on_in_a_weaker_channel(node_opcua: NodeOpcua, source: Make) -> None:
    """After a cut the list is edited: the session is not taken up with less, and the comparison finds the edit."""
    edits: list[Edit] = [list]

    def edit(endpoints: list[ua.EndpointDescription]) -> Iterable[ua.EndpointDescription]:
        return edits[-1](endpoints)

    async with in_between(node_opcua.port, edit) as url:
        auth = {"user": "operator", "password": "secret"}
        press = source(url, "ns=1;s=Double", trust=node_opcua.thumbprint, auth=auth)
        assert await first_value(press) == 0.25
        session = press._link.session
        assert session and session._client.protocol and session._client.protocol.transport
        session._client.protocol.transport.abort()
        with pytest.raises(NotConnected):
            await within(press.read())
        await within(press.close())
        edits.append(only("Basic256Sha256 SignAndEncrypt"))
        await refused(press, "has changed the list of its endpoints")


# --- users ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["best", "sign", "none"])
async def test_a_password_is_encrypted_on_every_channel(with_users: AsyncuaServer, source: Make, security: str) -> None:
    """Also one that takes several blocks; a wrong one is Permanent, and not in the text."""
    right, wrong = ({"user": "operator", "password": word} for word in ("secret", "not-the-secret"))
    assert await first_value(source(with_users.url, security=security, trust=GOOD.thumbprint, auth=right)) == 0.25
    press = source(with_users.url, security=security, trust=GOOD.thumbprint, auth=wrong)
    assert "not-the-secret" not in await refused(press, "refuses the login: BadUserAccessDenied; check `auth`")


async def test_a_password_is_not_sent_in_clear(with_users: AsyncuaServer, source: Make) -> None:
    """A server that takes it in clear, or somebody who says so: never, whatever the file says."""
    auth = {"user": "operator", "password": "secret"}
    async with in_between(with_users.port, clear_passwords) as url:
        line = "wants the login without encryption that holds .*it is not sent"
        await refused(source(url, security="none", auth=auth), line)


async def test_even_unprotected_no_password_for_a_known_stranger(with_users: AsyncuaServer, source: Make) -> None:
    """With `security: none` a pin still holds for whom the password is encrypted."""
    auth = {"user": "operator", "password": "secret"}
    press = source(with_users.url, security="none", trust=STRANGER.thumbprint, auth=auth)
    await refused(press, "is not the one that `trust:` names")


@pytest.mark.parametrize("security", ["best", "sign", "none"])
async def test_a_user_s_certificate(
    with_users: AsyncuaServer, node_opcua: NodeOpcua, source: Make, tmp_path: Path, security: str
) -> None:
    """With a key behind a password; a stranger's is refused; of a wrong key or password the file is named."""
    certificate, key = OPERATOR.save(tmp_path, "operator", "word")
    auth = {"certificate": str(certificate), "key": str(key), "key_password": "word"}
    assert await first_value(source(with_users.url, security=security, trust=GOOD.thumbprint, auth=auth)) == 0.25
    options: dict[str, Any] = {"security": security, "trust": node_opcua.thumbprint}
    assert await first_value(source(node_opcua.url, "ns=1;s=Double", auth=auth, **options)) == 0.25
    other, other_key = STRANGER.save(tmp_path, "stranger")
    for wrong, line in (
        ({"certificate": str(other), "key": str(other_key)}, "refuses the login: BadUserAccessDenied"),
        ({"certificate": str(certificate), "key": str(other_key)}, "stranger.pem is not the RSA key of"),
        (auth | {"key_password": "other"}, "operator.pem cannot be used"),
        (auth | {"key": str(tmp_path / "gone")}, "gone cannot be used: no such file"),
    ):
        await refused(source(with_users.url, security=security, trust=GOOD.thumbprint, auth=wrong), line)


async def test_a_login_that_the_server_does_not_know_is_named(
    plain: AsyncuaServer, with_users: AsyncuaServer, source: Make, tmp_path: Path
) -> None:
    """Anonymous where a user is wanted, a user where only anonymous ones are."""
    await refused(
        source(with_users.url, trust=GOOD.thumbprint), "takes no login by anonymous users .*Certificate, UserName"
    )
    auth = {"user": "operator", "password": "secret"}
    await refused(source(plain.url, trust=GOOD.thumbprint, auth=auth), r"no login by user name \(it takes: Anonymous\)")


# --- certificates ---------------------------------------------------------------------------------------------------

ROOT = make("root", ca=True)


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (make("old", days=(-9, -1)), "the server's certificate expired on"),
        (make("young", days=(1, 9)), "is valid from .* only"),
        (make("named", uri="urn:other"), "ApplicationUri is urn:other"),
        (make("taken", by=ROOT), "was revoked by its authority CN=root"),
        (make("elsewhere", by=ROOT, hosts=["press4"]), f"is for press4, not for {HOST}"),
    ],
    ids=["expired", "not yet valid", "other uri", "revoked", "other host"],
)
async def test_a_trusted_certificate_that_is_not_right(
    plain: AsyncuaServer, source: Make, tmp_path: Path, own: Pair, line: str
) -> None:
    """Approved, or signed by an authority that is trusted, as it comes over the wire."""
    pki = folder_of(tmp_path)
    make_folders(pki)
    by_authority = own.certificate.issuer != own.certificate.subject
    (pki / (ISSUERS if by_authority else TRUSTED) / "it.der").write_bytes((ROOT if by_authority else own).der)
    taken_back = [own] if "revoked" in line else []
    (pki / CRL / "root.pem").write_bytes(revocation_list(ROOT, *taken_back).public_bytes(Encoding.PEM))
    async with in_between(plain.port, shows(own)) as url:
        await refused(source(url), line)


async def test_a_certificate_of_a_trusted_authority(source: Make, tmp_path: Path) -> None:
    """Its authority in issuers/: no approval of its own; and a server that does not trust the gateway is named."""
    pki, own = folder_of(tmp_path), make("by root", by=ROOT)
    make_folders(pki)
    (pki / ISSUERS / "root.pem").write_bytes(ROOT.pem)
    with made(lambda: AsyncuaServer(secured=Secured(own))) as server:
        press = source(server.url)
        assert await first_value(press) == 0.25
        assert not [*(pki / PENDING).iterdir()]
        await within(press.close())
        await asyncio.to_thread(server.secure, Secured(own, clients=[]))
        await asyncio.to_thread(server.start)
        line = "refuses this gateway: BadCertificateUntrusted; have the server trust the gateway's certificate"
        await refused(source(server.url), line)


async def test_an_unknown_certificate_waits_and_a_rejected_one_does_not(
    plain: AsyncuaServer, source: Make, tmp_path: Path
) -> None:
    """Pending under the device's name, approved, rejected: each with its own line."""
    pki = folder_of(tmp_path)
    press = source(plain.url)
    await refused(press, f"is not trusted: CN=asyncua, sha256 {GOOD.thumbprint}; .*`gateway trust approve press`")
    [waiting] = (pki / PENDING).iterdir()
    assert waiting.name == f"press.{GOOD.thumbprint}.der" and waiting.read_bytes() == GOOD.der
    move(pki, "press", TRUSTED)
    assert await first_value(press) == 0.25
    await within(press.close())
    move(pki, "press", REJECTED)
    await refused(press, "was rejected: `gateway trust approve")


async def test_approval_and_revocation_while_it_runs(
    plain: AsyncuaServer, source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faulted, approved: up within seconds. Revoked: the connection ends, and it is faulted."""
    monkeypatch.setattr("connectors.opcua_expiry.LOOK_EVERY_S", 0.1)
    press, pki = source(plain.url), folder_of(tmp_path)
    supervisor = Supervisor(SourceSession(press, plain.url, [], []), SystemClock(), lambda: 1.0)
    running = asyncio.create_task(supervisor.run())

    async def until(state: State) -> None:
        async with asyncio.timeout(30):  # well below the 60 s that a refusal waits otherwise
            while supervisor.status.state is not state:  # noqa: ASYNC110  it has no event
                await asyncio.sleep(0.02)

    try:
        await until(State.FAULTED)
        await asyncio.to_thread(move, pki, "press", TRUSTED)
        await until(State.UP)
        await asyncio.to_thread(move, pki, "press", REJECTED)
        await until(State.FAULTED)
        assert "was rejected" in supervisor.status.reason
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_damaged_own_key_is_named(plain: AsyncuaServer, source: Make, tmp_path: Path) -> None:
    """Not replaced: the servers know the old certificate."""
    assert await first_value(source(plain.url, trust=GOOD.thumbprint)) == 0.25
    key = folder_of(tmp_path) / "own" / "key.pem"
    key.write_bytes(key.read_bytes()[:100])
    await refused(source(plain.url, trust=GOOD.thumbprint), "own key or certificate in .*own is damaged")


async def test_the_alarm_before_a_certificate_ends(
    with_users: AsyncuaServer, source: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """30 days ahead, of the server's and the user's: in the log, in /health, and as days in the metrics."""
    certificate, key = OPERATOR.save(tmp_path, "user")
    auth = {"certificate": str(certificate), "key": str(key)}
    press = source(with_users.url, trust=GOOD.thumbprint, auth=auth)
    assert await first_value(press) == 0.25
    assert "the server's certificate ends on" in press.info and "the certificate of `auth` ends on" in press.info
    assert "own certificate" not in press.info
    days = {name: round(value) for name, value in press.counters.gauges.items() if name.endswith("_days")}
    assert days.pop("own_certificate_days") > 1800
    assert days == {"server_certificate_days": 20, "user_certificate_days": 10}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("ends on" in line for line in said) == 2
    await within(press.close())
    assert "ends on" not in press.info


async def looked(url: str, access: Access, data_dir: Path) -> Sequence[Seen]:
    """What `gateway browse` finds."""
    async with session(url, access, data_dir) as client:
        found, _ = await browse(publishing(client), OpcUaSelect(include=("/Objects/**",), limit=5))
        return found


async def test_without_security_nothing_is_written(with_users: AsyncuaServer, tmp_path: Path) -> None:
    """`gateway browse --insecure` needs no data folder."""
    auth = OpcUaAuth.model_validate({"user": "operator", "password": "secret"})
    folder = tmp_path / "none"
    assert await looked(with_users.url, Access(None, auth), folder)
    assert not folder.exists()


async def test_browse_goes_the_same_way(with_users: AsyncuaServer, tmp_path: Path) -> None:
    """Unknown: pending under the server's address; approved: the tags."""

    async def look(password: str = "secret") -> Sequence[Seen]:
        auth = OpcUaAuth.model_validate({"user": "operator", "password": password})
        return await looked(with_users.url, Access(OpcUaSecurity(), auth), tmp_path)

    with pytest.raises(Permanent, match="gateway trust approve"):
        await look()
    [kept] = move(folder_of(tmp_path), f"{HOST}_{with_users.port}", TRUSTED)
    assert kept.certificate == GOOD.certificate
    assert await look()
    with pytest.raises(NotConnected, match="refuses the login: BadUserAccessDenied"):
        await look("wrong")
