"""atheris, guided by coverage, on the decoder: `python -m tests.unit.connectors.fuzz_opcua RUNS`.

Begins with messages that are in order, made ones and those of real servers; ends with the first that breaks what
`hostile.Oracle` judges by.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["connectors"]):
    from connectors import opcua_event_decode, opcua_records, opcua_structures, opcua_variable  # noqa: F401

from tests.unit.connectors.hostile import Oracle
from tests.unit.connectors.opcua_messages import seeds, structures


def main(runs: int) -> None:
    """Never returns: the fuzzer ends the process, with 0 when nothing was found."""
    oracle = Oracle(structures())
    with tempfile.TemporaryDirectory(prefix="mec-fuzz-") as folder:
        for number, body in enumerate(seeds()):
            (Path(folder) / f"{number}").write_bytes(body)
        atheris.Setup(
            [sys.argv[0], f"-runs={runs}", "-max_len=6000", "-timeout=60", f"-artifact_prefix={folder}/", folder],
            lambda body: oracle.judge(body, thoroughly=False),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]))
