"""What a server's certificate must be: the steps of Part 4, 6.1.3 in their order, one clear line for each that fails.

Who is trusted: a certificate that an operator has approved (`trusted/`), one that the file pins (`trust:`), or one that
an authority in `issuers/` has signed. An approval speaks of this very certificate, so the host name and the key usage,
which tell certificates of one authority apart, are then mere notes; a pin takes an expired one and another
ApplicationUri as well. Nothing takes one that is damaged, weak, rejected or revoked.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipelines.errors import Permanent

KEY_BITS: Final = (2048, 4096)
"""Of RSA keys, in every policy that is current (Part 7)."""
CHAIN_MAX: Final = 8
_WEAK: Final = ("md5", "sha1")
_MALFORMED: Final = (
    ValueError,
    TypeError,
    IndexError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that are no certificate, or no usable one."""

Extension = TypeVar("Extension", bound=x509.ExtensionType)
By = Literal["pin", "approval", "issuer"]
"""What a server is trusted by."""


class UnknownCertificate(Permanent):
    """Nobody has decided about it yet."""


@dataclass(frozen=True)
class TrustList:
    """What the operator has laid down."""

    approved: frozenset[str] = frozenset()
    """Thumbprints."""
    rejected: frozenset[str] = frozenset()
    issuers: Sequence[x509.Certificate] = ()
    crls: Sequence[x509.CertificateRevocationList] = ()
    unreadable: Sequence[str] = ()
    """A line for each file that is neither a certificate nor a revocation list."""


@dataclass
class Examination:
    """One server's certificate under the steps of the standard."""

    chain: Sequence[x509.Certificate]
    """The server's own certificate, and those of authorities that it sent with it."""
    host: str
    """As the file names the server."""
    application_uri: str
    """As the server's endpoint says."""
    trust: TrustList
    pins: Sequence[str] = ()
    now: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    warnings: list[str] = field(default_factory=list)
    """What was let pass and should be put right."""
    notes: list[str] = field(default_factory=list)
    """What was let pass because this very certificate was approved."""

    def run(self) -> By:
        """What it is trusted by. Raises UnknownCertificate, Permanent."""
        own = self.chain[0]
        path = _path(self.chain, self.trust.issuers)
        self._signature(own)
        self._key(own)
        by = self._trusted(own, path)
        named = by != "issuer"
        for certificate in path[:1] if named else path:
            self._key(certificate)
            self._signature_hash(certificate, named)
            self._validity(certificate, by == "pin")
        self._host_name(own, named)
        self._uri(own, by == "pin")
        self._usage(own, named)
        self._revocation(path)
        return by

    def _warn(self, text: str, suppressed: bool, otherwise: str = "") -> None:
        """`otherwise`: what else could be done, where it is refused."""
        if not suppressed:
            raise Permanent(text + otherwise)
        self.warnings.append(text)

    def _note(self, text: str, suppressed: bool, otherwise: str = "") -> None:
        if not suppressed:
            raise Permanent(text + otherwise)
        self.notes.append(text)

    def _signature(self, own: x509.Certificate) -> None:
        """Of a self-signed one: of others `_path` takes only what holds."""
        if own.issuer != own.subject:
            return
        try:
            own.verify_directly_issued_by(own)
        except InvalidSignature as error:
            raise Permanent(
                f"the server's certificate {name_of(own)} is damaged, its signature is wrong: give it another one"
            ) from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Permanent(f"the server's certificate {name_of(own)} cannot be used: {error}") from error

    def _key(self, certificate: x509.Certificate) -> None:
        """Of the size that the current policies demand (Part 7)."""
        key, low, high = certificate.public_key(), *KEY_BITS
        if isinstance(key, rsa.RSAPublicKey) and low <= key.key_size <= high:
            return
        found = f"an RSA key of {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else "no RSA key"
        raise Permanent(
            f"the certificate {name_of(certificate)} has {found}, the current policies demand RSA with {low} to {high} "
            "bits: give the server another one"
        )

    def _signature_hash(self, certificate: x509.Certificate, suppressed: bool) -> None:
        """A forged certificate of an authority is a danger, one that was approved by itself cannot be forged."""
        used = certificate.signature_hash_algorithm
        if certificate.issuer != certificate.subject and (used is None or used.name in _WEAK):
            how = used.name if used else "no known hash"
            text = f"the certificate {name_of(certificate)} is signed with {how}, which can be forged: renew it"
            self._warn(text, suppressed)

    def _trusted(self, own: x509.Certificate, path: Sequence[x509.Certificate]) -> By:
        name, mark = name_of(own), thumbprint(own)
        if mark in self.trust.rejected:
            raise Permanent(
                f"the server's certificate {name} (sha256 {mark}) was rejected: `gateway trust approve {mark[:12]}` "
                "takes it after all"
            )
        if self.pins:
            if mark in self.pins:
                return "pin"
            raise Permanent(
                f"the server's certificate {name} (sha256 {mark}) is not the one that `trust:` names: the machine has "
                "a new one, or it is not the machine"
            )
        if mark in self.trust.approved:
            return "approval"
        if any(issuer in self.trust.issuers for issuer in path[1:]):
            return "issuer"
        raise UnknownCertificate(f"the server's certificate is not trusted: {name}, sha256 {mark}")

    def _validity(self, certificate: x509.Certificate, suppressed: bool) -> None:
        own = certificate is self.chain[0]
        whose = "the server's certificate" if own else f"the authority {name_of(certificate)}"
        if certificate.not_valid_after_utc < self.now:
            text = f"{whose} expired on {day(certificate.not_valid_after_utc)}: renew it"
        elif certificate.not_valid_before_utc > self.now:
            text = f"{whose} is valid from {day(certificate.not_valid_before_utc)} only: are the clocks right?"
        else:
            return
        otherwise = f", or write `trust: {thumbprint(certificate)}` to use it nevertheless" if own else ""
        self._warn(text, suppressed, otherwise)

    def _host_name(self, own: x509.Certificate, suppressed: bool) -> None:
        names = _host_names(own)
        if _normal_host(self.host) not in names:
            shown = ", ".join(sorted(names)) or "no host"
            mark = thumbprint(own)[:12]
            self._note(
                f"the server's certificate is for {shown}, not for {self.host}",
                suppressed,
                f": connect by that name, or approve this very certificate (`gateway trust approve {mark}`)",
            )

    def _uri(self, own: x509.Certificate, suppressed: bool) -> None:
        uris = application_uris(own)
        if self.application_uri not in uris:
            shown = ", ".join(uris) or "none"
            self._warn(
                f"the server calls itself {self.application_uri or 'nothing'} while its certificate's ApplicationUri "
                f"is {shown}: have the server make a new certificate",
                suppressed,
                f", or write `trust: {thumbprint(own)}`",
            )

    def _usage(self, own: x509.Certificate, suppressed: bool) -> None:
        usage = extension(own, x509.KeyUsage)
        if usage and not (usage.digital_signature and usage.key_encipherment and usage.data_encipherment):
            self._note("the key usage of the server's certificate does not allow OPC UA: renew it", suppressed)
        extended = extension(own, x509.ExtendedKeyUsage)
        if extended and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {*extended}:
            self._note("the server's certificate is not one for servers (extended key usage): renew it", suppressed)

    def _revocation(self, path: Sequence[x509.Certificate]) -> None:
        """Every certificate against the lists of its authority, as far as both are there."""
        for certificate, issuer in pairwise(path):
            lists = [crl for crl in self.trust.crls if _is_by(crl, issuer)]
            if not lists:
                self.warnings.append(
                    f"no revocation list of {name_of(issuer)} in crl/: certificates that it took back are not noticed"
                )
            for crl in lists:
                if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                    raise Permanent(
                        f"the certificate {name_of(certificate)} was revoked by its authority {name_of(issuer)}: give "
                        "the server a new one"
                    )
            if lists and all(crl.next_update_utc and crl.next_update_utc < self.now for crl in lists):
                self.warnings.append(f"the revocation list of {name_of(issuer)} is out of date: put a new one in crl/")


def parse_chain(der: bytes) -> list[x509.Certificate]:
    """Of an endpoint: the server's certificate, then those of its authorities (Part 6, 6.2.6). Raises Permanent."""
    chain: list[x509.Certificate] = []
    rest = der
    try:
        while rest and len(chain) < CHAIN_MAX:
            size = _der_size(rest)
            chain.append(_parsed(x509.load_der_x509_certificate(rest[:size])))
            rest = rest[size:]
    except _MALFORMED as error:
        why = "".join(sign for sign in str(error) if sign.isprintable())
        raise Permanent(f"the server's certificate is damaged ({why}): give the server another one") from error
    if not chain:
        raise Permanent("the server shows no certificate: give it one")
    return chain


def load(data: bytes) -> list[x509.Certificate]:
    """A file's certificates, PEM or DER. Raises ValueError."""
    try:
        if b"-----BEGIN" in data:
            return [_parsed(one) for one in x509.load_pem_x509_certificates(data)]
        return [_parsed(x509.load_der_x509_certificate(data))]
    except _MALFORMED as error:
        raise ValueError(str(error)) from error


def load_crl(data: bytes) -> x509.CertificateRevocationList:
    """A file's revocation list, PEM or DER. Raises ValueError."""
    try:
        crl = x509.load_pem_x509_crl(data) if b"-----BEGIN" in data else x509.load_der_x509_crl(data)
        _ = crl.issuer, crl.next_update_utc, crl.signature_hash_algorithm, crl.extensions
        return crl
    except _MALFORMED as error:
        raise ValueError(str(error)) from error


def der(certificate: x509.Certificate) -> bytes:
    """Its bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-256, lower case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def name_of(certificate: x509.Certificate) -> str:
    """Its subject, for people: what a stranger wrote there cannot break a line."""
    text = certificate.subject.rfc4514_string() or "without a name"
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:120]


def application_uris(certificate: x509.Certificate) -> list[str]:
    """Of its SubjectAltName."""
    names = extension(certificate, x509.SubjectAlternativeName)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    """None where it has none."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def day(when: datetime.datetime) -> str:
    """For people."""
    return f"{when:%Y-%m-%d}"


def _parsed(certificate: x509.Certificate) -> x509.Certificate:
    """The library reads most of it when it is asked for: here, so that no later step can fail by it."""
    _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    _ = certificate.signature_hash_algorithm, certificate.signature_algorithm_parameters
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.serial_number
    return certificate


def _path(sent: Sequence[x509.Certificate], known: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The certificate, its issuer, that one's issuer, ... as far as they are known; each signature holds."""
    path = [sent[0]]
    while len(path) < CHAIN_MAX and path[-1].issuer != path[-1].subject:
        above = next(_issuers(path, [*known, *sent[1:]]), None)
        if above is None:
            break
        path.append(above)
    return path


def _issuers(path: Sequence[x509.Certificate], candidates: Sequence[x509.Certificate]) -> Iterator[x509.Certificate]:
    for issuer in candidates:
        if issuer.subject != path[-1].issuer or issuer in path:
            continue
        basic, usage = extension(issuer, x509.BasicConstraints), extension(issuer, x509.KeyUsage)
        too_long = basic is not None and basic.path_length is not None and basic.path_length < len(path) - 1
        if basic is None or not basic.ca or too_long or (usage and not usage.key_cert_sign):
            continue
        try:
            path[-1].verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        yield issuer


def _is_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    return crl.issuer == issuer.subject and isinstance(key, rsa.RSAPublicKey) and crl.is_signature_valid(key)


def _host_names(certificate: x509.Certificate) -> set[str]:
    names = extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return set()
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return {name.lower() for name in names.get_values_for_type(x509.DNSName)} | addresses


def _normal_host(host: str) -> str:
    """An IP address in its usual form, a name in lower case."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()


def _der_size(data: bytes) -> int:
    """Of the first element (X.690, 8.1.3)."""
    length = data[1]
    if length < 0x80:
        return 2 + length
    more = length & 0x7F
    return 2 + more + int.from_bytes(data[2 : 2 + more], "big")
