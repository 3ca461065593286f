# SPDX-License-Identifier: Apache-2.0
"""What is compared with kvpress is compared at equal kept tokens."""

from math import floor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kvpress_answers import read_answers
from benchmarks.kvpress_cells import (
    BLOCK_SIZE,
    WINDOW,
    Ours,
    Theirs,
    betas,
    cells,
    compression_ratio,
    even_length,
    kept_tokens,
)
from benchmarks.kvpress_report import Side, compare
from headkv_vllm.needle.paths import checkpoint_path
from headkv_vllm.scores.identity import identify_checkpoint

NEEDLE = identify_checkpoint(checkpoint_path())


@given(st.data())
def test_the_ratio_keeps_the_number_asked_for(data):
    num_tokens = data.draw(st.integers(1, 200_000))
    num_kept = data.draw(st.integers(1, num_tokens))
    ratio = compression_ratio(num_kept, num_tokens)
    assert 0 <= ratio < 1
    assert floor(num_tokens * (1 - ratio)) == num_kept  # as ScorerPress counts
    assert round(num_tokens * (1 - ratio)) == num_kept  # as PyramidKVPress does


def test_a_ratio_by_hand():
    assert compression_ratio(64, 1024) == 0.9375
    assert compression_ratio(1024, 1024) == 0
    # 1 - 59 / 1000 leaves not quite 59 of 1000.
    assert floor(1000 * (1 - (1 - 59 / 1000))) == 58
    assert floor(1000 * (1 - compression_ratio(59, 1000))) == 59


@pytest.mark.parametrize("policy", ["uniform", "adakv", "pyramidkv", "streaming"])
@pytest.mark.parametrize(
    ("budget", "num_tokens", "num_kept"),
    [
        (64, 1024, 3 * 16 + 16),
        (128, 1024, 7 * 16 + 16),
        (64, 1032, 3 * 16 + 8),
        (0, 1024, 1024),
        (2000, 1024, 1024),
    ],
)
def test_kept_tokens_are_blocks_and_what_follows_them(policy, budget, num_tokens, num_kept):
    assert kept_tokens(Ours(policy, "avg", budget), num_tokens, NEEDLE) == num_kept


@given(st.integers(WINDOW + 1, 5000))
def test_an_even_length_leaves_the_window_after_whole_blocks(num_tokens):
    length = even_length(num_tokens)
    assert num_tokens <= length < num_tokens + BLOCK_SIZE
    assert length % BLOCK_SIZE == WINDOW


def test_only_a_pyramid_too_steep_for_kvpress_is_run_twice():
    assert betas("pyramidkv", 256) == [20]
    assert betas("pyramidkv", 160) == [20]
    assert betas("pyramidkv", 128) == [20, 16]
    assert betas("snapkv", 64) == [20]
    for num_kept in (64, 100, 128):
        assert num_kept / betas("pyramidkv", num_kept)[-1] >= WINDOW


def test_both_sides_of_a_cell_keep_as_many():
    grid = list(cells(["single", "two-hop"], 1024, [64, 256], NEEDLE))
    for cell in grid:
        assert cell.theirs.num_tokens == cell.num_tokens
        assert cell.theirs.num_kept == kept_tokens(cell.ours, cell.num_tokens, NEEDLE)
    compared = {(cell.ours, cell.theirs.press, cell.num_tokens) for cell in grid}
    assert (Ours("uniform", "avg", 64), "snapkv", 1024) in compared
    assert (Ours("uniform", "avg", 64), "snapkv", 1032) in compared
    assert (Ours("adakv", "max", 256), "adakv", 1024) in compared
    assert len({(cell.task, cell.num_tokens, cell.ours, cell.theirs) for cell in grid}) == len(grid)


def test_a_difference_is_taken_prompt_by_prompt():
    (cell, *_) = cells(["single"], 1024, [64], NEEDLE)
    right, wrong = (1.0, 0.0) * 50, (0.0, 1.0) * 50
    texts = tuple("ab" * 50)
    line = compare(cell, 100, Side(right, right, texts, 64), Side(wrong, wrong, texts[::-1], 64))
    assert line.difference.mean == 0 and line.difference.low < 0 < line.difference.high
    assert line.intervals_overlap and line.agrees and line.same_answers == 0
    worse = Side((0.0,) * 100, wrong, texts, 64)
    line = compare(cell, 100, Side(right, right, texts, 64), worse)
    assert line.difference.mean == 0.5 and not line.agrees and not line.intervals_overlap
    assert line.same_answers == 1


def test_an_answer_that_was_cut_short_is_asked_again(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    assert read_answers(path) == {}
    whole = '{"run": "r", "id": "a", "ids": [1]}\n'
    path.write_text(whole + '{"run": "r", "id": "b", "i')
    assert read_answers(path) == {("r", "a"): {"run": "r", "id": "a", "ids": [1]}}
    assert path.read_text() == whole


def test_a_name_tells_what_is_not_the_usual():
    assert str(Ours("streaming", "max", 64)) == "streaming"
    assert str(Theirs("pyramidkv", 64, 1024, 8)) == "pyramidkv, beta 8"
    assert str(Theirs("pyramidkv", 64, 1024)) == "pyramidkv"
