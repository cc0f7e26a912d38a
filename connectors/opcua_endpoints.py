"""Which of a server's endpoints is used, and the proof that nobody has edited the list: pure, no I/O.

GetEndpoints is answered without any protection. What is chosen from it is therefore compared with the list that comes
in CreateSessionResponse over the secured channel (Part 4, 5.7.2.2): who takes the better endpoints out of the first one
ends the connection, and gains no weaker one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from asyncua import ua
from asyncua.crypto import security_policies
from asyncua.crypto.security_policies import SecurityPolicy

from connectors.opcua_settings import OpcUaSecurity
from pipelines.errors import Permanent

POLICIES: Final[dict[str, type[SecurityPolicy]]] = {
    "Aes256_Sha256_RsaPss": security_policies.SecurityPolicyAes256Sha256RsaPss,
    "Aes128_Sha256_RsaOaep": security_policies.SecurityPolicyAes128Sha256RsaOaep,
    "Basic256Sha256": security_policies.SecurityPolicyBasic256Sha256,
}
"""Best first (Part 7, security policy profiles that are not deprecated)."""
WEAK: Final = ("Basic256", "Basic128Rsa15")
NONE_URI: Final = security_policies.SecurityPolicyNone.URI
_TRANSPORT: Final = "http://opcfoundation.org/UA-Profile/Transport/uatcp-uasc-uabinary"


@dataclass(frozen=True)
class Chosen:
    """An endpoint, and how to speak with it."""

    endpoint: ua.EndpointDescription
    policy: type[SecurityPolicy]
    mode: ua.MessageSecurityMode

    def __str__(self) -> str:
        return f"{policy_name(self.policy.URI)} {self.mode.name}"


def choose(endpoints: Sequence[ua.EndpointDescription], wanted: OpcUaSecurity) -> Chosen:
    """The best that the server offers of what the file wants. Raises Permanent where it offers none."""
    mode = ua.MessageSecurityMode.Sign if wanted.mode == "sign" else ua.MessageSecurityMode.SignAndEncrypt
    policies = POLICIES.values() if wanted.policy == "best" else [POLICIES[wanted.policy]]
    for policy in policies:
        for endpoint in endpoints:
            if endpoint.SecurityMode == mode and endpoint.SecurityPolicyUri == policy.URI and _is_binary(endpoint):
                return Chosen(endpoint, policy, mode)
    what = "a current policy" if wanted.policy == "best" else f"the policy {wanted.policy}"
    raise Permanent(
        f"the server offers no {mode.name} endpoint with {what} (it offers: {_offered(endpoints)}); enable one at the "
        f"server{_way_out(endpoints, mode)}"
    )


def check_unchanged(discovered: Iterable[ua.EndpointDescription], told: Iterable[ua.EndpointDescription]) -> None:
    """`told` came over the secured channel. Raises Permanent where `discovered` is not the same."""
    before, now = _essence(discovered), _essence(told)
    if before != now:
        differ = ", ".join(sorted({f"{policy_name(each[1])} {each[0].name}" for each in before ^ now}))
        raise Permanent(
            f"somebody between the gateway and the server has changed the list of its endpoints ({differ}), or the "
            "server contradicts itself: look for what sits between them"
        )


def policy_name(uri: str | None) -> str:
    """What is behind the `#`."""
    return (uri or "").rpartition("#")[2] or "no policy"


def _is_binary(endpoint: ua.EndpointDescription) -> bool:
    return endpoint.TransportProfileUri in (_TRANSPORT, "", None)


def _essence(endpoints: Iterable[ua.EndpointDescription]) -> set[tuple[ua.MessageSecurityMode, str, int, object]]:
    """What an attacker could gain by: mode, policy, level, and how users log in.

    Not the URLs, which servers make from the one that they were asked by, nor the certificate, which may be left out.
    """
    return {
        (
            endpoint.SecurityMode,
            endpoint.SecurityPolicyUri or "",
            int(endpoint.SecurityLevel),
            frozenset((token.TokenType, token.SecurityPolicyUri or "") for token in endpoint.UserIdentityTokens or ()),
        )
        for endpoint in endpoints
        if _is_binary(endpoint)
    }


def _offered(endpoints: Sequence[ua.EndpointDescription]) -> str:
    names = {f"{policy_name(each.SecurityPolicyUri)} {each.SecurityMode.name.rstrip('_')}" for each in endpoints}
    return ", ".join(sorted(name.replace("None None", "None") for name in names)) or "nothing"


def _way_out(endpoints: Sequence[ua.EndpointDescription], mode: ua.MessageSecurityMode) -> str:
    """What the file could say, from the safest on."""
    current = {(each.SecurityMode, policy_name(each.SecurityPolicyUri)) for each in endpoints}
    if any((ua.MessageSecurityMode.SignAndEncrypt, name) in current for name in POLICIES):
        return ", or write `security: best`"
    if mode != ua.MessageSecurityMode.Sign and any((ua.MessageSecurityMode.Sign, name) in current for name in POLICIES):
        return ", or write `security: sign` to go without encryption"
    weak = [name for name in WEAK if any(offered == name for _, offered in current)]
    broken = f" ({' and '.join(weak)} can be broken and are not used)" if weak else ""
    return f"{broken}, or write `security: none` to go without signature and encryption"
