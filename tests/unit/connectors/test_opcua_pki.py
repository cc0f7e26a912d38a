"""The folders of `pki/`, the gateway's own pair, which endpoint and which login are chosen."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from asyncua import ua
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from connectors import opcua_own
from connectors.opcua_certificates import extension
from connectors.opcua_client import SecureClient
from connectors.opcua_endpoints import NONE_URI, POLICIES, check_unchanged, choose, policy_name
from connectors.opcua_own import CERTIFICATE, KEY, NEXT, next_pair, own_pair, use_next
from connectors.opcua_pki import (
    CRL,
    ISSUERS,
    OWN,
    PENDING,
    PENDING_MAX,
    REJECTED,
    TRUSTED,
    keep_pending,
    make_folders,
    move,
    stamp,
    trust_list,
)
from connectors.opcua_settings import OpcUaSecurity
from pipelines.errors import GatewayError, Permanent
from tests.services.opcua_certificates import make, revocation_list


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    make_folders(tmp_path / "pki")
    return tmp_path / "pki"


def test_a_certificate_waits_is_approved_and_revoked(pki: Path) -> None:
    """By device, then by thumbprint as people copy it; its file tells which device saw it."""
    pair = make()
    waiting = keep_pending(pki, "press.4", pair.der)
    assert waiting == keep_pending(pki, "press.4", pair.der) and waiting.parent.name == PENDING
    assert not trust_list(pki).approved
    before = stamp(pki)
    [approved] = move(pki, "press.4", TRUSTED)
    assert approved.device == "press.4" and stamp(pki) != before
    assert trust_list(pki).approved == {pair.thumbprint}
    colons = ":".join(pair.thumbprint[at : at + 2] for at in range(0, 16, 2)).upper()
    [rejected] = move(pki, colons, REJECTED)
    assert rejected.path.parent.name == REJECTED
    assert (trust_list(pki).approved, trust_list(pki).rejected) == (frozenset(), {pair.thumbprint})
    [_] = move(pki, "press.4", TRUSTED)
    assert trust_list(pki).approved == {pair.thumbprint}


def test_what_stands_for_several_certificates_decides_nothing(pki: Path) -> None:
    """Two wait of one device: the thumbprint has to be given; nothing at all is known of others."""
    pairs = [make(), make()]
    for pair in pairs:
        keep_pending(pki, "press4", pair.der)
    with pytest.raises(GatewayError, match=f"2 certificates.*{pairs[1].thumbprint}|{pairs[0].thumbprint}"):
        move(pki, "press4", TRUSTED)
    with pytest.raises(GatewayError, match="gateway trust ls"):
        move(pki, "press5", TRUSTED)
    move(pki, pairs[0].thumbprint, TRUSTED)
    move(pki, "press4", TRUSTED)
    assert trust_list(pki).approved == {pair.thumbprint for pair in pairs}


def test_who_shows_a_new_certificate_each_time_fills_no_disk(pki: Path) -> None:
    """The newest few of each device wait; those of others are left alone."""
    keep_pending(pki, "press", make().der)
    for number in range(PENDING_MAX + 2):
        path = keep_pending(pki, "press4", make(f"n{number}").der)
        os.utime(path, ns=(number, number))
    names = [path.name.partition(".")[0] for path in (pki / PENDING).iterdir()]
    assert (names.count("press4"), names.count("press")) == (PENDING_MAX, 1)


def test_files_of_people_are_read_and_bad_ones_named(pki: Path) -> None:
    """PEM and DER, under any name; what is neither is a line, and the others count."""
    root, approved = make("root", ca=True), make()
    (pki / ISSUERS / "plant.pem").write_bytes(root.pem)
    (pki / TRUSTED / "press4.crt").write_bytes(approved.der)
    (pki / CRL / "plant.crl").write_bytes(revocation_list(root).public_bytes(Encoding.PEM))
    (pki / CRL / "broken.crl").write_bytes(b"-")
    (pki / TRUSTED / "broken.der").write_bytes(b"-")
    (pki / TRUSTED / "README.txt").write_bytes(b"-")
    trust = trust_list(pki)
    assert (list(trust.issuers), trust.approved) == ([root.certificate], {approved.thumbprint})
    assert len(trust.crls) == 1
    assert sorted(line.split(" is not")[0] for line in trust.unreadable) == sorted(
        [str(pki / CRL / "broken.crl"), str(pki / TRUSTED / "broken.der")]
    )


def test_the_own_certificate_is_what_the_standard_wants_and_stays(pki: Path) -> None:
    """ApplicationUri, host name, five years, a key that only its owner reads; the second start finds the same."""
    pair = own_pair(pki)
    names = extension(pair.certificate, x509.SubjectAlternativeName)
    assert names and names.get_values_for_type(x509.UniformResourceIdentifier) == [pair.application_uri]
    assert names.get_values_for_type(x509.DNSName)
    usage = extension(pair.certificate, x509.ExtendedKeyUsage)
    assert usage and list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    left = pair.certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert left.days in (5 * 365 - 1, 5 * 365)
    assert (pki / OWN / KEY).stat().st_mode & 0o777 == 0o600
    assert own_pair(pki).certificate == pair.certificate and not pair.note


@pytest.mark.parametrize("damage", ["key", "certificate", "other key", "missing"])
def test_a_damaged_own_pair_is_named_and_not_replaced(pki: Path, damage: str) -> None:
    """A new one would be a stranger to every server: a person decides."""
    own_pair(pki)
    file = pki / OWN / (CERTIFICATE if damage == "certificate" else KEY)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(make().key_pem() if damage == "other key" else file.read_bytes()[:-40])
    with pytest.raises(Permanent, match=f"{pki / OWN} is damaged .*backup, or remove {pki / OWN}"):
        own_pair(pki)


def test_the_next_pair_waits_until_it_is_used(pki: Path) -> None:
    """`renew` twice makes one; `--use` exchanges them, and exchanges them back."""
    first = own_pair(pki)
    assert next_pair(pki, fresh=False) is None
    following = next_pair(pki, fresh=True)
    again = next_pair(pki, fresh=True)
    assert following and again and again.certificate == following.certificate != first.certificate
    assert own_pair(pki).certificate == first.certificate
    use_next(pki)
    assert own_pair(pki).certificate == following.certificate
    use_next(pki)
    assert own_pair(pki).certificate == first.certificate


def test_only_an_expired_own_certificate_is_renewed_by_itself(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next one where an operator has made it; the old one is kept, and a line says so."""
    with monkeypatch.context() as patch:
        patch.setattr(opcua_own, "YEARS", 0)
        opcua_own._make(pki, OWN)
    ended = x509.load_der_x509_certificate((pki / OWN / CERTIFICATE).read_bytes())
    following = next_pair(pki, fresh=True)
    used = own_pair(pki)
    assert following and used.certificate == following.certificate and "expired" in used.note
    assert x509.load_der_x509_certificate((pki / NEXT / CERTIFICATE).read_bytes()) == ended
    assert not own_pair(pki).note
    another = next_pair(pki, fresh=True)
    assert another and another.certificate not in (ended, used.certificate)


def test_a_power_cut_in_the_exchange_loses_nothing(pki: Path) -> None:
    """The pair that was in use is found again."""
    first = own_pair(pki)
    next_pair(pki, fresh=True)
    (pki / OWN).rename(pki / opcua_own.ASIDE)
    assert own_pair(pki).certificate == first.certificate


def endpoint(policy: str, mode: str) -> ua.EndpointDescription:
    uri = NONE_URI if policy == "None" else f"http://opcfoundation.org/UA/SecurityPolicy#{policy}"
    return ua.EndpointDescription(
        SecurityPolicyUri=uri,
        SecurityMode=ua.MessageSecurityMode[mode],
        TransportProfileUri="http://opcfoundation.org/UA-Profile/Transport/uatcp-uasc-uabinary",
    )


EVERYTHING = [
    endpoint("None", "None_"),
    *(
        endpoint(policy, mode)
        for policy in ("Basic128Rsa15", "Basic256", *reversed(POLICIES))
        for mode in ("Sign", "SignAndEncrypt")
    ),
]


@pytest.mark.parametrize(
    ("policy", "mode", "chosen"),
    [
        ("best", "encrypt", "Aes256_Sha256_RsaPss SignAndEncrypt"),
        ("best", "sign", "Aes256_Sha256_RsaPss Sign"),
        ("Basic256Sha256", "encrypt", "Basic256Sha256 SignAndEncrypt"),
        ("Aes128_Sha256_RsaOaep", "sign", "Aes128_Sha256_RsaOaep Sign"),
    ],
)
def test_the_best_of_what_is_wanted_is_chosen(policy: str, mode: str, chosen: str) -> None:
    """Whatever the order in which the server lists them."""
    wanted = OpcUaSecurity.model_validate({"policy": policy, "mode": mode})
    assert str(choose(EVERYTHING, wanted)) == chosen
    assert str(choose(EVERYTHING[::-1], wanted)) == chosen


@pytest.mark.parametrize(
    ("offered", "wanted", "line"),
    [
        ([("None", "None_")], {}, "it offers: None.*`security: none`"),
        ([("Basic256Sha256", "Sign")], {}, "it offers: Basic256Sha256 Sign.*`security: sign`"),
        ([("Basic256", "SignAndEncrypt")], {}, r"Basic256 can be broken|Basic256 .*can be broken"),
        ([("Basic256Sha256", "SignAndEncrypt")], {"policy": "Aes256_Sha256_RsaPss"}, "write `security: best`"),
        ([("Basic256Sha256", "SignAndEncrypt")], {"mode": "sign"}, "no Sign endpoint.*write `security: best`"),
        ([], {}, "it offers: nothing"),
    ],
)
def test_less_than_what_is_wanted_is_refused(offered: list[tuple[str, str]], wanted: dict[str, str], line: str) -> None:
    """The line says what is there, and the safest thing that could be written."""
    with pytest.raises(Permanent, match=line):
        choose([endpoint(*one) for one in offered], OpcUaSecurity.model_validate(wanted))


def test_an_edited_list_of_endpoints_is_found() -> None:
    """Taken away, added, or with a weaker login; other URLs, orders and certificates are no edit."""
    told = [*EVERYTHING]
    same = [endpoint("None", "None_"), *EVERYTHING[:0:-1]]
    same[0].EndpointUrl, same[0].ServerCertificate = "opc.tcp://other:4840", b"certificate"
    check_unchanged(same, told)
    weaker = endpoint("Basic256Sha256", "Sign")
    weaker.UserIdentityTokens = [ua.UserTokenPolicy(TokenType=ua.UserTokenType.UserName, SecurityPolicyUri=NONE_URI)]
    for edited in (EVERYTHING[:-1], EVERYTHING[:3], [*EVERYTHING[1:], weaker]):
        with pytest.raises(Permanent, match="somebody between the gateway and the server has changed the list"):
            check_unchanged(edited, told)


def client(mode: ua.MessageSecurityMode, *tokens: tuple[ua.UserTokenType, str]) -> SecureClient:
    """In a channel of this mode with `make()`; the server offers these logins."""
    pair = make()
    made = SecureClient("opc.tcp://h:4840")
    if mode != ua.MessageSecurityMode.None_:
        policy = POLICIES["Basic256Sha256"](pair.certificate, pair.certificate, pair.key, mode)
        made.security_policy = policy  # type: ignore[assignment]
    made._policy_ids = [
        ua.UserTokenPolicy(
            TokenType=kind, SecurityPolicyUri=uri and f"http://opcfoundation.org/UA/SecurityPolicy#{uri}"
        )
        for kind, uri in tokens
    ]
    return made


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("length", [0, 1, 150, 1000])
def test_a_password_of_any_length_is_encrypted(policy: str, length: int) -> None:
    """Behind its length, with the server's nonce (Part 4, 7.40.2.2); in blocks of the key's size."""
    pair, word = make(), "ü" * length
    sender = client(ua.MessageSecurityMode.Sign)
    sender._server_nonce = b"n" * 32
    data, _ = sender._encrypt_password(word, POLICIES[policy].URI)
    hashed = hashes.SHA256() if policy == "Aes256_Sha256_RsaPss" else hashes.SHA1()
    how = padding.OAEP(mgf=padding.MGF1(hashed), algorithm=hashed, label=None)
    plain = b"".join(pair.key.decrypt(data[at : at + 256], how) for at in range(0, len(data), 256))
    content = word.encode() + b"n" * 32
    assert plain == len(content).to_bytes(4, "little") + content


NAME, X509, NOBODY = ua.UserTokenType.UserName, ua.UserTokenType.Certificate, ua.UserTokenType.Anonymous
NONE, SIGN, BOTH = (
    ua.MessageSecurityMode.None_,
    ua.MessageSecurityMode.Sign,
    ua.MessageSecurityMode.SignAndEncrypt,
)


@pytest.mark.parametrize(
    ("mode", "kind", "offered", "chosen"),
    [
        (NONE, NAME, ["None", "Basic256Sha256"], "Basic256Sha256"),
        (NONE, NAME, ["Basic256Sha256", "Aes256_Sha256_RsaPss", "Basic256"], "Aes256_Sha256_RsaPss"),
        (SIGN, NAME, [""], "Basic256Sha256"),  # the channel's own
        (BOTH, NAME, ["None"], "None"),  # the channel encrypts
        (BOTH, NAME, ["Basic128Rsa15"], "Basic128Rsa15"),
        (BOTH, X509, ["None", ""], "Basic256Sha256"),
        (NONE, NOBODY, ["None"], "None"),
        (NONE, NAME, ["None"], None),
        (NONE, NAME, [""], None),
        (NONE, NAME, ["Basic256", "Basic128Rsa15"], None),
        (SIGN, NAME, ["None"], None),
        (BOTH, X509, ["None"], None),
    ],
)
def test_the_safest_login_is_chosen(
    mode: ua.MessageSecurityMode, kind: ua.UserTokenType, offered: list[str], chosen: str | None
) -> None:
    """Nothing that would send a password in clear, or a certificate without proof."""
    made = client(mode, *((kind, uri) for uri in offered))
    if chosen is None:
        with pytest.raises(Permanent, match=r"without encryption that holds.*it is not sent"):
            made.server_policy(kind)
    else:
        assert policy_name(made.server_policy(kind).SecurityPolicyUri) == chosen
