"""Every step of a certificate's examination (Part 4, 6.1.3): what is refused, with which line, and what is let pass."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.opcua_certificates import Examination, TrustList, UnknownCertificate, load, load_crl, parse_chain
from pipelines.errors import Permanent
from tests.services.opcua_certificates import URI, Pair, make, revocation_list, rsa_key
from tests.services.ports import HOST

ROOT = make("root", ca=True)
MIDDLE = make("middle", ca=True, by=ROOT)
LISTS = (revocation_list(ROOT), revocation_list(MIDDLE))
GOOD = make()
BY_ROOT = make("by root", by=ROOT)
BY_MIDDLE = make("by middle", by=MIDDLE)


def trust(*approved: Pair, issuers: Sequence[Pair] = (), **more: Any) -> TrustList:
    marks = frozenset(pair.thumbprint for pair in approved)
    return TrustList(approved=marks, issuers=[pair.certificate for pair in issuers], **more)


def examine(
    own: Pair, by: TrustList, *sent: Pair, pins: Sequence[str] = (), host: str = HOST, uri: str = URI
) -> Examination:
    chain = parse_chain(own.der + b"".join(pair.der for pair in sent))
    examination = Examination(chain, host, uri, by, pins)
    examination.run()
    return examination


def test_who_is_trusted_and_by_what() -> None:
    """By approval, by a pin, by an authority, also through one that the server sent."""
    assert Examination(parse_chain(GOOD.der), HOST, URI, trust(GOOD)).run() == "approval"
    assert Examination(parse_chain(GOOD.der), HOST, URI, trust(), [GOOD.thumbprint]).run() == "pin"
    by_root = trust(issuers=[ROOT], crls=LISTS)
    assert Examination(parse_chain(BY_ROOT.der), HOST, URI, by_root).run() == "issuer"
    assert Examination(parse_chain(BY_MIDDLE.der + MIDDLE.der), HOST, URI, by_root).run() == "issuer"
    by_middle = trust(issuers=[MIDDLE], crls=LISTS)
    assert Examination(parse_chain(BY_MIDDLE.der), HOST, URI, by_middle).run() == "issuer"


@pytest.mark.parametrize("own", [GOOD, BY_ROOT, BY_MIDDLE])
def test_an_unknown_one_names_its_thumbprint(own: Pair) -> None:
    """Also where it brings its authority along, which nobody has laid into issuers/."""
    with pytest.raises(UnknownCertificate, match=own.thumbprint):
        examine(own, trust(), ROOT, MIDDLE)


def test_an_approved_certificate_is_no_authority() -> None:
    """What an approved server signs is not trusted by that, even if it calls itself an authority."""
    with pytest.raises(UnknownCertificate):
        examine(BY_ROOT, trust(ROOT), ROOT)


REFUSED: list[tuple[Pair, TrustList, dict[str, Any], str]] = [
    (GOOD, TrustList(frozenset([GOOD.thumbprint]), frozenset([GOOD.thumbprint])), {}, "was rejected: `gateway trust"),
    (GOOD, trust(GOOD), {"pins": [BY_ROOT.thumbprint]}, "not the one that `trust:` names"),
    (make("old", days=(-9, -1)), trust(), {}, "expired on .*: renew it, or write `trust: [0-9a-f]{64}`"),
    (make("young", days=(1, 9)), trust(), {}, "is valid from .* only: are the clocks right"),
    (make("named", uri="urn:other"), trust(), {}, f"calls itself {URI} while .* ApplicationUri is urn:other"),
    (make("weak", key=rsa_key(9, 1024)), trust(), {}, "RSA key of 1024 bits, .* RSA with 2048 to 4096"),
    (BY_ROOT, trust(issuers=[ROOT]), {"host": "press4"}, f"is for {HOST}, localhost, not for press4"),
    (
        make("client", by=ROOT, purpose=ExtendedKeyUsageOID.CLIENT_AUTH),
        trust(issuers=[ROOT]),
        {},
        "is not one for servers",
    ),
    (BY_ROOT, trust(issuers=[ROOT], crls=[revocation_list(ROOT, BY_ROOT)]), {}, "was revoked by its authority CN=root"),
    (BY_ROOT, trust(BY_ROOT, issuers=[ROOT], crls=[revocation_list(ROOT, BY_ROOT)]), {}, "was revoked"),
    (BY_MIDDLE, trust(issuers=[ROOT, MIDDLE], crls=[revocation_list(ROOT, MIDDLE)]), {}, "CN=middle was revoked by"),
    (
        make("late", by=make("rootold", ca=True, days=(-9, -1))),
        trust(issuers=[make("rootold", ca=True, days=(-9, -1))]),
        {},
        "the authority CN=rootold expired on",
    ),
]


@pytest.mark.parametrize(("own", "by", "how", "line"), REFUSED, ids=[case[3][:40] for case in REFUSED])
def test_each_step_that_fails_is_one_line(own: Pair, by: TrustList, how: dict[str, Any], line: str) -> None:
    """Of those that are trusted by the operator or an authority."""
    by = by if by.approved or by.issuers else trust(own)
    with pytest.raises(Permanent, match=line) as refused:
        examine(own, by, **how)
    assert "\n" not in str(refused.value) and not isinstance(refused.value, UnknownCertificate)


@pytest.mark.parametrize(
    ("own", "how", "line"),
    [
        (make("old", days=(-9, -1)), {}, "expired on"),
        (make("young", days=(1, 9)), {}, "is valid from"),
        (make("named", uri="urn:other"), {}, "calls itself"),
    ],
)
def test_a_pin_takes_what_it_names_and_says_what_is_wrong(own: Pair, how: dict[str, Any], line: str) -> None:
    """Machines that cannot be given another certificate are better off than with `security: none`."""
    [warning] = examine(own, trust(), pins=[own.thumbprint], **how).warnings
    assert line in warning


def test_an_approval_takes_another_host_name() -> None:
    """The machine's old address, or one behind NAT: the operator spoke of this very certificate."""
    elsewhere = examine(GOOD, trust(GOOD), host="press4")
    assert elsewhere.notes == [f"the server's certificate is for {HOST}, localhost, not for press4"]
    client = make("client", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    assert "is not one for servers" in " ".join(examine(client, trust(client)).notes)
    assert not elsewhere.warnings


def test_missing_and_outdated_revocation_lists_are_said() -> None:
    """They do not stop a plant."""
    assert "no revocation list of CN=root" in " ".join(examine(BY_ROOT, trust(issuers=[ROOT])).warnings)
    old = trust(issuers=[ROOT], crls=[revocation_list(ROOT, days=-1)])
    assert "is out of date" in " ".join(examine(BY_ROOT, old).warnings)
    lists = [revocation_list(make("root", ca=True, key=rsa_key(77)), BY_ROOT)]  # of another one of that name
    assert "no revocation list" in " ".join(examine(BY_ROOT, trust(issuers=[ROOT], crls=lists)).warnings)


def test_who_only_has_an_authority_s_name_is_unknown() -> None:
    """Signatures count, not names; nor may a server's certificate sign, nor more levels follow than it may."""
    forged = make("forged", by=make("root", ca=True, key=rsa_key(77)))
    with pytest.raises(UnknownCertificate):
        examine(forged, trust(issuers=[ROOT]))
    below_server = make("below", by=GOOD)
    with pytest.raises(UnknownCertificate):
        examine(below_server, trust(GOOD, issuers=[GOOD]))
    narrow = make("narrow", ca=True, path_length=0)
    under = make("deeper", by=make("middle", ca=True, by=narrow))
    with pytest.raises(UnknownCertificate):
        examine(under, trust(issuers=[narrow]), make("middle", ca=True, by=narrow))


def test_damaged_certificates_are_one_line() -> None:
    """Cut, empty, with another byte in the signature."""
    for data in (b"", b"\x30", b"\x30\x82", GOOD.der[:-5], b"no certificate at all"):
        with pytest.raises(Permanent, match="the server"):
            parse_chain(data)
    broken = bytearray(GOOD.der)
    broken[-9] ^= 1
    with pytest.raises(Permanent, match="is damaged, its signature is wrong"):
        Examination(parse_chain(bytes(broken)), HOST, URI, trust()).run()


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(data=st.data())
@settings(max_examples=300)
def test_a_hostile_certificate_is_one_line(data: st.DataObject) -> None:
    """Bytes changed anywhere in it, or in what it brings along: refused by a line, or what is trusted is whole."""
    changed = bytearray(data.draw(st.sampled_from([GOOD.der, BY_ROOT.der + ROOT.der])))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        chain = parse_chain(bytes(changed))
        Examination(chain, HOST, URI, trust(GOOD, issuers=[ROOT])).run()
    except Permanent as refused:
        assert str(refused).isprintable()
    else:
        assert chain[0] in (GOOD.certificate, BY_ROOT.certificate)
    with suppress(ValueError):
        load(bytes(changed))


def test_names_of_strangers_break_no_line() -> None:
    """What a certificate calls itself is shown, and is not trusted."""
    with pytest.raises(UnknownCertificate) as refused:
        examine(make("evil\nname\x1b[31m" + "x" * 40), trust())
    assert str(refused.value).isprintable()


def test_pem_and_der_are_both_read() -> None:
    """Files as operators get them."""
    assert load(GOOD.pem) == load(GOOD.der) == [GOOD.certificate]
    assert load(ROOT.pem + MIDDLE.pem) == [ROOT.certificate, MIDDLE.certificate]
    crl = revocation_list(ROOT, GOOD)
    assert load_crl(crl.public_bytes(Encoding.PEM)) == load_crl(crl.public_bytes(Encoding.DER)) == crl
    for data in (b"", b"text", b"-----BEGIN CERTIFICATE-----\nAA\n"):
        with pytest.raises(ValueError):
            load(data)


def test_now_is_a_parameter() -> None:
    """A certificate that is good today ends."""
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=400)
    with pytest.raises(Permanent, match="expired"):
        Examination(parse_chain(GOOD.der), HOST, URI, trust(GOOD), now=later).run()
