"""asyncua's client with what it leaves to its user: endpoints compared, logins chosen, no password in clear.

`opcua_security.secure` says how it is to speak. Built on asyncua 2.1: `_policy_ids`, `_activate_with_credentials`,
`_encrypt_password`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from asyncua import Client, ua
from asyncua.crypto.security_policies import encrypt_asymmetric
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from connectors.network import PLAIN, Network, over
from connectors.opcua_endpoints import NONE_URI, POLICIES, WEAK, check_unchanged, policy_name
from pipelines.errors import Permanent

OAEP_BYTES: Final = 66
"""Of each encrypted block that are not content (RFC 8017, 7.1.1: with SHA-256, the largest of the policies)."""

LEAVE_S: Final = 1.0
"""For the end of a session whose server may be gone."""


@dataclass(frozen=True)
class UserCertificate:
    """Who logs in by X.509."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey


class SecureClient(Client):
    """See the module. What it refuses raises Permanent."""

    discovered: Sequence[ua.EndpointDescription] | None = None
    """What GetEndpoints said, without protection; None where it was not asked."""
    login: UserCertificate | None = None
    network: Network = PLAIN
    check_certificate: Callable[[bytes], None] | None = None
    """Of the server, where no secured channel has proven it and a user is to be told to it. Runs in a thread."""

    async def connect_socket(self) -> None:
        with over(self.network):
            await super().connect_socket()

    async def leave(self) -> bool:
        """Ends session, channel and connection, as far as there are any. False: the server may still have the session.

        Also after a `connect` that failed or was cancelled; never raises on its own. asyncua swallows a cancellation
        while it waits for its own tasks, and could wait for ever: it is left to itself after LEAVE_S, and once more.
        """
        leaving = asyncio.ensure_future(self.disconnect())
        try:
            done, _ = await asyncio.wait([leaving], timeout=LEAVE_S)
        finally:
            leaving.cancel()
            self.disconnect_socket()
            await asyncio.wait([leaving], timeout=LEAVE_S)
        error = None if not leaving.done() or leaving.cancelled() else leaving.exception()
        if error is not None and not isinstance(error, TimeoutError | OSError | ua.UaError):
            raise error
        if not done or error is not None:
            logging.getLogger(__name__).debug("the session was not closed in order: %s", error or "no answer")
        return bool(done) and error is None

    async def create_session(self) -> ua.CreateSessionResult:
        """Cancelled, it waits a little for the answer: `leave` can only end a session that it knows of."""
        creating = asyncio.ensure_future(super().create_session())
        try:
            response = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait([creating], timeout=LEAVE_S)
            creating.cancel()
            await asyncio.gather(creating, return_exceptions=True)
            raise
        if self.discovered is not None:
            check_unchanged(self.discovered, response.ServerEndpoints)
        if self.check_certificate and self.security_policy.peer_certificate:
            await asyncio.to_thread(self.check_certificate, self.security_policy.peer_certificate)
        return response

    def server_policy(self, token_type: ua.UserTokenType) -> ua.UserTokenPolicy:
        """The safest of this kind that the server offers; nothing that would give a user away."""
        if token_type == ua.UserTokenType.Anonymous and not self._policy_ids:  # a poor server says nothing
            return super().server_policy(token_type)
        offered = [each for each in self._policy_ids if each.TokenType == token_type]
        if not offered:
            known = ", ".join(sorted({each.TokenType.name for each in self._policy_ids})) or "nothing"
            kind = {ua.UserTokenType.UserName: "user name", ua.UserTokenType.Certificate: "certificate"}.get(
                token_type, "anonymous users"
            )
            raise Permanent(f"the server takes no login by {kind} (it takes: {known}): change `auth`, or the server")
        if token_type == ua.UserTokenType.Anonymous:
            return offered[0]
        ranked = self._acceptable(token_type)
        for policy in offered:
            policy.SecurityPolicyUri = policy.SecurityPolicyUri or self.security_policy.URI
        for name in ranked:
            for policy in offered:
                if policy_name(policy.SecurityPolicyUri) == name:
                    return policy
        names = ", ".join(sorted({policy_name(each.SecurityPolicyUri) for each in offered}))
        raise Permanent(
            f"the server wants the login without encryption that holds (its token policies: {names}): it is not sent; "
            "enable a SignAndEncrypt endpoint, or the token policy Basic256Sha256, at the server"
        )

    async def _activate_with_credentials(self) -> ua.ActivateSessionResult:
        if self.login is None:
            return await super()._activate_with_credentials()
        self.user_private_key = self.login.key
        return await self.activate_session(certificate=self.login.certificate)

    def _acceptable(self, token_type: ua.UserTokenType) -> list[str]:
        """Token policies by name, best first. What goes through an encrypted channel needs no more of it."""
        encrypted = self.security_policy.Mode == ua.MessageSecurityMode.SignAndEncrypt
        if token_type == ua.UserTokenType.Certificate or not encrypted:
            return [*POLICIES]
        return [*POLICIES, policy_name(NONE_URI), *WEAK]

    def _encrypt_password(self, password: str, policy_uri: str) -> tuple[bytes, str]:
        """As Part 4, 7.40.2.2 has it, in as many blocks as it takes (asyncua: one)."""
        if not self.security_policy.peer_certificate:
            raise Permanent("the server shows no certificate to encrypt the password for: it is not sent")
        key = x509.load_der_x509_certificate(self.security_policy.peer_certificate).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        nonce: bytes | None = self._server_nonce
        content = password.encode() + (nonce or b"")
        secret = len(content).to_bytes(4, "little") + content
        size = key.key_size // 8 - OAEP_BYTES
        blocks = [
            encrypt_asymmetric(key, secret[at : at + size], policy_uri)  # type: ignore[no-untyped-call]
            for at in range(0, len(secret), size)
        ]
        return b"".join(block for block, _ in blocks), blocks[0][1]
