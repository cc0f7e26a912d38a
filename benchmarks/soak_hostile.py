"""200,000 mutated PublishResponses against the decoder: tests/unit/connectors/test_opcua_hostile.py for longer.

    python -m benchmarks.soak_hostile [--mutations 200000]

Prints what the test says, with the seed where something is found; the exit code is the test's.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parents[1] / "tests" / "unit" / "connectors" / "test_opcua_hostile.py"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=200_000)
    parser.add_argument("--seconds", type=int, default=0, help="taken for the sake of `make soak`; mutations decide")
    os.environ["HOSTILE_MUTATIONS"] = str(parser.parse_args().mutations)
    return int(pytest.main([str(TEST), "-q", "-k", "mutations"]))


if __name__ == "__main__":
    sys.exit(main())
