"""The sweep of harm, small: docs/reliability.md has the whole one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).parent.parent / "benchmarks" / "reliability.py"


@pytest.mark.slow
def test_what_harm_does_is_nothing_or_is_said():
    size = ["--flips", "20", "--cuts", "8", "--kills", "24", "--pairs", "3", "--every", "11"]
    command = [sys.executable, "-W", "ignore", str(SWEEP), *size]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
