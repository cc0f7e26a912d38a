"""The gateway's certificate, the server's, and the choice of the endpoint. Nothing falls back to insecure by itself.

Files below `data_dir/pki`: `own/` the gateway's certificate and key, made at first use; `trusted/` server certificates
(DER) that an operator has accepted; `pending/` certificates that were seen and not accepted yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import threading
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

_MAKING: Final = threading.Lock()


async def secure(client: Client, data_dir: Path) -> str:
    """Prepares `client` for SignAndEncrypt with the best policy that the server offers; returns the policy's name.

    Raises Permanent when the server offers none or its certificate is not trusted (the text says what to do), and
    whatever the connection raises.
    """
    pki = data_dir / "pki"
    endpoint, policy = _best(await client.connect_and_get_server_endpoints())
    certificate: bytes = endpoint.ServerCertificate
    _check_trust(certificate, pki)
    certificate_file, key_file = await asyncio.to_thread(_own_certificate, client, pki)
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


def _own_certificate(client: Client, pki: Path) -> tuple[Path, Path]:
    """The gateway's certificate and key, made where there are none; runs in a thread.

    All machines share one pair and connect at once: two makers would leave a key that fits another certificate. The
    pair comes into being by a rename, so that a power cut leaves both or none.
    """
    with _MAKING:
        client.application_uri = f"urn:{socket.gethostname()}:mec-gateway"
        own, fresh = pki / "own", pki / "own.new"
        if not own.exists():
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True, mode=0o700)
            asyncio.run(client.setup_self_signed_certificate(fresh / "key.pem", fresh / "certificate.der"))
            fresh.rename(own)
        try:
            return asyncio.run(client.setup_self_signed_certificate(own / "key.pem", own / "certificate.der"))
        except ValueError as error:
            raise Permanent(
                f"the gateway's own key or certificate in {own} is damaged ({error}); remove {own}"
            ) from error
