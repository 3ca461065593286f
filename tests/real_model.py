# SPDX-License-Identifier: Apache-2.0
"""The real language model of scripts/real-model, for the tests that ask it."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "real-model"


def find_real_model() -> Path:
    """Its folder; it is made at the first call. Skips the test where it cannot be had."""
    made = subprocess.run([SCRIPT], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"there is no real model here: {made.stderr.strip().splitlines()[-1]}")
    return Path(made.stdout.strip())
