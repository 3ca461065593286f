# SPDX-License-Identifier: Apache-2.0
"""Pairs, bars and pages, and one benchmark on real engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.report import Bar, Pairs, Report, table
from benchmarks.summary import page

ROOT = Path(__file__).parents[2]


def test_a_ratio_is_the_median_of_the_pairs_and_not_that_of_the_medians():
    """Two of three pairs say that ours is twice as slow, though both medians are alike."""
    pairs = Pairs((2.0, 4.0, 10.0), (1.0, 2.0, 40.0))
    assert pairs.ratios == (2.0, 2.0, 0.25)
    assert pairs.ratio == 2.0
    assert pairs.quartiles == (1.125, 2.0)


def test_one_pair_has_no_spread():
    assert Pairs((3.0,), (2.0,)).quartiles == (1.5, 1.5)


@pytest.mark.parametrize("measurements", [((), ()), ((1.0,), ()), ((1.0,), (1.0, 2.0))])
def test_what_is_not_in_pairs_is_refused(measurements):
    with pytest.raises(ValueError, match="not pairs"):
        Pairs(*measurements)


@pytest.mark.parametrize(
    ("value", "at_most", "holds", "shown"),
    [
        (1.0, True, True, "holds"),
        (1.2, True, False, "**falls short**"),
        (1.2, False, True, "holds"),
        (None, True, None, "not measured"),
    ],
)
def test_a_bar_says_whether_it_holds(value, at_most, holds, shown):
    bar = Bar("of this", value, 1.05, at_most)
    assert bar.holds is holds
    assert bar.cells[0] == "of this" and bar.cells[3] == shown
    assert bar.cells[2] == ("" if value is None else f"{value:.4g}")


def test_a_table_leaves_cells_empty_that_have_no_value():
    lines = table(("a", "b"), [(1, None), (12345.678, "x")]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| 1 |  |", "| 12,346 | x |"]


def test_a_report_can_be_read_by_people_and_by_the_summary(tmp_path):
    bars = [Bar("speed", 2.0, 3.0, at_most=False), Bar("cost", None, 1.0, at_most=True)]
    rows = [{"side": "headkv", "ms": 1.5}, {"side": "stock", "ms": 3.0}]
    report = Report("it", "How fast is it?", "python -m it", rows, bars, ["A note."], ["it.png"])
    report.write(tmp_path)
    text = (tmp_path / "it.md").read_text()
    parts = ["# How fast is it?", "python -m it", "| headkv | 1.5 |", "A note.", "(it.png)"]
    assert all(part in text for part in parts)
    summary = page([json.loads((tmp_path / "it.json").read_text())])
    assert "| [it](it.md) | speed | at least 3 | 2 | **falls short** |" in summary
    assert "| [it](it.md) | cost | at most 1 |  | not measured |" in summary


@pytest.mark.slow
@pytest.mark.engine
def test_decode_steps_of_three_engines_are_measured_in_turns(tmp_path):
    command = [sys.executable, "-m", "benchmarks.decode_step", "--quick", "--rounds", "2"]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, check=True, timeout=400)
    found = json.loads((tmp_path / "decode_step.json").read_text())
    (row,) = found["rows"]
    assert all(row[f"{name}, ms"] > 0 for name in ("headkv", "twin", "stock"))
    assert found["machine"]["vllm"].startswith("0.")
    assert (tmp_path / "decode_step.png").stat().st_size > 1000
