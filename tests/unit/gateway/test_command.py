"""What commands share: the data folder that they look into."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from gateway.cli import main

FILE = """
gateway: {{data_dir: {folder}}}
devices: {{meter7: {{modbus: tcp://10.0.0.7/1, tags: {{flow: input 0 int16}}}}}}
send: {{all: {{from: "*", to: plant}}}}
to: {{plant: {{mqtt: mqtt://a}}}}
"""
COMMANDS = (["buffer", "ls"], ["buffer", "verify"], ["buffer", "cat", "all"], ["gaps"], ["audit"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_data_folder_is_no_answer(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing at all, or `ok`, would be taken for one: code 1, and what to do."""
    assert main([*command, "--data-dir", str(tmp_path / "none")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and f"no data folder {tmp_path / 'none'}: name the configuration file" in said.err
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE.format(folder=tmp_path / "later"))
    assert main([*command, str(file)]) == 1
    assert f"no gateway has run with {file} yet" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS[:3], ids=" ".join)
def test_buffers_that_are_not_for_us(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be seen is neither nothing nor `ok`."""

    def refused(path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    monkeypatch.setattr(Path, "is_dir", refused)
    assert main([*command, "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "cannot be read: do it as the gateway's user" in said.err


def test_the_folder_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that looks into a data folder takes the configuration file."""
    file, folder = tmp_path / "gateway.yaml", tmp_path / "data"
    file.write_text(FILE.format(folder=folder))
    (folder / "lanes" / "all").mkdir(parents=True)
    assert main(["buffer", "ls", str(file)]) == 0
    assert capsys.readouterr().out.startswith("all: 0 rows pending")
    for command in COMMANDS[2:]:
        assert main([*command, str(file)]) == 0
        assert capsys.readouterr() == ("", "")
