"""`gateway trust`: what it prints, changes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from connectors.opcua_pki import PENDING, REJECTED, TRUSTED, folder_of, keep_pending, make_folders
from gateway.cli import main
from tests.services.opcua_certificates import Pair, make

PRESS, OLD = make("press 4"), make("old", days=(-9, -1))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two certificates wait."""
    make_folders(folder_of(tmp_path))
    keep_pending(folder_of(tmp_path), "press4", PRESS.der)
    keep_pending(folder_of(tmp_path), "mill", OLD.der)
    return tmp_path


def where(data_dir: Path, pair: Pair) -> list[str]:
    """The folders in which it is."""
    files = folder_of(data_dir).glob(f"*/*{pair.thumbprint}.der")
    return [file.parent.name for file in files]


def run(*words: str, data_dir: Path) -> int:
    return main(["trust", *words, "--data-dir", str(data_dir)])


def test_a_list_shows_what_is_decided_by(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """State, device, subject, ApplicationUri, end, thumbprints, file; the same as JSON."""
    assert run("ls", data_dir=data_dir) == 0
    shown = capsys.readouterr().out
    assert "pending press4: CN=press 4, urn:mec:tests:server, valid until 20" in shown
    assert "pending mill: CN=old, urn:mec:tests:server, expired 20" in shown
    assert f"  sha256 {PRESS.thumbprint}\n" in shown
    assert run("ls", "--json", data_dir=data_dir) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["state"], line["device"], line["sha256"]) for line in lines} == {
        (PENDING, "press4", PRESS.thumbprint),
        (PENDING, "mill", OLD.thumbprint),
    }


def test_approve_and_revoke(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By device and by thumbprint; what it did is said."""
    assert run("approve", "press4", data_dir=data_dir) == 0
    assert capsys.readouterr().out.startswith("trusted of press4: CN=press 4, valid until")
    assert where(data_dir, PRESS) == [TRUSTED]
    assert run("revoke", PRESS.thumbprint[:10], data_dir=data_dir) == 0
    assert (where(data_dir, PRESS), where(data_dir, OLD)) == ([REJECTED], [PENDING])


def test_the_file_names_the_data_folder(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As with `gateway gaps`."""
    file = tmp_path / "gateway.yaml"
    file.write_text(
        f"""
gateway: {{id: g, data_dir: {data_dir}}}
devices: {{press4: {{opcua: "opc.tcp://h:1", tags: {{t: i=1}}}}}}
send: {{all: {{from: "*", to: b}}}}
to: {{b: {{mqtt: "mqtts://h"}}}}
"""
    )
    assert main(["trust", "approve", "press4", str(file)]) == 0
    assert where(data_dir, PRESS) == [TRUSTED]
    assert main(["trust", "ls", str(file)]) == 0
    assert "own: CN=mec-gateway@" in capsys.readouterr().out  # to be had before a machine is there


def test_what_cannot_be_done_is_one_line(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown, ambiguous, nothing to use: code 1, nothing changed."""
    for words, line in (
        (("approve", "press5"), "no certificate is known as 'press5': `gateway trust ls`"),
        (("renew", "--use"), "there is no next certificate: `gateway trust renew` makes it"),
    ):
        assert run(*words, data_dir=data_dir) == 1
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1
    assert where(data_dir, PRESS) == [PENDING]


def test_renewal(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next one waits beside the old one until it is used; `ls` shows both."""
    assert run("renew", data_dir=data_dir) == 0
    assert "own.next/certificate.der: valid until" in capsys.readouterr().out
    own = folder_of(data_dir) / "own" / "certificate.der"
    before = own.read_bytes()
    assert run("renew", "--use", data_dir=data_dir) == 0
    assert own.read_bytes() != before
    assert run("ls", data_dir=data_dir) == 0
    shown = capsys.readouterr().out
    assert "own: CN=mec-gateway@" in shown and "own.next: CN=mec-gateway@" in shown
    assert run("renew", "--use", data_dir=data_dir) == 0
    assert own.read_bytes() == before
