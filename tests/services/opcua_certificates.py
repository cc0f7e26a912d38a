"""Throw-away certificates of OPC UA applications and users: right ones, and wrong in every way that is looked for."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.services.ports import HOST

URI = "urn:mec:tests:server"
"""ApplicationUri of the servers that are given a certificate."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    @property
    def thumbprint(self) -> str:
        """SHA-256, hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: str | None = None) -> bytes:
        """The key, PKCS8."""
        how = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)

    def pkcs12(self, name: str) -> bytes:
        """Both, under that name and password."""
        how = serialization.BestAvailableEncryption(name.encode())
        return pkcs12.serialize_key_and_certificates(name.encode(), self.key, self.certificate, None, how)

    def save(self, folder: Path, name: str, password: str | None = None) -> tuple[Path, Path]:
        """<name>.der and <name>.pem, the key; their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / f"{name}.der", folder / f"{name}.pem"
        certificate.write_bytes(self.der)
        key.write_bytes(self.key_pem(password))
        return certificate, key


@cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key for each number: they take long to make."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def make(
    name: str = "server",
    *,
    uri: str = URI,
    hosts: Sequence[str] = ("localhost", HOST),
    days: tuple[float, float] = (-1, 365),
    by: Pair | None = None,
    ca: bool = False,
    path_length: int | None = None,
    key: rsa.RSAPrivateKey | None = None,
    hashed: hashes.SHA256 | hashes.SHA384 | None = None,
    purpose: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
) -> Pair:
    """Valid from and until now + days; self-signed where `by` names no authority."""
    key = key or rsa_key(len(name) if ca else 0)
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(_usage(ca, by is None), critical=True)
    )
    if not ca:
        names = [x509.UniformResourceIdentifier(uri), *map(_host, hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return Pair(builder.sign((by.key if by else key), hashed or hashes.SHA256()), key)


def revocation_list(by: Pair, *revoked: Pair, days: float = 1) -> x509.CertificateRevocationList:
    """Of an authority; to be renewed in so many days."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(now - datetime.timedelta(days=30))
        .next_update(now + datetime.timedelta(days=days))
    )
    for pair in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(pair.certificate.serial_number).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(by.key, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(ca: bool, self_signed: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=not ca,
        data_encipherment=not ca,
        key_agreement=False,
        key_cert_sign=ca or self_signed,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
