"""The folders of `data_dir/pki`: what the gateway knows of other people's certificates, a file each, PEM or DER.

    trusted/    servers' certificates that an operator has approved
    issuers/    authorities: whatever server they signed for is trusted
    crl/        their revocation lists
    pending/    certificates that were shown and that nobody has decided about
    rejected/   certificates that are refused whatever else is said of them
    own/        the gateway's certificate and key (`opcua_own`)

Files that the gateway writes are called DEVICE.SHA256.der: which device saw the certificate is told by its name. The
folders are read at each connect; `stamp` says whether something has changed since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from connectors.opcua_certificates import TrustList, load, load_crl, name_of, thumbprint
from pipelines.errors import GatewayError

TRUSTED: Final = "trusted"
ISSUERS: Final = "issuers"
CRL: Final = "crl"
PENDING: Final = "pending"
REJECTED: Final = "rejected"
OWN: Final = "own"
FOLDERS: Final = (TRUSTED, ISSUERS, CRL, PENDING, REJECTED)
_DECISIVE: Final = (TRUSTED, ISSUERS, CRL, REJECTED, OWN)
_SUFFIXES: Final = (".der", ".pem", ".crt", ".cer", ".crl")

PENDING_MAX: Final = 4
"""For each device, the newest: who shows a new certificate each time cannot fill the disk."""


@dataclass(frozen=True)
class Kept:
    """A certificate in one of the folders."""

    path: Path
    state: str
    """The folder's name."""
    certificate: x509.Certificate

    @property
    def device(self) -> str:
        """Which one saw it; empty where a person put the file there."""
        device, _, mark = self.path.stem.rpartition(".")
        return device if mark == thumbprint(self.certificate) else ""


def folder_of(data_dir: Path) -> Path:
    """Where all of it is."""
    return data_dir / "pki"


def make_folders(pki: Path) -> None:
    """Those that are missing. Raises OSError."""
    for name in FOLDERS:
        (pki / name).mkdir(parents=True, exist_ok=True)


def trust_list(pki: Path) -> TrustList:
    """Reads the folders. Raises OSError."""
    unreadable: list[str] = []
    kept = list(certificates(pki, unreadable))
    return TrustList(
        approved=frozenset(thumbprint(one.certificate) for one in kept if one.state == TRUSTED),
        rejected=frozenset(thumbprint(one.certificate) for one in kept if one.state == REJECTED),
        issuers=[one.certificate for one in kept if one.state == ISSUERS],
        crls=list(_crls(pki, unreadable)),
        unreadable=unreadable,
    )


def certificates(
    pki: Path, unreadable: list[str], states: Sequence[str] = (TRUSTED, ISSUERS, PENDING, REJECTED)
) -> Iterator[Kept]:
    """All of them; a line in `unreadable` for each file that is none. Raises OSError."""
    for state in states:
        for path in _files(pki / state):
            try:
                for certificate in load(path.read_bytes()):
                    yield Kept(path, state, certificate)
            except FileNotFoundError:
                continue  # moved meanwhile
            except ValueError as error:
                unreadable.append(f"{path} is not a certificate in PEM or DER form: {error}")


def stamp(pki: Path) -> tuple[int, ...]:
    """Changes when a file is put into the folders that decide, or taken away. Cheap enough for the event loop."""
    return tuple(_changed_ns(pki / name) for name in _DECISIVE)


def keep_pending(pki: Path, device: str, der: bytes) -> Path:
    """Waits for an operator; the file's path. Raises OSError."""
    folder = pki / PENDING
    path = folder / f"{device}.{hashlib.sha256(der).hexdigest()}.der"
    if not path.exists():
        others = [file for file in folder.glob("*.der") if file.stem.rpartition(".")[0] == device]
        for outdated in sorted(others, key=_changed_ns)[: -PENDING_MAX + 1 or None]:
            outdated.unlink(missing_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(der)
        fresh.rename(path)
    return path


def move(pki: Path, which: str, state: str) -> list[Kept]:
    """Moves every file of one certificate to `state`, whatever device saw it; the files as they are now.

    `which`: a device's name, for what waits of it (of any state where nothing waits), or the first hex digits of a
    thumbprint. Raises GatewayError where that is none or several certificates, OSError.
    """
    kept = list(certificates(pki, []))
    found = _found(kept, which)
    marks = {thumbprint(one.certificate) for one in found}
    if not found:
        raise GatewayError(f"no certificate is known as {which!r}: `gateway trust ls` shows those there are")
    if len(marks) > 1:
        shown = "; ".join(f"{thumbprint(one.certificate)} {name_of(one.certificate)}" for one in found)
        raise GatewayError(f"{which!r} stands for {len(marks)} certificates, say which by its thumbprint: {shown}")
    (pki / state).mkdir(parents=True, exist_ok=True)
    return [_moved(one, pki / state, state) for one in kept if thumbprint(one.certificate) in marks]


def _found(kept: Sequence[Kept], which: str) -> list[Kept]:
    of_device = [one for one in kept if one.device == which]
    waiting = [one for one in of_device if one.state == PENDING]
    mark = which.replace(":", "").replace(" ", "").lower()
    return waiting or of_device or [one for one in kept if mark and thumbprint(one.certificate).startswith(mark)]


def _moved(one: Kept, folder: Path, state: str) -> Kept:
    path = folder / one.path.name
    one.path.rename(path)
    return Kept(path, state, one.certificate)


def _crls(pki: Path, unreadable: list[str]) -> Iterator[x509.CertificateRevocationList]:
    for path in _files(pki / CRL):
        try:
            yield load_crl(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            unreadable.append(f"{path} is not a revocation list in PEM or DER form: {error}")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
