# SPDX-License-Identifier: Apache-2.0
"""The demonstration, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.engine
def test_demo_answers_all_questions_and_gives_blocks_back() -> None:
    demo = subprocess.run(
        [Path(sys.executable).parent / "headkv", "demo"],
        capture_output=True,
        text=True,
        timeout=280,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "5 of 5 answers are right." in demo.stdout
    for before, after, stock in _block_counts(demo.stdout):
        assert after < stock < before


def _block_counts(output: str) -> list[tuple[int, int, int]]:
    rows = [line.split("│") for line in output.splitlines() if line.startswith("│")]
    counts = [[cell.strip() for cell in row[-4:-1]] for row in rows]
    found = [tuple(map(int, row)) for row in counts if all(cell.isdigit() for cell in row)]
    assert len(found) == 5, output
    return found  # type: ignore[return-value]
