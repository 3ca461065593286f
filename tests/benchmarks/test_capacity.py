# SPDX-License-Identifier: Apache-2.0
"""Requests in decode and preemptions, as the benchmark counts and judges them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.capacity import Counts, Load, bars, row


def test_the_pool_holds_as_many_stock_requests_as_it_says():
    load = Load(prompt_tokens=4096, pool_requests=8)
    blocks_of_one = (4096 + 64) // 32
    assert load.num_blocks - 1 == 8 * blocks_of_one


@pytest.mark.parametrize(
    ("headkv", "stock", "expected"),
    [
        (Counts((1, 80, 3), 0, 1.0), Counts((8, 8), 5, 1.0), (True, True)),
        (Counts((1, 79, 3), 1, 1.0), Counts((8, 8), 5, 1.0), (False, False)),
        (Counts((80,), 0, 1.0), Counts((8,), 0, 1.0), (True, None)),
    ],
)
def test_bars_need_ten_times_as_many_and_a_stock_that_preempts(headkv, stock, expected):
    assert tuple(bar.holds for bar in bars(headkv, stock)) == expected


def test_a_row_has_the_most_and_the_mean_of_all_steps():
    cells = row("headkv", Counts((0, 2, 4, 2), 3, 1.5))
    assert cells["most in decode"] == 4
    assert cells["mean in decode"] == 2
    assert (cells["preemptions"], cells["steps"], cells["seconds"]) == (3, 4, 1.5)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compressed_requests_decode_together_where_stock_takes_turns(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.capacity", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=580, cwd=Path(__file__).parents[2])
    written = json.loads((tmp_path / "capacity.json").read_text())
    headkv, stock = written["rows"]
    assert (headkv["side"], stock["side"]) == ("headkv", "stock")
    assert headkv["most in decode"] > 2 * stock["most in decode"]
    assert stock["preemptions"] > 0 == headkv["preemptions"]
    assert (tmp_path / "capacity.png").stat().st_size
