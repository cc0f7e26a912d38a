"""The gateway's certificate, the server's, and the choice of the endpoint. Nothing falls back to insecure by itself.

Files below `data_dir/pki`: `own/` the gateway's certificate and key, made at first use; `trusted/` server certificates
(DER) that an operator has accepted; `pending/` certificates that were seen and not accepted yet.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Final

from asyncua import Client, ua
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties

from pipelines.errors import Permanent

POLICIES: Final = (
    security_policies.SecurityPolicyAes256Sha256RsaPss,
    security_policies.SecurityPolicyAes128Sha256RsaOaep,
    security_policies.SecurityPolicyBasic256Sha256,
)
"""Best first (Part 7, security policy profiles that are not deprecated)."""


async def secure(client: Client, data_dir: Path) -> str:
    """Prepares `client` for SignAndEncrypt with the best policy that the server offers; returns the policy's name.

    Raises Permanent when the server offers none or its certificate is not trusted (the text says what to do), and
    whatever the connection raises.
    """
    pki = data_dir / "pki"
    endpoint, policy = _best(await client.connect_and_get_server_endpoints())
    certificate: bytes = endpoint.ServerCertificate
    _check_trust(certificate, pki)
    (pki / "own").mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate_file, key_file = await _own_certificate(client, pki / "own")
    await client.set_security(
        policy,
        certificate_file,
        key_file,
        server_certificate=CertProperties(certificate, "der"),
        mode=ua.MessageSecurityMode.SignAndEncrypt,
    )
    return policy.URI.rpartition("#")[2]


def _best(
    endpoints: list[ua.EndpointDescription],
) -> tuple[ua.EndpointDescription, type[security_policies.SecurityPolicy]]:
    for policy in POLICIES:
        for endpoint in endpoints:
            encrypted = endpoint.SecurityMode == ua.MessageSecurityMode.SignAndEncrypt
            if encrypted and endpoint.SecurityPolicyUri == policy.URI and endpoint.ServerCertificate:
                return endpoint, policy
    offered = sorted({f"{e.SecurityMode.name} {e.SecurityPolicyUri.rpartition('#')[2]}" for e in endpoints})
    raise Permanent(
        f"the server offers no SignAndEncrypt endpoint with a current policy (it offers: {', '.join(offered)}); "
        "enable one at the server, or write `security: none` to go without encryption"
    )


def _check_trust(certificate: bytes, pki: Path) -> None:
    trusted, pending = pki / "trusted", pki / "pending"
    trusted.mkdir(parents=True, exist_ok=True)
    if any(file.read_bytes() == certificate for file in trusted.glob("*.der")):
        return
    thumbprint = hashlib.sha256(certificate).hexdigest()
    pending.mkdir(parents=True, exist_ok=True)
    waiting = pending / f"{thumbprint[:40]}.der"
    waiting.write_bytes(certificate)
    raise Permanent(
        f"the server's certificate is not trusted (sha256 {thumbprint}); compare it with the server's, then move "
        f"{waiting} to {trusted}"
    )


async def _own_certificate(client: Client, folder: Path) -> tuple[Path, Path]:
    client.application_uri = f"urn:{socket.gethostname()}:mec-gateway"
    return await client.setup_self_signed_certificate(folder / "key.pem", folder / "certificate.der")
