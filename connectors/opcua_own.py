"""The gateway's own certificate: made at first use, kept, and never exchanged while the machines know the old one.

A server trusts a client by the certificate's thumbprint, so a new certificate is a stranger to every server, whatever
its key. Therefore it lives for years, `opcua_expiry` gives the alarm before its end, and `gateway trust renew` lays the
next one beside it (`own.next/`), to be accepted at the servers while the old one is in use; `--use` exchanges the two.
Only one that has expired, which no server takes any more, is renewed by itself.

`own/certificate.der`, `own/key.pem`: 2048 bits, which every current policy and every PLC takes; ApplicationUri, host
name and addresses in the SubjectAltName (Part 6, 6.2.2).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from connectors.opcua_certificates import application_uris, day, der
from connectors.opcua_pki import OWN
from pipelines.errors import Permanent
from pipelines.files import RealFiles, alone

NEXT: Final = "own.next"
ASIDE: Final = "own.aside"
YEARS: Final = 5
CERTIFICATE: Final = "certificate.der"
KEY: Final = "key.pem"


@dataclass(frozen=True)
class OwnPair:
    """Certificate and key that belong together."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey
    path: Path
    """The certificate's file."""
    note: str = ""
    """One line where something was done that an operator has to know."""

    @property
    def application_uri(self) -> str:
        """What the client has to call itself."""
        return next(iter(application_uris(self.certificate)), default_uri())


def default_uri() -> str:
    """Of a gateway without a certificate."""
    return f"urn:{socket.gethostname()}:mec-gateway"


def own_pair(pki: Path) -> OwnPair:
    """The pair in use, made where there is none. Waits for the disk. Raises Permanent, OSError."""
    with _making(pki):
        own, aside = pki / OWN, pki / ASIDE
        if not own.exists() and aside.exists():  # the power failed in `use_next`
            aside.rename(own)
        if not own.exists():
            _make(pki, OWN)
        pair = _read(own)
        if not _ended(pair):
            return pair
        _make_next(pki)
        use_next(pki)
        ended, fresh = day(pair.certificate.not_valid_after_utc), _read(own)
        note = f"the gateway's own certificate expired on {ended}: {fresh.path} is used now, accept it at the servers"
        return OwnPair(fresh.certificate, fresh.key, fresh.path, note)


def next_pair(pki: Path, fresh: bool) -> OwnPair | None:
    """The one that waits beside; None where there is none and none is to be made. Raises Permanent, OSError."""
    with _making(pki):
        if fresh:
            _make_next(pki)
        return _read(pki / NEXT) if (pki / NEXT).exists() else None


def use_next(pki: Path) -> None:
    """Exchanges the pair in use and the one beside it; a second time exchanges them back. Raises OSError."""
    aside = pki / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    (pki / OWN).rename(aside)
    (pki / NEXT).rename(pki / OWN)
    aside.rename(pki / NEXT)


@contextmanager
def _making(pki: Path) -> Iterator[None]:
    """All machines share one pair and connect at once, in several processes too."""
    pki.mkdir(parents=True, exist_ok=True)
    with alone(pki):
        yield


def _make_next(pki: Path) -> None:
    """Where there is none that can be used."""
    if (pki / NEXT).exists() and _ended(_read(pki / NEXT)):
        shutil.rmtree(pki / NEXT)
    if not (pki / NEXT).exists():
        _make(pki, NEXT)


def _ended(pair: OwnPair) -> bool:
    return pair.certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC)


def _read(folder: Path) -> OwnPair:
    path = folder / CERTIFICATE
    try:
        certificate = x509.load_der_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
    except FileNotFoundError as error:
        raise _damaged(folder, f"{error.filename} is missing") from error
    except (ValueError, TypeError) as error:
        raise _damaged(folder, str(error)) from error
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise _damaged(folder, "the key does not belong to the certificate")
    return OwnPair(certificate, key, path)


def _damaged(folder: Path, why: str) -> Permanent:
    return Permanent(
        f"the gateway's own key or certificate in {folder} is damaged ({why}): put it back from a backup, or remove "
        f"{folder} and accept the new certificate at the servers"
    )


def _make(pki: Path, name: str) -> None:
    """The pair comes into being by a rename, so that a power cut leaves both or none."""
    fresh = pki / f"{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True, mode=0o700)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(fresh / KEY, secret, 0o600)
    _write(fresh / CERTIFICATE, der(_certificate(key)), 0o644)
    fresh.rename(pki / name)
    RealFiles().sync_folder(pki)


def _write(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    """Self-signed, as Part 6, 6.2.2 wants an application's certificate; valid from yesterday on, for slow clocks."""
    now = datetime.datetime.now(datetime.UTC)
    host = socket.gethostname()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mec-gateway@{host}"[:64])])
    known = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), True)
    no_usage = dict.fromkeys(("key_agreement", "crl_sign", "encipher_only", "decipher_only"), False)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(known, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # Its own issuer: what verifies it wants to see that it may sign certificates (Part 6, table 36).
        .add_extension(x509.KeyUsage(key_cert_sign=True, **usage, **no_usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*_alternative_names(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _alternative_names(host: str) -> Iterator[x509.GeneralName]:
    yield x509.UniformResourceIdentifier(default_uri())
    yield x509.DNSName(host)
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:  # a host that does not know its own name
        found = set()
    for address in sorted(found):
        yield x509.IPAddress(ipaddress.ip_address(address))
