"""The source contract against open62541, unsecured and secured: tests/contract/soak_sources.py.

    python -m benchmarks.soak_opcua_contract

Compiles the server the first time (one to two minutes; cargo, cmake, a C compiler). Prints what pytest says; the exit
code is pytest's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[1] / "tests" / "contract" / "soak_sources.py"


def main() -> int:
    """The exit code."""
    os.environ["CI"] = "true"  # a server that is missing fails
    return int(pytest.main([str(SUITE), "-q"]))


if __name__ == "__main__":
    sys.exit(main())
