"""`kill -9` at 50 random moments under 5,000 values/s: tests/e2e/test_kill.py with more rounds than CI has time for.

    python -m benchmarks.soak_kill [--rounds 50]

Prints the seed and what the test says; the exit code is the test's.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parents[1] / "tests" / "e2e" / "test_kill.py"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=0, help="taken for the sake of `make soak`; rounds decide")
    os.environ["E2E_KILLS"] = str(parser.parse_args().rounds)
    return int(pytest.main([str(TEST), "-q", "-s"]))


if __name__ == "__main__":
    sys.exit(main())
