"""What commands share: the data folder that they look into."""

from __future__ import annotations

from pathlib import Path

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
