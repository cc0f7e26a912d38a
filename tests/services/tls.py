"""Throw-away certificates for one test run: a CA, a server's and a client's, as PEM files."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NAMES = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


@dataclass(frozen=True)
class Certificates:
    """PEM files in one folder. server: for localhost and 127.0.0.1; client: common name `client`; both by the CA.

    `*_bundle` holds the PKCS8 key and the certificate in one file, as Kafka wants them.
    """

    ca: Path
    server: Path
    server_key: Path
    server_bundle: Path
    client: Path
    client_key: Path
    client_bundle: Path


def make_certificates(folder: Path) -> Certificates:
    """Makes a new CA and both certificates, valid from an hour ago for one day."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name("test CA")
    ca = _builder(ca_name, ca_name, ca_key.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_key_usage(ca=True), critical=True)
    (folder / "ca.pem").write_bytes(_pem(ca.sign(ca_key, hashes.SHA256())))
    for role, purpose in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
        _issue(folder, role, purpose, ca_name, ca_key)
    names = ("ca", "server", "server_key", "server_bundle", "client", "client_key", "client_bundle")
    return Certificates(**{name: folder / f"{name}.pem" for name in names})


def _issue(
    folder: Path, role: str, purpose: x509.ObjectIdentifier, ca_name: x509.Name, ca_key: ec.EllipticCurvePrivateKey
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    common_name = "localhost" if role == "server" else role
    builder = _builder(_name(common_name), ca_name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(_NAMES), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(authority, critical=False)
    certificate = _pem(builder.sign(ca_key, hashes.SHA256()))
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{role}.pem").write_bytes(certificate)
    for file, content in ((f"{role}_key.pem", key_pem), (f"{role}_bundle.pem", key_pem + certificate)):
        (folder / file).write_bytes(content)
        (folder / file).chmod(0o600)


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
