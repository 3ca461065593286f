# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.fp8_accuracy` asks and tells; `tests/engine/test_gpu_backends.py` compares its
engine with one that stores e4m3.
"""

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import fp8_accuracy
from benchmarks.harness.rounded_entries import rounded


def test_entries_become_the_nearest_number_there_is() -> None:
    entries = torch.tensor([0.0, 1.06, 1.07, -17.1, 449.0, -1e9, 2.0**-10])
    nearest = torch.tensor([0.0, 1.0, 1.125, -18.0, 448.0, -448.0, 0.0])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(rounded(entries.to(dtype)), nearest.to(dtype))


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    plain, coarse = [1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]
    row = fp8_accuracy.row("single", 64, plain, coarse)
    assert (row["bfloat16, %"], row["e4m3, %"], row["prompts that differ"]) == ("62.5", "50.0", 2)
    assert row["difference"].startswith("-12.5 (")


@pytest.mark.engine
@pytest.mark.slow
def test_both_sides_answer(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(fp8_accuracy.main)
    flags = ["--prompts", "2", "--tokens", "256", "--budget", "0", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, flags, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "fp8_accuracy.json").read_text())["rows"]
    assert {row["task"] for row in rows} == set(fp8_accuracy.TASKS)
    assert all(row["bfloat16, %"] == "100.0" for row in rows if row["task"] == "single")
