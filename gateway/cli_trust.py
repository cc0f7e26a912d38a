"""`gateway trust`: which OPC UA certificates are known, and what an operator decides about them. Also while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.command import DATA_DIR, AnyFile, DataDir, complain, data_folder, load_file

if TYPE_CHECKING:
    from cryptography import x509

trust = typer.Typer(help="Certificates of OPC UA servers, and the gateway's own.", no_args_is_help=True)
WHICH = Annotated[
    str, typer.Argument(help="A device's name, or the first digits of a SHA-256 thumbprint.", show_default=False)
]


@trust.command("ls")
def trust_ls(
    file: AnyFile = None,
    data_dir: DataDir = DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON line for each.")] = False,
) -> None:
    """List the certificates: state, device that saw it, end, thumbprints, subject, ApplicationUri."""
    import json

    from connectors.opcua_settings import OpcUaDevice

    pki, devices = _pki(file, data_dir), load_file(file)[0].devices.values() if file else ()
    if any(device.secured for device in devices if isinstance(device, OpcUaDevice)):
        _done(lambda: _make_own(pki))  # to be had before a machine is there
    for shown in _done(lambda: list(listing(pki))):
        if as_json:
            print(json.dumps(shown))
            continue
        uri = f", {shown['application_uri']}" if shown["application_uri"] else ""
        device = f" {shown['device']}" if shown["device"] else ""
        print(f"{shown['state']}{device}: {shown['subject']}{uri}, {shown['valid']}")
        print(f"  sha256 {shown['sha256']}")
        print(f"  sha1 {shown['sha1']}, {shown['path']}")


@trust.command("approve")
def trust_approve(which: WHICH, file: AnyFile = None, data_dir: DataDir = DATA_DIR) -> None:
    """Accept a certificate that waits (or was rejected). A running gateway notices within seconds."""
    from connectors.opcua_pki import TRUSTED

    _move(which, _pki(file, data_dir), TRUSTED, "trusted")


@trust.command("revoke")
def trust_revoke(which: WHICH, file: AnyFile = None, data_dir: DataDir = DATA_DIR) -> None:
    """Refuse a certificate from now on. A running gateway ends its connection within seconds."""
    from connectors.opcua_pki import REJECTED

    _move(which, _pki(file, data_dir), REJECTED, "rejected")


@trust.command("renew")
def trust_renew(
    file: AnyFile = None,
    data_dir: DataDir = DATA_DIR,
    use: Annotated[bool, typer.Option("--use", help="Use it from now on; once more goes back to the old one.")] = False,
) -> None:
    """Make the gateway's next certificate beside the one in use; with --use exchange the two."""
    from connectors.opcua_own import next_pair, own_pair, use_next

    pki = _pki(file, data_dir)
    if not use:
        _done(lambda: _make_own(pki))
        fresh = _done(lambda: next_pair(pki, fresh=True))
        assert fresh is not None
        print(f"{fresh.path}: {_valid(fresh.certificate)}")
        print("Have every server trust it, then `gateway trust renew --use`. Until then the old one is in use.")
        return
    if _done(lambda: next_pair(pki, fresh=False)) is None:
        complain("there is no next certificate: `gateway trust renew` makes it")
        raise typer.Exit(1)
    _done(lambda: use_next(pki))
    print(f"{_done(lambda: own_pair(pki)).path} is used from the next connection on")


def listing(pki: Path) -> Iterator[dict[str, Any]]:
    """What `ls` shows of each certificate; the gateway's own first. Raises GatewayError, OSError."""
    from connectors.opcua_own import NEXT, next_pair, own_pair
    from connectors.opcua_pki import OWN, certificates

    if (pki / OWN).exists():
        pair = own_pair(pki)
        yield _shown(OWN, "", pair.path, pair.certificate)
    if pair_beside := next_pair(pki, fresh=False):
        yield _shown(NEXT, "", pair_beside.path, pair_beside.certificate)
    unreadable: list[str] = []
    for kept in certificates(pki, unreadable):
        yield _shown(kept.state, kept.device, kept.path, kept.certificate)
    complain(*unreadable)


def _shown(state: str, device: str, path: Path, certificate: x509.Certificate) -> dict[str, Any]:
    from cryptography.hazmat.primitives import hashes

    from connectors.opcua_certificates import application_uris, name_of, thumbprint

    return {
        "state": state,
        "device": device,
        "subject": name_of(certificate),
        "application_uri": ", ".join(application_uris(certificate)),
        "valid": _valid(certificate),
        "sha256": thumbprint(certificate),
        "sha1": certificate.fingerprint(hashes.SHA1()).hex(),
        "path": str(path),
    }


def _valid(certificate: x509.Certificate) -> str:
    import datetime

    from connectors.opcua_certificates import day

    now, start, end = (
        datetime.datetime.now(datetime.UTC),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
    if end < now:
        return f"expired {day(end)}"
    return f"valid until {day(end)}" if start <= now else f"valid from {day(start)} until {day(end)}"


def _pki(file: Path | None, data_dir: Path) -> Path:
    from connectors.opcua_pki import folder_of

    return folder_of(load_file(file)[0].gateway.data_dir if file else data_folder(None, data_dir))


def _make_own(pki: Path) -> None:
    from connectors.opcua_own import own_pair
    from connectors.opcua_pki import make_folders

    make_folders(pki)
    own_pair(pki)


def _move(which: str, pki: Path, state: str, word: str) -> None:
    from connectors.opcua_certificates import name_of, thumbprint
    from connectors.opcua_pki import move

    for kept in _done(lambda: move(pki, which, state)):
        of = f" of {kept.device}" if kept.device else ""
        print(f"{word}{of}: {name_of(kept.certificate)}, {_valid(kept.certificate)}")
        print(f"  sha256 {thumbprint(kept.certificate)}")


def _done(work: Callable[[], Any]) -> Any:
    """Its result; a clear line and code 1 where it fails."""
    from pipelines.errors import GatewayError

    try:
        return work()
    except GatewayError as error:
        complain(str(error))
    except OSError as error:
        complain(f"{error.filename or 'the data folder'}: {(error.strerror or 'error').lower()}")
    raise typer.Exit(1)
