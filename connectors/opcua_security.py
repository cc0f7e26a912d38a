"""The one way to a secured connection: `secure` prepares a client, for the source, `gateway browse` and all others.

    the user and the gateway's own pair (opcua_own) -> GetEndpoints -> choose (opcua_endpoints)
    -> examine the certificate (opcua_certificates, opcua_pki) -> a client (opcua_client) that may connect

Nothing falls back to insecure by itself.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asyncua import ua
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from connectors.network import PLAIN, Network
from connectors.opcua_certificates import (
    Examination,
    UnknownCertificate,
    der,
    load,
    parse_chain,
)
from connectors.opcua_client import SecureClient, UserCertificate
from connectors.opcua_endpoints import Chosen, choose
from connectors.opcua_own import OwnPair, default_uri, own_pair
from connectors.opcua_pki import folder_of, keep_pending, make_folders, stamp, trust_list
from connectors.opcua_requests import status_name
from connectors.opcua_settings import OpcUaAuth, OpcUaDevice, OpcUaSecurity
from pipelines.errors import Permanent

OWN, SERVER, USER = "own", "server", "user"
"""Whose certificate."""


@dataclass(frozen=True)
class Access:
    """How a server is to be spoken with."""

    security: OpcUaSecurity | None = field(default_factory=OpcUaSecurity)
    """None: neither signature nor encryption."""
    auth: OpcUaAuth | None = None
    """None: anonymous."""
    pins: Sequence[str] = ()
    device: str = ""
    """Under whose name an unknown certificate waits; default: the server's address."""
    network: Network = PLAIN

    @classmethod
    def of(cls, settings: OpcUaDevice, device: str = "") -> Access:
        """As the file says."""
        return cls(settings.secured, settings.auth, settings.trust, device, settings.network.network)


@dataclass(frozen=True)
class Secured:
    """What came of it."""

    how: str
    """Policy and mode."""
    ends: Mapping[str, datetime.datetime] = field(default_factory=dict)
    """OWN, SERVER, USER -> when that certificate ends."""
    warnings: Sequence[str] = ()
    """What was let pass and should be put right."""
    notes: Sequence[str] = ()
    """What was let pass by the operator's will."""
    recheck: Callable[[], object] | None = None
    """Looks at the server's certificate again, in a thread. Raises Permanent, OSError."""
    seen: tuple[int, ...] = ()
    """`stamp` of the folders before it was looked at."""


async def secure(client: SecureClient, data_dir: Path, access: Access = Access()) -> Secured:
    """Prepares `client`, before its `connect`. Raises Permanent with what to do, and whatever the connection raises."""
    client.network = access.network
    pki = folder_of(data_dir)
    before = stamp(pki)
    try:
        login = await asyncio.to_thread(_log_in, client, access.auth) if access.auth else None
        if access.security is None:
            client.application_uri = default_uri()
            if access.auth:
                client.check_certificate = _Unprotected(pki, access.pins)
            return Secured("None", _ends({USER: login}))
        await asyncio.to_thread(make_folders, pki)
        pair = await asyncio.to_thread(own_pair, pki)
        before = stamp(pki)
        client.discovered = await client.connect_and_get_server_endpoints()
        chosen = choose(client.discovered, access.security)
        server = await asyncio.to_thread(_examined, client, pki, chosen, access)
        return _secured(client, chosen, pair, login, server, before)
    except Permanent as error:
        error.cured = error.cured or _Changed(pki, before)
        raise
    except OSError as error:
        if error.filename is None:  # of the network
            raise
        raise Permanent(f"{error.filename} cannot be used: {(error.strerror or 'error').lower()}") from error


def examine(chain: Sequence[x509.Certificate], host: str, uri: str, pki: Path, pins: Sequence[str]) -> Examination:
    """A server's certificates against the folders as they are now. Raises UnknownCertificate, Permanent, OSError."""
    trust = trust_list(pki)
    examination = Examination(chain, host, uri, trust, pins)
    examination.run()
    examination.warnings += trust.unreadable
    return examination


def refusal(error: ua.UaStatusCodeError) -> str | None:
    """What to do where a server refuses the gateway or its user; None for other errors."""
    name = status_name(error.code)
    if error.code in _NO_USER:
        return f"the server refuses the login: {name}; check `auth`, and the user's rights at the server"
    if error.code in _NO_CERTIFICATE:
        return (
            f"the server refuses this gateway: {name}; have the server trust the gateway's certificate, which "
            "`gateway trust ls` shows"
        )
    if error.code in _NO_POLICY:
        return f"the server refuses this gateway: {name}; check `security`"
    return None


@dataclass(frozen=True)
class _Server:
    """A server that was found trustworthy."""

    certificate: x509.Certificate
    examination: Examination
    recheck: Callable[[], object]


def _examined(client: SecureClient, pki: Path, chosen: Chosen, access: Access) -> _Server:
    """Whom to trust; one that is unknown waits for an operator. Runs in a thread."""
    server = chosen.endpoint.Server
    chain = parse_chain(chosen.endpoint.ServerCertificate or b"")
    look = partial(examine, chain, client.server_url.hostname or "", server.ApplicationUri or "", pki, access.pins)
    try:
        return _Server(chain[0], look(), look)
    except UnknownCertificate as error:
        device = access.device or client.server_url.netloc.replace(":", "_")
        waiting = keep_pending(pki, device, der(chain[0]))
        raise UnknownCertificate(
            f"{error}; compare this with the server's, then `gateway trust approve {access.device or waiting.stem}`"
        ) from error


def _secured(
    client: SecureClient,
    chosen: Chosen,
    pair: OwnPair,
    login: UserCertificate | None,
    server: _Server,
    seen: tuple[int, ...],
) -> Secured:
    client.application_uri = pair.application_uri
    policy = chosen.policy(server.certificate, pair.certificate, pair.key, chosen.mode)
    client.security_policy = policy  # type: ignore[assignment]  # asyncua does the same
    client.uaclient.set_security(policy)
    warnings = [*server.examination.warnings, *([pair.note] if pair.note else [])]
    ends = _ends({OWN: pair, SERVER: server.certificate, USER: login})
    return Secured(str(chosen), ends, warnings, server.examination.notes, server.recheck, seen)


def _ends(whose: Mapping[str, OwnPair | UserCertificate | x509.Certificate | None]) -> dict[str, datetime.datetime]:
    certificates = {
        who: one if isinstance(one, x509.Certificate) else one.certificate for who, one in whose.items() if one
    }
    return {who: one.not_valid_after_utc for who, one in certificates.items()}


def _log_in(client: SecureClient, auth: OpcUaAuth) -> UserCertificate | None:
    """Sets the user; the certificate where there is one. Raises Permanent, OSError."""
    if auth.certificate is None or auth.key is None:
        client.set_user(auth.user)
        client.set_password(auth.password.get_secret_value())
        return None
    password = auth.key_password.get_secret_value().encode() if auth.key_password else None
    data = auth.key.read_bytes()
    parse = serialization.load_pem_private_key if b"-----BEGIN" in data else serialization.load_der_private_key
    try:
        certificate, key = load(auth.certificate.read_bytes())[0], parse(data, password)
    except (ValueError, TypeError) as error:
        raise Permanent(
            f"the user's certificate {auth.certificate} or key {auth.key} cannot be used: {error}"
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise Permanent(f"the key {auth.key} is not the RSA key of the user's certificate {auth.certificate}")
    client.login = UserCertificate(certificate, key)
    return client.login


@dataclass(frozen=True)
class _Changed:
    """Somebody has changed what the trust list says; cheap enough for the event loop."""

    pki: Path
    before: tuple[int, ...]

    def __call__(self) -> bool:
        return stamp(self.pki) != self.before


@dataclass(frozen=True)
class _Unprotected:
    """With `security: none` anybody may answer; a password goes at least to none who is known not to be the server."""

    pki: Path
    pins: Sequence[str]

    def __call__(self, certificate: bytes) -> None:
        mark = hashlib.sha256(certificate).hexdigest()
        if self.pins and mark not in self.pins:
            raise Permanent(f"the server's certificate (sha256 {mark}) is not the one that `trust:` names")
        if mark in trust_list(self.pki).rejected:
            raise Permanent(f"the server's certificate (sha256 {mark}) was rejected: `gateway trust ls`")


_NO_USER = (
    ua.StatusCodes.BadUserAccessDenied,
    ua.StatusCodes.BadIdentityTokenInvalid,
    ua.StatusCodes.BadIdentityTokenRejected,
    ua.StatusCodes.BadUserSignatureInvalid,
)
_NO_CERTIFICATE = (
    ua.StatusCodes.BadSecurityChecksFailed,
    ua.StatusCodes.BadCertificateUntrusted,
    ua.StatusCodes.BadCertificateInvalid,
    ua.StatusCodes.BadCertificateUriInvalid,
    ua.StatusCodes.BadCertificateTimeInvalid,
    ua.StatusCodes.BadCertificateHostNameInvalid,
    ua.StatusCodes.BadCertificateUseNotAllowed,
    ua.StatusCodes.BadCertificateChainIncomplete,
    ua.StatusCodes.BadCertificateRevoked,
    ua.StatusCodes.BadCertificateRevocationUnknown,
    ua.StatusCodes.BadCertificateIssuerRevocationUnknown,
    ua.StatusCodes.BadApplicationSignatureInvalid,
    ua.StatusCodes.BadNoValidCertificates,
)
_NO_POLICY = (ua.StatusCodes.BadSecurityModeRejected, ua.StatusCodes.BadSecurityPolicyRejected)
